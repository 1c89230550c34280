"""Time limits of what runs in a room that may be frozen for hours in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

STEP_S = 5.0


class Deadline:
    """Calls `expire` once the room has run for `seconds`.

    The clock of the machine goes on while a room is frozen. So the time is taken in steps, and a step that took much
    longer than it should counts no more than twice its length.
    """

    def __init__(
        self,
        seconds: float,
        expire: Callable[[], None],
        *,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = seconds
        self._expire = expire
        self._call_later = call_later
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _next(self) -> None:
        self._step = min(STEP_S, self._left)
        self._begun = self._clock()
        self._timer = self._call_later(self._step, self._on_step)

    def _on_step(self) -> None:
        self._left -= min(self._clock() - self._begun, 2 * self._step)
        if self._left <= 0:
            self._expire()
        else:
            self._next()
