"""How the ends of children are told where the kernel has no pidfds."""

from __future__ import annotations

import errno
import os
import select
import signal

import pytest

from roost.guest import reaping


@pytest.mark.parametrize("pidfds", [True, False])
def test_the_end_of_a_child_makes_its_descriptor_readable(monkeypatch: pytest.MonkeyPatch, pidfds: bool) -> None:
    if not pidfds:

        def refuse(pid: int) -> int:
            raise OSError(errno.ENOSYS, "no such call")

        monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(signal, "raise_signal", lambda _: None)
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    reaping.expect(pid)
    ended = reaping.end_of(pid)
    try:
        reaping.reap()
        assert select.select([ended], [], [], 0)[0] == []
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert reaping.reap() == []
        assert select.select([ended], [], [], 10)[0] == [ended]
        assert os.WTERMSIG(reaping.wait(pid)) == signal.SIGKILL
    finally:
        os.close(ended)


def test_one_that_has_ended_already_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(signal, "raise_signal", lambda _: None)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    reaping.expect(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ended = reaping.end_of(pid)
    assert select.select([ended], [], [], 0)[0] == [ended]
    os.close(ended)
    reaping.wait(pid)
