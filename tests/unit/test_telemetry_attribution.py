"""Lines of output find their request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.telemetry.attribution import MAX_CLOSED, MAX_LINES, MAX_OPEN, Attributor


def start(request_id: str) -> str:
    return f"FC Invoke Start RequestId: {request_id}"


def end(request_id: str) -> str:
    return f"FC Invoke End RequestId: {request_id}"


def owners(attributor: Attributor, *lines: str) -> list[str]:
    return [line.request_id for line in attributor.attribute("\n".join(lines) + "\n")]


def test_lines_between_the_markers_of_one_request_are_its_own() -> None:
    attributor = Attributor()
    assert owners(attributor, "loading", start("a"), "work", end("a"), "between", start("b"), "more", end("b")) == [
        "", "a", "a", "a", "", "b", "b", "b",
    ]  # fmt: skip


def test_with_several_open_only_a_named_request_gets_the_line() -> None:
    attributor = Attributor()
    assert owners(
        attributor, start("a"), start("b"), "print", "2026-01-01 00:00:00.000 b [INFO] x", end("a"), "alone"
    ) == ["a", "b", "", "b", "a", "b"]


def test_late_line_that_names_a_request_just_ended_is_still_its_own() -> None:
    attributor = Attributor()
    assert owners(attributor, start("a"), end("a"), "12:00 a [ERROR] late", "unnamed")[2:] == ["a", ""]


def test_an_id_that_is_not_open_is_never_taken_from_a_line() -> None:
    attributor = Attributor()
    assert owners(attributor, start("a"), start("b"), "12:00 stranger [INFO] x") == ["a", "b", ""]


@pytest.mark.parametrize(
    "line",
    [
        "x FC Invoke Start RequestId: a",
        "FC Invoke Start RequestId: ",
        "FC Invoke Start RequestId: a b",
        "FC Invoke Start RequestId: " + "a" * 129,
        "FC Invoke Start RequestId: a\x1b",
        "FC Invoke Stop RequestId: a",
    ],
)
def test_what_only_resembles_a_marker_opens_nothing(line: str) -> None:
    assert owners(Attributor(), line, "next") == ["", ""]


def test_end_marker_of_an_unknown_request_ends_nothing() -> None:
    attributor = Attributor()
    lines = attributor.attribute("\n".join([start("a"), end("z"), "x", end("a")]))
    assert [(line.request_id, line.ends) for line in lines] == [("a", False), ("z", False), ("a", False), ("a", True)]


def test_levels_are_read_from_the_prefix() -> None:
    levels = [line.level for line in Attributor().attribute("12:00 id [ERROR] x\nplain\n" + "y" * 300 + "[INFO]")]
    assert levels == ["ERROR", "", ""]


def test_a_request_the_host_gave_up_is_no_longer_open() -> None:
    attributor = Attributor()
    owners(attributor, start("a"), start("b"))
    attributor.abandon("a")
    attributor.abandon("never opened")
    assert owners(attributor, "the other's", end("b"), "no one's", "12:00 a [INFO] late") == ["b", "b", "", "a"]


def test_where_requests_exclude_each_other_a_start_ends_the_one_before() -> None:
    attributor = Attributor(exclusive=True)
    assert owners(attributor, start("killed"), "x", start("next"), "y", end("next"), "z") == [
        "killed", "killed", "next", "next", "next", "",
    ]  # fmt: skip


def test_a_flood_of_lines_is_cut_but_its_markers_count() -> None:
    attributor = Attributor()
    lines = attributor.attribute("\n".join([start("a"), *[""] * 100_000, end("a"), *["tail"] * 10]))
    assert len(lines) == MAX_LINES + 2
    assert lines[-2].ends
    assert lines[-1].text == f"[{100_012 - MAX_LINES - 1} lines dropped: too many at once]"
    assert owners(attributor, "next") == [""]


def test_memory_stays_bounded_when_requests_are_invented() -> None:
    attributor = Attributor()
    for number in range(5000):
        owners(attributor, start(f"open{number}"), start(f"shut{number}"), end(f"shut{number}"))
    assert MAX_OPEN // 2 < len(attributor._open) <= MAX_OPEN
    assert len(attributor._closed) == MAX_CLOSED


@given(st.lists(st.text(max_size=40), max_size=30))
def test_any_text_gives_one_line_for_each_of_its_lines(parts: list[str]) -> None:
    text = "\n".join(parts)
    assert [line.text for line in Attributor().attribute(text)] == text.removesuffix("\n").split("\n")
