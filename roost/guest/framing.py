"""Frames one reply: status, headers and body in, bytes to send out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from roost.guest.http1 import COMMON_LINE, LAST_CHUNK, BadMessage, Head, chunk, has_body, raw_reply_head

Fields = list[tuple[str, str]]
RawFields = Iterable[tuple[bytes, bytes]]
#: The guest frames replies itself; what user code says of these is not passed on.
FRAMING = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


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

    def whole(self, status: int, fields: Fields, body: bytes) -> bytes:
        """A reply whose body is known."""
        head = self._head_bytes(status, _encoded(fields), len(body))
        self.sent = self.complete = True
        return head + body if body and has_body(self._method, status) else head

    def start(self, status: int, fields: Fields) -> None:
        """A streamed reply. A content-length in `fields` is kept to; without one the body goes in chunks."""
        self.start_raw(status, _encoded(fields))

    def start_raw(self, status: int, fields: RawFields) -> None:
        """The same, of bytes."""
        kept: list[tuple[bytes, bytes]] = []
        announced: bytes | None = None
        for item in fields:
            name = item[0]
            framing = _common_framing(name) if len(name) < COMMON_LINE else None
            if framing is None:
                kept.append(item)
            elif framing == b"content-length" and announced is None:
                announced = item[1]
        if announced is not None and not announced.isdigit():
            raise BadMessage("malformed content-length in the reply", 502)
        self._left = int(announced) if announced is not None else None
        self._silent = not has_body(self._method, status)
        self._chunked = self._left is None and not self._silent
        self._head = self._head_bytes(status, kept, self._left)

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
        return self.write(data) + self.end()

    def end(self) -> bytes:
        """A body shorter than announced ends the connection: the caller must see that it is cut off."""
        self.complete = True
        if self._left and not self._silent:
            self.keep_alive = False
        return self.take_head() + (LAST_CHUNK if self._chunked else b"")

    def _head_bytes(self, status: int, fields: list[tuple[bytes, bytes]], length: int | None) -> bytes:
        """Adds to `fields`."""
        if length is not None and status >= 200 and status not in (204, 304):
            fields.append((b"content-length", b"%d" % length))
        elif self._chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            fields.append((b"connection", b"close"))
        return raw_reply_head(status, fields)


def _encoded(fields: Fields) -> list[tuple[bytes, bytes]]:
    return [_common_encoded(item) if len(item[1]) < COMMON_LINE else _encode(item) for item in fields]


def _encode(item: tuple[str, str]) -> tuple[bytes, bytes]:
    return item[0].encode("latin-1", "replace"), item[1].encode("latin-1", "replace")


_common_encoded = lru_cache(256)(_encode)


@lru_cache(256)
def _common_framing(name: bytes) -> bytes | None:
    """The name in lower case, if it is one of FRAMING."""
    lower = name.lower()
    return lower if lower.decode("latin-1") in FRAMING else None
