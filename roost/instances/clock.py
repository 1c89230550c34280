"""A clock for deadlines, idle times and sessions: Unix seconds that never jump when the machine's clock is set."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How fast a difference to the machine's clock is worked off, in seconds a second: durations are off by no more.
_SLEW = 0.01


class SteadyClock:
    """Follows `wall` (Unix seconds, may be set at any time) by running at most 1 % fast or slow.

    It never goes backwards. `steady` (seconds, never set, runs while the machine sleeps) is the measure. An hour's jump
    of the wall clock is caught up with in 100 hours, and at once by a restart.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._now = wall()
        self._at = steady()

    def __call__(self) -> float:
        at = self._steady()
        elapsed = max(0.0, at - self._at)
        self._at = at
        now = self._now + elapsed
        most = elapsed * _SLEW
        self._now = now + min(most, max(-most, self._wall() - now))
        return self._now
