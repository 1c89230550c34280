"""What keeps rooms small: code that lies side by side, and ends of processes in one place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from roost.guest.gathering import gather
from tests.support.sandbox import SandboxGuest

_REAP = """
import os, time
from roost.guest.reaping import expect, reap, wait
def child(code):
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid
assert reap() == []
mine = child(7)
expect(mine)
stranger = child(9)
runs = os.fork()
if runs == 0:
    time.sleep(60)
    os._exit(0)
assert reap() == [(stranger, 9 << 8)]  # though the first is left to whoever expects it
assert reap() == []
assert os.waitstatus_to_exitcode(wait(mine)) == 7
os.kill(runs, 9)
os.waitid(os.P_PID, runs, os.WEXITED | os.WNOWAIT)
assert reap() == [(runs, 9)]
assert reap() == []
"""


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SandboxGuest]:
    with SandboxGuest(tmp_path) as guest:
        yield guest


def outer(value: int) -> int:
    def inner() -> int:
        return value + 1

    return inner()


def never_called() -> None:
    """Keeps its code."""


def test_what_is_called_gets_code_of_its_own_that_does_the_same() -> None:
    before, other = outer.__code__, never_called.__code__
    gather(lambda: print(outer(1)))
    assert outer.__code__ is not before
    assert outer.__code__ == before
    inners = [each for each in outer.__code__.co_consts if isinstance(each, CodeType)]
    assert all(each is not old for each in inners for old in before.co_consts)
    assert never_called.__code__ is other
    assert outer(4) == 5
    assert sys.getprofile() is None


def test_ends_that_somebody_waits_for_are_his() -> None:
    ran = subprocess.run([sys.executable, "-c", _REAP], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_daemon_survives_its_room_and_reaps_what_is_left(guest: SandboxGuest) -> None:
    guest.ready_sandbox()
    command = "(for i in 1 2 3 4 5; do setsid true & done) & sleep 0.3; kill -9 1; ps -o stat= -e | grep -c Z || true"
    request = {"process": {"cmd": "/bin/bash", "args": ["-c", command]}}
    headers = {"authorization": "Basic cm9vdDo="}
    events = guest.stream("process.Process/Start", request, headers=headers)
    assert events[-2]["event"]["end"]["exitCode"] == 0
    said = guest.stream("process.Process/Start", {"process": {"cmd": "ps", "args": ["-o", "stat=", "-e"]}})
    assert "Z" not in str(said)
    assert guest.process.poll() is None
