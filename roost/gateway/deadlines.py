"""Times by which something must have ended: thousands of them on one timer.

Nearly everything ends before its time. So to join and to leave is an entry in a dictionary, and the loop's one timer
wakes for what is due alone, an eighth of a second late at most.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Protocol

_SLOTS_PER_S = 8


class Expiring(Protocol):
    """What has a deadline; hashed by identity."""

    def expire(self) -> None:
        """Its time is over. It may have ended in this very moment."""
        ...


class Deadlines:
    """Belongs to the event loop that it is first used in."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Expiring, None]] = {}  # by their end, in eighths of a second; none is empty
        self._armed = inf  # the slot that the timer is set for
        self._timer: asyncio.TimerHandle | None = None

    def join(self, who: Expiring, timeout_s: float, loop: asyncio.AbstractEventLoop) -> int:
        """`who.expire()` is called after that time, unless it leaves before. Answers what `leave` is told."""
        slot = int((loop.time() + timeout_s) * _SLOTS_PER_S) + 1
        members = self._slots.get(slot)
        if members is None:
            self._slots[slot] = {who: None}
            if slot < self._armed:
                self._arm(slot, loop)
        else:
            members[who] = None
        return slot

    def leave(self, who: Expiring, slot: int) -> None:
        """It has ended. Idempotent."""
        members = self._slots.get(slot)
        if members is not None:
            members.pop(who, None)
            if not members:
                del self._slots[slot]

    def close(self) -> None:
        """Forget all of them."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed = None, inf
        self._slots.clear()

    def _arm(self, slot: int, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = slot
        self._timer = loop.call_at(slot / _SLOTS_PER_S, self._due, loop)

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._armed = None, inf
        now = loop.time() * _SLOTS_PER_S
        over = [self._slots.pop(slot) for slot in sorted(self._slots) if slot <= now]
        if self._slots:
            self._arm(min(self._slots), loop)
        for members in over:
            for who in members:
                loop.call_soon(who.expire)  # each by itself: what one raises is not the others' end
