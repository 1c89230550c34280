"""How a sandbox starts: the commands of its template, what is reported, and a new start."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import PATIENCE_S
from tests.support.sandbox import SandboxGuest


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SandboxGuest]:
    with SandboxGuest(tmp_path) as guest:
        yield guest


def said(guest: SandboxGuest, text: str) -> str:
    request = {"process": {"cmd": "/bin/bash", "args": ["-c", text]}}
    events = guest.stream("process.Process/Start", request)
    found = (each.get("event", {}).get("data", {}).get("stdout", "") for each in events)
    return "".join(base64.b64decode(each).decode() for each in found)


def test_the_ready_command_waits_for_the_start_command(guest: SandboxGuest) -> None:
    guest.ready_sandbox(
        start_command="id -un > begun; echo from the start; until [ -e asked ]; do sleep 0.02; done; touch up; sleep 9",
        ready_command="touch asked; echo asking; test -e up",
        workdir="/home/user",
    )
    assert (guest.home / "begun").read_text() == "user\n"
    assert (guest.home / "up").exists()
    text = guest.control.wait_for_text("from the start")
    assert "asking" in guest.control.wait_for_text("asking") + text
    assert said(guest, "pgrep -c -x sleep").strip() == "1"


def test_a_start_command_that_ends_leaves_no_zombie(guest: SandboxGuest) -> None:
    guest.ready_sandbox(start_command="exit 3")
    deadline = time.monotonic() + 15
    while " Z" in (states := said(guest, "cat /proc/[0-9]*/stat | sed 's/.*) \\(.\\).*/ \\1/'")):
        assert time.monotonic() < deadline, states
        time.sleep(0.05)


def test_a_user_that_is_not_there(guest: SandboxGuest) -> None:
    event = guest.start(runtime="sandbox", sandbox={"user": "nobody-here", "ready_command": "true"})
    assert event["event"] == "failed"
    assert event["error"]["errorType"] == "StartCommandFailed"
    assert "unknown user nobody-here" in event["error"]["errorMessage"]


@pytest.mark.parametrize("sandbox", [[], {"user": 1}, {"start_command": "a\0b"}, {"workdir": []}])
def test_a_configuration_of_wrong_types(guest: SandboxGuest, sandbox: object) -> None:
    event = guest.start(runtime="sandbox", sandbox=sandbox)
    assert (event["event"], event["error"]["errorType"]) == ("failed", "BadStart")


def test_a_restart_ends_the_room_whose_init_the_daemon_is(guest: SandboxGuest) -> None:
    guest.ready_sandbox()
    assert said(guest, "echo $PPID").strip() == "1"
    said(guest, "setsid sleep 604 > /dev/null 2>&1 &")
    guest.control.send(op="restart")
    assert guest.process.wait(PATIENCE_S) == 0


def test_silent_streams_are_kept_alive(guest: SandboxGuest) -> None:
    guest.ready_sandbox()
    often = {"keepalive-ping-interval": "1"}
    request = {"process": {"cmd": "sleep", "args": ["1.5"]}}
    start, *alive, end, _ = guest.stream("process.Process/Start", request, headers=often)
    assert "start" in start["event"]
    assert alive == [{"event": {"keepalive": {}}}]
    assert end["event"]["end"]["exitCode"] == 0
    limited = often | {"connect-timeout-ms": "1500"}
    events = guest.stream("filesystem.Filesystem/WatchDir", {"path": "/home/user"}, headers=limited)
    assert events[:2] == [{"start": {}}, {"keepalive": {}}]
    assert events[-1]["error"]["code"] == "deadline_exceeded"


def test_the_daemon_itself_is_kept_from_programs(guest: SandboxGuest) -> None:
    """No descriptor of it reaches them, and its memory score is below theirs."""
    guest.ready_sandbox()
    assert said(guest, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]
    assert said(guest, "sleep 0.2; cat /proc/self/oom_score_adj /proc/1/oom_score_adj").split() == ["500", "0"]
