"""Who may invoke: signed API calls and HTTP requests. Implements `ports.Access`; answers from memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from roost.functions.access import HttpAccess
from roost.model.errors import AccessDenied, Unauthenticated
from roost.model.function import FunctionSpec
from roost.model.signature import Keys, verify


class HttpRules(Protocol):
    """What a function's triggers say. Raises NotFound, AccessDenied."""

    def http_access(self, account: str, name: str, qualifier: str | None = None) -> HttpAccess: ...


class Gatekeeper:
    """Without configured keys every signed call passes as the default account."""

    def __init__(self, keys: Keys, rules: HttpRules, *, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._rules = rules
        self._clock = clock

    def check_http(self, account: str, spec: FunctionSpec, qualifier: str, authorization: str, method: str) -> bool:
        """Whether a bearer key was asked for, and given.

        Raises Unauthenticated without a right one, AccessDenied for a method that is not allowed.
        """
        access = self._rules.http_access(account, spec.name, qualifier)
        if method not in access.methods:
            raise AccessDenied(f"Function {spec.name} does not take {method} requests.", code="MethodNotAllowed")
        if access.keyed:
            scheme, _, key = authorization.partition(" ")
            if scheme.lower() != "bearer" or not access.admits(key.strip()):
                raise Unauthenticated(
                    f"Function {spec.name} needs 'Authorization: Bearer <key>'.", code="AuthenticationRequired"
                )
        return access.keyed

    def check_signed(self, method: str, path: str, query: str, headers: Mapping[str, str], body_sha256: str) -> str:
        """Raises Unauthenticated unless the ACS3 signature is right."""
        if not self._keys:
            return self._keys.default_account
        key = verify(
            method=method,
            path=path,
            query=query,
            headers=headers.items(),
            body_sha256=body_sha256 or None,
            lookup=self._keys.lookup,
            now=self._clock(),
        )
        return key.account
