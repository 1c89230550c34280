"""Serves app.sock with asynchronous handlers: all requests on one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from roost.guest.framing import Fields, Framer
from roost.guest.http1 import MAX_HEAD, BadMessage, Body, Head, parse_head, reply_head
from roost.guest.reactor import HasFileno

HIGH_WATER = 256 << 10  # of request bytes not yet read by the handler
#: After a disconnect was delivered, how long an ASGI application may take to end by itself.
DISCONNECT_GRACE_S = 0.5


class Disconnected(OSError):
    """The host has gone; nothing more can be read or sent."""


class Exchange:
    """One request and its reply, as the handler sees them."""

    def __init__(self, connection: AsyncConnection, head: Head) -> None:
        self.head = head
        self.framer = Framer(head)
        self.disconnected = asyncio.Event()
        self._receiver: Callable[[bytes], None] | None = None  # set by `upgrade`
        self._connection = connection
        self._body = Body(head.length)
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._ended = self._body.done

    @property
    def body_done(self) -> bool:
        """All of the request's body has been read."""
        return self._ended and not self._parts

    async def read(self) -> bytes:
        """Bytes of the body; empty at its end. Raises Disconnected."""
        while not self._parts:
            if self._ended:
                return b""
            if self.disconnected.is_set():
                raise Disconnected
            self._arrived.clear()
            await self._arrived.wait()
        part = self._parts.popleft()
        self._size -= len(part)
        self._connection.allow_reading(self._size < HIGH_WATER)
        return part

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises BadMessage (413) for one over `limit`, and Disconnected."""
        parts, size = [], 0
        while part := await self.read():
            size += len(part)
            if size > limit:
                raise BadMessage("the payload is too large", 413)
            parts.append(part)
        return b"".join(parts)

    async def whole(self, status: int, fields: Fields, body: bytes) -> None:
        await self._send(self.framer.whole(status, fields, body))

    def start(self, status: int, fields: Fields) -> None:
        """The head goes out with the first bytes of the body, or when the handler waits for something."""
        self.framer.start(status, fields)
        asyncio.get_running_loop().call_soon(self._flush_head)

    async def write(self, data: bytes) -> None:
        await self._send(self.framer.write(data))

    async def write_last(self, data: bytes) -> None:
        """`write` and `end`, in one packet if it fits."""
        await self._send(self.framer.write(data) + self.framer.end())

    async def end(self) -> None:
        await self._send(self.framer.end())

    async def upgrade(self, head: bytes, receiver: Callable[[bytes], None]) -> None:
        """Send `head` (a 101). `receiver` gets what follows the request, as it comes."""
        self._receiver = receiver
        self.framer.sent = True
        self.framer.keep_alive = False
        await self._send(head)
        receiver(self._connection.take_buffer())

    async def send_raw(self, data: bytes) -> None:
        """After `upgrade`. Raises Disconnected."""
        await self._send(data)

    def send_now(self, data: bytes) -> None:
        """After `upgrade`: send without waiting. Dropped when the host does not take what was sent before."""
        if self._connection.is_writable and not self.disconnected.is_set():
            self._connection.write_now(data)

    def close(self) -> None:
        """After `upgrade`: send what is left and close. The handler may go on without the connection."""
        self._connection.close()

    def allow_reading(self, allowed: bool) -> None:
        """After `upgrade`: whether `receiver` takes more."""
        self._connection.allow_reading(allowed)

    @property
    def upgraded(self) -> bool:
        return self._receiver is not None

    def feed(self, data: bytes) -> bytes:
        """Called by the connection: takes the bytes that belong to this request, returns the rest."""
        if self._receiver is not None:
            self._receiver(data)
            return b""
        if self._ended or not data:
            return data
        part = self._body.feed(data)
        if part:
            self._parts.append(part)
            self._size += len(part)
            self._connection.allow_reading(self._size < HIGH_WATER)
        self._ended = self._body.done
        self._arrived.set()
        return self._body.rest

    def hang_up(self) -> None:
        """Called by the connection: the host has gone."""
        self.disconnected.set()
        self._arrived.set()

    async def _send(self, data: bytes) -> None:
        if self.disconnected.is_set():
            raise Disconnected
        if data:
            await self._connection.send(data)
        if self.framer.complete:
            self._connection.on_reply_complete(self)

    def _flush_head(self) -> None:
        if not self.disconnected.is_set() and (data := self.framer.take_head()):
            self._connection.write_now(data)


class AsyncConnection(asyncio.Protocol):
    """One connection of the host: a request after the other."""

    def __init__(self, server: AsyncServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        sock = transport.get_extra_info("socket")
        self._server.connections.add(self)
        self._server.watcher.add(sock, lambda: loop.call_soon_threadsafe(self._on_hangup))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._server.watcher.remove(self._transport.get_extra_info("socket"))
        self._server.connections.discard(self)
        self._on_hangup()
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        self._on_hangup()
        return self._exchange is not None  # True keeps the connection, until the handler has ended

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def take_buffer(self) -> bytes:
        data, self._buffer = self._buffer, b""
        return data

    def allow_reading(self, allowed: bool) -> None:
        if self._transport is None or allowed is self._reading or self._transport.is_closing():
            return
        self._reading = allowed
        if allowed:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    @property
    def is_writable(self) -> bool:
        return self._writable.is_set()

    def write_now(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def send(self, data: bytes) -> None:
        self.write_now(data)
        if not self._writable.is_set():
            await self._writable.wait()

    def on_reply_complete(self, exchange: Exchange) -> None:
        """The next request may come, although the handler may go on with work in the background."""
        self._server.release(exchange)
        if exchange is not self._exchange:
            return
        if not exchange.framer.keep_alive or not exchange.body_done or self._gone:
            self.close()
            return
        self._exchange = None
        self._advance()

    def close(self) -> None:
        """Send what is left, then close."""
        self._exchange = None
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def _on_hangup(self) -> None:
        if self._gone:
            return
        self._gone = True
        if self._exchange is None:
            self.close()
        else:
            self._server.cancel(self._exchange)

    def _advance(self) -> None:
        try:
            if self._exchange is not None:
                self._buffer = self._exchange.feed(self.take_buffer())
                # What follows the request waits for its reply. The host sends one at a time: there is little.
                self.allow_reading(len(self._buffer) < MAX_HEAD)
                return
            end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end >= 0:
                head = parse_head(self._buffer[: end + 2])
                self._buffer = self._buffer[end + 4 :]
                self._exchange = Exchange(self, head)
                self._buffer = self._exchange.feed(self.take_buffer())
                self._server.begin(self, self._exchange)
            elif len(self._buffer) >= MAX_HEAD:
                raise BadMessage("the head is too large", 431)
        except BadMessage as error:
            self._refuse(error)

    def _refuse(self, error: BadMessage) -> None:
        if self._exchange is not None:  # its body is broken: nothing of it can be trusted any more
            self._server.cancel(self._exchange)
            return
        text = str(error).encode()
        fields = [("content-type", "text/plain"), ("content-length", str(len(text))), ("connection", "close")]
        self.write_now(reply_head(error.status, fields) + text)
        self.close()


class HangupWatcher(Protocol):
    """Notices that the host has gone, also while a connection isn't read. See `watch.Watcher`."""

    def add(self, sock: HasFileno, on_hangup: Callable[[], object]) -> None: ...

    def remove(self, sock: HasFileno) -> None: ...


AsyncHandler = Callable[[Exchange], Awaitable[None]]


class AsyncServer:
    """Runs `handler(exchange)` as a task for each request, `concurrency` at once. The handler deals with faults
    itself; what it leaves incomplete ends the connection.

    `grace_s`: how long after a disconnect the task is cancelled; a handler that watches `disconnected` needs some.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: AsyncHandler,
        *,
        concurrency: int,
        watcher: HangupWatcher,
        grace_s: float,
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._slots = asyncio.Semaphore(concurrency)
        self._grace_s = grace_s
        self._holders: set[Exchange] = set()
        self._tasks: dict[Exchange, asyncio.Task[None]] = {}
        self.watcher = watcher
        self.connections: set[AsyncConnection] = set()

    async def serve(self) -> asyncio.AbstractServer:
        self._listener.setblocking(False)
        loop = asyncio.get_running_loop()
        if self._listener.family != socket.AF_UNIX:
            return await loop.create_server(lambda: AsyncConnection(self), sock=self._listener)
        return await loop.create_unix_server(lambda: AsyncConnection(self), sock=self._listener)

    def begin(self, connection: AsyncConnection, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._run(connection, exchange))
        self._tasks[exchange] = task

    def release(self, exchange: Exchange) -> None:
        """The reply is complete: another request may take its slot."""
        if exchange in self._holders:
            self._holders.discard(exchange)
            self._slots.release()

    def cancel(self, exchange: Exchange) -> None:
        """Tell the handler that the host has gone; cancel it if it does not end by itself."""
        exchange.hang_up()
        task = self._tasks.get(exchange)
        if task is not None:
            asyncio.get_running_loop().call_later(self._grace_s, task.cancel)

    async def _run(self, connection: AsyncConnection, exchange: Exchange) -> None:
        try:
            await self._slots.acquire()
            self._holders.add(exchange)
            await self._handler(exchange)
        except (asyncio.CancelledError, Disconnected):
            if not exchange.disconnected.is_set():
                raise
        finally:
            del self._tasks[exchange]
            self.release(exchange)
            if not exchange.framer.complete or exchange.disconnected.is_set():
                self._end(connection, exchange)

    def _end(self, connection: AsyncConnection, exchange: Exchange) -> None:
        if exchange.disconnected.is_set():
            connection.abort()
        else:
            connection.close()
