"""Queue and worker over a real store, with a scripted data plane: bounds, stops, takeovers, a disk that is full."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from roost.functions.tasks import worker
from roost.functions.tasks.backlog import Backlog
from roost.functions.tasks.destinations import MAX_EVENT
from roost.model.errors import AccessDenied, NotFound, StorageFull, Throttled
from roost.model.task import Task, TaskState, Verdict
from roost.store.database import Item
from roost.store.tasks import TaskFilter, Tasks
from tests.support.task_world import NewWorld


async def test_everything_is_run_once_within_the_bounds(new_world: NewWorld) -> None:
    world = await new_world(running=5, running_per_function=3)
    await asyncio.gather(*(world.submit("ok", f"t{n}", function="fg"[n % 2]) for n in range(200)))
    for number in range(200):
        await world.until(f"t{number}", TaskState.SUCCEEDED, function="fg"[number % 2])
    assert set(world.runner.ran.values()) == {1}
    assert len(world.runner.ran) == len(world.ended) == 200
    assert world.runner.most <= 5


async def test_a_full_queue_refuses_and_takes_more_when_there_is_room(new_world: NewWorld) -> None:
    world = await new_world(queued=2, running=1)
    await world.submit("block", "first")
    await world.until("first", TaskState.RUNNING)
    await world.submit("ok", "second")
    await world.submit("ok", "third")
    with pytest.raises(Throttled):
        await world.submit("ok", "fourth")
    await world.tasks.service.stop("a", "f", "third")
    await world.submit("ok", "fourth")
    world.runner.release.set()
    await world.until("fourth", TaskState.SUCCEEDED)
    assert world.runner.ran == {"first": 1, "second": 1, "fourth": 1}


async def test_no_instance_costs_no_attempt_and_leaves_no_trace_but_the_wait(new_world: NewWorld) -> None:
    world = await new_world()
    world.runner.busy = 2
    await world.submit("ok", "t")
    done = await world.until("t", TaskState.SUCCEEDED)
    assert (done.attempts, done.spared) == (1, 0)
    assert [event.state for event in done.events] == [TaskState.ENQUEUED, TaskState.RUNNING, TaskState.SUCCEEDED]


async def test_what_comes_due_while_the_alarm_is_set_is_not_forgotten(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake_at = Backlog.wake_at

    def slow(self: Backlog) -> float | None:
        at = wake_at(self)
        while at is not None and 0 <= at - time.time() < 0.5:
            time.sleep(0.001)
        return at

    world = await new_world()
    monkeypatch.setattr(Backlog, "wake_at", slow)
    await world.submit("ok", "other")  # sets the alarm anew, late
    await world.submit("ok", "t", x_fc_async_delay="1")
    async with asyncio.timeout(5):
        while time.time() < (await world.store.tasks.get(("a", "f", "t")))[0].due - 0.3:
            await asyncio.sleep(0.01)
    world.tasks._worker.wake()
    assert (await world.until("t")).state is TaskState.SUCCEEDED


async def test_a_bug_on_the_way_loses_no_task(new_world: NewWorld) -> None:
    world = await new_world()
    world.runner.broken = 1
    await world.submit("ok", "t")
    assert (await world.until("t")).state is TaskState.SUCCEEDED
    assert world.runner.ran == {"t": 1}


async def test_a_function_that_is_switched_off_keeps_its_tasks(new_world: NewWorld) -> None:
    world = await new_world()
    world.catalog.error = AccessDenied("off", code="InvocationDisabled")
    await world.submit("ok", "t")
    async with asyncio.timeout(10):
        while not (await world.store.tasks.get(("a", "f", "t")))[0].troubles:
            await asyncio.sleep(0.01)
    world.catalog.error = None
    assert (await world.until("t")).state is TaskState.SUCCEEDED
    world.catalog.error = NotFound("no such version", code="VersionNotFound")
    await world.submit("ok", "u")
    gone = await world.until("u")
    assert (gone.state, gone.error_type, gone.attempts) == (TaskState.FAILED, "VersionNotFound", 0)


async def test_a_stop_while_it_runs_and_one_that_comes_too_late(new_world: NewWorld) -> None:
    world = await new_world()
    for payload in ("block", "deaf"):
        await world.submit(payload, payload)
        await world.until(payload, TaskState.RUNNING)
        await world.tasks.service.stop("a", "f", payload)
    assert (await world.until("block")).state is TaskState.STOPPED
    assert (await world.store.tasks.get(("a", "f", "deaf")))[0].state is TaskState.STOPPING
    world.runner.release.set()
    late = await world.until("deaf")
    assert late.state is TaskState.SUCCEEDED
    again = await world.tasks.service.retry("a", "f", "block")
    assert again.state is TaskState.ENQUEUED
    assert (await world.until("block", TaskState.SUCCEEDED)).events[0].state is TaskState.ENQUEUED


@pytest.mark.parametrize(
    ("payload", "state"),
    [("fault", TaskState.STOPPED), ("trouble", TaskState.STOPPED), ("ok", TaskState.SUCCEEDED)],
)
async def test_a_stop_between_the_run_and_its_record_wins_over_all_but_success(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch, payload: str, state: TaskState
) -> None:
    world = await new_world()
    conclude = Tasks.conclude

    async def late(self: Tasks, task: Task, verdict: Verdict, **fields: Any) -> Task:
        if task.state is TaskState.RUNNING:
            await self.stop(task.key, now=time.time())
        return await conclude(self, task, verdict, **fields)

    monkeypatch.setattr(Tasks, "conclude", late)
    await world.submit(payload, "t")
    assert (await world.until("t")).state is state
    assert world.runner.ran["t"] == 1


async def test_who_has_lost_its_task_breaks_off_and_writes_nothing(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.05)
    world = await new_world()
    await world.submit("block", "t")
    running = await world.until("t", TaskState.RUNNING)
    # As another server would that thinks this one dead.
    taken = Verdict(state=TaskState.FAILED, error="taken over")
    await world.store.tasks.conclude(running, taken, now=time.time())
    async with asyncio.timeout(10):
        while world.runner.under_way:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    found, _, _ = await world.store.tasks.get(running.key)
    assert (found.state, found.error) == (TaskState.FAILED, "taken over")


async def test_a_long_task_is_never_started_a_second_time_while_its_worker_lives(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.02)
    world = await new_world()
    await world.submit("block", "t")
    before = await world.until("t", TaskState.RUNNING)
    for _ in range(20):
        await world.submit("ok", "other-" + str(_))
        await asyncio.sleep(0.02)
    after, _, _ = await world.store.tasks.get(before.key)
    assert (after.attempts, after.epoch) == (1, before.epoch)
    assert after.heartbeat > before.heartbeat
    assert world.runner.ran["t"] == 1


async def test_a_full_disk_refuses_new_tasks_and_keeps_the_outcome_of_those_that_run(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await new_world()
    await world.submit("block", "t")
    await world.until("t", TaskState.RUNNING)
    await world.submit("ok", "later", x_fc_async_delay="1")
    submit = world.store._database._submit

    async def full(item: Item) -> Any:
        if item.synced:
            raise StorageFull("No room left.")
        return await submit(item)

    monkeypatch.setattr(world.store._database, "_submit", full)
    with pytest.raises(StorageFull):
        await world.submit("ok", "refused")
    world.runner.release.set()
    await asyncio.sleep(1.5)
    assert (await world.store.tasks.get(("a", "f", "t")))[0].state is TaskState.RUNNING
    monkeypatch.undo()
    assert (await world.until("t")).state is TaskState.SUCCEEDED
    assert (await world.until("later")).state is TaskState.SUCCEEDED
    assert world.runner.ran == {"t": 1, "later": 1}
    with pytest.raises(NotFound):
        await world.store.tasks.get(("a", "f", "refused"))


async def test_a_destination_s_destination_ends_somewhere(new_world: NewWorld) -> None:
    world = await new_world()
    world.catalog.config = {"destinationConfig": {"onSuccess": {"destination": "f"}}}  # as two functions in a ring
    await world.submit("ok", "t")
    async with asyncio.timeout(20):
        while len(world.ended) < 17:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert len(world.ended) == 17
    page, _ = await world.store.tasks.page("a", "f", TaskFilter(limit=50, with_payload=True))
    assert max(len(payload) for _, payload in page) <= MAX_EVENT, "though each quotes the one before it"


async def test_the_next_server_goes_on_with_what_waits(new_world: NewWorld) -> None:
    world = await new_world(run=False)
    for number in range(300):
        await world.submit("ok", f"t{number}")
    await world.submit("ok", "delayed", x_fc_async_delay="1")
    await world.store.close()
    again = await new_world()
    for id in (*(f"t{number}" for number in range(300)), "delayed"):
        await again.until(id, TaskState.SUCCEEDED)
    assert set(again.runner.ran.values()) == {1}


async def test_a_deleted_function_s_queue_is_forgotten(new_world: NewWorld) -> None:
    world = await new_world(queued=3, running=1)
    await world.submit("block", "runs")
    await world.until("runs", TaskState.RUNNING)
    for number in range(3):
        await world.submit("ok", f"t{number}")
    await world.store.functions.delete("a", "f")
    world.catalog.names.remove("f")
    world.catalog.listener("a", "f")
    for number in range(3):
        await world.submit("ok", f"g{number}", function="g")
    world.runner.release.set()
    for number in range(3):
        await world.until(f"g{number}", TaskState.SUCCEEDED, function="g")
