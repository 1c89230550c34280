"""The table of tasks on a real file: what it keeps, refuses, fences off, lists and lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from roost.model.errors import Conflict, InvalidArgument, NotFound
from roost.model.task import Fenced, TaskState, Verdict
from roost.store.functions import FunctionRecord
from roost.store.store import Store
from roost.store.tasks import Kept, TaskFilter
from tests.support.stores import Place
from tests.unit.test_tasks_model import task

KEY = ("a", "f", "t")
DONE = Verdict(state=TaskState.SUCCEEDED)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    found = place.store()
    await found.open()
    for name in ("f", "g"):
        await found.functions.put(FunctionRecord(account="a", name=name, id=name, config={}, created=1.0, modified=1.0))
    yield found
    await found.close()


async def test_a_task_is_kept_as_it_is_given(store: Store) -> None:
    given = task(session="s", fields={"x": "é\0"}, digest="d", hops=2)
    assert await store.tasks.enqueue(given, b"\0payload") == Kept(task=given, new=True)
    assert await store.tasks.get(KEY) == (given, b"\0payload", None)


async def test_the_same_id_twice_is_the_first_task_and_with_other_things_a_conflict(store: Store) -> None:
    first = (await store.tasks.enqueue(task(digest="d"), b"1")).task
    assert await store.tasks.enqueue(task(digest="d", request_id="later"), b"1") == Kept(task=first, new=False)
    with pytest.raises(Conflict):
        await store.tasks.enqueue(task(digest="e"), b"2")
    with pytest.raises(NotFound):
        await store.tasks.enqueue(task(function="gone"), b"")
    assert (await store.tasks.enqueue(task(function="g", digest="e"), b"2")).new


async def test_one_of_many_that_claim_at_once_gets_it(store: Store) -> None:
    await store.tasks.enqueue(task(), b"payload")
    tries = [store.tasks.claim(task(), instance_id=f"i{n}", now=1.0) for n in range(20)]
    found = await asyncio.gather(*tries, return_exceptions=True)
    [winner] = [each for each in found if not isinstance(each, Exception)]
    assert winner[1] == b"payload"
    assert sum(isinstance(each, Fenced) for each in found) == 19
    assert (await store.tasks.get(KEY))[0].attempts == 1


async def test_who_was_taken_over_writes_nothing(store: Store) -> None:
    await store.tasks.enqueue(task(), b"")
    claimed, _ = await store.tasks.claim(task(), instance_id="i", now=1.0)
    assert await store.tasks.heartbeat([(KEY, claimed.epoch)], now=2.0) == []
    retry = await store.tasks.conclude(claimed, Verdict(state=TaskState.RETRYING, due=5.0), now=2.0)
    stale = [task(), claimed, replace(claimed, epoch=retry.epoch), replace(retry, epoch=0)]
    for known in stale:
        if known.state is TaskState.RUNNING:
            with pytest.raises(Fenced):
                await store.tasks.conclude(known, DONE, now=3.0)
            assert await store.tasks.heartbeat([(KEY, known.epoch)], now=3.0) == [KEY]
        else:
            with pytest.raises(Fenced):
                await store.tasks.claim(known, instance_id="i", now=3.0)
    assert (await store.tasks.get(KEY))[0] == retry


async def test_an_end_and_its_destination_are_one_change(store: Store) -> None:
    await store.tasks.enqueue(task(), b"")
    claimed, _ = await store.tasks.claim(task(), instance_id="i", now=1.0)
    follow = (task(function="g", id="next"), b"event")
    with pytest.raises(Fenced):
        await store.tasks.conclude(replace(claimed, epoch=7), DONE, now=2.0, follow=follow)
    with pytest.raises(NotFound):
        await store.tasks.get(("a", "g", "next"))
    ended = await store.tasks.conclude(claimed, DONE, now=2.0, result=b"r", follow=follow)
    assert (ended.state, ended.destination) == (TaskState.SUCCEEDED, "Succeeded")
    assert (await store.tasks.get(("a", "g", "next")))[1] == b"event"
    assert (await store.tasks.get(KEY))[2] == b"r"


async def test_a_destination_that_is_gone_does_not_undo_the_end(store: Store) -> None:
    await store.tasks.enqueue(task(), b"")
    claimed, _ = await store.tasks.claim(task(), instance_id="i", now=1.0)
    ended = await store.tasks.conclude(claimed, DONE, now=2.0, follow=(task(function="gone"), b""))
    assert (ended.state, ended.destination) == (TaskState.SUCCEEDED, "Failed")
    assert (await store.tasks.get(KEY))[0] == ended


async def test_lanes_give_their_tasks_by_due_time(store: Store) -> None:
    for number, due in enumerate((30.0, 10.0, 20.0)):
        await store.tasks.enqueue(task(id=f"t{number}", due=due), b"")
    await store.tasks.enqueue(task(id="s", session="s", due=5.0), b"")
    plain, session, none = ("a", "f", ""), ("a", "f", "s"), ("a", "g", "")
    found = await store.tasks.due([plain, session, none], limit=2)
    assert [[each.id for each in lane] for lane in found] == [["t1", "t2"], ["s"], []]
    waiting = {one.lane: (one.count, one.due) for one in await store.tasks.waiting()}
    assert waiting == {plain: (3, 10.0), session: (1, 5.0)}
    await store.tasks.claim(found[0][0], instance_id="i", now=10.0)
    assert [each.id for each in await store.tasks.held(limit=10)] == ["t1"]
    assert [each.id for each in (await store.tasks.due([plain], limit=2))[0]] == ["t2", "t0"]


async def test_a_list_has_filters_and_pages_in_both_directions(store: Store) -> None:
    for number in range(7):
        made = task(id=f"{'a' if number % 2 else 'b'}{number}", enqueued=float(number // 2), qualifier=f"{number % 3}")
        await store.tasks.enqueue(made, b"p%d" % number)
    (third, _, _) = await store.tasks.get(("a", "f", "a3"))
    await store.tasks.claim(third, instance_id="i", now=50.0)

    async def ids(**wanted: object) -> list[str]:
        found, token = [], ""
        while True:
            page, token = await store.tasks.page("a", "f", TaskFilter(limit=2, token=token, **wanted))  # type: ignore[arg-type]
            found += [each.id for each, _ in page]
            if not token:
                return found

    everything = ["b0", "a1", "b2", "a3", "b4", "a5", "b6"]
    assert await ids(descending=False) == sorted(everything, key=lambda id: (int(id[1:]) // 2, id))
    assert await ids() == list(reversed(await ids(descending=False)))
    assert set(await ids(prefix="a")) == {"a1", "a3", "a5"}
    assert await ids(prefix="%") == []
    assert set(await ids(qualifier="0")) == {"b0", "a3", "b6"}
    assert await ids(state=TaskState.RUNNING) == ["a3"]
    assert await ids(started_from=40.0) == await ids(started_from=50.0, started_to=50.0) == ["a3"]
    assert await ids(started_to=49.0) == []
    page, _ = await store.tasks.page("a", "f", TaskFilter(with_payload=True, prefix="b0"))
    assert page[0][1] == b"p0"
    for token in ("x", "1.0", "one/t"):
        with pytest.raises(InvalidArgument, match="nextToken"):
            await store.tasks.page("a", "f", TaskFilter(token=token))


async def test_finished_tasks_age_out_by_count_and_time_and_no_others(store: Store) -> None:
    async def finish(number: int) -> None:
        key = ("a", "f", f"t{number}")
        await store.tasks.enqueue(task(id=key[2]), b"")
        claimed, _ = await store.tasks.claim(task(id=key[2]), instance_id="i", now=1.0)
        await store.tasks.conclude(claimed, DONE, now=float(number))

    for number in range(1, 11):
        await finish(number)
    await store.tasks.enqueue(task(id="waits"), b"")
    await store.tasks.enqueue(task(id="runs"), b"")
    await store.tasks.claim(task(id="runs"), instance_id="i", now=1.0)

    async def left() -> set[str]:
        return {each.id for each, _ in (await store.tasks.page("a", "f", TaskFilter(limit=100)))[0]}

    assert await store.tasks.prune(keep=100, ended_before=0.0) == 0
    assert await store.tasks.prune(keep=100, ended_before=3.0) == 2
    assert await store.tasks.prune(keep=4, ended_before=0.0) == 4
    assert await left() == {"t7", "t8", "t9", "t10", "waits", "runs"}
    tallies = {(one.function, one.state): one.count for one in await store.tasks.tallies()}
    assert tallies == {("f", TaskState.ENQUEUED): 1, ("f", TaskState.RUNNING): 1}


async def test_stop_retry_and_the_end_of_a_function(store: Store) -> None:
    await store.tasks.enqueue(task(), b"")
    assert (await store.tasks.stop(KEY, now=2.0)).state is TaskState.STOPPED
    with pytest.raises(Fenced):
        await store.tasks.claim(task(), instance_id="i", now=3.0)
    again = await store.tasks.redrive(KEY, now=4.0)
    assert again.state is TaskState.ENQUEUED
    claimed, _ = await store.tasks.claim(again, instance_id="i", now=5.0)
    stopping = await store.tasks.stop(KEY, now=6.0)
    assert stopping.state is TaskState.STOPPING
    for verdict in (Verdict(state=TaskState.RETRYING), DONE):
        with pytest.raises(Fenced):
            await store.tasks.conclude(claimed, verdict, now=7.0)
    await store.tasks.conclude(stopping, Verdict(state=TaskState.STOPPED), now=7.0)
    await store.functions.delete("a", "f")
    with pytest.raises(NotFound):
        await store.tasks.get(KEY)


async def test_a_burst_of_tasks_is_all_there_after_the_store_was_closed(store: Store, place: Place) -> None:
    made = [replace(task(), id=f"t{number}") for number in range(1500)]
    await asyncio.gather(*(store.tasks.enqueue(each, b"x" * 100) for each in made))
    await store.close()
    again = place.store()
    await again.open()
    [waiting] = await again.tasks.waiting()
    assert waiting.count == 1500
    await again.close()
