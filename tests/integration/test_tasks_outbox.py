"""Events about ended tasks: out of the server at least once, with the same id each time, then on the record."""

from __future__ import annotations

import asyncio

import pytest

from roost.functions.tasks import outbox
from roost.model.errors import InvalidArgument, NotFound, Unavailable
from roost.model.task import Task, TaskState
from roost.store.task_outbox import TaskOutbox
from tests.support.task_world import NewWorld, World

HOOK = "https://user:secret@hook.example/tasks"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_PAUSE_S", 0.01)


def both(destination: str) -> dict[str, object]:
    return {"destinationConfig": {name: {"destination": destination} for name in ("onSuccess", "onFailure")},
            "maxAsyncRetryAttempts": 0}  # fmt: skip


async def settled(world: World, id: str) -> Task:
    """The record, once its destination is."""
    async with asyncio.timeout(20):
        while True:
            task = await world.until(id)
            if task.destination in ("Succeeded", "Failed"):
                return task
            await asyncio.sleep(0.01)


async def test_the_event_arrives_and_the_record_says_so(new_world: NewWorld) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    await world.submit("ok", "good")
    await world.submit("fault", "bad")
    good, bad = await settled(world, "good"), await settled(world, "bad")
    assert good.destination == bad.destination == "Succeeded"
    assert good.events[-1].state is TaskState.SUCCEEDED
    assert good.events[-1].detail == "delivered to https://user:***@hook.example/tasks"
    events = {event["requestContext"]["taskId"]: (id, event) for _, id, event in world.publisher.got}
    assert events["good"][1]["responsePayload"] == "ok"
    assert events["bad"][1]["responseContext"]["functionError"] == "E"
    assert len({id for id, _ in events.values()}) == 2
    assert {to for to, _, _ in world.publisher.got} == {HOOK}
    assert await world.store.task_outbox.waiting() == 0


async def test_it_is_tried_again_with_the_same_id(new_world: NewWorld) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    world.publisher.errors = [Unavailable("down"), ZeroDivisionError(), Unavailable("down", retry_after=0.01)]
    await world.submit("ok", "t")
    assert (await settled(world, "t")).destination == "Succeeded"
    assert len(world.publisher.got) == 4
    assert len({id for _, id, _ in world.publisher.got}) == 1


@pytest.mark.parametrize("error", [NotFound("it is gone"), InvalidArgument("it is no address")])
async def test_what_is_hopeless_is_given_up_at_once(new_world: NewWorld, error: Exception) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    world.publisher.errors = [error]
    await world.submit("ok", "t")
    done = await settled(world, "t")
    assert (done.destination, done.state) == ("Failed", TaskState.SUCCEEDED)
    assert done.events[-1].detail.endswith(f"after 1 tries: {error}")
    assert len(world.publisher.got) == 1


async def test_it_is_given_up_after_so_many_tries(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_TRIES", 3)
    world = await new_world()
    world.catalog.config = both(HOOK)
    world.publisher.errors = [Unavailable("down")] * 5
    await world.submit("ok", "t")
    assert "after 3 tries: down" in (await settled(world, "t")).events[-1].detail
    assert len(world.publisher.got) == 3
    assert await world.store.task_outbox.waiting() == 0


async def test_what_was_not_delivered_goes_out_after_the_next_start(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_PAUSE_S", 1.0)
    world = await new_world()
    world.catalog.config = both(HOOK)
    world.publisher.errors = [Unavailable("down")]
    await world.submit("ok", "t")
    done = await world.until("t")
    assert done.destination == "Pending"
    async with asyncio.timeout(5):
        while not world.publisher.got:
            await asyncio.sleep(0.01)
    await world.tasks.close(drain_s=1)
    await world.store.close()
    again = await new_world()
    assert (await settled(again, "t")).destination == "Succeeded"
    assert again.publisher.got[0][1] == world.publisher.got[0][1]


async def test_an_event_outlives_its_task_and_its_function(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    world.publisher.errors = [Unavailable("down")] * 3
    await world.submit("ok", "t")
    await world.until("t")
    await world.store.functions.delete("a", "f")
    async with asyncio.timeout(10):
        while await world.store.task_outbox.waiting():
            await asyncio.sleep(0.01)
    assert len(world.publisher.got) == 4


async def test_a_retry_by_hand_is_another_end_with_another_event(new_world: NewWorld) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    world.publisher.errors = [Unavailable("down")] * 2
    await world.submit("fault", "t")
    await world.until("t", TaskState.FAILED)
    await world.tasks.service.retry("a", "f", "t")
    async with asyncio.timeout(10):
        while await world.store.task_outbox.waiting() or len({id for _, id, _ in world.publisher.got}) < 2:
            await asyncio.sleep(0.01)
    assert (await settled(world, "t")).destination == "Succeeded"


async def test_many_are_sent_a_bounded_number_at_a_time(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    under_way = most = 0
    publish = world.publisher.publish

    async def slow(destination: str, event_id: str, body: bytes) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        await publish(destination, event_id, body)
        under_way -= 1

    monkeypatch.setattr(world.publisher, "publish", slow)
    await asyncio.gather(*(world.submit("ok", f"t{number}") for number in range(100)))
    for number in range(100):
        assert (await settled(world, f"t{number}")).destination == "Succeeded"
    assert 1 < most <= outbox.AT_ONCE
    assert len(world.publisher.got) == 100


async def test_a_store_that_takes_nothing_has_it_sent_again(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await new_world()
    world.catalog.config = both(HOOK)
    done, left = TaskOutbox.done, 2

    async def full(self: TaskOutbox, *args: object, **kwargs: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable("no room")
        await done(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskOutbox, "done", full)
    await world.submit("ok", "t")
    assert (await settled(world, "t")).destination == "Succeeded"
    assert len({id for _, id, _ in world.publisher.got}) == 1
    assert len(world.publisher.got) == 3
