"""ASGI applications over WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from roost.guest.async_server import Disconnected, Exchange
from roost.guest.http1 import BadMessage, Head, reply_head
from roost.guest.invocation import Output, fault_reply
from roost.guest.websocket import (
    FrameReader,
    Message,
    Op,
    WebSocketError,
    accept_key,
    encode,
    encode_close,
)

Event = MutableMapping[str, Any]
Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
CLOSE_LIMIT_S = 5.0  # how long the client may take to answer a close
HIGH_WATER = 256 << 10  # bytes, and
MAX_WAITING = 256  # messages, that wait for the application before no more are read


def is_websocket(head: Head) -> bool:
    return head.shape.upgrade == "websocket" and head.method == "GET"


async def run_websocket(application: Application, exchange: Exchange, scope: dict[str, Any], output: Output) -> None:
    """From handshake to close. Faults close the connection with 1011, or answer 502 before the handshake."""
    try:
        key = accept_key(exchange.head.get("sec-websocket-key"))
        if exchange.head.get("sec-websocket-version") != "13":
            raise ValueError("unsupported version")
    except ValueError:
        await exchange.whole(426, [("sec-websocket-version", "13")], b"")
        return
    offered = exchange.head.all().get("sec-websocket-protocol", "")
    scope["subprotocols"] = [name.strip() for name in offered.split(",") if name.strip()]
    session = _Session(exchange, key)
    watch = asyncio.get_running_loop().create_task(session.watch_host())
    try:
        await application(scope, session.receive, session.send)
        await session.finish(1000)
    except BaseException as error:
        gone = exchange.gone or session.closed
        if gone and isinstance(error, asyncio.CancelledError | OSError):
            raise Disconnected from error
        output.fault(error)
        if exchange.upgraded:
            await session.finish(1011)
        elif not exchange.framer.sent:
            reply = fault_reply(exchange.head, error)
            await exchange.whole(reply.status, reply.headers, reply.body)
    finally:
        watch.cancel()


class _Session:
    """`receive` and `send` of one WebSocket connection."""

    def __init__(self, exchange: Exchange, key: str) -> None:
        self._exchange = exchange
        self._key = key
        self._reader = FrameReader()
        self._messages: deque[Message] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._ended: Message | None = None  # nothing comes after this one
        self._connected = False  # the application was given websocket.connect
        self._denied = False
        self._close_code: int | None = None  # known once a close was sent

    @property
    def closed(self) -> bool:
        return self._close_code is not None

    async def receive(self) -> Event:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        if not self._exchange.upgraded:  # neither accepted nor refused yet: only the client's going can come
            await self._exchange.disconnected.wait()
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        message = await self._next()
        if message.op is Op.TEXT:
            return {"type": "websocket.receive", "text": message.text}
        if message.op is Op.BINARY:
            return {"type": "websocket.receive", "bytes": message.data}
        return {"type": "websocket.disconnect", "code": message.code, "reason": message.reason}

    async def send(self, event: Event) -> None:
        """Raises Disconnected after the close of either side."""
        kind = event["type"]
        if kind == "websocket.accept" and not self._exchange.upgraded:
            await self._accept(event)
        elif kind == "websocket.send" and self._exchange.upgraded:
            if self._close_code is not None:
                raise Disconnected
            text = event.get("text")
            frame = encode(Op.TEXT, text.encode()) if text is not None else encode(Op.BINARY, bytes(event["bytes"]))
            await self._exchange.send_raw(frame)
        elif kind == "websocket.close" and self._exchange.upgraded:
            await self._close(event.get("code") or 1000, event.get("reason") or "")
        elif kind == "websocket.close":
            await self._exchange.whole(403, [], b"")
        elif kind == "websocket.http.response.start" and not self._denied:
            self._denied = True
            fields = [(bytes(n).decode("latin-1"), bytes(v).decode("latin-1")) for n, v in event.get("headers", ())]
            self._exchange.start(int(event["status"]), fields)
        elif kind == "websocket.http.response.body" and self._denied:
            await self._exchange.write(bytes(event.get("body", b"")))
            if not event.get("more_body"):
                await self._exchange.end()
        else:
            raise RuntimeError(f"Unexpected message {kind!r}")

    async def finish(self, code: int) -> None:
        """The application has ended: close, and give the client time to answer."""
        exchange = self._exchange
        if not exchange.upgraded:
            if not exchange.framer.complete:
                await exchange.whole(403, [], b"")
            return
        with contextlib.suppress(Disconnected, TimeoutError):
            await self._close(code, "")
            async with asyncio.timeout(CLOSE_LIMIT_S):
                while (await self._next()).op is not Op.CLOSE:
                    pass

    async def _accept(self, event: Event) -> None:
        fields = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", self._key)]
        if event.get("subprotocol"):
            fields.append(("sec-websocket-protocol", event["subprotocol"]))
        for name, value in event.get("headers") or ():
            fields.append((bytes(name).decode("latin-1"), bytes(value).decode("latin-1")))
        try:
            head = reply_head(101, fields)
        except BadMessage as error:
            raise ValueError(str(error)) from error
        await self._exchange.upgrade(head, self._on_data)

    async def _close(self, code: int, reason: str) -> None:
        if self._close_code is None:
            self._close_code = code
            await self._exchange.send_raw(encode_close(code, reason))

    async def _next(self) -> Message:
        """The next data message; after the last one CLOSE, again and again."""
        while not self._messages:
            if self._ended is not None:
                return self._ended
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._size -= len(message.data)
        self._exchange.allow_reading(self._size < HIGH_WATER)
        return message

    def _on_data(self, data: bytes) -> None:
        """Pings and closes are answered at once, whether or not the application is listening."""
        try:
            for message in self._reader.feed(data):
                if message.op is Op.PING:
                    self._exchange.send_now(encode(Op.PONG, message.data))
                elif message.op is Op.CLOSE:
                    self._end(message)
                    return
                elif message.op is not Op.PONG:
                    self._messages.append(message)
                    self._size += len(message.data)
        except WebSocketError as error:
            self._end(Message(Op.CLOSE, code=error.code, reason=str(error)))
            return
        self._exchange.allow_reading(self._size < HIGH_WATER and len(self._messages) < MAX_WAITING)
        self._arrived.set()

    def _end(self, close: Message) -> None:
        if self._ended is None:
            self._ended = close
            if self._close_code is None:
                self._close_code = close.code
                self._exchange.send_now(encode_close(close.code, close.reason))
            self._exchange.close()
        self._arrived.set()

    async def watch_host(self) -> None:
        """Ends the session when the host goes without a close."""
        await self._exchange.disconnected.wait()
        if self._ended is None:
            self._ended = Message(Op.CLOSE, code=1006)
            self._close_code = self._close_code or 1006
        self._arrived.set()
