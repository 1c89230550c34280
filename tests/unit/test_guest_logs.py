from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.guest.control import LineReader, ProtocolError, parse_message, parse_opening
from roost.guest.logs import MAX_LINE, LineSplitter, Outbox, RateLimiter, to_text


@given(st.lists(st.sampled_from([b"", b"a\n", b"long line\r", b"\n", b"tail"]), max_size=12))
def test_lines_come_out_whole_and_nothing_is_lost(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert b"".join(lines).rstrip(b"\n") == b"".join(pieces).rstrip(b"\n")


def test_an_endless_line_is_cut() -> None:
    splitter = LineSplitter()
    lines = [line for _ in range(100) for line in splitter.feed(b"x" * 10_000)]
    assert max(map(len, lines)) <= MAX_LINE + 1
    assert sum(line.count(b"x") for line in lines) > 1_000_000 - MAX_LINE


def test_what_is_over_the_rate_is_counted_and_reported_when_there_is_room() -> None:
    limiter = RateLimiter(100, now=0.0)
    assert limiter.admit(b"x" * 100, 0.0)
    assert not limiter.admit(b"x" * 10, 0.0)
    assert not limiter.can_report(0.4)
    assert not limiter.admit(b"x" * 10, 0.4), "as long as nothing was reported, nothing passes"
    assert limiter.can_report(0.6)
    assert "20 bytes in 2 lines" in limiter.report()
    assert limiter.admit(b"x" * 10, 0.6)
    assert not limiter.can_report(10.0)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    limiter = RateLimiter(10, now=5.0)
    assert limiter.admit(b"x" * 10, 5.0)
    assert not limiter.admit(b"x", 4.0)


def test_invalid_text_is_replaced() -> None:
    assert to_text([b"a\xff\n", b"b\n"]) == "a\ufffd\nb\n"


def test_the_outbox_drops_the_oldest_logs_and_keeps_events() -> None:
    outbox = Outbox(max_log_bytes=10)
    outbox.put(b"event 1", is_log=False)
    for number in range(5):
        outbox.put(f"log {number}".encode(), is_log=True)
    outbox.put(b"event 2", is_log=False)
    got = []
    while (message := outbox.head()) is not None:
        got.append(message)
        outbox.pop()
    assert got == [b"event 1", b"log 3", b"log 4", b"event 2"]
    assert outbox.lost_logs == 3


def test_a_message_over_the_limit_is_refused() -> None:
    reader = LineReader(10)
    assert reader.feed(b"abc\nde") == [b"abc"]
    assert reader.feed(b"f\n") == [b"def"]
    with pytest.raises(ProtocolError):
        reader.feed(b"x" * 10)


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"{", b"\xff", b"[" * 100_000])
def test_messages_that_are_no_objects_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_message(line)


@pytest.mark.parametrize("line", [b"", b"port", b"port 0", b"port 65536", b"port -1", b"port 1 2", b"Control"])
def test_unknown_services_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_opening(line)


def test_services() -> None:
    assert parse_opening(b"control") is None
    assert parse_opening(b"port 8080") == 8080
