"""Runs ASGI 3 applications: HTTP and lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from roost.guest.asgi_websocket import is_websocket, run_websocket
from roost.guest.async_server import Disconnected, Exchange
from roost.guest.context import request_id
from roost.guest.faults import StartFailed, stack_of
from roost.guest.http1 import COMMON_LINE, Head, Shape
from roost.guest.invocation import Output, fault_reply

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
_ASGI = {"version": "3.0", "spec_version": "2.4"}


def make_scope(head: Head, kind: str, state: dict[str, Any]) -> dict[str, Any]:
    """The scope of one request. `kind`: http or websocket."""
    common, headers = _common_scope(head.shape, kind)
    place = head.shape.place
    headers = headers.copy()
    if place >= 0:
        headers[place] = (headers[place][0], head.request_id.encode("ascii"))
    target = head.target
    path, raw_path, query = _common_target(target) if len(target) < COMMON_LINE else _split_target(target)
    scope = common.copy()
    scope["http_version"] = head.version
    scope["method"] = head.method
    scope["path"] = path
    scope["raw_path"] = raw_path
    scope["query_string"] = query
    scope["headers"] = headers
    scope["state"] = state.copy()
    scope["extensions"] = {"websocket.http.response": {}} if kind == "websocket" else {}
    return scope


def _split_target(target: str) -> tuple[str, bytes, bytes]:
    path, _, query = target.partition("?")
    return unquote(path), path.encode("latin-1"), query.encode("latin-1")


_common_target = lru_cache(256)(_split_target)


@lru_cache(64)
def _common_scope(shape: Shape, kind: str) -> tuple[dict[str, Any], list[tuple[bytes, bytes]]]:
    """What the scopes of all heads of this shape have in common, and their headers; to be copied."""
    get = shape.headers.get
    client = get("x-forwarded-for", "").partition(",")[0].strip()
    scheme = get("x-forwarded-proto", "http")
    if kind == "websocket":
        scheme = "wss" if scheme in ("https", "wss") else "ws"
    host, _, port = get("host", "").partition(":")
    scope = {
        "type": kind,
        "asgi": _ASGI,
        "scheme": scheme,
        "root_path": "",
        "client": (client, 0) if client else None,
        "server": (host, int(port) if port.isdigit() else None) if host else None,
    }
    return scope, [_common_raw(field) if len(field[1]) < COMMON_LINE else _raw(field) for field in shape.fields]


def _raw(field: tuple[str, str]) -> tuple[bytes, bytes]:
    return field[0].encode("latin-1"), field[1].encode("latin-1")


_common_raw = lru_cache(512)(_raw)


class AsgiRunner:
    """Serves one exchange with the application."""

    def __init__(self, application: Application, output: Output, state: dict[str, Any]) -> None:
        self._application = application
        self._output = output
        self._state = state

    async def __call__(self, exchange: Exchange) -> None:
        head = exchange.head
        request_id.set(head.request_id)
        self._output.begin(head)
        try:
            if is_websocket(head):
                scope = make_scope(head, "websocket", self._state)
                await run_websocket(self._application, exchange, scope, self._output)
            else:
                await self._run(exchange, head)
        finally:
            self._output.end_soon(head, exchange.later)

    async def _run(self, exchange: Exchange, head: Head) -> None:
        cycle = _HttpCycle(exchange)
        try:
            await self._application(make_scope(head, "http", self._state), cycle.receive, cycle.send)
            if not exchange.framer.complete:
                raise RuntimeError("The application returned without a complete response.")
        except BaseException as error:
            await self._fail(exchange, error)

    async def _fail(self, exchange: Exchange, error: BaseException) -> None:
        if exchange.gone and isinstance(error, asyncio.CancelledError | OSError):
            raise Disconnected from error
        self._output.fault(error)
        if not exchange.framer.sent:
            reply = fault_reply(exchange.head, error)
            await exchange.whole(reply.status, reply.headers, reply.body)


class _HttpCycle:
    """`receive` and `send` of one HTTP request."""

    __slots__ = ("_exchange", "_request_done", "_started")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._request_done = False
        self._started = False

    async def receive(self) -> Message:
        exchange = self._exchange
        if not self._request_done:
            try:
                body = await exchange.read()
            except Disconnected:
                return {"type": "http.disconnect"}
            self._request_done = exchange.body_done
            return {"type": "http.request", "body": body, "more_body": not self._request_done}
        if not exchange.framer.complete:
            await exchange.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Raises Disconnected (an OSError, as the specification asks) after the host has gone."""
        kind = message["type"]
        exchange = self._exchange
        if kind == "http.response.body" and self._started and not exchange.framer.complete:
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = bytes(body)
            framer = exchange.framer
            if not exchange.put(framer.write(body) if message.get("more_body") else framer.last(body)):
                await exchange.drained()
        elif kind == "http.response.start" and not self._started:
            self._started = True
            exchange.start(int(message["status"]), message.get("headers", ()))
        else:
            raise RuntimeError(f"Unexpected message {kind!r}")


class Lifespan:
    """The application's lifespan: one task for as long as the worker lives."""

    def __init__(self, application: Application, output: Output) -> None:
        self.state: dict[str, Any] = {}
        self._application = application
        self._output = output
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.supported = False

    async def start(self) -> None:
        """Raises StartFailed when the application's start-up fails. One without a lifespan is fine."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        reply = await self._ask("lifespan.startup")
        if reply["type"] == "lifespan.startup.failed":
            error = reply.get("error")
            stack = stack_of(error) if isinstance(error, BaseException) else []
            raise StartFailed("LifespanFailed", f"The application's start-up failed: {reply.get('message', '')}", stack)
        self.supported = reply["type"] == "lifespan.startup.complete"

    async def stop(self) -> None:
        if self.supported:
            await self._ask("lifespan.shutdown")

    async def _ask(self, kind: str) -> Message:
        self._inbox.put_nowait({"type": kind})
        return await self._outbox.get()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": _ASGI, "state": self.state}
        try:
            await self._application(scope, self._inbox.get, self._outbox.put)
        except BaseException as error:
            if self.supported:
                self._output.fault(error)
        # Whoever waits for an answer gets this one: the application has none to give.
        self._outbox.put_nowait({"type": "ended"})
