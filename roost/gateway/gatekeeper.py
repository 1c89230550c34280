"""Who may invoke: signed API calls and HTTP requests. Implements `ports.Access`; answers from memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from roost.functions.access import HttpAccess
from roost.model.errors import AccessDenied, NotFound, RoostError, Unauthenticated
from roost.model.function import FunctionSpec
from roost.model.role import FUNCTION
from roost.tenants.identity import Identity
from roost.tenants.roles import INVOKE


class HttpRules(Protocol):
    """What a function's triggers say. Raises NotFound, AccessDenied."""

    def http_access(self, account: str, name: str, qualifier: str | None = None) -> HttpAccess: ...


class Requests(Protocol):
    """Counts the requests of accounts, while `metered`. Raises Throttled."""

    metered: bool

    def request(self, account: str) -> None: ...


class Gatekeeper:
    """Without keys every signed call passes as the default account's. A key of one account sees nothing of another's
    functions, whatever is wrong: as if there were none."""

    def __init__(self, identity: Identity, rules: HttpRules, requests: Requests) -> None:
        self._identity = identity
        self._rules = rules
        self._requests = requests

    def check_http(
        self, account: str, spec: FunctionSpec, qualifier: str, authorization: str, method: str, *, source: bytes
    ) -> bool:
        """Whether a bearer key was asked for, and given.

        Raises Unauthenticated without a right one, AccessDenied for a method that is not allowed, Throttled.
        """
        try:
            access = self._rules.http_access(account, spec.name, qualifier)
            if method not in access.methods:
                raise AccessDenied(f"Function {spec.name} does not take {method} requests.", code="MethodNotAllowed")
            if access.keyed:
                if not access.admits(_bearer(authorization)):
                    raise _locked(spec.name)
                if self._identity.watching:
                    self._check_source(authorization, source)
        except RoostError as error:
            raise self._judged(account, spec.name, authorization, error, source) from None
        if self._requests.metered:
            self._requests.request(account)
        return access.keyed

    def unresolved(self, account: str, name: str, authorization: str, error: RoostError, source: bytes) -> RoostError:
        """What a caller is told of a function that does not resolve: strangers don't learn which names there are."""
        judged = self._judged(account, name, authorization, error, source)
        if judged is not error or not self._identity.asked:
            return judged
        return error if self._identity.account_of(_bearer(authorization)) == account else _locked(name)

    def check_signed(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body_sha256: str,
        *,
        source: bytes,
        function: str,
    ) -> str:
        """Raises Unauthenticated unless the ACS3 signature is right; AccessDenied, Throttled."""
        caller = self._identity.signed(
            method=method,
            path=path,
            query=query,
            headers=headers.items(),
            body_sha256=body_sha256 or None,
            source=source.decode("ascii"),
            least=INVOKE,
            thing=FUNCTION + function,
        )
        return caller.account

    def _judged(self, account: str, name: str, authorization: str, error: RoostError, source: bytes) -> RoostError:
        """`error`, or that there is no such function for a key of another account."""
        if not self._identity.asked or not (given := _bearer(authorization)):
            return error
        owner = self._identity.account_of(given)
        if owner is None:
            if isinstance(error, Unauthenticated):
                self._identity.check_source(source.decode("ascii"))
                self._identity.failed(source.decode("ascii"), "bearer")
            return error
        if owner == account and isinstance(error, Unauthenticated):
            self._identity.withheld(given, source.decode("ascii"))
        if owner != account:
            return NotFound(f"There is no function {name[:80]!r}.", code="FunctionNotFound")
        return error

    def _check_source(self, authorization: str, source: bytes) -> None:
        """Raises Throttled for a key that might have been guessed, from where too many wrong ones came."""
        key = self._identity.keys.of_secret(_bearer(authorization))
        if key is None or not key.strong:
            self._identity.check_source(source.decode("ascii"))


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _locked(name: str) -> Unauthenticated:
    return Unauthenticated(f"Function {name} needs 'Authorization: Bearer <key>'.", code="AuthenticationRequired")
