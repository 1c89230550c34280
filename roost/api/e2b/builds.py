"""Builds of templates: asked for, given files by a signed link, started, watched."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.e2b.call import Answer, Call, Endpoints, Shape, guarded
from roost.api.e2b.logs import excerpt, level_of
from roost.api.e2b.render import moment
from roost.api.fc.body import STALL_S
from roost.model.errors import AccessDenied, InvalidArgument
from roost.sandboxes.build_log import PAGE, BuildLine
from roost.sandboxes.build_queue import Build, BuildStatus
from roost.sandboxes.workshop import Workshop

#: Clients upload right away; a large archive may take long.
LINK_LIFETIME_S = 3600
#: Of steps: commands are in them.
RECIPE_LIMIT = 4 << 20


class RequestBuild(Shape):
    name: Annotated[str, Field(max_length=256)] = ""
    alias: Annotated[str, Field(max_length=256)] = ""
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=50)] = []
    cpu_count: Annotated[int, Field(ge=1, le=1024)] | None = None
    memory_mb: Annotated[int | None, Field(alias="memoryMB", ge=64, le=1 << 24)] = None


class Builds:
    """`secret` signs the links for uploads: who holds one may upload that one archive, for the account, for a while."""

    def __init__(self, workshop: Workshop, secret: bytes, clock: Callable[[], float]) -> None:
        self._workshop = workshop
        self._secret = secret
        self._clock = clock

    def routes(self, endpoints: Endpoints) -> list[Route]:
        one = "/templates/{template}/builds/{build}"
        return [
            *(endpoints.route("POST", path, self.request) for path in ("/v3/templates", "/v2/templates", "/templates")),
            endpoints.route("GET", "/templates/{template}/files/{hash}", self.link),
            endpoints.route("POST", f"/v2{one}", self.start, body_limit=RECIPE_LIMIT),
            endpoints.route("GET", f"{one}/status", self.status),
            endpoints.route("GET", f"{one}/logs", self.logs),
            Route("/templates/files/{hash}", self.upload, methods=["PUT"]),
        ]

    async def request(self, call: Call) -> Answer:
        asked = call.parse(RequestBuild)
        requested = self._workshop.request(
            call.account, asked.name or asked.alias, asked.tags, cpu=asked.cpu_count, memory_mb=asked.memory_mb
        )
        body = {
            "templateID": requested.record.id,
            "buildID": requested.id,
            "public": False,
            "names": [requested.record.name],
            "aliases": [requested.record.name],
            "tags": list(requested.tags),
        }
        return JSONResponse(body, status_code=202)

    async def link(self, call: Call) -> Answer:
        files_hash = call.path["hash"]
        if self._workshop.has_files(call.account, call.path["template"], files_hash):
            return JSONResponse({"present": True}, status_code=201)
        expires = int(self._clock()) + LINK_LIFETIME_S
        signature = self._sign(call.account, files_hash, expires)
        query = urlencode({"account": call.account, "expires": expires, "signature": signature})
        base = f"{call.request.url.scheme}://{call.request.headers.get('host', 'localhost')}"
        body = {"present": False, "url": f"{base}/templates/files/{files_hash}?{query}"}
        return JSONResponse(body, status_code=201)

    async def upload(self, request: Request) -> Response:
        async def answered() -> Response:
            account, files_hash = self._opened(request)
            async with self._workshop.upload(account, files_hash) as file:
                pieces = aiter(request.stream())
                while piece := await _next(pieces):
                    await asyncio.to_thread(file.write, piece)
            return Response(status_code=200)

        return await guarded(request, answered)

    async def start(self, call: Call) -> Answer:
        self._workshop.start(call.account, call.path["template"], call.path["build"], call.json())
        return Response(status_code=202)

    async def status(self, call: Call) -> Answer:
        build = self._workshop.status(call.account, call.path["template"], call.path["build"])
        level = level_of(call)
        offset, limit = call.number("logsOffset", 0, most=1 << 31), call.number("limit", PAGE, most=PAGE)
        return _shown(build, [_line(line) for line in build.log.page(offset, limit, level=level)])

    async def logs(self, call: Call) -> Answer:
        build = self._workshop.status(call.account, call.path["template"], call.path["build"])
        lines = excerpt(call, build.log.lines(level=level_of(call)), most=PAGE)
        return {"logs": [_line(line) for line in lines]}

    def _opened(self, request: Request) -> tuple[str, str]:
        """Whose archive a link lets in, and its name. Raises AccessDenied."""
        account, expires = request.query_params.get("account", ""), request.query_params.get("expires", "")
        files_hash, given = request.path_params["hash"], request.query_params.get("signature", "")
        valid = expires.isascii() and expires.isdigit() and len(expires) < 12 and int(expires) >= self._clock()
        if not valid or not hmac.compare_digest(given.encode(), self._sign(account, files_hash, int(expires)).encode()):
            raise AccessDenied("This link has expired or was changed; ask for another.")
        return account, files_hash

    def _sign(self, account: str, files_hash: str, expires: int) -> str:
        return hmac.new(self._secret, f"{account}:{files_hash}:{expires}".encode(), hashlib.sha256).hexdigest()


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    """What comes next of a body, b"" at its end. Raises InvalidArgument when nothing comes, as others wait."""
    try:
        async with asyncio.timeout(STALL_S):
            return await anext(pieces, b"")
    except TimeoutError:
        raise InvalidArgument(f"The archive stopped for more than {STALL_S:g} seconds.") from None


def _shown(build: Build, lines: list[dict[str, Any]]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "templateID": build.template,
        "buildID": build.id,
        "status": build.status.value,
        "logs": [],
        "logEntries": lines,
    }
    if build.status is BuildStatus.ERROR:
        step = {"step": build.step} if build.step else {}
        shown["reason"] = {"message": build.message, **step, "logEntries": []}
    return shown


def _line(line: BuildLine) -> dict[str, Any]:
    return {
        "timestamp": moment(line.at),
        "message": line.text,
        "level": line.level,
        **({"step": line.step} if line.step else {}),
    }
