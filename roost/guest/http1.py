"""HTTP/1.1 messages: heads and bodies of requests, heads and chunks of replies. Pure: bytes in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

MAX_HEAD = 64 << 10
MAX_CHUNK_LINE = 4 << 10

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\xff]+) HTTP/1\.([01])\r\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\x0a-\x1f\x7f]*)")
#: Nearly all lines of a request are those of the one before it. What is longer than this is not remembered.
COMMON_LINE = 200
#: Nor are longer heads.
COMMON_LINES = 4 << 10
REQUEST_ID = "x-fc-request-id"
_REQUEST_ID_LINE = b"\r\nx-fc-request-id: "
_WORD = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")

_REASONS = {status.value: status.phrase for status in HTTPStatus}
LAST_CHUNK = b"0\r\n\r\n"


class BadMessage(ValueError):
    """Not the HTTP/1.1 that this end speaks. `status` is the reply."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def _body_length(headers: dict[str, str], fields: list[tuple[str, str]]) -> int | None:
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise BadMessage("ambiguous body length")
        return None
    if length is None:
        return 0
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise BadMessage("malformed content-length")
    if any(name == "content-length" and value != length for name, value in fields):
        raise BadMessage("ambiguous body length")
    return int(length)


class Shape:
    """What the heads of many requests have in common: all header lines but the value of `x-fc-request-id`.

    A client sends much the same lines again and again, so that most heads are a line and an id beside a known shape.
    `place` is where the id belongs among `fields`, -1 for none. `length` is the body's, None when it comes in chunks.
    """

    __slots__ = ("connection", "fields", "headers", "length", "place", "upgrade")

    def __init__(self, fields: list[tuple[str, str]], place: int = -1) -> None:
        self.fields = fields
        self.place = place
        self.headers = dict(fields)
        self.length = _body_length(self.headers, fields)
        self.connection = self.headers.get("connection", "").lower()
        self.upgrade = self.headers.get("upgrade", "").lower()

    def all(self) -> dict[str, str]:
        """See Head."""
        if len(self.headers) == len(self.fields):
            return self.headers.copy()
        joined: dict[str, str] = {}
        for name, value in self.fields:
            mark = "; " if name == "cookie" else ","
            joined[name] = f"{joined[name]}{mark}{value}" if name in joined else value
        return joined


class Head:
    """A request's head. Header names are lower case; `fields` keeps order and repetition.

    `length` is the body's, None when it comes in chunks.
    """

    __slots__ = ("_fields", "_headers", "keep_alive", "length", "method", "request_id", "shape", "target", "version")

    def __init__(
        self, method: str, target: str, version: str, fields: Shape | list[tuple[str, str]], request_id: str = ""
    ) -> None:
        """`fields` have all there is, or they are a shape with a place for `request_id`."""
        shape = fields if isinstance(fields, Shape) else Shape(fields)
        self.method = method
        self.target = target
        self.version = version
        self.shape = shape
        self.request_id = request_id or shape.headers.get(REQUEST_ID, "")
        self.length = shape.length
        connection = shape.connection
        self.keep_alive = "close" not in connection if version == "1.1" else "keep-alive" in connection
        self._fields: list[tuple[str, str]] | None = None
        self._headers: dict[str, str] | None = None

    @property
    def fields(self) -> list[tuple[str, str]]:
        if self._fields is None:
            fields = self._fields = list(self.shape.fields)
            if self.shape.place >= 0:
                fields[self.shape.place] = (REQUEST_ID, self.request_id)
        return self._fields

    @property
    def headers(self) -> dict[str, str]:
        if self._headers is None:
            headers = self._headers = dict(self.shape.headers)
            if self.shape.place >= 0:
                headers[REQUEST_ID] = self.request_id
        return self._headers

    def get(self, name: str, default: str = "") -> str:
        return self.request_id or default if name == REQUEST_ID else self.shape.headers.get(name, default)

    def all(self) -> dict[str, str]:
        """Headers as a dict; repeated ones joined with a comma (cookies with a semicolon)."""
        headers = self.shape.all()
        if self.shape.place >= 0:
            headers[REQUEST_ID] = self.request_id
        return headers


#: Of no request.
NO_HEAD = Head("", "", "1.1", [])


def parse_head(block: bytes) -> Head:
    """`block` ends with the CRLF of the last header line (the empty line is not in it). Raises BadMessage."""
    end = block.find(b"\r\n") + 2
    line = block[:end]
    method, target, version = _common_request_line(line) if end < COMMON_LINE else _request_line(line)
    at = block.find(_REQUEST_ID_LINE, end - 2)
    if at >= 0 and len(block) - end < COMMON_LINES:
        at += len(_REQUEST_ID_LINE)
        stop = block.find(b"\r\n", at)
        request = block[at:stop]
        # What is no plain word, or surprises in another way, is parsed with the rest.
        if request and not request.translate(None, _WORD):
            shape = _common_shape(block[end:at], block[stop:])
            if shape is not None:
                return Head(method, target, version, shape, request.decode("ascii"))
    return Head(method, target, version, _fields(block[end:]))


def _request_line(line: bytes) -> tuple[str, str, str]:
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise BadMessage("malformed request line")
    method, target, minor = found.groups()
    return method.decode("ascii"), target.decode("latin-1"), f"1.{minor.decode()}"


_common_request_line = lru_cache(256)(_request_line)


@lru_cache(64)
def _common_shape(before: bytes, after: bytes) -> Shape | None:
    """Of the lines around the id's value. None when the id is there twice."""
    fields = _fields(before + after)
    if sum(name == REQUEST_ID for name, _ in fields) != 1:
        return None
    return Shape(fields, before.count(b"\r\n"))


def _fields(lines: bytes) -> list[tuple[str, str]]:
    parts = lines[:-2].split(b"\r\n") if lines else ()
    return [_common_field(each) if len(each) < COMMON_LINE else _field(each) for each in parts]


def _field(line: bytes) -> tuple[str, str]:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise BadMessage("malformed header line")
    return found[1].decode("ascii").lower(), found[2].strip(b" \t").decode("latin-1")


_common_field = lru_cache(512)(_field)


class Body:
    """Cuts a request's body out of the bytes of its connection."""

    __slots__ = ("_buffer", "_left", "_state", "done", "rest")

    def __init__(self, length: int | None) -> None:
        self._left = length or 0
        self._state = "sized" if length is not None else "size"
        self._buffer = b""
        self.done = length == 0
        self.rest = b""  # what came after the body's end

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. When `done`, `rest` holds what follows. Raises BadMessage."""
        if self._state == "sized":
            return self._take(data)
        parts = []
        data = self._buffer + data
        self._buffer = b""
        while data and not self.done:
            if self._state == "data":
                part = data[: self._left]
                parts.append(part)
                data = data[len(part) :]
                self._left -= len(part)
                if not self._left:
                    self._state = "crlf"
                continue
            line, newline, after = data.partition(b"\r\n")
            if not newline:
                if len(data) > MAX_CHUNK_LINE:
                    raise BadMessage("malformed chunk")
                self._buffer = data
                break
            data = after
            self._on_line(line)
        if self.done:
            self.rest = data
        return b"".join(parts)

    def _take(self, data: bytes) -> bytes:
        part = data[: self._left]
        self._left -= len(part)
        if not self._left:
            self.done = True
            self.rest = data[len(part) :]
        return part

    def _on_line(self, line: bytes) -> None:
        if self._state == "crlf":
            if line:
                raise BadMessage("malformed chunk")
            self._state = "size"
        elif self._state == "size":
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise BadMessage("malformed chunk size")
            self._left = int(size.group(1), 16)
            self._state = "data" if self._left else "trailer"
        elif not line:  # trailers are read and dropped
            self.done = True


def reply_head(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """Raises BadMessage for a header that would break the message apart."""
    raw = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in fields]
    return reply_lines(status, raw) + b"\r\n"


def reply_lines(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A reply's head, but for the empty line. Raises BadMessage."""
    lines = [_line(name, value) for name, value in fields]
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n".encode("ascii") + b"".join(lines)


_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _line(name: bytes, value: bytes) -> bytes:
    if b"\r" in value or b"\n" in value or b"\0" in value or _TOKEN.fullmatch(name) is None:
        raise BadMessage(f"malformed header {name.decode('latin-1')!r} in the reply", 502)
    return b"%b: %b\r\n" % (name, value)


def chunk(data: bytes) -> bytes:
    """`data` (not empty: an empty chunk would end the body) framed as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def has_body(method: str, status: int) -> bool:
    """Whether a reply to `method` with `status` may carry a body."""
    return method != "HEAD" and status >= 200 and status not in (204, 304)
