"""Heads of HTTP/1.1 messages: parsed strictly, judged once, read many times. Pure.

A head is cut from the stream by its own end mark and only then parsed, so a parser never sees more than one message
and a disagreement over where a message ends can't arise. What is forwarded is always written anew from these fields.

Clients and functions say mostly what they said before: a short head that came before in the same bytes is not parsed
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import httptools

MAX_HEAD = 64 * 1024
MAX_FIELDS = 100
END = b"\r\n\r\n"
#: Heads that are remembered, of each kind, and how long one of them may be: some megabytes in all.
_REMEMBERED = 1024
_SHORT = 1024
_NO_OPTIONS: frozenset[bytes] = frozenset()


class BadMessage(Exception):
    """The peer's message breaks HTTP/1.1, or one of its limits. `status` is the answer a client gets."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


#: (lower-case name, name as it came, value)
Field = tuple[bytes, bytes, bytes]


class TextFields(Mapping[str, str]):
    """Fields as text, by lower-case name; decoded when they are read, as few ever are."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[bytes, bytes]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.encode("latin-1")].decode("latin-1")

    def __contains__(self, name: object) -> bool:  # most that are asked for are absent: no error is to be caught
        return isinstance(name, str) and name.encode("latin-1") in self._values

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(slots=True)
class Written:
    """A head that was written anew from another, and what beside that went into it."""

    of: tuple[object, ...]
    text: bytes


@dataclass(slots=True)
class RequestHead:
    """What a client asks. Shared by all who ask in the same bytes: nobody changes it, though freezing it would cost
    more than it is worth. `written` is the head that was last made of it; `leads` is where it leads, behind who found
    that out."""

    method: str
    target: bytes  # origin form: "/path?query"
    fields: list[Field]
    values: Mapping[bytes, bytes]  # by lower-case name; repeated fields joined with ", "
    http11: bool
    options: frozenset[bytes]  # of Connection, lower case: each names a field that ends at this hop
    keep_alive: bool
    length: int | None  # of the body by Content-Length
    chunked: bool
    upgrade: bytes  # value of Upgrade when the request asks for it, else b""
    has_body: bool
    written: Written | None = field(default=None, compare=False, repr=False)
    leads: tuple[object, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def expects_continue(self) -> bool:
        return self.http11 and self.values.get(b"expect", b"").lower() == b"100-continue"


@dataclass(slots=True)
class ResponseHead:
    """What an upstream answers. Shared, as RequestHead is."""

    status: int
    reason: bytes
    fields: list[Field]
    values: Mapping[bytes, bytes]
    options: frozenset[bytes]
    keep_alive: bool
    length: int | None
    chunked: bool
    written: Written | None = field(default=None, compare=False, repr=False)


class _Collector:
    """Receives httptools' callbacks for one head."""

    __slots__ = ("begun", "ended", "fields", "reason", "target")

    def __init__(self) -> None:
        self.target = b""
        self.reason = b""
        self.fields: list[Field] = []
        self.begun = 0
        self.ended = False

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_status(self, part: bytes) -> None:
        self.reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), name, value))

    def on_headers_complete(self) -> None:
        self.ended = True


def _feed(got: _Collector, head: bytes, feed: Callable[[bytes], None]) -> None:
    try:
        feed(head)
    except httptools.HttpParserUpgrade:
        pass  # the head is whole; whoever asked for the upgrade is answered by the caller
    except httptools.HttpParserError as error:
        raise BadMessage(f"Malformed HTTP message: {error}.") from error
    if not got.ended or got.begun != 1:
        raise BadMessage("Malformed HTTP message: its head is not one head.")
    if len(got.fields) > MAX_FIELDS:
        raise BadMessage(f"More than {MAX_FIELDS} header fields.", 431)


def _index(fields: list[Field]) -> dict[bytes, bytes]:
    values: dict[bytes, bytes] = {}
    for lower, _, value in fields:
        values[lower] = values[lower] + b", " + value if lower in values else value
    return values


def _framing(values: Mapping[bytes, bytes]) -> tuple[int | None, bool]:
    """(Content-Length, chunked). The parser has refused both at once, signs, lists and repetitions."""
    coding = values.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise BadMessage("The only transfer coding known here is 'chunked'.", 501)
        return None, True
    length = values.get(b"content-length")
    if length is None:
        return None, False
    if not length.isdigit():
        raise BadMessage("Content-Length is not a number.")
    return int(length), False


def _origin_form(target: bytes) -> bytes:
    """Of a target that may be in absolute form."""
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        slash = rest.find(b"/")
        query = rest.find(b"?")
        if slash >= 0 and (query < 0 or slash < query):
            return rest[slash:]
        return b"/" + (rest[query:] if query >= 0 else b"")
    raise BadMessage("The request target is not a path.")


def parse_request(head: bytes) -> RequestHead:
    """`head` up to and with its empty line. Raises BadMessage."""
    return _known_request(head) if len(head) <= _SHORT else _parse_request(head)


def parse_response(head: bytes) -> ResponseHead:
    """`head` up to and with its empty line. Raises BadMessage."""
    return _known_response(head) if len(head) <= _SHORT else _parse_response(head)


def _parse_request(head: bytes) -> RequestHead:
    got = _Collector()
    parser = httptools.HttpRequestParser(got)
    _feed(got, head, parser.feed_data)
    line_end = head.find(b"\r\n", 2)
    version = head[line_end - 9 : line_end]
    http11 = version == b" HTTP/1.1"
    if not http11 and version != b" HTTP/1.0":
        raise BadMessage("Only HTTP/1.0 and 1.1 are spoken here.", 505)
    method = parser.get_method()
    if method == b"CONNECT":
        raise BadMessage("CONNECT is not offered here.", 405)
    fields = got.fields
    values = _index(fields)
    host = values.get(b"host")
    if (host is None and http11) or (host is not None and b"," in host):
        raise BadMessage("A request needs exactly one Host field.")
    length, chunked = _framing(values)
    if chunked and not http11:
        raise BadMessage("HTTP/1.0 has no transfer codings.")
    options = _options(values)
    upgrade = values.get(b"upgrade", b"")
    if upgrade and (chunked or length or not http11 or b"upgrade" not in options):
        upgrade = b""
    target = got.target
    return RequestHead(
        method.decode("ascii"),
        target if target.startswith(b"/") else _origin_form(target),
        fields,
        values,
        http11,
        options,
        b"close" not in options if http11 else b"keep-alive" in options,
        length,
        chunked,
        upgrade,
        chunked or bool(length),
    )


def _parse_response(head: bytes) -> ResponseHead:
    got = _Collector()
    parser = httptools.HttpResponseParser(got)
    _feed(got, head, parser.feed_data)
    http11 = head.startswith(b"HTTP/1.1")
    if not http11 and not head.startswith(b"HTTP/1."):
        raise BadMessage("Not an HTTP/1 response.")
    fields = got.fields
    values = _index(fields)
    length, chunked = _framing(values)
    options = _options(values)
    return ResponseHead(
        parser.get_status_code(),
        got.reason,
        fields,
        values,
        options,
        http11 and b"close" not in options,
        length,
        chunked,
    )


def _options(values: Mapping[bytes, bytes]) -> frozenset[bytes]:
    connection = values.get(b"connection")
    if not connection:
        return _NO_OPTIONS
    return frozenset(option.strip() for option in connection.lower().split(b","))


_known_request = lru_cache(_REMEMBERED)(_parse_request)
_known_response = lru_cache(_REMEMBERED)(_parse_response)
