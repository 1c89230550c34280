"""Marks in a worker's output become lines, where there is something to stand around."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roost.guest.marks import MAX_ID, MAX_OPEN, MAX_RUNS, SHOW, MarkedOutput, begins, ends, errors


def start(request: str) -> bytes:
    return f"FC Invoke Start RequestId: {request}\n".encode()


def end(request: str) -> bytes:
    return f"FC Invoke End RequestId: {request}\n".encode()


def lines(output: MarkedOutput, *data: bytes) -> list[bytes]:
    return [line for _, run in output.feed(b"".join(data)) for line in run]


def test_a_request_that_prints_stands_between_its_lines() -> None:
    output = MarkedOutput()
    assert lines(output, begins("a"), b"one\ntwo\n", ends("a"), b"later\n") == [
        start("a"), b"one\n", b"two\n", end("a"), b"later\n",
    ]  # fmt: skip


def test_a_silent_request_leaves_no_line() -> None:
    output = MarkedOutput()
    assert lines(output, *(begins(f"r{n}") + ends(f"r{n}") for n in range(100))) == []
    assert output.finish() == []


def test_whoever_is_open_when_something_is_printed_is_named_before_it() -> None:
    """A line is given to the one open request; that another was open too must be known."""
    output = MarkedOutput()
    assert lines(output, begins("a"), begins("b"), ends("b"), begins("c")) == []
    assert lines(output, b"whose?\n") == [start("a"), start("c"), b"whose?\n"]
    assert lines(output, ends("c"), begins("d"), ends("d"), ends("a")) == [end("c"), end("a")]


def test_what_is_printed_on_standard_error_has_its_place() -> None:
    output = MarkedOutput()
    data = begins("a") + errors(5) + ends("a") + begins("b") + ends("b") + begins("c") + b"x\n" + errors(7) + b"y\n"
    assert output.feed(data, errors=12) == [(0, [start("a")]), (5, [end("a"), start("c"), b"x\n"]), (7, [b"y\n"])]


def test_what_was_printed_ahead_of_its_mark_is_not_taken_twice() -> None:
    output = MarkedOutput()
    assert output.feed(begins("a"), errors=5) == [(0, [start("a")])]
    assert output.feed(errors(5) + ends("a") + begins("b") + errors(3) + ends("b"), errors=3) == [
        (0, []), (0, [end("a"), start("b")]), (3, [end("b")]),
    ]  # fmt: skip


def test_a_program_that_wrote_to_standard_error_leaves_no_request_out() -> None:
    output = MarkedOutput()
    assert lines(output, begins("open")) == []
    assert output.feed(begins("a") + ends("a"), errors=1) == [(0, [start("open"), start("a"), end("a")])]
    assert output.feed(begins("b") + errors(2) + ends("b"), errors=2)[1:] == [(2, [end("b")])]


def test_a_flood_on_standard_error_is_one_run_and_turns_are_bounded() -> None:
    output = MarkedOutput()
    assert output.feed(begins("a") + errors(1) * 1000 + ends("a"), errors=1000) == [
        (0, [start("a")]), (1000, [end("a")]),
    ]  # fmt: skip
    runs = output.feed((b"out\n" + errors(1)) * 1000, errors=1000)
    assert len(runs) == MAX_RUNS
    assert sum(count for count, _ in runs) == 1000
    assert sum(len(run) for _, run in runs) == 1000


def test_a_number_that_is_none_is_nothing() -> None:
    for forged in (b"\x1eX-1\n", b"\x1eXnone\n", b"\x1eX" + b"9" * 100 + b"\n"):
        assert MarkedOutput().feed(forged, errors=0) == [(0, []), (0, [])]


def test_a_request_whose_lines_are_wanted_has_them() -> None:
    assert lines(MarkedOutput(), begins("a"), SHOW, ends("a")) == [start("a"), end("a")]


def test_a_request_that_takes_its_time_is_named() -> None:
    output = MarkedOutput()
    assert lines(output, begins("old"), begins("brief")) == []
    assert output.age() == []
    assert lines(output, ends("brief"), begins("young")) == []
    assert output.hidden
    assert output.age() == [start("old")]
    assert output.age() == [start("young")]
    assert not output.hidden
    assert lines(output, ends("old"), ends("young")) == [end("old"), end("young")]
    assert output.age() == []


def test_a_worker_that_is_killed_leaves_the_name_of_its_request() -> None:
    output = MarkedOutput()
    assert lines(output, begins("a"), ends("a"), begins("slow")) == []
    assert output.finish() == [start("slow")]


def test_a_line_without_its_end_is_the_request_s_that_printed_it() -> None:
    output = MarkedOutput()
    assert lines(output, b"import", begins("a"), b"dots...", ends("a"), begins("b"), b"next\n") == [
        b"import\n", start("a"), b"dots...\n", end("a"), start("b"), b"next\n",
    ]  # fmt: skip


def test_marks_of_others_do_not_cut_a_line() -> None:
    output = MarkedOutput()
    assert lines(output, begins("a"), b"tok", begins("b"), b"en\n", ends("b"), ends("a")) == [
        start("a"), start("b"), b"token\n", end("b"), end("a"),
    ]  # fmt: skip


def test_what_is_no_mark_stays_as_it_is() -> None:
    for text in (
        b'\x1e{"json": "sequence"}\n',
        b"\x1eB" + b"x" * (MAX_ID + 1) + b"\n",
        b"\x1e\n",
        b"FC Invoke Start\n",
    ):
        assert lines(MarkedOutput(), text) == [text]


def test_an_end_without_a_begin_is_passed_over() -> None:
    """As of a process that user code forked off while a mark was waiting in its memory."""
    assert lines(MarkedOutput(), begins("a"), b"x\n", ends("b"), ends("a"), ends("a")) == [start("a"), b"x\n", end("a")]


def test_an_id_is_cut_to_what_a_mark_holds() -> None:
    assert lines(MarkedOutput(), begins("é" * 500), b"x\n") == [start("?" * MAX_ID), b"x\n"]


def test_memory_stays_bounded_when_requests_are_invented() -> None:
    output = MarkedOutput()
    assert lines(output, *(begins(f"r{n}") for n in range(5000))) == []
    found = lines(output, b"x\n", *(ends(f"r{n}") for n in range(5000)))
    assert len([line for line in found if b"Start" in line]) == MAX_OPEN
    assert output.finish() == []


@given(st.integers(1, 7), st.permutations(range(6)))
def test_the_same_comes_out_however_the_bytes_are_cut(size: int, order: list[int]) -> None:
    parts = [begins("a"), b"text\n", ends("a"), b"\x1e", SHOW, begins("b") + b"loose"]
    data = b"".join(parts[number] for number in order)
    whole, piecemeal = MarkedOutput(), MarkedOutput()
    expected = lines(whole, data) + whole.finish()
    found = [each for at in range(0, len(data), size) for each in lines(piecemeal, data[at : at + size])]
    assert found + piecemeal.finish() == expected
