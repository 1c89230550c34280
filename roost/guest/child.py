"""Processes of the room: fork with pipes, reap, kill."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from roost.guest.fork import fork

#: Signals that the supervisor (or the zygote before it) may have changed, and user code expects untouched.
_RESET = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipes:
    """The supervisor's ends: outputs to read, and a socket of JSON lines both ways."""

    stdout: int
    stderr: int
    status: socket.socket

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)
        self.status.close()


NOBODY = 2**31 - 1  # no process has this number
#: Its process id, and the supervisor's ends.
Forked = tuple[int, Pipes]


def fork_worker(body: Callable[[socket.socket], None], *, keep: tuple[int, ...]) -> Forked:
    """Run `body(status socket)` in a child with its own session, and exit with its end.

    The child holds descriptors 0-2, its status socket and `keep`; nothing else of the supervisor's. OSError when the
    room's limits allow no process or descriptor more.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        undo.callback(theirs.close)
        out_r, out_w = _pipe(undo)
        err_r, err_w = _pipe(undo)
        gc.freeze()  # what exists now is shared with the child; its collector must not touch (and so copy) it
        pid = fork()
        if pid == 0:
            # The supervisor's objects stay referenced from the frames below this one: none is collected in the
            # child, where the number of its closed descriptor may be another's.
            _run_child(body, theirs, out_w, err_w, keep)
        undo.pop_all()
    theirs.close()
    os.close(out_w)
    os.close(err_w)
    ours.setblocking(False)
    return pid, Pipes(stdout=out_r, stderr=err_r, status=ours)


def begin_here() -> tuple[Forked, socket.socket]:
    """As `fork_worker`, of a worker that this process is going to be itself: its ends, and the worker's status socket.

    The outputs become this process' own. It must not wait for itself to read them, so they take what there is room for.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        undo.callback(theirs.close)
        readers = []
        for number in (1, 2):
            reader, writer = _pipe(undo)
            os.set_blocking(writer, False)
            os.dup2(writer, number)
            readers.append(reader)
            os.close(writer)
        undo.pop_all()
    gc.freeze()
    gc.enable()
    ours.setblocking(False)
    return (NOBODY, Pipes(stdout=readers[0], stderr=readers[1], status=ours)), theirs


def kill_tree(leader: int) -> None:
    """SIGKILL the worker and all it started: as the room's init, everything else that lives in the room."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(leader, signal.SIGKILL)


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    undo.callback(os.close, reader)
    undo.callback(os.close, writer)
    return reader, writer


def _run_child(
    body: Callable[[socket.socket], None], status: socket.socket, out: int, err: int, keep: tuple[int, ...]
) -> NoReturn:
    def isolated() -> None:
        isolate(out, err, {status.fileno(), *keep})
        body(status)

    exit_with(isolated)


def isolate(out: int, err: int, keep: set[int]) -> None:
    """Leave the supervisor's session, signals and descriptors behind."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    close_others({0, 1, 2} | keep)
    gc.enable()


def close_others(keep: set[int]) -> None:
    """Close every descriptor but `keep`."""
    limit = 0
    for fd in sorted(keep):
        if limit < fd:  # closerange(0, 0) of Python 3.11 closes everything
            os.closerange(limit, fd)
        limit = fd + 1
    os.closerange(limit, max(limit, os.sysconf("SC_OPEN_MAX")))


def exit_with(body: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        body()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)
