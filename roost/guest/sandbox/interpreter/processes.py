"""Processes of contexts: forks of the daemon, which shares with them the interpreter that it was forked from itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from roost.guest.fork import fork, sleeps
from roost.guest.reaping import end_of, expect, wait

Order = Mapping[str, Any]
Descriptors = tuple[int, int, int]


class Launch(Protocol):
    """What a fork becomes."""

    def __call__(self, order: Order, fds: Descriptors) -> NoReturn:
        """In the fork: be the context of `order`. `fds` are its socket, its output and its error output."""


class Child:
    """A process of a context, and with it the group of processes that it starts."""

    def __init__(self, pid: int, *, live: bool = False) -> None:
        """`pid` is a child of this process that is expected; `live`: the host can copy it. Raises OSError."""
        self._pid = pid
        self.live = live
        self._end = end_of(pid)
        self._watched = False
        self.ended = False
        self.status: int | None = None  # its wait status, if that is known
        self.on_end: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        """0 once it has ended: the number may be another's."""
        return 0 if self.ended else self._pid

    def sleeps(self) -> bool:
        """Whether it waits for something."""
        return sleeps(self._pid)

    def watch(self) -> None:
        """In the event loop: notice the end from now on."""
        if not self._watched and not self.ended:
            self._watched = True
            asyncio.get_running_loop().add_reader(self._end, self._on_end)

    def interrupt(self) -> None:
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.ended:  # the number may be another's
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(self._pid, number)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(self._pid, number)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        # What the context started lives in its group; without it, nobody would stop that. While it is not reaped, its
        # number is no other's.
        self._signal(signal.SIGKILL)
        self.ended = True
        with contextlib.suppress(ChildProcessError):
            self.status = wait(self._pid)
        os.close(self._end)
        self.on_end()


Spawn = Callable[[Order, Descriptors], Child]


def spawn(launch: Launch, order: Order, fds: Descriptors) -> Child:
    """Raises OSError when there can be no process."""
    # What is in memory now is shared with the context: no collection, on either side, shall touch (and so copy) it. And
    # what the daemon holds is never collected there, where the numbers of its descriptors are another's.
    gc.freeze()
    pid = fork()
    if pid == 0:
        launch(order, fds)
    expect(pid)
    try:
        return Child(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        raise
