"""`/roost/objects`: the object store over HTTP, for the command line and for whoever has no other way to it.

GET    /roost/objects                            {"buckets": [name, ...]}
GET    /roost/objects/<bucket>?prefix&after&limit  {"objects": [{"key","size","etag","modified"}, ...], "nextAfter"}
PUT    /roost/objects/<bucket>/<key>             the body becomes the object, whole or not at all
GET    /roost/objects/<bucket>/<key>             its bytes
DELETE /roost/objects/<bucket>/<key>             204, also when there is none

The store is one, and the server's own account has it: for other accounts there is nothing here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from roost.api.fc.body import STALL_S, Body
from roost.api.fc.call import error_response
from roost.api.fc.render import iso
from roost.api.identity import signer_or_bearer
from roost.model.errors import InvalidArgument, NotFound, PayloadTooLarge, RoostError, Unauthenticated
from roost.model.objects import ObjectInfo
from roost.model.role import Role
from roost.objects.ports import PAGE, ObjectStore
from roost.tenants.identity import Identity
from roost.tenants.roles import needed

logger = logging.getLogger("roost.api.objects")
Handler = Callable[[Request], Awaitable[Response]]


class Objects:
    """Routes for the control plane's application. `most_bytes`: of one object that is put here."""

    def __init__(self, store: ObjectStore, identity: Identity, *, most_bytes: int) -> None:
        self._store = store
        self._identity = identity
        self._most_bytes = most_bytes

    def routes(self) -> list[Route]:
        one = "/roost/objects/{bucket}/{key:path}"
        return [
            self._route("GET", "/roost/objects", self._buckets),
            self._route("GET", "/roost/objects/{bucket}", self._list),
            self._route("PUT", one, self._put),
            self._route("GET", one, self._get),
            self._route("DELETE", one, self._remove),
        ]

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        least = needed(method, path)

        async def endpoint(request: Request) -> Response:
            id = str(uuid.uuid4())
            try:
                await self._admit(request, least)
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except RoostError as error:
                return error_response(error, id)
            except Exception:
                logger.exception("Request %s failed: %s %s", id, method, path)
                return error_response(RoostError("An internal error occurred; see the server's log."), id)

        return Route(path, endpoint, methods=[method])

    async def _admit(self, request: Request, least: Role) -> None:
        """Raises Unauthenticated, AccessDenied, NotFound, Throttled; the body is out of the way then."""
        try:
            if not signer_or_bearer(self._identity, request, least).operator:
                raise NotFound("There is no object store for this account.", code="NoSuchBucket")
        except RoostError:
            await Body(request).discard()
            raise

    async def _buckets(self, request: Request) -> Response:
        return JSONResponse({"buckets": await self._store.buckets()})

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        limit = _limit(query.get("limit", str(PAGE)))
        found: list[ObjectInfo] = []
        pages = self._store.list(request.path_params["bucket"], query.get("prefix", ""), query.get("after", ""))
        async with aclosing(pages) as listing:
            async for page in listing:
                found += page[: limit - len(found)]
                if len(found) == limit:
                    break
        more = found[-1].key if len(found) == limit else ""
        return JSONResponse({"objects": [_shown(info) for info in found], "nextAfter": more})

    async def _put(self, request: Request) -> Response:
        info = await self._store.put(request.path_params["bucket"], request.path_params["key"], self._body(request))
        return JSONResponse(_shown(info))

    async def _get(self, request: Request) -> Response:
        info, pieces = await self._store.get(request.path_params["bucket"], request.path_params["key"])
        headers = {"content-length": str(info.size), "etag": f'"{info.etag}"'}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    async def _remove(self, request: Request) -> Response:
        await self._store.remove(request.path_params["bucket"], request.path_params["key"])
        return Response(status_code=204)

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """Within its limit, without stalls, and as it was signed, or an error before the object gets its name."""
        claimed = request.headers.get("x-acs-content-sha256", "")
        digest, size = hashlib.sha256(), 0
        pieces = request.stream()
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise InvalidArgument(f"The body stopped for more than {STALL_S:g} seconds.") from None
            if piece is None:
                break
            size += len(piece)
            if size > self._most_bytes:
                raise PayloadTooLarge(f"An object that is put here has at most {self._most_bytes} bytes.")
            digest.update(piece)
            if piece:
                yield piece
        if claimed and not hmac.compare_digest(claimed, digest.hexdigest()):
            raise Unauthenticated("x-acs-content-sha256 is not the digest of the body that arrived.")


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= PAGE):
        raise InvalidArgument(f"limit: a number from 1 to {PAGE} is expected, not {text[:40]!r}.")
    return int(text)


def _shown(info: ObjectInfo) -> dict[str, Any]:
    return {"key": info.key, "size": info.size, "etag": info.etag, "modified": iso(info.modified)}
