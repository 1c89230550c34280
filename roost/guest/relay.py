"""Bytes between two stream sockets, both ways, with back-pressure."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from roost.guest.reactor import READ, WRITE, Reactor

CHUNK = 64 << 10


class Relay:
    """Owns `near` and `far` (non-blocking; `far` may still be connecting) and closes both when it ends.

    At most CHUNK bytes wait in each direction. An end of stream is passed on as a half-close, or ends the whole
    relay if it comes from `near` and `near_eof_closes` is set. `on_close` is called once.
    """

    def __init__(
        self,
        reactor: Reactor,
        near: socket.socket,
        far: socket.socket,
        *,
        first: bytes = b"",
        near_eof_closes: bool = False,
        on_close: Callable[[Relay], None] = lambda _: None,
    ) -> None:
        self._reactor = reactor
        self._sides = (near, far)
        self._near_eof_closes = near_eof_closes
        self._on_close = on_close
        self._waiting: list[bytes | memoryview] = [b"", first]  # what waits to be written to near, far
        self._ended = [False, False]  # nothing more will be read from near, far
        self._connected = False
        self._closed = False
        # Writable means that the connect has ended, well or badly.
        reactor.watch(far, WRITE, self._on_connected)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for side in self._sides:
            self._reactor.watch(side, 0, self._ignore)
            side.close()
        self._on_close(self)

    def _ignore(self, events: int) -> None:
        """Stands where a callback is required and none will be called."""

    def _on_connected(self, events: int) -> None:
        if self._sides[1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        self._connected = True
        self._flush(1)
        self._update()

    def _on_ready(self, side: int, events: int) -> None:
        try:
            if events & WRITE and self._waiting[side]:
                self._flush(side)
            if not self._closed and events & READ and not self._ended[side] and not self._waiting[1 - side]:
                self._read(side)
        except OSError:
            self.close()
            return
        self._update()

    def _read(self, side: int) -> None:
        try:
            data = self._sides[side].recv(CHUNK)
        except BlockingIOError:
            return
        if data:
            self._waiting[1 - side] = data
            self._flush(1 - side)
            return
        self._ended[side] = True
        if side == 0 and self._near_eof_closes:
            self.close()
        else:
            with contextlib.suppress(OSError):
                self._sides[1 - side].shutdown(socket.SHUT_WR)

    def _flush(self, side: int) -> None:
        data = self._waiting[side]
        if not data:
            return
        try:
            sent = self._sides[side].send(data)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._waiting[side] = memoryview(data)[sent:] if sent < len(data) else b""

    def _update(self) -> None:
        if self._closed:
            return
        if all(self._ended) and not any(self._waiting):
            self.close()
            return
        for side in (0, 1):
            events = WRITE if self._waiting[side] else 0
            # With near_eof_closes, near is read even under back-pressure only when there is room: an EOF behind
            # unread bytes can't be seen, and needn't be, since those bytes belong to a request still being sent.
            if not self._ended[side] and not self._waiting[1 - side]:
                events |= READ
            callback = self._near_ready if side == 0 else self._far_ready
            self._reactor.watch(self._sides[side], events, callback)

    def _near_ready(self, events: int) -> None:
        self._on_ready(0, events)

    def _far_ready(self, events: int) -> None:
        self._on_ready(1, events)


class Forwarder:
    """Accepts on a listening socket and relays each connection to what `connect` makes.

    Bounded to `limit` connections at once: more wait in the backlog.
    """

    def __init__(
        self,
        reactor: Reactor,
        listener: socket.socket,
        connect: Callable[[], socket.socket],
        *,
        near_eof_closes: bool,
        limit: int = 512,
    ) -> None:
        self._reactor = reactor
        self._listener = listener
        self._connect = connect
        self._near_eof_closes = near_eof_closes
        self._limit = limit
        self._relays: set[Relay] = set()
        self._running = False
        listener.setblocking(False)

    def serve(self, on: bool) -> None:
        """Accept, or stop accepting and end the open relays; the listener stays open."""
        self._running = on
        self._update()
        if not on:
            for relay in tuple(self._relays):
                relay.close()

    def _update(self) -> None:
        accepting = self._running and len(self._relays) < self._limit
        self._reactor.watch(self._listener, READ if accepting else 0, self._accept)

    def _accept(self, events: int) -> None:
        try:
            near, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the backlog holds until some are free
            self._reactor.watch(self._listener, 0, self._accept)
            self._reactor.call_later(0.1, self._update)
            return
        near.setblocking(False)
        try:
            far = self._connect()
        except OSError:
            near.close()
            return
        self._relays.add(Relay(self._reactor, near, far, near_eof_closes=self._near_eof_closes, on_close=self._forget))
        self._update()

    def _forget(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._update()


def connect_tcp(port: int) -> socket.socket:
    """A non-blocking connection to 127.0.0.1, under way or refused at once (OSError)."""
    return _connect(socket.socket(socket.AF_INET, socket.SOCK_STREAM), ("127.0.0.1", port))


def connect_unix(path: str) -> socket.socket:
    """A non-blocking connection to a unix socket; OSError if nobody listens."""
    return _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


def _connect(sock: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        raise
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
