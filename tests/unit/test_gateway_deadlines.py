"""Deadlines of many on one timer, on a loop whose time the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from roost.gateway.deadlines import Deadlines


class SteppedLoop:
    """What Deadlines need of a loop; time goes on by `go` alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(at, callback, args))
        return self.timers[-1]

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()

    def go(self, seconds: float) -> None:
        self.now += seconds
        while due := [timer for timer in self.timers if timer.at <= self.now]:
            self.timers.remove(due[0])
            due[0].callback(*due[0].args)

    @property
    def set(self) -> int:
        self.timers = [timer for timer in self.timers if not timer.cancelled]
        return len(self.timers)


class Timer:
    def __init__(self, at: float, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at = at
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Waiting:
    def __init__(self, ended: list[str], name: str) -> None:
        self._ended = ended
        self._name = name

    def expire(self) -> None:
        self._ended.append(self._name)


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def loop() -> Any:
    return SteppedLoop()


def test_each_ends_in_its_time_and_an_eighth_of_a_second_at_most_after_it(loop: Any, ended: list[str]) -> None:
    deadlines = Deadlines()
    for name, seconds in (("late", 3.0), ("soon", 1.0), ("next", 1.5)):
        deadlines.join(Waiting(ended, name), seconds, loop)
    loop.go(0.999)
    assert ended == []
    loop.go(0.126)
    assert ended == ["soon"]
    loop.go(0.5)
    assert ended == ["soon", "next"]
    loop.go(1.374)
    assert ended == ["soon", "next"]
    loop.go(0.126)
    assert ended == ["soon", "next", "late"]
    assert loop.set == 0


def test_who_has_left_does_not_end_and_nothing_is_kept(loop: Any, ended: list[str]) -> None:
    deadlines = Deadlines()
    for number in range(1000):
        who = Waiting(ended, str(number))
        slot = deadlines.join(who, 60.0, loop)
        deadlines.leave(who, slot)
        deadlines.leave(who, slot)
        loop.go(0.01)
    assert loop.set <= 1, "one timer for all of them"
    loop.go(61.0)
    assert ended == []
    assert loop.set == 0


def test_an_earlier_one_moves_the_timer_forward(loop: Any, ended: list[str]) -> None:
    deadlines = Deadlines()
    deadlines.join(Waiting(ended, "day"), 86400.0, loop)
    deadlines.join(Waiting(ended, "second"), 1.0, loop)
    loop.go(1.2)
    assert ended == ["second"]
    deadlines.close()
    loop.go(100000.0)
    assert ended == ["second"]


async def test_on_a_real_loop_one_that_fails_is_not_the_others_end(ended: list[str]) -> None:
    class Failing:
        def expire(self) -> None:
            raise RuntimeError("on purpose")

    loop = asyncio.get_running_loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    done = asyncio.Event()

    class Last(Waiting):
        def expire(self) -> None:
            done.set()

    deadlines = Deadlines()
    deadlines.join(Failing(), 0.0, loop)
    deadlines.join(Last(ended, ""), 0.0, loop)
    await asyncio.wait_for(done.wait(), 10)
    assert [str(failure) for failure in failures] == ["on purpose"]
