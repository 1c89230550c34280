"""What the command line makes of what a sandbox says, which may be anything."""

from __future__ import annotations

import json

import pytest

from roost.sdk.cells import lines
from roost.sdk.copies import Place, place
from roost.sdk.errors import Failed, Unreachable
from roost.sdk.programs import Ended, Event, Output, Started, envelope, events, messages
from roost.sdk.sandbox_api import Sandbox

END = b"\x02\0\0\0\x02{}"


def stream(*said: object, end: bytes = END, size: int = 7) -> list[bytes]:
    data = b"".join(envelope(json.dumps(one).encode()) for one in said) + end
    return [data[at : at + size] for at in range(0, len(data), size)]


def read(*said: object) -> list[Event]:
    return list(events(messages(stream(*said))))


def test_the_events_of_a_program() -> None:
    assert read(
        {"event": {"start": {"pid": 7}}},
        {"event": {"keepalive": {}}},
        {"event": {"data": {"stdout": "aGk="}}},
        {"event": {"data": {"stderr": ""}}},
        {"event": {"end": {"exitCode": 3, "exited": True, "status": "exit status 3"}}},
    ) == [
        Started(pid=7),
        Output(stream="stdout", data=b"hi"),
        Output(stream="stderr", data=b""),
        Ended(code=3, signal=""),
    ]


@pytest.mark.parametrize(
    ("end", "code", "signal"),
    [
        ({}, 0, ""),
        ({"exited": False, "exitCode": -1, "status": "signal: killed"}, 137, "killed"),
        ({"exited": False, "exitCode": -1, "status": "signal: aborted (core dumped)"}, 134, "aborted"),
        ({"exited": False, "exitCode": -1, "status": "signal: signal 40"}, 168, "signal 40"),
        ({"exited": False, "status": "strange"}, 1, "strange"),
        ({"exited": True, "exitCode": "x"}, 1, "a signal"),
    ],
)  # fmt: skip
def test_how_a_program_ended(end: dict[str, object], code: int, signal: str) -> None:
    assert read({"event": {"end": end}}) == [Ended(code=code, signal=signal)]


@pytest.mark.parametrize(
    "said",
    [{}, {"event": 1}, {"event": {"start": {"pid": "x"}}}, {"event": {"data": {"stdout": "!"}}}, {"event": {"new": 1}}],
)
def test_what_makes_no_sense_is_an_error(said: object) -> None:
    with pytest.raises(Failed, match="The sandbox answered with"):
        read(said)


def test_streams_that_fail_or_break() -> None:
    error = json.dumps({"error": {"code": "not_found", "message": "no such thing"}}).encode()
    with pytest.raises(Failed, match=r"^no such thing\.$"):
        list(messages(stream(end=b"\x02" + len(error).to_bytes(4, "big") + error)))
    with pytest.raises(Unreachable):
        list(messages(stream({"a": 1}, end=b"")))
    with pytest.raises(Failed, match="bytes"):
        list(messages([b"\0\xff\xff\xff\xff"]))
    with pytest.raises(Failed, match="not JSON"):
        list(messages([envelope(b"no")]))


def test_lines_are_cut_wherever_they_come_apart() -> None:
    assert list(lines([b'{"a"', b": 1}\n\n{", b"}\n", b"last"])) == [b'{"a": 1}', b"{}", b"last"]


def test_places() -> None:
    assert place("iabc:/x:y") == Place(sandbox="iabc", path="/x:y")
    assert place("iabc:") == Place(sandbox="iabc", path="")
    assert place("./iabc:x") == Place(sandbox=None, path="./iabc:x")
    assert place("C:x") == Place(sandbox=None, path="C:x")


def test_a_sandbox_is_named_by_fields_or_by_the_host() -> None:
    box = Sandbox(id="i1", domain="boxes.test", token="t")
    assert "host" not in box.headers("http://127.0.0.1:8700", 1)
    assert "host" not in box.headers("http://sandbox.boxes.test", 1)
    assert box.headers("http://roost.test", 49983)["host"] == "49983-i1.boxes.test"
    assert "token" not in repr(box)
