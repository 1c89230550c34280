"""The machine's clock is set by hours: what waits, runs, expires or is forgotten does so in its own time."""

from __future__ import annotations

import asyncio
import time

import pytest

from roost.functions.tasks import outbox, worker
from roost.instances.clock import SteadyClock
from roost.model.errors import Unavailable
from roost.model.task import TaskState
from tests.support.task_world import NewWorld

HOUR, DAY = 3600.0, 86400.0


class Wall:
    """The machine's clock, which somebody sets."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self) -> float:
        return time.time() + self.offset


@pytest.mark.parametrize("jump", [5 * HOUR, 30 * DAY, -5 * HOUR, -30 * DAY])
async def test_a_running_server_does_not_follow_a_jump(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.05)
    wall = Wall()
    world = await new_world(clock=SteadyClock(wall=wall))
    world.catalog.config = {"maxAsyncEventAgeInSeconds": 3600}
    await world.submit("ok", "ended")
    await world.until("ended")
    await world.submit("block", "runs")
    await world.until("runs", TaskState.RUNNING)
    await world.submit("ok", "soon", x_fc_async_delay="1")
    await world.submit("ok", "later", x_fc_async_delay="600")
    await world.submit("fault", "again")
    await world.until("again", TaskState.RETRYING)
    wall.offset = jump
    beats = (await world.until("runs", TaskState.RUNNING)).heartbeat
    assert (await world.until("soon")).state is TaskState.SUCCEEDED
    async with asyncio.timeout(10):
        while (await world.until("again", *TaskState)).attempts < 2:
            await asyncio.sleep(0.02)
    await world.submit("ok", "new", x_fc_async_delay="1")
    assert (await world.until("new")).state is TaskState.SUCCEEDED
    await world.tasks.service._prune()
    assert (await world.until("ended")).state is TaskState.SUCCEEDED, "nothing is forgotten too early"
    later = await world.until("later", *TaskState)
    runs = await world.until("runs", *TaskState)
    assert later.state is TaskState.ENQUEUED
    assert 590 < later.due - world.tasks._clock() < 600
    assert runs.state is TaskState.RUNNING
    assert runs.heartbeat > beats
    world.runner.release.set()
    assert (await world.until("runs")).ended - runs.started < 60


async def test_a_clock_that_was_ahead_before_the_restart_holds_nothing_up(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_PAUSE_S", 60.0)
    ahead = await new_world(clock=Wall(5 * HOUR))
    ahead.catalog.config = {"destinationConfig": {"onSuccess": {"destination": "https://hook.example/"}}}
    ahead.publisher.errors = [Unavailable("down")]
    await ahead.submit("ok", "sent")
    await ahead.until("sent")
    async with asyncio.timeout(5):
        while not ahead.publisher.got:
            await asyncio.sleep(0.01)
    await ahead.submit("ok", "waits", x_fc_async_delay="60")
    await ahead.submit("fault", "again")
    await ahead.until("again", TaskState.RETRYING)
    await ahead.tasks.close(drain_s=0.1)
    await ahead.store.close()
    world = await new_world()
    assert (await world.until("waits")).state is TaskState.SUCCEEDED
    async with asyncio.timeout(10):
        while (await world.until("again", *TaskState)).attempts < 2 or not world.publisher.got:
            await asyncio.sleep(0.02)
