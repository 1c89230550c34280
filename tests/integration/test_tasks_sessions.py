"""What becomes of a new task whose session has work: refused, queued, or the others stopped; decided in the store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from roost.model.errors import Conflict, InvalidArgument
from roost.model.task import SessionBusy, Task, TaskState
from roost.store.tasks import Tasks
from tests.support.task_world import NewWorld, World

CHAT: dict[str, Any] = {"session": "chat"}


async def submitted(world: World, id: str, payload: str = "ok", busy: str = "", **more: str) -> None:
    await world.submit(payload, id, **CHAT, **({"x_roost_task_busy": busy} if busy else {}), **more)


async def states(world: World, *ids: str) -> list[str]:
    return [(await world.store.tasks.get(("a", "f", id)))[0].state.value for id in ids]


async def busy(world: World) -> tuple[bool, int]:
    work = (await world.tasks.service.work_of("a", "f", ["chat"]))[0]
    return work.busy, work.tasks


async def test_reject_refuses_while_a_task_runs_waits_or_is_to_be_retried(new_world: NewWorld) -> None:
    world = await new_world()
    assert await busy(world) == (False, 0)
    await submitted(world, "runs", "block", busy="reject")
    await world.until("runs", TaskState.RUNNING)
    assert await busy(world) == (True, 1)
    with pytest.raises(SessionBusy) as refused:
        await submitted(world, "no", busy="reject")
    assert (refused.value.status, refused.value.code) == (409, "SessionBusy")
    assert "chat" in refused.value.message
    assert "runs is Running" in refused.value.message
    await submitted(world, "waits", "ok", busy="enqueue")
    assert await busy(world) == (True, 2)
    world.runner.release.set()
    await world.until("waits", TaskState.SUCCEEDED)
    await submitted(world, "again", "fault", busy="reject")
    await world.until("again", TaskState.RETRYING)
    with pytest.raises(SessionBusy):
        await submitted(world, "no", busy="reject")
    assert "no" not in world.runner.ran


async def test_reject_refuses_while_an_instance_works_on_a_request(new_world: NewWorld) -> None:
    world = await new_world()
    await submitted(world, "before", busy="reject")
    await world.until("before")
    world.requests = 1
    assert await busy(world) == (True, 0)
    with pytest.raises(SessionBusy, match="request"):
        await submitted(world, "no", busy="reject")
    await submitted(world, "before", busy="reject")  # it was accepted: nothing is queued twice, nothing is refused
    with pytest.raises(Conflict) as other:
        await submitted(world, "before", "other", busy="reject")
    assert other.value.code == "AsyncTaskAlreadyExists"
    world.requests = 0
    await submitted(world, "yes", busy="reject")
    await world.until("yes", TaskState.SUCCEEDED)


async def test_a_task_for_later_is_no_work_yet(new_world: NewWorld) -> None:
    world = await new_world()
    await submitted(world, "later", x_fc_async_delay="600")
    assert await busy(world) == (False, 0)
    await submitted(world, "now", busy="reject")
    await world.until("now", TaskState.SUCCEEDED)
    await submitted(world, "urgent", busy="interrupt")
    await world.until("urgent", TaskState.SUCCEEDED)
    assert await states(world, "later") == ["Enqueued"]
    with pytest.raises(InvalidArgument, match="x-fc-async-delay"):
        await submitted(world, "no", busy="interrupt", x_fc_async_delay="5")


async def test_of_two_at_once_exactly_one_is_accepted(new_world: NewWorld) -> None:
    world = await new_world()
    for round in range(20):
        ids = [f"r{round}-{number}" for number in range(5)]
        came = await asyncio.gather(*(submitted(world, id, busy="reject") for id in ids), return_exceptions=True)
        assert [type(error) for error in came if error is not None] == [SessionBusy] * 4, came
        winner = ids[came.index(None)]
        await world.until(winner, TaskState.SUCCEEDED)
        assert world.tasks._backlog.pending == 0
    assert sum(world.runner.ran.values()) == 20


async def test_the_same_id_twice_at_once_is_one_task(new_world: NewWorld) -> None:
    world = await new_world()
    await asyncio.gather(*(submitted(world, "one", busy="reject") for _ in range(5)))
    await world.until("one", TaskState.SUCCEEDED)
    assert world.runner.ran == {"one": 1}


async def test_interrupt_stops_what_runs_and_what_waits_and_runs(new_world: NewWorld) -> None:
    world = await new_world()
    await submitted(world, "runs", "block")
    await world.until("runs", TaskState.RUNNING)
    await submitted(world, "waits")
    await world.submit("block", "elsewhere", session="other")
    await submitted(world, "urgent", busy="interrupt")
    assert (await world.until("urgent")).state is TaskState.SUCCEEDED
    runs = await world.until("runs")
    assert [event.state.value for event in runs.events] == ["Enqueued", "Running", "Stopping", "Stopped"]
    assert runs.events[2].detail == "interrupted by task urgent"
    waits = await world.until("waits")
    assert (waits.state, waits.events[-1].detail) == (TaskState.STOPPED, "interrupted by task urgent")
    assert await states(world, "elsewhere") == ["Running"]
    assert world.runner.ran["waits"] == 0
    assert sorted(world.ended) == ["runs", "urgent", "waits"]
    urgent = await world.until("urgent")
    assert urgent.started >= runs.ended, "it runs after the one that it stopped"
    assert world.tasks._backlog.pending == 0


async def test_the_last_of_many_interrupts_wins(new_world: NewWorld) -> None:
    world = await new_world()
    ids = [f"t{number}" for number in range(10)]
    await asyncio.gather(*(submitted(world, id, "block", busy="interrupt") for id in ids))
    await world.until(ids[-1], TaskState.RUNNING)
    for id in ids[:-1]:
        assert (await world.until(id)).state is TaskState.STOPPED
    world.runner.release.set()
    await world.until(ids[-1], TaskState.SUCCEEDED)


@pytest.mark.parametrize("first", ["claim", "interrupt"])
async def test_an_interrupt_while_a_task_starts(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    claim, in_claim, go_on = Tasks.claim, asyncio.Event(), asyncio.Event()

    async def slow(self: Tasks, task: Task, *, instance_id: str, now: float) -> Any:
        if task.id != "starts":
            return await claim(self, task, instance_id=instance_id, now=now)
        if first == "interrupt":
            in_claim.set()
            await go_on.wait()
        done = await claim(self, task, instance_id=instance_id, now=now)
        in_claim.set()
        await go_on.wait()
        return done

    monkeypatch.setattr(Tasks, "claim", slow)
    world = await new_world()
    await submitted(world, "starts", "block")
    await in_claim.wait()
    await submitted(world, "urgent", busy="interrupt")
    go_on.set()
    assert (await world.until("urgent")).state is TaskState.SUCCEEDED
    starts = await world.until("starts")
    assert starts.state is TaskState.STOPPED
    assert world.runner.ran["starts"] == (first == "claim")
    assert world.tasks._backlog.pending == 0


async def test_an_interrupt_of_a_task_that_has_just_ended(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    conclude, concluded, go_on = Tasks.conclude, asyncio.Event(), asyncio.Event()

    async def slow(self: Tasks, task: Task, *args: Any, **kwargs: Any) -> Task:
        done = await conclude(self, task, *args, **kwargs)
        if task.id == "ends":
            concluded.set()
            await go_on.wait()
        return done

    monkeypatch.setattr(Tasks, "conclude", slow)
    world = await new_world()
    await submitted(world, "ends")
    await concluded.wait()
    await submitted(world, "urgent", busy="interrupt")
    go_on.set()
    await world.until("urgent", TaskState.SUCCEEDED)
    ends = await world.until("ends")
    assert [event.state.value for event in ends.events] == ["Enqueued", "Running", "Succeeded"]


async def test_a_caller_that_goes_away_leaves_no_interrupt_halfway(new_world: NewWorld) -> None:
    world = await new_world()
    await submitted(world, "runs", "block")
    await world.until("runs", TaskState.RUNNING)
    leaving = asyncio.ensure_future(submitted(world, "urgent", busy="interrupt"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await world.until("urgent", TaskState.SUCCEEDED)
    assert (await world.until("runs")).state is TaskState.STOPPED


async def test_the_setting_counts_where_the_caller_says_nothing(new_world: NewWorld) -> None:
    world = await new_world()
    world.catalog.config = {"roost": {"busy": "reject"}}
    await submitted(world, "runs", "block")
    await world.until("runs", TaskState.RUNNING)
    with pytest.raises(SessionBusy):
        await submitted(world, "no")
    await submitted(world, "queued", busy="enqueue")
    world.runner.release.set()
    await world.until("queued", TaskState.SUCCEEDED)
    await world.submit("ok", "sessionless")
    await world.until("sessionless", TaskState.SUCCEEDED)
    with pytest.raises(InvalidArgument, match="no session"):
        await world.submit("ok", "no", x_roost_task_busy="reject")
    with pytest.raises(InvalidArgument, match="x-roost-task-busy"):
        await submitted(world, "no", busy="sometimes")
