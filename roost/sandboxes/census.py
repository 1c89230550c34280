"""How many sandboxes each account has and starts, over the last hour. Pure: time is an argument."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from roost.sandboxes.samples import EVERY_S, KEPT


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """`running` at that moment; `starts` since the count before."""

    at: float
    running: int
    starts: int

    @property
    def start_rate(self) -> float:
        """Starts a second."""
        return round(self.starts / EVERY_S, 3)


class Census:
    """A ring of counts for each account that ever had a sandbox."""

    def __init__(self) -> None:
        self._starts: Counter[str] = Counter()
        self._rings: dict[str, deque[Count]] = {}

    def started(self, account: str) -> None:
        self._starts[account] += 1

    def take(self, now: float, running: Mapping[str, int]) -> None:
        """One count of every account."""
        for account in running.keys() | self._starts.keys() | self._rings.keys():
            ring = self._rings.setdefault(account, deque(maxlen=KEPT))
            ring.append(Count(at=now, running=running.get(account, 0), starts=self._starts[account]))
        self._starts.clear()

    def between(self, account: str, start: float, end: float) -> list[Count]:
        """Oldest first."""
        return [count for count in self._rings.get(account, ()) if start <= count.at <= end]
