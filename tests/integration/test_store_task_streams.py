"""Beside the table of tasks, on each kind of store: what they put out, events on their way, sessions that are busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from roost.model.errors import Conflict, NotFound
from roost.model.task import Busy, SessionBusy, Task, TaskState, Verdict
from roost.store.functions import FunctionRecord
from roost.store.store import Store
from roost.store.task_outbox import Letter
from roost.store.task_outputs import Entry, Kind
from roost.store.tasks import TaskFilter
from tests.support.stores import Place
from tests.unit.test_tasks_model import task

KEY = ("a", "f", "t")
DONE = Verdict(state=TaskState.SUCCEEDED)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    found = place.store()
    await found.open()
    await found.functions.put(FunctionRecord(account="a", name="f", id="f", config={}, created=1.0, modified=1.0))
    yield found
    await found.close()


async def running(store: Store, **fields: object) -> Task:
    kept = (await store.tasks.enqueue(task(**fields), b"payload")).task
    return (await store.tasks.claim(kept, instance_id="i", now=2.0))[0]


def entry(kind: Kind, data: bytes, at: float = 1.0) -> Entry:
    return Entry(kind=kind, attempt=1, at=at, data=data)


async def test_output_is_kept_in_order_within_its_bound_and_goes_with_the_task(store: Store) -> None:
    held, outputs = await running(store), store.task_outputs
    some = [entry(Kind.OUTPUT, b"\0\xff12"), entry(Kind.PROGRESS, b"1"), entry(Kind.OUTPUT, b"34")]
    used = await outputs.append(KEY, held.epoch, some, None, limit=8)
    used = await outputs.append(
        KEY, held.epoch, [entry(Kind.PROGRESS, b"22"), entry(Kind.OUTPUT, b"5678")], used, limit=8
    )
    assert used is not None
    anew = await outputs.append(KEY, held.epoch, [], None, limit=8)
    assert anew is not None
    assert (anew.number, anew.output, anew.report, anew.cut) == (used.number, used.output, used.report, used.cut)
    assert used.cut
    assert await outputs.append(KEY, held.epoch - 1, some, used, limit=8) is None
    shown, result, kept = await outputs.after(KEY, 0, limit=100)
    assert (shown, result) == (held, None)
    assert [(one.number, one.kind.value, one.data) for one in kept] == [
        (1, "output", b"\0\xff12"), (3, "output", b"34"), (4, "progress", b"22"), (5, "output", b"56"), (6, "cut", b""),
    ]  # fmt: skip
    assert [one.number for one in (await outputs.after(KEY, 3, limit=2))[2]] == [4, 5]
    last = await outputs.progress(KEY)
    assert last is not None
    assert last.data == b"22"
    await store.tasks.conclude(held, DONE, now=3.0, result=b"result")
    assert (await outputs.after(KEY, 99, limit=1))[1] == b"result"
    await store.functions.delete("a", "f")
    with pytest.raises(NotFound):
        await outputs.after(KEY, 0, limit=1)
    assert await outputs.progress(KEY) is None


async def test_an_event_is_posted_with_the_end_and_goes_when_the_record_tells_of_it(store: Store) -> None:
    held, outbox = await running(store), store.task_outbox
    letter = Letter(
        id="e", account="a", function="f", task="t", destination="https://x/", created=3.0, due=3.0, body=b"\0"
    )
    with pytest.raises(Conflict):
        await store.tasks.conclude(replace(held, epoch=0), DONE, now=3.0, letter=letter)
    assert await outbox.waiting() == 0, "one change: not the end, so not the event"
    ended = await store.tasks.conclude(held, DONE, now=3.0, letter=letter)
    assert (ended.destination, await outbox.waiting()) == ("Pending", 1)
    assert await outbox.due(now=2.0, limit=9) == ([], 3.0)
    posted = replace(letter, epoch=ended.epoch)
    assert await outbox.due(now=3.0, limit=9) == ([posted], None)
    await outbox.again(posted, due=9e9, error="down")
    assert (await outbox.due(now=3.0, limit=9)) == ([], 9e9)
    await outbox.not_later_than(100.0, now=4.0)
    [again] = (await outbox.due(now=4.0, limit=9))[0]
    assert (again.attempts, again.error, again.body) == (1, "down", b"\0")
    await outbox.done(again, now=5.0, taken=True, detail="there")
    shown = (await store.tasks.get(KEY))[0]
    assert (shown.destination, shown.events[-1].detail, shown.ended) == ("Succeeded", "there", 3.0)
    assert await outbox.waiting() == 0
    await outbox.done(again, now=6.0, taken=False, detail="late")
    assert (await store.tasks.get(KEY))[0] == shown


async def test_of_many_that_would_be_refused_one_is_kept(store: Store) -> None:
    many = [task(id=f"t{n}", session="s") for n in range(10)]
    came = await asyncio.gather(
        *(store.tasks.enqueue(one, b"", busy=Busy.REJECT) for one in many), return_exceptions=True
    )
    assert sum(isinstance(each, SessionBusy) for each in came) == 9
    assert await store.tasks.at_work("a", "f", now=1e9) == {"s": 1}
    with pytest.raises(SessionBusy, match="request"):
        await store.tasks.enqueue(task(id="other", session="o"), b"", busy=Busy.REJECT, occupied=True)


async def test_an_interrupt_stops_the_session_s_tasks_with_the_new_one(store: Store) -> None:
    held = await running(store, session="s")
    await store.tasks.enqueue(task(id="waits", session="s"), b"")
    await store.tasks.enqueue(task(id="later", session="s", ready=500.0, due=500.0), b"")
    await store.tasks.enqueue(task(id="other", session="o"), b"")
    kept = await store.tasks.enqueue(task(id="urgent", session="s", enqueued=200.0), b"", busy=Busy.INTERRUPT)
    assert {one.id: one.state for one in kept.stopped} == {"t": TaskState.STOPPING, "waits": TaskState.STOPPED}
    assert (await store.tasks.get(held.key))[0].events[-1].detail == "interrupted by task urgent"
    again = await store.tasks.enqueue(task(id="urgent", session="s", enqueued=201.0), b"", busy=Busy.INTERRUPT)
    assert (again.new, again.stopped) == (False, ())
    assert await store.tasks.at_work("a", "f", now=200.0) == {"s": 2, "o": 1}
    page, _ = await store.tasks.page("a", "f", TaskFilter(session="s"))
    assert {found.id for found, _ in page} == {"t", "waits", "later", "urgent"}


async def test_what_waits_for_too_late_a_time_waits_no_more(store: Store) -> None:
    await store.tasks.enqueue(task(ready=9e9, due=9e9), b"")
    await store.tasks.enqueue(task(id="soon", ready=50.0, due=60.0), b"")
    assert await store.tasks.not_later_than(100.0, now=20.0) == 1
    assert [(one.id, one.ready, one.due) for one in (await store.tasks.due([("a", "f", "")], limit=9))[0]] == [
        ("t", 20.0, 20.0), ("soon", 50.0, 60.0),
    ]  # fmt: skip
