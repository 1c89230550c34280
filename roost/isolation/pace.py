"""A share of this process' time: whoever uses up more has to wait."""

from __future__ import annotations


class Pace:
    """A leaky bucket of seconds: `burst` at once, `share` of every second in the long run. Pure."""

    def __init__(self, *, share: float, burst: float) -> None:
        self._share = share
        self._burst = burst
        self._debt = 0.0
        self._at = 0.0

    def spend(self, began: float, now: float) -> float:
        """Note that the time from `began` to `now` was used. How long to wait before the next use; mostly 0."""
        self._debt = max(0.0, self._debt - (began - self._at) * self._share) + now - began
        self._at = now
        return max(0.0, self._debt - self._burst) / self._share
