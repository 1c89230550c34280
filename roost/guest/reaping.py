"""The ends of this process' children, of which PID 1 has its own and all that others left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

_expected: set[int] = set()
_arriving: set[object] = set()
_told: dict[int, int] = {}  # children whose ends are told by writing to a descriptor


def expect(pid: int) -> None:
    """`pid` is a child that somebody is going to `wait` for: until then no other process gets its number."""
    _expected.add(pid)


def forget(pid: int) -> None:
    """Nobody is going to, after all."""
    _expected.discard(pid)
    signal.raise_signal(signal.SIGCHLD)


@contextlib.contextmanager
def arriving() -> Iterator[None]:
    """Meanwhile this process is given a child whose number is not known yet: nobody is reaped, so that it is the same
    child still when it is expected."""
    token = object()
    _arriving.add(token)
    try:
        yield
    finally:
        _arriving.discard(token)
        signal.raise_signal(signal.SIGCHLD)


def end_of(pid: int) -> int:
    """A descriptor that is readable for good once a child that is expected has ended; the caller's to close.

    Raises OSError. Where the kernel has no pidfds, as gVisor's, `reap` is what tells.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    ended, _told[pid] = os.pipe2(os.O_CLOEXEC)
    _tell()  # its signal may have come already
    return ended


def _tell() -> None:
    for pid in tuple(_told):
        try:
            running = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            running = False
        if not running:
            fd = _told.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(fd, b"e")  # forks may hold this end open too
            os.close(fd)


def wait(pid: int) -> int:
    """Reap a child that is expected, when it has ended; its wait status."""
    try:
        return os.waitpid(pid, 0)[1]
    finally:
        forget(pid)  # `reap` may not have seen those behind it


def reap() -> list[tuple[int, int]]:
    """(pid, wait status) of every child that has ended and that nobody expects."""
    ended: list[tuple[int, int]] = []
    _tell()
    while not _arriving:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return ended
        if found is None:
            return ended
        if found.si_pid in _expected:  # nor are those behind it told of, for as long as nobody waits for it
            return [*ended, *_behind()]
        ended.append(os.waitpid(found.si_pid, 0))
    return ended


def _behind() -> Iterator[tuple[int, int]]:
    """Those that are not expected, of all children that the kernel lists; of none where it does not, before Linux 3.5
    or without CONFIG_PROC_CHILDREN."""
    with contextlib.suppress(OSError):
        for pid in map(int, Path("/proc/thread-self/children").read_text().split()):
            if pid not in _expected:
                ended = os.waitpid(pid, os.WNOHANG)
                if ended[0]:
                    yield ended
