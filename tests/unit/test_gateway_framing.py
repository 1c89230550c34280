"""Bodies are cut where they end, whatever the pieces they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.framing import LAST_CHUNK, Body, ChunkedBody, EndlessBody, LengthBody, chunk
from roost.gateway.head import BadMessage

AFTER = b"GET / HTTP/1.1\r\n\r\n"


def feed(body: Body, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """(the body, what is behind it), fed in pieces."""
    seen = rest = b""
    at = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        piece = data[at:cut]
        at = cut
        if body.done:
            rest += piece
        else:
            out, behind = body.feed(piece)
            seen += out
            rest += behind
    return seen, rest


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.lists(st.integers(0, 1000), max_size=20))
def test_chunks_in_any_pieces(pieces: list[bytes], cuts: list[int]) -> None:
    body = ChunkedBody()
    data = b"".join(chunk(piece) for piece in pieces) + LAST_CHUNK + AFTER
    assert feed(body, data, cuts) == (b"".join(pieces), AFTER)
    assert body.done


@given(st.binary(max_size=100), st.lists(st.integers(0, 1000), max_size=20))
def test_length_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    body = LengthBody(len(data))
    assert feed(body, data + AFTER, cuts) == (data, AFTER)
    assert body.done


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=5))
def test_any_bytes_are_a_body_or_refused_alike_in_one_piece_and_in_many(data: bytes, cuts: list[int]) -> None:
    def outcome(cuts: list[int]) -> object:
        body = ChunkedBody()
        try:
            return feed(body, data, cuts), body.done
        except BadMessage:
            return "bad"

    assert outcome(cuts) == outcome([])


def test_extensions_and_trailers_are_dropped() -> None:
    data = b"5;name=value\r\nhello\r\n0;x\r\nX-Trailer: y\r\n\r\n" + AFTER
    assert feed(ChunkedBody(), data, []) == (b"hello", AFTER)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b" 5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"-5\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"1234567890abcdef0\r\n",
        b"5;" + b"x" * 2000,
        b"5;a\0b\r\nhello\r\n",
        b"0\r\n" + b"X: " + b"y" * 900 + b"\r\n" + (b"X: " + b"y" * 900 + b"\r\n") * 20,
    ],
)
def test_malformed_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        feed(ChunkedBody(), data, [])


def test_an_endless_body_takes_everything() -> None:
    body = EndlessBody()
    assert body.feed(b"abc") == (b"abc", b"")
    assert not body.done
