"""Event streams, and the text of others on a terminal."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.sdk import sse, terminal
from roost.sdk.chat import parse
from roost.sdk.errors import Failed

STREAM = b": hi\r\ndata: one\r\n\r\nevent: x\ndata: two\ndata:  three\n\n\nid: 4\n\ndata: \xc3\xa4nd\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_events_are_the_same_however_the_bytes_arrive(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert list(sse.data_of(chunks)) == ["one", "two\n three", "änd"]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    for endless in (b"data: " + b"x" * 50, b"data: " + b"x" * 50 + b"\n"):
        with pytest.raises(sse.EventTooLarge):
            list(sse.data_of(endless for _ in range(10)))


def test_text_of_others_does_not_steer_the_terminal() -> None:
    assert terminal.clean("a\x1b]0;title\x07b\x9b2J\tc\r\nd\re\x7f") == "a]0;titleb2J\tc\nde"


def test_numbers_for_people() -> None:
    assert [terminal.size(n) for n in (0, 1023, 1024, 8 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KB",
        "8.0 MB",
        "3.0 GB",
    ]
    assert [terminal.duration(s) for s in (-1, 59, 60, 7200, 86400 * 3)] == ["0s", "59s", "1m", "2h", "3d"]


def test_times_of_the_server() -> None:
    assert terminal.age("2026-01-02T03:04:05Z", terminal.seconds("2026-01-02T03:05:05+00:00") or 0) == "1m"
    assert terminal.age(100.5, 103) == "2s"
    assert (terminal.age("soon", 0), terminal.age(None, 0), terminal.clock("so\x1bon")) == ("", "", "soon")


def test_chat_events() -> None:
    assert parse('{"type":"text","text":"a\\u001bb"}').text == "ab"
    tool = parse('{"type":"tool","id":"1","name":"run_python","arguments":{"code":"6 *\\n 7"}}')
    assert tool.type == "tool"
    assert tool.text.startswith("run_python ")
    assert "\n" not in tool.text
    for bad in ("{", "[]", ""):
        with pytest.raises(Failed):
            parse(bad)
