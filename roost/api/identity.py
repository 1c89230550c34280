"""Who calls the console's routes: an ACS3 signature, or a key's secret as a bearer (for scrapers). Headers only."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from starlette.requests import Request

from roost.model.errors import Unauthenticated
from roost.model.signature import Keys, verify


class Identity:
    """Without configured keys everyone is the default account."""

    def __init__(self, keys: Keys, *, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock

    def account(self, request: Request) -> str:
        """The caller's account. Raises Unauthenticated."""
        if not self._keys:
            return self._keys.default_account
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._of_secret(secret.strip())
        key = verify(
            method=request.method,
            path=request.scope["raw_path"].decode("ascii", "replace"),
            query=request.scope["query_string"].decode("ascii", "replace"),
            headers=request.headers.items(),
            body_sha256=None,
            lookup=self._keys.lookup,
            now=self._clock(),
        )
        return key.account

    def _of_secret(self, secret: str) -> str:
        account = ""
        for key in self._keys.of_account(self._keys.default_account):
            if hmac.compare_digest(key.secret.encode(), secret.encode()):
                account = key.account
        if not account:
            raise Unauthenticated("This bearer key is not known here.")
        return account
