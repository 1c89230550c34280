"""How often a room may call its model: so many times in its life, and not again and again while it fails. No clock of
its own, no I/O."""

from __future__ import annotations

from collections.abc import Callable

from roost.model.errors import Throttled

#: In a row; then it rests, at first this long, and twice as long after each one more, up to the most.
FAILURES = 10
_REST_S, _MOST_REST_S = 1.0, 60.0


class OverBudget(Throttled):
    """A limit of the room's own."""

    code = "BudgetExceeded"


class Budget:
    """Of one sandbox, session or instance, over all rooms that it has while this server runs. `most`: 0 is no limit."""

    def __init__(self, clock: Callable[[], float], *, most: int = 0) -> None:
        self.calls = 0
        self.most = most
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0

    def call(self) -> None:
        """One more. Raises OverBudget, and then it does not count."""
        if self.most and self.calls >= self.most:
            raise OverBudget(f"This room has called its model {self.calls} times, and may no more (model_calls).")
        if (left := self._rests_until - self._clock()) > 0:
            raise OverBudget(
                f"The model has failed {self._failures} times in a row; the next call is in {left:.0f} seconds.",
                retry_after=left,
            )
        self.calls += 1

    def ended(self, *, failed: bool) -> None:
        """What became of one."""
        self._failures = self._failures + 1 if failed else 0
        if (over := self._failures - FAILURES) >= 0:
            self._rests_until = self._clock() + min(_REST_S * 2 ** min(over, 16), _MOST_REST_S)
