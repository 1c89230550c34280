from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.guest.framing import Framer
from roost.guest.http1 import BadMessage, Body, Head, chunk, parse_head, reply_head


def test_a_head_keeps_order_and_lowers_names() -> None:
    head = parse_head(b"POST /a?b HTTP/1.1\r\nHost: f\r\nCookie: a=1\r\nCookie:b=2 \r\nX: 1\r\nX: 2\r\n")
    assert (head.method, head.target, head.version, head.length, head.keep_alive) == ("POST", "/a?b", "1.1", 0, True)
    assert head.fields[1:3] == [("cookie", "a=1"), ("cookie", "b=2")]
    assert head.all() == {"host": "f", "cookie": "a=1; b=2", "x": "1,2"}


LINES = "GET /p HTTP/1.1\r\nhost: f\r\nx-fc-request-id: {}\r\ncookie: a=1\r\ncookie: b=2\r\n"


@pytest.mark.parametrize("request_id", ["1-abc-d", "another_1", "", "a b", "a,b", "\u00e9", "x" * 5000])
def test_heads_that_differ_in_their_id_alone_are_told_apart(request_id: str) -> None:
    for each in ("first", request_id, "last"):
        head = parse_head(LINES.format(each).encode("latin-1"))
        fields = [("host", "f"), ("x-fc-request-id", each), ("cookie", "a=1"), ("cookie", "b=2")]
        assert head.fields == fields
        assert (head.request_id, head.get("x-fc-request-id"), head.headers) == (each, each, dict(fields))
        assert head.all() == {"host": "f", "x-fc-request-id": each, "cookie": "a=1; b=2"}


def test_what_one_request_does_with_its_headers_is_not_seen_by_the_next() -> None:
    for number in range(3):
        head = parse_head(LINES.format(f"r-{number}").encode())
        head.headers["host"] = "changed"
        head.all()["host"] = "changed"
        head.fields.clear()
    assert parse_head(LINES.format("r").encode()).all()["host"] == "f"


def test_an_id_that_is_there_twice_is_no_special_line() -> None:
    block = b"GET / HTTP/1.1\r\nx-fc-request-id: a\r\nX-Fc-Request-Id: b\r\n"
    for _ in range(2):
        head = parse_head(block)
        assert head.fields == [("x-fc-request-id", "a"), ("x-fc-request-id", "b")]
        assert head.all()["x-fc-request-id"] == "a,b"


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "Keep-Alive", True)],
)
def test_keep_alive(version: str, connection: str, keep: bool) -> None:
    assert parse_head(f"GET / HTTP/{version}\r\nconnection: {connection}\r\n".encode()).keep_alive is keep


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"GET / HTTP/2.0\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n",
        b"GE(T / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nname : value\r\n",
        b"GET / HTTP/1.1\r\n folded: value\r\n",
        b"GET / HTTP/1.1\r\nname: a\x00b\r\n",
        b"GET / HTTP/1.1\r\nname: a\nb: c\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: +1\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n",
    ],
)
def test_malformed_heads_are_refused(block: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_head(block)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def feed(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes]:
    read, rest = b"", b""
    for piece in pieces:
        if body.done:
            rest += piece
        else:
            read += body.feed(piece)
            rest += body.rest
    return read, rest


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.lists(st.integers(0, 400), max_size=8))
def test_a_chunked_body_survives_any_cut(parts: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(chunk(part) for part in parts) + b"0\r\nTrailer: x\r\n\r\nNEXT"
    body = Body(None)
    assert feed(body, split(wire, cuts)) == (b"".join(parts), b"NEXT")
    assert body.done


@given(st.binary(max_size=60), st.lists(st.integers(0, 80), max_size=5))
def test_a_sized_body_survives_any_cut(data: bytes, cuts: list[int]) -> None:
    body = Body(len(data))
    read, rest = feed(body, split(data + b"NEXT", cuts))
    assert (read, rest) == (data, b"NEXT")


@pytest.mark.parametrize("wire", [b"x\r\n", b"-1\r\n", b"3\r\nabcX\r\n", b"9" * 20 + b"\r\n", b"1" * 5000])
def test_malformed_chunks_are_refused(wire: bytes) -> None:
    with pytest.raises(BadMessage):
        Body(None).feed(wire)


@pytest.mark.parametrize("field", [("a\r\nb", "c"), ("a", "b\r\nc: d"), ("a b", "c"), ("", "c")])
def test_a_reply_header_cannot_break_the_message(field: tuple[str, str]) -> None:
    with pytest.raises(BadMessage):
        reply_head(200, [field])


def get(method: str = "GET") -> Head:
    return parse_head(f"{method} / HTTP/1.1\r\n".encode())


def test_a_reply_without_a_length_goes_in_chunks_and_the_head_with_the_first() -> None:
    framer = Framer(get())
    framer.start(200, [("Transfer-Encoding", "mine"), ("a", "b")])
    assert framer.write(b"xy") == b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nxy\r\n"
    assert framer.write(b"") == b""
    assert framer.end() == b"0\r\n\r\n"
    assert framer.keep_alive


@pytest.mark.parametrize("pair", [(b"A", b"b"), ("A", "b"), [b"A", b"b"], (bytearray(b"A"), memoryview(b"b"))])
def test_headers_of_a_reply_come_as_text_or_bytes(pair: Any) -> None:
    for _ in range(2):
        framer = Framer(get())
        framer.start(200, [pair, (b"content-length", b"2")])
        assert framer.last(b"xy") == b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 2\r\n\r\nxy"
        assert (framer.complete, framer.keep_alive) == (True, True)


def test_a_reply_shorter_than_announced_ends_the_connection() -> None:
    framer = Framer(get())
    framer.start(200, [("Content-Length", "5")])
    framer.write(b"abc")
    assert framer.end() == b""
    assert not framer.keep_alive


def test_a_reply_longer_than_announced_is_refused() -> None:
    framer = Framer(get())
    framer.start(200, [("content-length", "1")])
    with pytest.raises(BadMessage):
        framer.write(b"abc")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_replies_without_a_body(method: str, status: int) -> None:
    framer = Framer(get(method))
    framer.start(status, [])
    assert framer.write(b"ignored") == b""
    assert framer.end().endswith(b"\r\n\r\n")
    assert b"chunked" not in Framer(get(method)).whole(status, [], b"ignored")
