"""Starts programs as users of the room, by a plain fork of the single-threaded daemon."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from roost.guest.child import close_others
from roost.guest.sandbox.identities import User, become

#: Of everything that is started here. The daemon's own score stays below it, so that a room that runs out of memory
#: loses what used it and not the daemon.
OOM_SCORE = 500
_REPORT_FD = 3  # where the child keeps the pipe that says why it could not start
#: What Python, asyncio or the supervisor ignore or handle, and programs expect untouched.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGTTOU)


class StartError(OSError):
    """The program does not run. `step` is where its start ended: fork, terminal, user, chdir or exec."""

    def __init__(self, step: str, number: int, subject: str) -> None:
        super().__init__(number, os.strerror(number), subject)
        self.step = step

    def __str__(self) -> str:
        return f"{self.step} {self.filename}: {(self.strerror or '').lower()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run. `argv[0]` without a slash is looked up on the PATH of `env`; `file` is run in its place if given.

    `terminal`: standard input is a terminal that shall be the controlling one of a new session.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: User
    file: str = ""
    terminal: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A forked child that is about to run its program, leader of a session and a process group of its own.

    `report` becomes readable when the program runs (nothing in it) or will not (see `outcome`). The owner closes both
    descriptors and reaps the process.
    """

    pid: int
    pidfd: int
    report: int


def fork(program: Program, stdio: tuple[int, int, int]) -> Child:
    """Raises StartError if the room's limits allow no process or descriptor more."""
    with contextlib.ExitStack() as undo:
        try:
            reader, writer = os.pipe()
            undo.callback(os.close, reader)
            try:
                pid = os.fork()
                if pid == 0:
                    _run(program, stdio, writer)
            finally:
                os.close(writer)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except OSError as error:
            raise StartError("fork", error.errno or 0, program.argv[0]) from error
        undo.pop_all()
    return Child(pid=pid, pidfd=pidfd, report=reader)


def outcome(report: bytes, program: Program) -> StartError | None:
    """What the bytes from a child's `report` mean."""
    if not report:
        return None
    step, _, number = report.decode("ascii", "replace").partition(" ")
    subject = program.cwd if step == "chdir" else program.argv[0]
    return StartError(step, int(number) if number.isdigit() else 0, subject)


def exit_status(pidfd: int) -> tuple[int | None, int | None, bool] | None:
    """(exit code, signal, core dumped) of a child that has ended, which stays a zombie; None while it runs.

    As long as it is one, its number and its process group's belong to nobody else.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return result.si_status, None, False
    return None, result.si_status, result.si_code == os.CLD_DUMPED


def signal_group(pid: int, number: int) -> None:
    """To the process group of a child that has not been reaped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _run(program: Program, stdio: tuple[int, int, int], report: int) -> NoReturn:
    step = "fork"
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _take_descriptors(stdio, report)
        step = "terminal"
        if program.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _raise_oom_score()
        step = "user"
        become(program.user)
        step = "chdir"
        os.chdir(program.cwd)
        step = "exec"
        os.execvpe(program.file or program.argv[0], list(program.argv), dict(program.env))  # noqa: S606
    except OSError as error:
        os.write(_REPORT_FD, f"{step} {error.errno or 0}".encode())
    finally:
        os._exit(127)


def _take_descriptors(stdio: tuple[int, int, int], report: int) -> None:
    # First out of the way of the numbers that they get: any of them may be 0 to 3 now.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*stdio, report)]
    for number, fd in enumerate(high[:3]):
        os.dup2(fd, number)
    os.dup2(high[3], _REPORT_FD, inheritable=False)
    close_others({0, 1, 2, _REPORT_FD})


def _raise_oom_score() -> None:
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, str(OOM_SCORE).encode())
        os.close(fd)
