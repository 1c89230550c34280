"""Time limits in a room that is frozen in between: pure, on a clock of the test."""

from __future__ import annotations

from collections.abc import Callable

from roost.guest.sandbox.deadlines import STEP_S, Deadline


class Clock:
    """Time that passes when the test says so; timers that are late after a freeze."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Timer]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        self.timers.append((self.now + delay, timer))
        return timer

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [each for each in self.timers if each[0] <= end]:
            at, timer = min(due, key=lambda each: each[0])
            self.timers.remove((at, timer))
            self.now = max(self.now, at)
            timer.fire()
        self.now = end

    def freeze(self, seconds: float) -> None:
        self.now += seconds


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        if self._callback is not None:
            self._callback()


def start(clock: Clock, seconds: float, expired: list[float]) -> Deadline:
    expire = lambda: expired.append(clock.now)  # noqa: E731
    return Deadline(seconds, expire, call_later=clock.call_later, clock=lambda: clock.now)  # type: ignore[arg-type]


def test_it_expires_once_in_time() -> None:
    for seconds in (0.1, STEP_S, STEP_S * 2.5):
        clock, expired = Clock(), []
        start(clock, seconds, expired)
        clock.run(seconds * 0.99)
        assert expired == []
        clock.run(1000)
        assert [round(at, 6) for at in expired] == [seconds]


def test_frozen_time_hardly_counts() -> None:
    clock, expired = Clock(), []
    start(clock, 60, expired)
    clock.run(30)
    clock.freeze(10_000)
    clock.run(60 - 30 - 2 * STEP_S - 1)
    assert expired == []
    clock.run(2 * STEP_S + 2)
    assert len(expired) == 1


def test_a_cancelled_one_never_expires() -> None:
    clock, expired = Clock(), []
    deadline = start(clock, 60, expired)
    clock.run(20)
    deadline.cancel()
    clock.run(1000)
    assert expired == []
