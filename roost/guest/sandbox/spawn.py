"""Starts programs as users of the room.

The daemon takes the user's ids itself for the moment of a `posix_spawn`, which shares its memory with the child until
the program runs: a fork would copy page tables and then pages, and cost milliseconds in a process that has a data
scientist's libraries loaded. The saved id stays root's, so the daemon comes back, and the kernel drops it at the exec.
It follows that the daemon has one thread, and that every descriptor of its own is closed at an exec.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from roost.guest.reaping import end_of, expect, wait
from roost.guest.sandbox.identities import User

#: Of everything that is started here. The daemon's own score stays below it, so that a room that runs out of memory
#: loses what used it and not the daemon.
OOM_SCORE = 500
_OOM_FILE = "/proc/self/oom_score_adj"
#: What Python, asyncio or the supervisor ignore or handle, and programs expect untouched.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
#: For a text that no system call takes.
_BROKEN = (ValueError, UnicodeError)


class StartError(OSError):
    """The program does not run. `step` is where its start ended: open, user, terminal, chdir or exec."""

    def __init__(self, step: str, number: int, subject: str) -> None:
        super().__init__(number, os.strerror(number), subject)
        self.step = step

    def __str__(self) -> str:
        return f"{self.step} {self.filename}: {(self.strerror or '').lower()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run. `argv[0]` without a slash is looked up on the PATH of `env`; `file` is run in its place if given."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: User
    file: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A running program, leader of a session and a process group of its own. The owner closes the descriptor, which
    becomes readable at its end, and reaps it."""

    pid: int
    ended: int


def start(program: Program, stdio: tuple[int, int, int], terminal: int | None = None) -> Child:
    """Run it with these descriptors, each above 2 or at its own place already. Raises StartError.

    `terminal`: the slave of one that becomes the user's, its controlling one, and all three descriptors instead.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]]
    if terminal is None:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
    else:
        # A session's leader that opens a terminal which nobody has gets it as its controlling one.
        actions = [(os.POSIX_SPAWN_OPEN, 0, _hand_over(terminal, program), os.O_RDWR, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
    with _oom_score(), _as_user(program):
        file = _find(program)
        try:
            pid = os.posix_spawn(
                file,
                list(program.argv),
                dict(program.env),
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=_RESET,
            )
        except OSError as error:
            raise StartError("exec", error.errno or 0, program.argv[0]) from None
        except _BROKEN:
            raise StartError("exec", errno.EINVAL, program.argv[0]) from None
    expect(pid)
    try:
        return Child(pid=pid, ended=end_of(pid))
    except OSError as error:
        signal_group(pid, signal.SIGKILL)
        wait(pid)
        raise StartError("exec", error.errno or 0, program.argv[0]) from None


def exit_status(pid: int) -> tuple[int | None, int | None, bool] | None:
    """(exit code, signal, core dumped) of a child that has ended, which stays a zombie; None while it runs.

    As long as it is one, its number and its process group's belong to nobody else.
    """
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return result.si_status, None, False
    return None, result.si_status, result.si_code == os.CLD_DUMPED


def signal_group(pid: int, number: int) -> None:
    """To the process group of a child that has not been reaped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _hand_over(terminal: int, program: Program) -> str:
    try:
        name = os.ttyname(terminal)
        os.fchown(terminal, program.user.uid, -1)
        return name
    except OSError as error:
        raise StartError("terminal", error.errno or 0, program.argv[0]) from None


def _find(program: Program) -> str:
    name = program.file or program.argv[0]
    if "/" in name:
        return name
    found = shutil.which(name, path=program.env.get("PATH", os.defpath))
    if found is None:
        raise StartError("exec", errno.ENOENT, name)
    return found


@contextlib.contextmanager
def _as_user(program: Program) -> Iterator[None]:
    """Be the user, in the program's directory, which is entered with the user's rights."""
    user, groups = program.user, os.getgroups()
    try:
        try:
            if groups != list(user.groups):
                os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, 0)
            os.setresuid(user.uid, user.uid, 0)
        except OSError as error:  # a room whose root has no such power
            raise StartError("user", error.errno or 0, user.name) from None
        try:
            os.chdir(program.cwd)
        except OSError as error:
            raise StartError("chdir", error.errno or 0, program.cwd) from None
        except _BROKEN:
            raise StartError("chdir", errno.EINVAL, program.cwd) from None
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        if os.getgroups() != groups:
            os.setgroups(groups)
        os.chdir("/")


@contextlib.contextmanager
def _oom_score() -> Iterator[None]:
    """What is started now inherits the higher score. Whoever raised its own may go back without any privilege."""
    try:
        fd = os.open(_OOM_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no /proc: no score
        yield
        return
    try:
        before = os.read(fd, 16)
        os.pwrite(fd, str(max(OOM_SCORE, int(before))).encode(), 0)
        try:
            yield
        finally:
            os.pwrite(fd, before.strip(), 0)
    finally:
        os.close(fd)
