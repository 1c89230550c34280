"""One connection of the host, served by blocking code."""

from __future__ import annotations

import select
import socket

from roost.guest.faults import Cancelled
from roost.guest.framing import Fields, Framer
from roost.guest.http1 import MAX_HEAD, BadMessage, Body, Head, parse_head
from roost.guest.watch import Interruptible

READ_SIZE = 64 << 10
MAX_DRAIN = 256 << 10
_NO_BODY = Body(0)
#: In a thread other than the main one, an exception set from outside is raised between two waits.
WAIT_MS = 200


class Connection:
    """Reads requests and writes replies. Everything that waits can be interrupted through `interrupt`."""

    __slots__ = ("_body", "_buffer", "interrupt", "sock")

    def __init__(self, sock: socket.socket, interrupt: Interruptible) -> None:
        self.sock = sock
        self.interrupt = interrupt
        self._buffer = b""
        self._body = _NO_BODY

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
        self._body = _NO_BODY if head.length == 0 else Body(head.length)
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

    def send(self, data: bytes | memoryview) -> None:
        """All of it, in one packet if it fits. Raises Cancelled when the host has gone."""
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
    """Sends one reply on a connection; see Framer."""

    __slots__ = ("_connection", "framer")

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self.framer = Framer(head)

    def whole(self, status: int, fields: Fields, body: bytes) -> None:
        self._connection.send(self.framer.whole(status, fields, body))

    def start(self, status: int, fields: Fields) -> None:
        self.framer.start(status, fields)

    def write(self, data: bytes) -> None:
        self._connection.send(self.framer.write(data))

    def flush_head(self) -> None:
        self._connection.send(self.framer.take_head())

    def end(self) -> None:
        self._connection.send(self.framer.end())
