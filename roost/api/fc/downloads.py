"""Links to packages that work for a while without a signature, as clients of GetFunctionCode expect."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from starlette.responses import FileResponse
from starlette.routing import Route

from roost.api.fc.call import PREFIX, Answer, Call, Endpoints
from roost.functions.packages import PackageStore
from roost.model.errors import AccessDenied

LINK_LIFETIME_S = 600


class Downloads:
    """`secret` signs the links; anyone who holds one may fetch that one package until it expires."""

    def __init__(self, packages: PackageStore, secret: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._packages = packages
        self._secret = secret
        self._clock = clock

    def url(self, call: Call, digest: str) -> str:
        expires = int(self._clock()) + LINK_LIFETIME_S
        return f"{call.base_url}{PREFIX}/packages/{digest}?expires={expires}&signature={self._sign(digest, expires)}"

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [endpoints.route("GET", "/packages/{digest}", self._fetch)]

    async def _fetch(self, call: Call) -> Answer:
        digest, expires = call.params["digest"], call.query.get("expires", "")
        valid = expires.isascii() and expires.isdigit() and len(expires) < 12 and int(expires) >= self._clock()
        if not valid or not hmac.compare_digest(
            call.query.get("signature", "").encode(), self._sign(digest, int(expires)).encode()
        ):
            raise AccessDenied("This link has expired or was changed; ask for the code again.")
        return FileResponse(self._packages.archive(digest), media_type="application/zip")

    def _sign(self, digest: str, expires: int) -> str:
        return hmac.new(self._secret, f"{digest}:{expires}".encode(), hashlib.sha256).hexdigest()
