"""The host's connections on the event loop: many stream sockets behind one descriptor of the loop.

asyncio's transports would cost each request a turn through the loop's selector for itself. Here all connections are in
one epoll, which the loop watches: one wake-up reads what has come on all of them, and what is written is sent at once.
A half-close is noticed at any time, also behind bytes that are not read yet.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable

READ_SIZE = 64 << 10
#: Bytes waiting to be sent above which a writer waits.
HIGH_WATER = 64 << 10
MAX_STREAMS = 4096
#: How many accepted at once, before the others get their turn.
ACCEPTS = 64
EVENTS = 256
#: Out of descriptors, the backlog holds until some are free.
ACCEPT_PAUSE_S = 0.1
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Stream:
    """One connection. Its owner is told through `on_data` and, once, `on_hangup`."""

    __slots__ = ("_drained", "_events", "_out", "_streams", "closed", "closing", "fd", "gone", "reading", "sock")

    def __init__(self, streams: Streams, sock: socket.socket) -> None:
        self._streams = streams
        self._out = bytearray()  # what the socket has not taken yet
        self._drained: asyncio.Future[None] | None = None
        self._events = select.EPOLLIN | select.EPOLLRDHUP
        self.sock = sock
        self.fd = sock.fileno()
        self.reading = True
        self.gone = False  # the host has half-closed, or more
        self.closing = False  # once all is sent
        self.closed = False

    def on_data(self, data: bytes) -> None:
        raise NotImplementedError

    def on_hangup(self) -> None:
        raise NotImplementedError

    @property
    def events(self) -> int:
        return self._events

    @property
    def is_writable(self) -> bool:
        return len(self._out) < HIGH_WATER

    def write(self, data: bytes) -> None:
        """Send, or keep what can't be sent yet."""
        if self._out:
            self._out += data
            return
        if self.closed:
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hang_up()
            return
        if sent < len(data):
            self._out += memoryview(data)[sent:]
            self._update()

    async def drained(self) -> None:
        """Return when there is room again, or never will be."""
        while not self.is_writable:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def allow_reading(self, allowed: bool) -> None:
        if allowed is not self.reading:
            self.reading = allowed
            self._update()

    def close(self) -> None:
        """Send what is left, then close."""
        self.closing = True
        if not self._out or self.gone:
            self.abort()
        else:
            self.allow_reading(False)

    def abort(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._out.clear()
        self._wake()
        self._streams.forget(self)
        self.sock.close()

    def break_now(self) -> None:
        """As if the host had ended it."""
        self._hang_up()
        self.abort()

    def on_ready(self, events: int) -> None:
        """Called by Streams."""
        if events & select.EPOLLIN and self.reading:
            self._receive()
        if events & select.EPOLLOUT and not self.closed:
            self._flush()
        if events & _GONE:
            self._hang_up()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.on_data(data)
        else:
            self._hang_up()

    def _flush(self) -> None:
        try:
            del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()
            return
        if self.is_writable:
            self._wake()
        if self._out:
            return
        if self.closing:
            self.abort()
        else:
            self._update()

    def _hang_up(self) -> None:
        if self.gone or self.closed:
            return
        self.gone = True
        self._out.clear()
        self._wake()
        self._update()
        self.on_hangup()

    def _wake(self) -> None:
        waiter, self._drained = self._drained, None
        if waiter is not None:
            waiter.set_result(None)

    def _update(self) -> None:
        """A hang-up is heard of once: after it the epoll would not stop telling."""
        if self.closed:
            return
        events = 0
        if not self.gone:
            events = select.EPOLLRDHUP | (select.EPOLLIN if self.reading else 0)
            events |= select.EPOLLOUT if self._out else 0
        if events != self._events:
            self._events = events
            self._streams.change(self)


class Streams:
    """Accepts on `listener` and reads what comes. `make` makes the stream of a new connection; `after` is called when
    all have been told what there was."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[Streams, socket.socket], Stream],
        after: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._make = make
        self._after = after
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}

    def serve(self) -> None:
        """On the running loop, for as long as it lives."""
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_ready)

    def break_off(self) -> None:
        """End all connections."""
        for stream in list(self._streams.values()):
            stream.break_now()

    def change(self, stream: Stream) -> None:
        if stream.events:
            self._epoll.modify(stream.fd, stream.events)
        else:
            self._epoll.unregister(stream.fd)

    def forget(self, stream: Stream) -> None:
        """Before its socket is closed."""
        del self._streams[stream.fd]
        if stream.events:
            self._epoll.unregister(stream.fd)

    def _on_ready(self) -> None:
        accept = False
        for fd, events in self._epoll.poll(0, EVENTS):
            stream = self._streams.get(fd)
            if stream is not None:
                stream.on_ready(events)
            else:
                accept = True
        # Last, since a new connection may get the number of one that was closed just now.
        if accept:
            self._accept()
        self._after()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self._epoll.unregister(self._listener)
                loop = asyncio.get_running_loop()
                loop.call_later(ACCEPT_PAUSE_S, self._epoll.register, self._listener, select.EPOLLIN)
                return
            if len(self._streams) >= MAX_STREAMS:
                sock.close()
                return
            sock.setblocking(False)
            stream = self._streams[sock.fileno()] = self._make(self, sock)
            self._epoll.register(stream.fd, stream.events)
