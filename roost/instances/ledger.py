"""What an instance's time was spent on, from one change of its state to the next. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One stay in a state: seconds in it, seconds of these with a lease, CPU microseconds."""

    held_s: float
    leased_s: float
    cpu_us: int


class Ledger:
    """`idle_since` is when the last lease was given back, or the instance became ready."""

    def __init__(self, now: float) -> None:
        self.idle_since = now
        self._since = now  # in the present state
        self._busy_since: float | None = None
        self._leased_s = 0.0
        self._cpu_us = 0  # of the present room, at the last change

    def busy(self, now: float) -> None:
        """The first lease was taken."""
        self._busy_since = now

    def idle(self, now: float) -> None:
        """The last lease was given back."""
        self._leased_s += self._busy_for(now)
        self._busy_since = None
        self.idle_since = now

    def new_room(self) -> None:
        """CPU is counted from nothing again."""
        self._cpu_us = 0

    def turn(self, now: float, cpu_us: int | None) -> Spent:
        """The state changes: what the stay in it took. `cpu_us` of the room so far; None if it can't be read."""
        cpu = self._cpu_us if cpu_us is None else cpu_us
        spent = Spent(
            held_s=now - self._since,
            leased_s=self._leased_s + self._busy_for(now),
            cpu_us=max(0, cpu - self._cpu_us),
        )
        self._since, self._leased_s, self._cpu_us = now, 0.0, cpu
        return spent

    def _busy_for(self, now: float) -> float:
        return 0.0 if self._busy_since is None else now - max(self._busy_since, self._since)
