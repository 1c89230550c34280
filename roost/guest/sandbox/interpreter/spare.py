"""The process of a sandbox's first context, made before the daemon knows what it is to be.

Either the host makes it, with a shadow, so that it can be copied (see ARCHITECTURE.md, "Live branches"); or the daemon
forks it. Forked then, it shares with the daemon what neither has written to yet, and is ready when the daemon is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from roost.guest.child import close_others
from roost.guest.fork import fork, wait_for_input
from roost.guest.reaping import expect, wait
from roost.guest.sandbox.interpreter.launch import PYTHON, Accounts, Launcher
from roost.guest.sandbox.interpreter.processes import Child, Descriptors, Order
from roost.guest.settled import be_worker

_MAX_ORDER = 128 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...]


class _Told:
    """`launch.Accounts` of one user, as the daemon has looked it up."""

    workdir = ""

    def __init__(self, account: _Account, env: dict[str, str]) -> None:
        self.default = account.name
        self._account = account
        self._env = env

    def lookup(self, name: str) -> _Account:
        return self._account

    def environment(self, user: object) -> dict[str, str]:
        return self._env


class Spare:
    """A process that waits for its order. Whoever makes one uses it once, or closes it."""

    def __init__(self) -> None:
        """Raises OSError when there can be no process."""
        self.live = False
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = fork()
        except OSError:
            self._sock.close()
            theirs.close()
            raise
        if self.pid == 0:
            _wait(theirs)
        expect(self.pid)
        theirs.close()

    @classmethod
    def made(cls, pid: int, sock: socket.socket) -> Spare:
        """One that the host has made, and that listens at the other end of `sock`."""
        spare = cls.__new__(cls)
        spare.live, spare.pid, spare._sock = True, pid, sock
        expect(pid)
        return spare

    def take(self, accounts: Accounts, order: Order, fds: Descriptors) -> Child | None:
        """Have it be the context of `order`. None if that can't be; it is closed then."""
        try:
            user = accounts.lookup(accounts.default)
            groups = list(user.groups)
            account = {"name": user.name, "uid": user.uid, "gid": user.gid, "home": user.home, "groups": groups}
            told = {"account": account, "env": accounts.environment(user), "order": dict(order)}
            message = json.dumps(told).encode()
            if len(message) > _MAX_ORDER:  # variables of that size
                raise OSError(errno.EMSGSIZE, "the order is too long")
            socket.send_fds(self._sock, [message], fds)
            child = Child(self.pid, live=self.live)
        except (OSError, LookupError):
            self.close()
            return None
        self._sock.close()
        return child

    def close(self) -> None:
        """End it, and reap it."""
        self._sock.close()
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            wait(self.pid)


def make_spare() -> Spare | None:
    """None where no context is a fork, or there can be no process."""
    if PYTHON not in sys.modules:
        return None
    with contextlib.suppress(OSError):
        return Spare()
    return None


def be_context(fd: int) -> NoReturn:
    """As a process of the host's that waits to be held: what goes on is its copy in a room, with another socket there,
    where it is told what it is to be: a context, or the worker of a function.

    Ends when nobody has the other end.
    """
    place = os.fstat(fd).st_ino
    while os.fstat(fd).st_ino == place:
        if wait_for_input(fd):
            os._exit(0)
    random.seed()
    _wait(socket.socket(fileno=fd))


def _wait(sock: socket.socket) -> NoReturn:
    """In the fork: ends with the daemon, or when it is not wanted."""
    try:
        close_others({0, 1, 2, sock.fileno()})
        message, fds, _, _ = socket.recv_fds(sock, _MAX_ORDER, 4)
        if message:
            received: Mapping[str, Any] = json.loads(message)
            if "worker" in received:
                be_worker(received["worker"], fds)
            account = _Account(**{**received["account"], "groups": tuple(received["account"]["groups"])})
            Launcher(_Told(account, received["env"]))(received["order"], (fds[0], fds[1], fds[2]))
    finally:
        os._exit(1)
