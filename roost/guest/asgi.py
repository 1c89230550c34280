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
from roost.guest.framing import Fields
from roost.guest.http1 import COMMON_LINE, Head
from roost.guest.invocation import Output, fault_reply

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
_ASGI = {"version": "3.0", "spec_version": "2.4"}


def make_scope(head: Head, kind: str, state: dict[str, Any]) -> dict[str, Any]:
    """The scope of one request. `kind`: http or websocket."""
    path, _, query = head.target.partition("?")
    client = head.get("x-forwarded-for").partition(",")[0].strip()
    scheme = head.get("x-forwarded-proto", "http")
    if kind == "websocket":
        scheme = "wss" if scheme in ("https", "wss") else "ws"
    host, _, port = head.get("host").partition(":")
    return {
        "type": kind,
        "asgi": _ASGI,
        "http_version": head.version,
        "method": head.method,
        "scheme": scheme,
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [_common_raw(field) if len(field[1]) < COMMON_LINE else _raw(field) for field in head.fields],
        "client": (client, 0) if client else None,
        "server": (host, int(port) if port.isdigit() else None) if host else None,
        "state": dict(state),
        "extensions": {"websocket.http.response": {}} if kind == "websocket" else {},
    }


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
        request = self._output.begin(exchange.head)
        request_id.set(request)
        try:
            if is_websocket(exchange.head):
                scope = make_scope(exchange.head, "websocket", self._state)
                await run_websocket(self._application, exchange, scope, self._output)
            else:
                await self._run(exchange)
        finally:
            self._output.end(request)

    async def _run(self, exchange: Exchange) -> None:
        cycle = _HttpCycle(exchange)
        try:
            await self._application(make_scope(exchange.head, "http", self._state), cycle.receive, cycle.send)
            if not exchange.framer.complete:
                raise RuntimeError("The application returned without a complete response.")
        except BaseException as error:
            if exchange.disconnected.is_set() and isinstance(error, asyncio.CancelledError | OSError):
                raise Disconnected from error
            self._output.fault(error)
            if not exchange.framer.sent:
                reply = fault_reply(exchange.head, error)
                await exchange.whole(reply.status, reply.headers, reply.body)


class _HttpCycle:
    """`receive` and `send` of one HTTP request."""

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
        if kind == "http.response.start" and not self._started:
            self._started = True
            self._exchange.start(int(message["status"]), decode_fields(message.get("headers", ())))
        elif kind == "http.response.body" and self._started and not self._exchange.framer.complete:
            body = bytes(message.get("body", b""))
            if message.get("more_body"):
                await self._exchange.write(body)
            else:
                await self._exchange.write_last(body)
        else:
            raise RuntimeError(f"Unexpected message {kind!r}")


def decode_fields(headers: Any) -> Fields:
    """ASGI's byte pairs as text."""
    return [(bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1")) for name, value in headers]


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
