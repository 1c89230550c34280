"""Timers: what fires when, after whatever happened to the server and to the clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from roost.functions.triggers.schedule import parse_schedule
from roost.functions.triggers.timer import CatchUp
from roost.model.errors import StorageFull, Throttled
from roost.triggers.alarms import Alarms
from roost.triggers.sources.timer import MAX_CAUGHT_UP, Timer, due
from roost.triggers.status import TriggerStatus
from tests.support.triggers import Cursors, HandClock, Queue, record, until

MONDAY = datetime(2026, 1, 5, tzinfo=UTC).timestamp()
HOURLY = parse_schedule("0 0 * * * *", None, 0.0)
H = 3600.0


class World:
    """One timer at work, on a clock of its own; it can be killed and started again."""

    def __init__(self, now: float = MONDAY, **config: Any) -> None:
        self.clock = HandClock(now)
        self.cursors, self.queue, self.status = Cursors(), Queue(), TriggerStatus()
        self.alarms = Alarms(wall=lambda: self.clock.wall, steady=lambda: self.clock.steady, look_s=0.005)
        self.record = record("timer", {"cronExpression": "0 0 * * * *", **config}, created=now, modified=now)

    @contextlib.asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        timer = Timer(self.record, alarms=self.alarms, cursors=self.cursors)
        task = asyncio.create_task(timer.run(self.queue, self.status))
        await until(lambda: self.status.up or task.done())
        try:
            yield
            # What is due now has been seen by then.
            await asyncio.sleep(0.05)
        finally:
            task.cancel()
            await asyncio.wait({task})
            self.status.stopped()
            if not task.cancelled() and (error := task.exception()):
                raise error

    @property
    def hours(self) -> list[float]:
        """The times that fired, in hours behind Monday."""
        return [(datetime.fromisoformat(id).timestamp() - MONDAY) / H for id in self.queue.ids]


@pytest.mark.parametrize(
    ("catch_up", "late", "fires"),
    [
        (CatchUp.NONE, 1, [3]),
        (CatchUp.LAST, 1, [3]),
        (CatchUp.ALL, 1, [1, 2, 3]),
        (CatchUp.NONE, 600, []),
        (CatchUp.LAST, 600, [3]),
        (CatchUp.ALL, 600, [1, 2, 3]),
    ],
)
def test_what_was_missed_is_the_policys(catch_up: CatchUp, late: float, fires: list[int]) -> None:
    found, cursor = due(HOURLY, MONDAY, MONDAY + 3 * H + late, catch_up)
    assert found == [MONDAY + hour * H for hour in fires]
    assert cursor == MONDAY + 3 * H, "all of them have been dealt with"
    assert due(HOURLY, cursor, MONDAY + 3 * H + late, catch_up) == ([], cursor)


def test_several_that_are_on_time_all_fire() -> None:
    every_second = parse_schedule("@every 1s", None, MONDAY)
    for catch_up in CatchUp:
        assert due(every_second, MONDAY, MONDAY + 3.5, catch_up)[0] == [MONDAY + 1, MONDAY + 2, MONDAY + 3]


def test_years_of_missed_seconds_are_bounded_in_number_and_work() -> None:
    schedule, now = parse_schedule("* * * * * *", None, 0.0), MONDAY + 3 * 366 * 86400.0
    began = time.monotonic()
    found, cursor = due(schedule, MONDAY, now, CatchUp.ALL)
    assert time.monotonic() - began < 1.0
    assert found == [now - count for count in range(MAX_CAUGHT_UP - 1, -1, -1)]
    assert cursor == now
    # A yearly one is found too, far back as it is.
    assert due(parse_schedule("0 0 1 2 *", None, 0.0), MONDAY, MONDAY + 300 * 86400, CatchUp.LAST)[0] == [
        datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    ]


async def test_each_time_becomes_one_task_in_the_documented_shape() -> None:
    world = World(payload="clean up")
    async with world.runs():
        for hour in range(1, 4):
            world.clock.passes(H)
            await until(lambda hour=hour: len(world.queue.tasks) == hour)
    assert world.hours == [1, 2, 3]
    assert world.queue.asked == 3
    assert next(json.loads(event.body) for event in world.queue.tasks.values()) == {
        "triggerTime": "2026-01-05T01:00:00Z", "triggerName": "t", "payload": "clean up",
    }  # fmt: skip


@pytest.mark.parametrize(("catch_up", "hours"), [("none", []), ("last", [5]), ("all", [1, 2, 3, 4, 5])])
async def test_times_that_went_by_while_the_server_was_down(catch_up: str, hours: list[int]) -> None:
    world = World(catchUp=catch_up)
    async with world.runs():
        pass
    world.clock.passes(5.5 * H)
    for _ in range(2):  # what was caught up with is so once
        async with world.runs():
            pass
        assert world.hours == hours


async def test_a_short_stop_of_the_server_loses_nothing_whatever_the_policy() -> None:
    world = World(catchUp="none")
    async with world.runs():
        pass
    world.clock.passes(H + 5)
    async with world.runs():
        pass
    assert world.hours == [1]


async def test_a_crash_between_the_task_and_the_cursor_fires_neither_twice_nor_never() -> None:
    world = World(catchUp="all")
    for hour in range(1, 6):
        world.cursors.refuse = None
        with pytest.raises(StorageFull):
            async with world.runs():
                world.cursors.refuse = StorageFull("as if the server had died here")
                world.clock.passes(H)
                await until(lambda hour=hour: len(world.queue.tasks) == hour)
    assert world.hours == [1, 2, 3, 4, 5]
    assert world.queue.asked > 5, "some were asked for again, with the ids that they had"


async def test_a_full_queue_holds_a_fire_up_and_drops_none() -> None:
    world = World()
    async with world.runs():
        world.queue.refusals = [Throttled("The queue is full."), StorageFull("No room.")]
        world.clock.passes(H)
        await until(lambda: world.status.last_error != "")
        assert not world.status.up
        await until(lambda: len(world.queue.tasks) == 1)
        await until(lambda: world.status.up)
    assert world.hours == [1]
    assert world.status.last_error == "No room."


async def test_a_new_schedule_has_missed_nothing_of_the_time_before_it() -> None:
    world = World()
    async with world.runs():
        world.clock.passes(H)
        await until(lambda: world.hours == [1])
    world.clock.passes(H / 2)
    world.record = record(
        "timer", {"cronExpression": "0 15 * * * *"}, created=MONDAY, modified=world.clock.wall
    )  # fmt: skip
    async with world.runs():
        pass
    assert world.hours == [1], "a quarter past one went by under the old schedule"
    world.clock.passes(H)
    async with world.runs():
        pass
    assert world.hours == [1, 2.25]


# --- clocks that are set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("catch_up", "hours"), [("none", []), ("last", [10]), ("all", list(range(1, 11)))])
async def test_a_clock_that_is_set_forward_has_missed_what_it_passed_over(catch_up: str, hours: list[int]) -> None:
    world = World(catchUp=catch_up)
    async with world.runs():
        world.clock.is_set(MONDAY + 10.5 * H)
        await asyncio.sleep(0.1)
        assert world.hours == hours
        world.clock.passes(H / 2)
        await until(lambda: world.hours == [*hours, 11])


async def test_a_clock_that_is_set_back_a_little_fires_nothing_twice() -> None:
    world = World()
    async with world.runs():
        world.clock.passes(2 * H)
        await until(lambda: world.hours == [2])
        world.clock.is_set(MONDAY + 0.5 * H)
        for _ in range(3):
            world.clock.passes(H / 2)
            await asyncio.sleep(0.03)
        assert world.hours == [2], "one and two o'clock have been"
        world.clock.passes(H)
        await until(lambda: world.hours == [2, 3])
    assert world.queue.asked == 2


async def test_a_clock_that_was_years_ahead_does_not_silence_a_timer_when_it_is_mended() -> None:
    world = World(now=MONDAY + 10 * 365 * 86400)
    async with world.runs():
        world.clock.passes(H)
        await until(lambda: len(world.queue.tasks) == 1)
        world.clock.is_set(MONDAY)
        await asyncio.sleep(0.05)
        world.clock.passes(H)
        await until(lambda: world.hours[1:] == [1])
    # Also when the server was down meanwhile.
    other = World(now=MONDAY + 10 * 365 * 86400)
    async with other.runs():
        pass
    other.clock.is_set(MONDAY + H / 2)
    async with other.runs():
        other.clock.passes(H / 2)
        await until(lambda: other.hours == [1])


# --- many ----------------------------------------------------------------------------------------------------------


class CountedAlarms(Alarms):
    rings = 0

    def _ring(self) -> None:
        self.rings += 1
        super()._ring()


async def test_a_thousand_timers_share_one_alarm() -> None:
    clock, queue, status = HandClock(MONDAY), Queue(), TriggerStatus()
    alarms = CountedAlarms(wall=lambda: clock.wall, steady=lambda: clock.steady, look_s=0.1)
    cursors = Cursors()
    timers = [
        Timer(
            record("timer", {"cronExpression": f"@every {3600 + number}s"}, id=str(number), created=MONDAY),
            alarms=alarms,
            cursors=cursors,
        )
        for number in range(1000)
    ]
    tasks = [asyncio.create_task(timer.run(queue, status)) for timer in timers]
    await until(lambda: len(alarms.waiting) == 1000)
    alarms.rings = 0
    await asyncio.sleep(1.0)
    assert alarms.rings <= 11, "they look at the clock together, or not at all"
    assert queue.asked == 0
    clock.passes(3600 + 500)
    await until(lambda: len(queue.tasks) == 501)
    clock.passes(499)
    await until(lambda: len(queue.tasks) == 1000)
    await until(lambda: len(alarms.waiting) == 1000)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert alarms.waiting == ()
