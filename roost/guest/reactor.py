"""A small event loop for PID 1: readiness callbacks and timers. asyncio would cost each room megabytes."""

from __future__ import annotations

import heapq
import selectors
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


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
    """Single-threaded. An exception from a callback ends `run`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._stopped = False

    def watch(self, source: HasFileno | int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready events)` while `source` is ready. Watching again replaces; `events` 0 forgets."""
        known = self._selector.get_map().get(source) is not None
        if not events:
            if known:
                self._selector.unregister(source)
        elif known:
            self._selector.modify(source, events, callback)
        else:
            self._selector.register(source, events, callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), timer))
        return timer

    def run(self) -> None:
        while not self._stopped:
            self._turn()

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._selector.close()

    def _turn(self) -> None:
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, events in self._selector.select(timeout):
            # A callback before this one may have forgotten the source, and its number may be another's by now.
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:
                key.data(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].fire()
