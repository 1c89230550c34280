"""One MCP server at one address: a POST is a message, its answer JSON, or a stream of events when it takes long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from roost import __version__
from roost.api.e2b.call import error_response
from roost.api.fc.body import Body
from roost.api.mcp import protocol
from roost.api.mcp.protocol import Call, Refused
from roost.api.mcp.toolbox import Toolbox
from roost.model.errors import RoostError, Unauthenticated

_log = logging.getLogger(__name__)

BODY_LIMIT = 16 << 20
#: A tool that has not answered by then gets a stream, which is kept alive from then on.
PATIENCE_S = 15.0
_SERVER = {"name": "roost", "title": "Roost", "version": __version__}
_METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and which sandbox is meant: "" at the server's own address."""

    account: str
    sandbox: str


class Endpoint:
    """`admit` tells who a request is of. It raises Unauthenticated, and NotFound for a sandbox that is not there."""

    def __init__(self, path: str, tools: Toolbox, admit: Callable[[Request], Caller], instructions: str) -> None:
        self._path = path
        self._tools = tools
        self._admit = admit
        self._instructions = instructions

    def route(self) -> Route:
        return Route(self._path, self._answer, methods=_METHODS)

    async def _answer(self, request: Request) -> Response:
        body = Body(request)
        try:
            caller = self._admit(request)
            refused = _refused(request)
            if refused is None:
                refused = await self._message(request, caller, await body.read(BODY_LIMIT))
            response = refused
        except ClientDisconnect:
            return Response(status_code=499)
        except RoostError as error:
            response = error_response(error)
            if isinstance(error, Unauthenticated):
                response.headers["www-authenticate"] = "Bearer"
        await body.discard()
        return response

    async def _message(self, request: Request, caller: Caller, body: bytes) -> Response:
        try:
            call = protocol.parse(body, request.headers)
        except Refused as error:
            return JSONResponse(
                protocol.failure(protocol.id_of(body), error), status_code=protocol.status_of(error, stateless=True)
            )
        if call.notification:
            return Response(status_code=202)
        _, events = protocol.accepts(request.headers.get("accept", ""))
        return _Reply(self._dispatch(caller, call), events=events)

    async def _dispatch(self, caller: Caller, call: Call) -> tuple[int, dict[str, Any]]:
        """Status and message of the answer."""
        try:
            return 200, protocol.success(call, await self._result(caller, call), _SERVER)
        except Refused as error:
            return protocol.status_of(error, stateless=call.stateless), protocol.failure(call.id, error)
        except Exception:
            # The message of an unforeseen error may hold anything; it is the log's.
            _log.exception("An MCP request failed: %s", call.method[:100])
            told = Refused(protocol.INTERNAL_ERROR, "An internal error occurred; see the server's log.")
            return 200, protocol.failure(call.id, told)

    async def _result(self, caller: Caller, call: Call) -> dict[str, Any]:
        match call.method:
            case "initialize" if not call.stateless:
                return protocol.initialized(call.params, _SERVER, self._instructions)
            case "ping" if not call.stateless:
                return {}
            case "server/discover" if call.stateless:
                return protocol.discovered(self._instructions)
            case "tools/list":
                return protocol.cached({"tools": self._tools.listing})
            case "tools/call":
                name = call.params.get("name")
                if not isinstance(name, str) or not self._tools.knows(name):
                    raise Refused(protocol.INVALID_PARAMS, f"Unknown tool: {str(name)[:100]}")
                given = call.params.get("arguments")
                return (await self._tools.call(caller.account, caller.sandbox, name, given)).to_json()
            case _:
                raise Refused(protocol.METHOD_NOT_FOUND, f"Method not found: {call.method[:100]}")


def _refused(request: Request) -> Response | None:
    """What no message is read of."""
    if request.method != "POST":
        # No stream to listen on, and no session to end.
        return JSONResponse(
            protocol.failure(
                None, Refused(protocol.INVALID_REQUEST, f"{request.method} is not taken here: send POST.")
            ),
            status_code=405,
            headers={"allow": "POST"},
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        error = Refused(protocol.INVALID_REQUEST, "Content-Type: application/json is expected.")
        return JSONResponse(protocol.failure(None, error), status_code=415)
    if not protocol.accepts(request.headers.get("accept", ""))[0]:
        error = Refused(protocol.INVALID_REQUEST, "Accept: application/json and text/event-stream are expected.")
        return JSONResponse(protocol.failure(None, error), status_code=406)
    return None


class _Reply(Response):
    """Runs what it answers. A client that goes away ends it."""

    def __init__(self, work: Any, *, events: bool) -> None:
        super().__init__()
        self._work = work
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._work)
        async with _watched(receive, task):
            done, _ = await asyncio.wait({task}, timeout=PATIENCE_S if self._events else None)
            if not done:
                await self._stream(task, send)
                return
            if task.cancelled():
                return
            status, message = task.result()
            await JSONResponse(message, status_code=status)(scope, receive, send)

    @staticmethod
    async def _stream(task: asyncio.Future[tuple[int, dict[str, Any]]], send: Send) -> None:
        head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache, no-transform")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        while not task.done():
            await send(_part(b": still at it\n\n", more=True))
            await asyncio.wait({task}, timeout=PATIENCE_S)
        if not task.cancelled():
            message = json.dumps(task.result()[1], ensure_ascii=False)
            await send(_part(f"event: message\ndata: {message}\n\n".encode("utf-8", "replace"), more=False))


def _part(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


@contextlib.asynccontextmanager
async def _watched(receive: Receive, task: asyncio.Future[Any]) -> AsyncIterator[None]:
    """The task is cancelled when the client goes away; it is over at the end, whatever happens."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        for each in (watcher, task):
            each.cancel()
        await asyncio.gather(watcher, task, return_exceptions=True)
