"""Serves app.sock with asynchronous handlers: all requests on one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable

from roost.guest.dedup import QUIET_S
from roost.guest.framing import AnyFields, Framer
from roost.guest.http1 import MAX_HEAD, BadMessage, Body, Head, parse_head, reply_head
from roost.guest.streams import Stream, Streams

HIGH_WATER = 256 << 10  # of request bytes not yet read by the handler
#: After a disconnect was delivered, how long an ASGI application may take to end by itself.
DISCONNECT_GRACE_S = 0.5
_LATE_S = 1.0  # a timer that is as late as that was not kept from running by work


class Disconnected(OSError):
    """The host has gone; nothing more can be read or sent."""


class Exchange:
    """One request and its reply, as the handler sees them."""

    __slots__ = (
        "_arrived",
        "_body",
        "_connection",
        "_disconnected",
        "_ended",
        "_parts",
        "_receiver",
        "_size",
        "framer",
        "gone",
        "head",
        "holds_slot",
        "task",
    )

    def __init__(self, connection: AsyncConnection, head: Head) -> None:
        self.head = head
        self.framer = Framer(head)
        self.gone = False  # the host is
        self.holds_slot = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._receiver: Callable[[bytes], None] | None = None  # set by `upgrade`
        self._ended = head.length == 0
        # The others are made when they are needed: most requests have no body, and are never waited for.
        self._body: Body | None = None
        self._parts: deque[bytes] | None = None
        self._size = 0
        self._arrived: asyncio.Event | None = None
        self._disconnected: asyncio.Event | None = None

    @property
    def disconnected(self) -> asyncio.Event:
        """Set when the host has gone."""
        if self._disconnected is None:
            self._disconnected = asyncio.Event()
            if self.gone:
                self._disconnected.set()
        return self._disconnected

    @property
    def body_done(self) -> bool:
        """All of the request's body has been read."""
        return self._ended and not self._parts

    async def read(self) -> bytes:
        """Bytes of the body; empty at its end. Raises Disconnected."""
        while not self._parts:
            if self._ended:
                return b""
            if self.gone:
                raise Disconnected
            if self._arrived is None:
                self._arrived = asyncio.Event()
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
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def whole(self, status: int, fields: AnyFields, body: bytes) -> None:
        await self._send(self.framer.whole(status, fields, body))

    def start(self, status: int, fields: AnyFields) -> None:
        """The head goes out with the first bytes of the body, or when the handler waits for something."""
        self.framer.start(status, fields)
        self._connection.server.later(self.flush_head)

    async def write(self, data: bytes) -> None:
        await self._send(self.framer.write(data))

    def write_soon(self, data: bytes) -> None:
        """As `write`, without waiting for room. Raises Disconnected."""
        self.put(self.framer.write(data))

    async def write_last(self, data: bytes) -> None:
        """`write` and `end`, in one packet if it fits."""
        await self._send(self.framer.last(data))

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
        if self._connection.is_writable and not self.gone:
            self._connection.write(data)

    def close(self) -> None:
        """After `upgrade`: send what is left and close. The handler may go on without the connection."""
        self._connection.end()

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
        if self._body is None:
            self._body = Body(self.head.length)
            self._parts = deque()
        part = self._body.feed(data)
        if part and self._parts is not None:
            self._parts.append(part)
            self._size += len(part)
            self._connection.allow_reading(self._size < HIGH_WATER)
        self._ended = self._body.done
        if self._arrived is not None:
            self._arrived.set()
        return self._body.rest

    def hang_up(self) -> None:
        """Called by the server: the host has gone."""
        self.gone = True
        if self._disconnected is not None:
            self._disconnected.set()
        if self._arrived is not None:
            self._arrived.set()

    def later(self, callback: Callable[[], None]) -> None:
        """See AsyncServer."""
        self._connection.server.later(callback)

    def flush_head(self) -> None:
        """Called by the server, when the handler did not send a body in one go with the head."""
        if not self.gone and (data := self.framer.take_head()):
            self._connection.write(data)

    def put(self, data: bytes) -> bool:
        """Send; False if the sender has to wait for `drained` now. Raises Disconnected."""
        if self.gone:
            raise Disconnected
        connection = self._connection
        if data:
            connection.write(data)
        if self.framer.complete:
            connection.on_reply_complete(self)
        return connection.is_writable

    async def drained(self) -> None:
        await self._connection.drained()

    async def _send(self, data: bytes) -> None:
        if not self.put(data):
            await self.drained()


class AsyncConnection(Stream):
    """One connection of the host: a request after the other."""

    __slots__ = ("_buffer", "_exchange", "server")

    def __init__(self, server: AsyncServer, streams: Streams, sock: socket.socket) -> None:
        super().__init__(streams, sock)
        self.server = server
        self._buffer = b""
        self._exchange: Exchange | None = None

    def on_data(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def on_hangup(self) -> None:
        if self._exchange is None:
            self.abort()
        else:
            self.server.cancel(self._exchange)

    def take_buffer(self) -> bytes:
        data, self._buffer = self._buffer, b""
        return data

    def on_reply_complete(self, exchange: Exchange) -> None:
        """The next request may come, although the handler may go on with work in the background."""
        self.server.release(exchange)
        if exchange is not self._exchange:
            return
        if not exchange.framer.keep_alive or not exchange.body_done or self.gone:
            self.end()
            return
        self._exchange = None
        self.allow_reading(True)
        if self._buffer:
            self._advance()

    def end(self) -> None:
        """Send what is left, then close."""
        self._exchange = None
        self.close()

    def break_off(self) -> None:
        self._exchange = None
        self.abort()

    def _advance(self) -> None:
        try:
            if self._exchange is not None:
                self._buffer = self._exchange.feed(self.take_buffer())
                # What follows the request waits for its reply. The host sends one at a time: there is little.
                if self._buffer:
                    self.allow_reading(len(self._buffer) < MAX_HEAD)
                return
            buffer = self._buffer
            end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end >= 0:
                exchange = Exchange(self, parse_head(buffer[: end + 2]))
                end += 4
                self._buffer = exchange.feed(buffer[end:]) if end < len(buffer) else b""
                self._exchange = exchange
                self.server.begin(self, exchange)
            elif len(buffer) >= MAX_HEAD:
                raise BadMessage("the head is too large", 431)
        except BadMessage as error:
            self._refuse(error)

    def _refuse(self, error: BadMessage) -> None:
        if self._exchange is not None:  # its body is broken: nothing of it can be trusted any more
            self.server.cancel(self._exchange)
            return
        text = str(error).encode()
        fields = [("content-type", "text/plain"), ("content-length", str(len(text))), ("connection", "close")]
        self.write(reply_head(error.status, fields) + text)
        self.end()


AsyncHandler = Callable[[Exchange], Awaitable[None]]


class AsyncServer:
    """Runs `handler(exchange)` as a task for each request, `concurrency` at once. The handler deals with faults
    itself; what it leaves incomplete ends the connection.

    `grace_s`: how long after a disconnect the task is cancelled; a handler that watches `disconnected` needs some.
    `on_quiet` is called when no request has come for `quiet_s`, and again when that is so after another one.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: AsyncHandler,
        *,
        concurrency: int,
        grace_s: float,
        on_quiet: Callable[[], object] | None = None,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._handler = handler
        self._on_quiet = on_quiet
        self._quiet_s = quiet_s
        self._grace_s = grace_s
        self._free = concurrency
        self._waiting: deque[tuple[AsyncConnection, Exchange]] = deque()  # at most one of a connection
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: list[Callable[[], None]] = []
        self._settles = False  # _settle is going to be called
        self._last = 0.0  # time at which a request came
        self._looks = False  # _look is going to be called
        self._streams = Streams(listener, lambda streams, sock: AsyncConnection(self, streams, sock), self._settle_soon)

    async def serve(self) -> None:
        """Begin to serve, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._streams.serve()
        self._stir()

    def break_off(self) -> None:
        """End all connections at once: to their handlers the host has gone."""
        self._streams.break_off()

    @property
    def is_quiet(self) -> bool:
        """No request is under way."""
        return not self._tasks and not self._waiting

    def _stir(self) -> None:
        """A request has come, or could from now on."""
        if self._on_quiet is None:
            return
        self._last = self._loop.time()
        if not self._looks:
            self._look_at(self._last + self._quiet_s)

    def _look_at(self, due: float) -> None:
        self._looks = True
        self._loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        self._looks = False
        now = self._loop.time()
        if now > due + _LATE_S:  # the process stood still, and what it is waked for may not be here yet
            self._last = now
        begin = self._last if self.is_quiet else now
        if now < begin + self._quiet_s:
            self._look_at(begin + self._quiet_s)
        elif self._on_quiet is not None:
            self._on_quiet()

    def begin(self, connection: AsyncConnection, exchange: Exchange) -> None:
        self._stir()
        if self._free:
            self._start(connection, exchange)
        else:
            self._waiting.append((connection, exchange))

    def release(self, exchange: Exchange) -> None:
        """The reply is complete: another request may take its slot."""
        if not exchange.holds_slot:
            return
        exchange.holds_slot = False
        self._free += 1
        while self._waiting and self._free:
            self._start(*self._waiting.popleft())

    def cancel(self, exchange: Exchange) -> None:
        """Tell the handler that the host has gone; cancel it if it does not end by itself."""
        exchange.hang_up()
        if exchange.task is not None:
            self._loop.call_later(self._grace_s, exchange.task.cancel)
            return
        for connection, waiting in self._waiting:
            if waiting is exchange:
                self._waiting.remove((connection, waiting))
                connection.break_off()
                return

    def later(self, callback: Callable[[], None]) -> None:
        """Call it when the handlers that can run now have run: once for all of them, not once for each."""
        self._later.append(callback)
        self._settle_soon()

    def _settle_soon(self) -> None:
        """After requests have come, this is behind the first steps of their tasks already."""
        if not self._settles:
            self._settles = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._settles = False
        callbacks, self._later = self._later, []
        for callback in callbacks:
            callback()

    def _start(self, connection: AsyncConnection, exchange: Exchange) -> None:
        self._free -= 1
        exchange.holds_slot = True
        task = exchange.task = self._loop.create_task(self._run(connection, exchange))
        self._tasks.add(task)

    async def _run(self, connection: AsyncConnection, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except (asyncio.CancelledError, Disconnected):
            if not exchange.gone:
                raise
        finally:
            if exchange.task is not None:
                self._tasks.discard(exchange.task)
                exchange.task = None
            self.release(exchange)
            if exchange.gone:
                connection.break_off()
            elif not exchange.framer.complete:
                connection.end()
