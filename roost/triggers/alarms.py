"""Many who wait for times of the wall clock, with one timer for all of them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable

#: The clock may be set while nothing is due: it is looked at so often, as long as anybody waits.
LOOK_S = 5.0
#: Differences between the clocks that are no more than one that runs a little fast or slow.
_DRIFT_S = 1.0


class Alarms:
    """`wall` (Unix seconds) may be set to any time, forward or back; `steady` never is."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        look_s: float = LOOK_S,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._look_s = look_s
        self._heap: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # on the event loop's clock
        self._offset = wall() - steady()

    def now(self) -> float:
        return self._wall()

    @property
    def waiting(self) -> tuple[float, ...]:
        """The times that are waited for."""
        return tuple(at for at, _, _ in self._heap)

    async def until(self, at: float) -> None:
        """Return when it is `at`, or earlier because the clock was set: look anew what there is to wait for then."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (at, next(self._numbers), future)
        heapq.heappush(self._heap, entry)
        self._arm()
        try:
            await future
        except asyncio.CancelledError:
            if entry in self._heap:
                self._heap.remove(entry)
                heapq.heapify(self._heap)
                self._arm()
            raise

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._heap:
            self._disarm()
            return
        delay = min(max(0.0, self._heap[0][0] - self._wall()), self._look_s)
        if self._timer is not None and self._timer_at <= loop.time() + delay:
            return
        self._disarm()
        self._timer_at = loop.time() + delay
        self._timer = loop.call_at(self._timer_at, self._ring)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _ring(self) -> None:
        self._disarm()
        now = self._wall()
        offset = now - self._steady()
        was_set, self._offset = abs(offset - self._offset) > _DRIFT_S, offset
        while self._heap and (was_set or self._heap[0][0] <= now):
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                future.set_result(None)
        self._arm()
