"""A small event loop for PID 1: readiness callbacks and timers. asyncio would cost each room megabytes."""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

READ = 1
WRITE = 2
_IN = select.EPOLLIN
_OUT = select.EPOLLOUT


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Timer:
    """A scheduled call. `cancel` may be called at any time."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Reactor:
    """Single-threaded. An exception from a callback ends `run`.

    Made of epoll directly: `selectors` executes several times the code, and in a new process each page of code and data
    that it touches has to be copied first.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[HasFileno | int, int, Callable[[int], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._stopped = False
        self._left = False

    def fileno(self) -> int:
        """Readable when `turn` has something to do, besides timers."""
        return self._epoll.fileno()

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def due(self) -> float | None:
        """When the next timer fires, by the monotonic clock."""
        return self._timers[0][0] if self._timers else None

    def watch(self, source: HasFileno | int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready events)` while `source` is ready. Watching again replaces; `events` 0 forgets.

        A source is forgotten before it is closed.
        """
        fd = source if isinstance(source, int) else source.fileno()
        known = self._watched.get(fd)
        if not events:
            if known is not None:
                del self._watched[fd]
                self._epoll.unregister(fd)
            return
        mask = (_IN if events & READ else 0) | (_OUT if events & WRITE else 0)
        if known is None:
            self._epoll.register(fd, mask)
        elif known[1] != events:
            self._epoll.modify(fd, mask)
        self._watched[fd] = (source, events, callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Until `stop`, or until `leave`, after which it may be run again, or turned by another loop."""
        self._left = False
        while not (self._stopped or self._left):
            due = self.due
            self.turn(None if due is None else max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        self._stopped = True

    def leave(self) -> None:
        self._left = True

    def close(self) -> None:
        self._epoll.close()

    def turn(self, timeout: float | None) -> None:
        """Wait for so long at most, then do what there is to do."""
        ready = [(self._watched.get(fd), fd, mask) for fd, mask in self._epoll.poll(timeout)]
        for watched, fd, mask in ready:
            # A callback before this one may have forgotten the source, and its number may be another's by now.
            if watched is not None and self._watched.get(fd) is watched:
                # An error or a hang-up shows when the source is read or written.
                events = (READ if mask & ~_OUT else 0) | (WRITE if mask & ~_IN else 0)
                watched[2](events & watched[1])
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].fire()
