"""One connection of the host, served by blocking code."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable

from roost.guest.faults import Cancelled
from roost.guest.http1 import LAST_CHUNK, MAX_HEAD, BadMessage, Body, Head, chunk, has_body, parse_head, reply_head
from roost.guest.watch import Interruptible

READ_SIZE = 64 << 10
MAX_DRAIN = 256 << 10
#: In a thread other than the main one, an exception set from outside is raised between two waits.
WAIT_MS = 200


class Connection:
    """Reads requests and writes replies. Everything that waits can be interrupted through `interrupt`."""

    __slots__ = ("_body", "_buffer", "interrupt", "sock")

    def __init__(self, sock: socket.socket, interrupt: Interruptible) -> None:
        self.sock = sock
        self.interrupt = interrupt
        self._buffer = b""
        self._body = Body(0)

    def receive(self) -> bool:
        """Take in what has come; False at the end of the stream."""
        try:
            data = self.sock.recv(READ_SIZE)
        except OSError:
            return False
        self._buffer += data
        return bool(data)

    def next_head(self) -> Head | None:
        """The next request's head if all of it is here. Raises BadMessage."""
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD:
                raise BadMessage("the head is too large", 431)
            return None
        head = parse_head(self._buffer[: end + 2])
        self._buffer = self._buffer[end + 4 :]
        self._body = Body(head.length)
        return head

    def read(self) -> bytes:
        """Some bytes of the request's body; empty at its end. Raises Cancelled when the host goes before that."""
        while not self._body.done:
            data, self._buffer = self._buffer, b""
            if not data:
                data = self._wait_for_data()
            part = self._body.feed(data)
            self._buffer = self._body.rest  # empty before the body's end
            if part:
                return part
        return b""

    def read_all(self, limit: int) -> bytes:
        """The whole body. Raises BadMessage (413) for one over `limit`."""
        parts, size = [], 0
        while part := self.read():
            size += len(part)
            if size > limit:
                raise BadMessage("the payload is too large", 413)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish_body(self) -> bool:
        """Read away a short rest of the body, so that the connection can be kept. False if there is too much."""
        size = 0
        while part := self.read():
            size += len(part)
            if size > MAX_DRAIN:
                return False
        return True

    def send(self, *parts: bytes) -> None:
        """All of `parts`, in one packet if it fits. Raises Cancelled when the host has gone."""
        data: bytes | memoryview = parts[0] if len(parts) == 1 else b"".join(parts)
        while data:
            try:
                sent = self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except OSError:
                raise Cancelled from None
            if sent == len(data):
                return
            data = memoryview(data)[sent:]

    def close(self) -> None:
        self.sock.close()

    def _wait_for_data(self) -> bytes:
        while True:
            try:
                data = self.sock.recv(READ_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError:
                raise Cancelled from None
            if not data:
                raise Cancelled
            return data

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self.sock, event)
        while not poll.poll(WAIT_MS):
            pass


class ReplyWriter:
    """Writes one reply: the head goes out together with the first bytes of the body."""

    __slots__ = ("_chunked", "_connection", "_head", "_keep_alive", "_left", "_silent", "_started", "keep_alive")

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self._chunked = False
        self._left: int | None = None
        self._silent = False
        self._started = b""
        self.keep_alive = head.keep_alive

    def whole(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
        """A reply whose body is known."""
        head = self._head_bytes(status, fields, len(body))
        if body and has_body(self._head.method, status):
            self._connection.send(head, body)
        else:
            self._connection.send(head)

    def start(self, status: int, fields: list[tuple[str, str]], length: int | None) -> None:
        """A streamed reply. Nothing is sent before the first `write` or `end`."""
        self._silent = not has_body(self._head.method, status)
        self._chunked = length is None and not self._silent
        self._left = length
        self._started = self._head_bytes(status, fields, length)

    def write(self, data: bytes) -> None:
        """Raises BadMessage for more than the announced length."""
        if not data or self._silent:
            return
        if self._chunked:
            data = chunk(data)
        elif self._left is not None:
            if len(data) > self._left:
                raise BadMessage("the reply's body is longer than its content-length", 502)
            self._left -= len(data)
        head, self._started = self._started, b""
        self._connection.send(head, data)

    def flush_head(self) -> None:
        if self._started:
            head, self._started = self._started, b""
            self._connection.send(head)

    def end(self) -> None:
        """A body shorter than announced ends the connection: the caller must see that it is cut off."""
        last = LAST_CHUNK if self._chunked else b""
        head, self._started = self._started, b""
        if head or last:
            self._connection.send(head, last)
        if self._left and not self._silent:
            self.keep_alive = False

    def _head_bytes(self, status: int, fields: Iterable[tuple[str, str]], length: int | None) -> bytes:
        framing: list[tuple[str, str]] = []
        if status >= 200 and status not in (204, 304):
            framing.append(("transfer-encoding", "chunked") if length is None else ("content-length", str(length)))
        if not self.keep_alive:
            framing.append(("connection", "close"))
        return reply_head(status, [*fields, *framing])
