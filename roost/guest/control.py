"""Connections on guest.sock: the opening line, and JSON lines on the control connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from roost.guest.logs import Outbox
from roost.guest.reactor import READ, WRITE, Reactor

MAX_MESSAGE = 1 << 20
MAX_OPENING = 64


class ProtocolError(ValueError):
    """The peer does not keep to the wire contract."""


class LineReader:
    """Bytes in, lines out, none longer than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Whole lines, without the newline. Raises ProtocolError for a line over the limit."""
        self._buffer += data
        lines = []
        while (end := self._buffer.find(b"\n", 0, self._limit)) >= 0:
            lines.append(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
        if len(self._buffer) >= self._limit:
            raise ProtocolError("a message is longer than the limit")
        return lines


def parse_message(line: bytes) -> dict[str, Any]:
    """Raises ProtocolError unless the line is a JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is not an object")
    return message


def parse_opening(line: bytes) -> int | None:
    """None for `control`, the number for `port N`; else raises ProtocolError."""
    if line == b"control":
        return None
    word, _, number = line.partition(b" ")
    if word == b"port" and number.isdigit() and 0 < int(number) < 1 << 16:
        return int(number)
    raise ProtocolError("unknown service")


class Opening:
    """A new connection until its first line has come. Then `on_open(socket, port or None, bytes that followed)`."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_open: Callable[[socket.socket, int | None, bytes], None],
        on_over: Callable[[Opening], None] = lambda _: None,
    ) -> None:
        """`on_over`: it is open, or closed."""
        self._reactor = reactor
        self._sock = sock
        self._on_open = on_open
        self._on_over = on_over
        self._data = b""
        self._timer = reactor.call_later(10.0, self.close)
        reactor.watch(sock, READ, self._on_ready)

    def close(self) -> None:
        self._timer.cancel()
        self._reactor.watch(self._sock, 0, self._on_ready)
        self._sock.close()
        self._on_over(self)

    def _on_ready(self, events: int) -> None:
        try:
            data = self._sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._data += data
        line, newline, rest = self._data.partition(b"\n")
        if not newline:
            if not data or len(self._data) > MAX_OPENING:
                self.close()
            return
        try:
            port = parse_opening(line)
        except ProtocolError:
            self.close()
            return
        self._timer.cancel()
        self._reactor.watch(self._sock, 0, self._on_ready)
        self._on_over(self)
        self._on_open(self._sock, port, rest)


class ControlChannel:
    """The host's control connection. Owns `sock`; `on_close` is called once, whoever closed."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        outbox: Outbox,
        on_message: Callable[[dict[str, Any]], None],
        on_close: Callable[[ControlChannel], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._outbox = outbox
        self._on_message = on_message
        self._on_close = on_close
        self._reader = LineReader(MAX_MESSAGE)
        self._sent = 0  # bytes of the outbox's head that are gone
        self._closed = False

    def open(self, first: bytes) -> None:
        self._receive(first)
        self.flush()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._reactor.watch(self._sock, 0, self._on_ready)
        self._sock.close()
        self._on_close(self)

    def flush(self) -> None:
        """Send what the outbox holds, as far as the host takes it."""
        try:
            while not self._closed and (message := self._outbox.head()) is not None:
                self._sent += self._sock.send(memoryview(message)[self._sent :])
                if self._sent == len(message):
                    self._sent = 0
                    self._outbox.pop()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        if not self._closed:
            waiting = self._outbox.head() is not None
            self._reactor.watch(self._sock, READ | WRITE if waiting else READ, self._on_ready)

    def _on_ready(self, events: int) -> None:
        if events & READ:
            try:
                data = self._sock.recv(64 << 10)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self.close()
            elif data is not None:
                self._receive(data)
        if not self._closed:
            self.flush()

    def _receive(self, data: bytes) -> None:
        try:
            for line in self._reader.feed(data):
                if not self._closed:
                    self._on_message(parse_message(line))
        except ProtocolError:
            self.close()
