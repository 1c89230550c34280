"""The ends of this process' children, of which PID 1 has its own and all that others left behind."""

from __future__ import annotations

import os
import signal

_expected: set[int] = set()


def expect(pid: int) -> None:
    """`pid` is a child that somebody is going to `wait` for: until then no other process gets its number."""
    _expected.add(pid)


def wait(pid: int) -> int:
    """Reap a child that is expected, when it has ended; its wait status."""
    try:
        return os.waitpid(pid, 0)[1]
    finally:
        _expected.discard(pid)
        signal.raise_signal(signal.SIGCHLD)  # `reap` did not look at those behind it


def reap() -> list[tuple[int, int]]:
    """(pid, wait status) of every child that has ended and that nobody expects, up to the first that somebody does."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return ended
        if found is None or found.si_pid in _expected:
            return ended
        ended.append(os.waitpid(found.si_pid, 0))
