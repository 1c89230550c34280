"""One MCP server at one address: a POST is a message, its answer JSON, or a stream of events when it takes long."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from roost import __version__
from roost.api.e2b.call import error_response
from roost.api.fc.body import Body
from roost.api.mcp import protocol
from roost.api.mcp.protocol import Call, Refused
from roost.api.mcp.replies import Flights, Reply, answer
from roost.api.mcp.toolbox import Toolbox
from roost.model.errors import RoostError, Unauthenticated
from roost.model.role import TOOL, covers

_log = logging.getLogger(__name__)

BODY_LIMIT = 16 << 20
#: Tells the requests of one client from those of another when it cancels one; nothing else hangs on it.
SESSION = "mcp-session-id"
_SERVER = {"name": "roost", "title": "Roost", "version": __version__}
_METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and which sandbox is meant: "" at the server's own address. `actor` is whom the audit names; `grants`
    are those of its key."""

    account: str
    sandbox: str
    actor: str
    grants: frozenset[str] = frozenset()

    def may(self, tool: str) -> bool:
        return covers(self.grants, TOOL + tool)


class Endpoint:
    """`admit` tells who a request is of. It raises Unauthenticated, and NotFound for a sandbox that is not there."""

    def __init__(self, path: str, tools: Toolbox, admit: Callable[[Request], Caller], instructions: str) -> None:
        self._path = path
        self._tools = tools
        self._admit = admit
        self._instructions = instructions
        self._flights = Flights()

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
            return answer(protocol.failure(protocol.id_of(body), error), protocol.status_of(error, stateless=True))
        session = request.headers.get(SESSION, "")
        if call.notification:
            if call.method == "notifications/cancelled":
                self._flights.cancel(session, call.params.get("requestId"))
            return Response(status_code=202)
        _, events = protocol.accepts(request.headers.get("accept", ""))
        headers = {SESSION: secrets.token_hex(16)} if call.method == "initialize" and not call.stateless else {}
        flight = self._flights.flight(session, call.id)
        return Reply(self._dispatch(caller, call), flight, id=call.id, events=events, headers=headers)

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
                return protocol.cached(
                    {"tools": [tool for tool in self._tools.listing if caller.may(str(tool["name"]))]}
                )
            case "tools/call":
                name = call.params.get("name")
                if not isinstance(name, str) or not self._tools.knows(name) or not caller.may(name):
                    self._tools.refuse(caller.account, caller.sandbox, name, actor=caller.actor)
                    raise Refused(protocol.INVALID_PARAMS, f"Unknown tool: {str(name)[:100]}")
                given = call.params.get("arguments")
                reply = await self._tools.call(caller.account, caller.sandbox, name, given, actor=caller.actor)
                return reply.to_json()
            case _:
                raise Refused(protocol.METHOD_NOT_FOUND, f"Method not found: {call.method[:100]}")


def _refused(request: Request) -> Response | None:
    """What no message is read of."""
    if request.method != "POST":
        # No stream to listen on, and no session to end.
        error = Refused(protocol.INVALID_REQUEST, f"{request.method} is not taken here: send POST.")
        return answer(protocol.failure(None, error), 405, {"allow": "POST"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        error = Refused(protocol.INVALID_REQUEST, "Content-Type: application/json is expected.")
        return answer(protocol.failure(None, error), 415)
    if not protocol.accepts(request.headers.get("accept", ""))[0]:
        error = Refused(protocol.INVALID_REQUEST, "Accept: application/json and text/event-stream are expected.")
        return answer(protocol.failure(None, error), 406)
    return None
