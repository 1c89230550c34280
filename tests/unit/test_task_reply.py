"""What a task's reply brings while it comes, whatever a hostile guest sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.api.fc.task_events import Utf8
from roost.gateway.head import BadMessage, parse_response
from roost.gateway.task_reply import EventStream, Framed, Plain, TaskBody, body_of
from roost.guest.task import frame
from roost.store.task_outputs import Entry, Kind


class Tape:
    def __init__(self) -> None:
        self.output = b""
        self.reports: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.output += data

    def progress(self, data: bytes) -> None:
        self.reports.append(data)


def of(*lines: str) -> TaskBody | None:
    return body_of(parse_response("\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode()), Tape())


def fed(body: TaskBody, data: bytes, sizes: list[int]) -> bytes:
    """What is output, of data that comes in pieces of these sizes."""
    out = b""
    for size in [*sizes, len(data)]:
        piece, data = data[:size], data[size:]
        if piece:
            out += body.feed(piece)
    return out


def test_kinds_of_bodies() -> None:
    assert of("content-length: 3") is None
    assert of("content-length: 3", "content-type: text/event-stream") is None
    assert type(of("content-type: text/plain")) is Plain
    assert type(of("content-type: Text/Event-Stream; charset=utf-8")) is EventStream
    assert type(of("content-type: application/vnd.roost.task")) is Framed


SIZES = st.lists(st.integers(1, 9), max_size=40)


@given(SIZES)
def test_frames_in_any_pieces(sizes: list[int]) -> None:
    tape = Tape()
    body = Framed(tape)
    data = (
        frame(b"o", b"one") + frame(b"p", b'{"a": 1}') + frame(b"o", b"") + frame(b"o", b"two") + frame(b"r", b"done")
    )
    assert fed(body, data, sizes) == tape.output == b"onetwo"
    assert tape.reports == [b'{"a": 1}']
    assert (body.whole, body.result, body.fault) == (True, b"done", None)


def test_frames_that_end_otherwise() -> None:
    for kind, whole, fault in ((b"f", True, b"{}"), (b"e", True, None), (b"o", False, None)):
        body = Framed(Tape())
        body.feed(frame(kind, b"{}"))
        assert (body.whole, body.result, body.fault) == (whole, None, fault)
    half = Framed(Tape())
    half.feed(frame(b"r", b"result")[:-1])
    assert not half.whole


@pytest.mark.parametrize(
    "data",
    [
        b"x\0\0\0\1y",
        frame(b"e") + b"more data",
        frame(b"p", b"{no"),
        b"p\xff\xff\xff\xff",
        b"r\x10\0\0\0",
        b"\xc3\0\0\0\0",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Framed(Tape()).feed(data)


@given(st.binary(max_size=200), SIZES)
def test_anything_as_frames_is_taken_or_refused(data: bytes, sizes: list[int]) -> None:
    tape = Tape()
    try:
        out = fed(Framed(tape), data, sizes)
    except BadMessage:
        return
    assert out == tape.output
    assert len(out) <= len(data)


@given(SIZES)
def test_an_event_stream_reports_progress(sizes: list[int]) -> None:
    tape = Tape()
    progress = b"event: progress\n"
    data = b"data: x\n\nevent: progress\r\ndata: {\r\ndata: }\r\n\r\n: note\nevent:progress\ndata:half\n\n"
    data += (
        b"event: other\ndata: 1\n\n"
        + progress
        + b"\ndata: 2\n\n"
        + progress
        + b"data: \xff\n\n"
        + progress
        + b"data: 3\n"
    )
    assert fed(EventStream(tape), data, sizes) == tape.output == data
    assert tape.reports == [b"{\n}", b'"half"']


def test_an_endless_line_is_output_and_costs_no_memory() -> None:
    tape = Tape()
    body = EventStream(tape)
    for _ in range(100):
        body.feed(b"x" * 65536)
        assert len(body._line) <= 65536
    body.feed(b"\nevent: progress\ndata: 1\n\n")
    assert tape.reports == [b"1"]


@given(st.text(max_size=40), st.lists(st.integers(1, 4), max_size=60))
def test_characters_that_lie_across_pieces(text: str, sizes: list[int]) -> None:
    data, said, decoder = text.encode("utf-8", "surrogatepass"), "", Utf8()
    for size in [*sizes, len(data)]:
        piece, data = data[:size], data[size:]
        said += decoder.decode(Entry(kind=Kind.OUTPUT, attempt=1, at=0.0, data=piece))
    assert said == text


@given(st.lists(st.binary(max_size=6), max_size=10))
def test_bytes_that_are_no_text(pieces: list[bytes]) -> None:
    decoder = Utf8()
    for piece in pieces:
        decoder.decode(Entry(kind=Kind.OUTPUT, attempt=1, at=0.0, data=piece))
        assert len(decoder._kept) <= 3
