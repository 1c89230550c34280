"""The nursery: forks the processes of contexts, signals and reaps them. It ends with the daemon, and they end with it.

It is forked from the daemon before that has anything of a client, does one thing at a time in one thread, and runs no
code of the user: what a context inherits from it is the interpreter with its libraries imported.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from roost.guest.child import close_others
from roost.guest.sandbox.interpreter import linux

MAX_MESSAGE = 16 << 10

Order = Mapping[str, Any]


class Launch(Protocol):
    """What the nursery's forks become."""

    def prepare(self, order: Order) -> None:
        """In the nursery, before the fork: have in memory what the fork is to share."""

    def __call__(self, order: Order, fds: tuple[int, int, int]) -> NoReturn:
        """In the fork: be a context. `fds` are its socket, its output and its error output."""


def run_nursery(sock: socket.socket, launch: Launch) -> NoReturn:
    """The body of the fork that becomes the nursery."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        close_others({0, 1, 2, sock.fileno()})
        linux.die_with_parent()
        os.setsid()
        gc.disable()
        gc.freeze()
        _Nursery(sock, launch).serve()
        code = 0
    finally:
        os._exit(code)


class _Nursery:
    def __init__(self, sock: socket.socket, launch: Launch) -> None:
        self._sock = sock
        self._launch = launch
        self._children: dict[int, int] = {}  # number of the context's process: its pid, not yet reaped
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Until the daemon has gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                self._reap()
            if self._sock.fileno() in ready and not self._answer():
                break
        for pid in self._children.values():
            _signal_group(pid, signal.SIGKILL)

    def _answer(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, 3)
        try:
            if not data:
                return False
            message = json.loads(data)
            if message["op"] == "spawn":
                self._spawn(message, (fds[0], fds[1], fds[2]))
            elif (pid := self._children.get(message["number"])) is not None:
                _signal_group(pid, message["signal"])
            return True
        finally:
            for fd in fds:
                os.close(fd)

    def _spawn(self, message: Order, fds: tuple[int, int, int]) -> None:
        self._launch.prepare(message)
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"number": message["number"], "error": f"no process can be made: {error.strerror}"})
            return
        if pid == 0:
            self._launch(message, fds)
        self._children[message["number"]] = pid

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 512):
                pass
        for number, pid in list(self._children.items()):
            # Looked at before it is reaped: its number may be another's afterwards.
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                # What the context started lives in its group; without it, nobody would stop that.
                _signal_group(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                del self._children[number]
                self._tell({"number": number, "ended": status})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the daemon has gone: `serve` ends
            self._sock.send(json.dumps(message).encode())


def _signal_group(pid: int, number: int) -> None:
    """Signal an unreaped child and what it started; one that has no group of its own yet, alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)
