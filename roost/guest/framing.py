"""Frames one reply: status, headers and body in, bytes to send out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from roost.guest.http1 import LAST_CHUNK, BadMessage, Head, chunk, has_body, reply_lines

Fields = list[tuple[str, str]]
AnyFields = Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]
#: The guest frames replies itself; what user code says of these is not passed on.
FRAMING = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
FRAMING_RAW = frozenset(name.encode() for name in FRAMING)


class Framer:
    """The reply to one request. The head comes out together with the first bytes of the body.

    `keep_alive` says whether the connection can carry another request afterwards.
    """

    __slots__ = ("_chunked", "_head", "_left", "_method", "_silent", "complete", "keep_alive", "sent")

    def __init__(self, head: Head) -> None:
        self._method = head.method
        self._head = b""
        self._chunked = False
        self._left: int | None = None
        self._silent = False
        self.keep_alive = head.keep_alive
        self.sent = False  # some of it has been given out
        self.complete = False

    def whole(self, status: int, fields: AnyFields, body: bytes) -> bytes:
        """A reply whose body is known."""
        self.sent = self.complete = True
        head = self._head_bytes(status, _lines_of(status, fields)[0], len(body))
        return head + body if body and has_body(self._method, status) else head

    def start(self, status: int, fields: AnyFields) -> None:
        """A streamed reply. A content-length in `fields` is kept to; without one the body goes in chunks."""
        lines, self._left = _lines_of(status, fields)
        self._silent = not has_body(self._method, status)
        self._chunked = self._left is None and not self._silent
        self._head = self._head_bytes(status, lines, self._left)

    def write(self, data: bytes) -> bytes:
        """Raises BadMessage for more than the announced length."""
        if self._silent or not data:
            return b""
        if self._chunked:
            data = chunk(data)
        elif self._left is not None:
            if len(data) > self._left:
                raise BadMessage("the reply's body is longer than its content-length", 502)
            self._left -= len(data)
        return self.take_head() + data

    def take_head(self) -> bytes:
        """The head, if it has not gone out yet."""
        head, self._head = self._head, b""
        self.sent = self.sent or bool(head)
        return head

    def last(self, data: bytes) -> bytes:
        """`write` and `end`."""
        if self._left != len(data) or self._silent:
            return self.write(data) + self.end()
        self._left = 0
        self.complete = self.sent = True
        head, self._head = self._head, b""
        return head + data

    def end(self) -> bytes:
        """A body shorter than announced ends the connection: the caller must see that it is cut off."""
        self.complete = True
        if self._left and not self._silent:
            self.keep_alive = False
        return self.take_head() + (LAST_CHUNK if self._chunked else b"")

    def _head_bytes(self, status: int, lines: bytes, length: int | None) -> bytes:
        framing = b""
        if length is not None and status >= 200 and status not in (204, 304):
            framing = b"content-length: %d\r\n" % length
        elif self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        return b"%b%b\r\n" % (lines, framing)


def _lines_of(status: int, fields: AnyFields) -> tuple[bytes, int | None]:
    """Status line and header lines without those of framing, and the announced length. Raises BadMessage."""
    pairs = tuple(fields)
    try:
        return _common_lines(status, pairs)
    except TypeError:  # pairs that are lists, or of bytearrays
        return _lines(status, [(_raw(name), _raw(value)) for name, value in pairs])


def _raw(text: Any) -> bytes:
    return text.encode("latin-1", "replace") if isinstance(text, str) else bytes(text)


def _lines(status: int, pairs: Iterable[tuple[Any, Any]]) -> tuple[bytes, int | None]:
    kept: list[tuple[bytes, bytes]] = []
    announced: bytes | None = None
    for name, value in pairs:
        raw = _raw(name), _raw(value)
        lower = raw[0].lower()
        if lower not in FRAMING_RAW:
            kept.append(raw)
        elif lower == b"content-length" and announced is None:
            announced = raw[1]
    if announced is not None and not announced.isdigit():
        raise BadMessage("malformed content-length in the reply", 502)
    return reply_lines(status, kept), None if announced is None else int(announced)


#: Most replies of a function have the same header lines as one before.
_common_lines = lru_cache(64)(_lines)
