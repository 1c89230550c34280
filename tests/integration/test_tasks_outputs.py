"""What a task puts out: kept in order and within bounds, seen by whoever comes late or comes back."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from roost.functions.tasks import tapes, watching
from roost.functions.tasks.watching import Moment, Place, place_of
from roost.model.errors import InvalidArgument, NotFound, StorageFull, Throttled
from roost.model.task import TaskState
from roost.store.task_outputs import Entry, Kind, TaskOutputs
from tests.support.task_world import NewWorld, World


def words(moments: list[Moment]) -> list[str]:
    """What happened, in short."""
    said = []
    for moment in moments:
        if moment.event is not None:
            said.append(moment.event.state.value)
        elif moment.entry is not None:
            said.append(f"{moment.entry.kind.value} {moment.entry.attempt} {moment.entry.data.decode()}")
        else:
            said.append("end")
    return said


async def watched(world: World, id: str, place: Place = Place(), *, most: int = 1000) -> list[Moment]:  # noqa: B008
    found: list[Moment] = []
    async with asyncio.timeout(20):
        moments = world.tasks.service.watch("a", "f", id, place)
        async for moment in moments:
            if moment is not None:
                found.append(moment)
            if len(found) == most:
                break
        await moments.aclose()
    return found


async def test_whoever_comes_late_sees_everything_and_then_what_follows(new_world: NewWorld) -> None:
    world = await new_world()
    await world.submit("put one two block", "t")
    await world.until("t", TaskState.RUNNING)
    early = asyncio.ensure_future(watched(world, "t"))
    await asyncio.sleep(0.3)
    late = asyncio.ensure_future(watched(world, "t"))
    seen = await watched(world, "t", most=3)
    assert words(seen) == ["Enqueued", "Running", "output 1 onetwo"]
    world.runner.release.set()
    everything = ["Enqueued", "Running", "output 1 onetwo", "Succeeded", "end"]
    assert words(await early) == words(await late) == words(await watched(world, "t")) == everything
    assert words(await watched(world, "t", place_of(str(seen[-1].place)))) == ["Succeeded", "end"]
    assert not world.tasks._feed._followers


async def test_each_attempt_s_output_is_its_own_and_stays(new_world: NewWorld) -> None:
    world = await new_world()
    await world.submit("report half block", "t")
    await world.until("t", TaskState.RUNNING)
    seen = await watched(world, "t", most=3)
    assert words(seen)[2] == 'progress 1 "half"'
    await world.tasks.service.stop("a", "f", "t")
    await world.until("t", TaskState.STOPPED)
    world.runner.release.set()
    await world.tasks.service.retry("a", "f", "t")
    await world.until("t", TaskState.SUCCEEDED)
    assert words(await watched(world, "t")) == [
        "Enqueued", "Running", 'progress 1 "half"', "Stopping", "Stopped",
        "Enqueued", "Running", 'progress 1 "half"', "Succeeded", "end",
    ]  # fmt: skip


async def test_output_is_bounded_and_says_where_it_was_cut(new_world: NewWorld) -> None:
    world = await new_world()
    world.tasks._tapes._limit = 10
    await world.submit("put 0123456789 abc", "full")
    await world.submit("put 0123 456789ab", "cut")
    await world.until("full")
    await world.until("cut")
    for id in ("full", "cut"):
        assert words(await watched(world, id))[2:4] == ["output 1 0123456789", "cut 1 "]
    done, _, _ = await world.store.task_outputs.after(("a", "f", "cut"), 0, limit=10)
    assert done.state is TaskState.SUCCEEDED


async def test_of_too_many_reports_the_last_is_kept(new_world: NewWorld) -> None:
    world = await new_world()
    outputs, key = world.store.task_outputs, ("a", "f", "t")
    await world.submit("ok", "t")
    epoch = (await world.until("t")).epoch
    used = None
    for number in range(30):
        entry = Entry(kind=Kind.PROGRESS, attempt=1, at=float(number), data=json.dumps(number).encode())
        used = await outputs.append(key, epoch, [entry], used, limit=40)
    _, _, kept = await outputs.after(key, 0, limit=100)
    assert [entry.data for entry in kept] == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"29"]
    last = await outputs.progress(key)
    assert last is not None
    assert last.data == b"29"
    assert kept[-1].number == 30


async def test_a_worker_that_was_taken_over_writes_nothing(new_world: NewWorld) -> None:
    world = await new_world()
    await world.submit("ok", "t")
    epoch = (await world.until("t")).epoch
    entry = Entry(kind=Kind.OUTPUT, attempt=1, at=1.0, data=b"late")
    assert await world.store.task_outputs.append(("a", "f", "t"), epoch - 1, [entry], None, limit=100) is None
    assert (await world.store.task_outputs.after(("a", "f", "t"), 0, limit=10))[2] == []


async def test_output_goes_with_its_task(new_world: NewWorld) -> None:
    world = await new_world()
    await world.submit("put something", "t")
    await world.until("t")
    while await world.store.tasks.prune(keep=0, ended_before=1e12):
        pass
    with pytest.raises(NotFound):
        await watched(world, "t")
    await world.submit("ok", "t")
    await world.until("t")
    assert words(await watched(world, "t")) == ["Enqueued", "Running", "Succeeded", "end"]


async def test_a_full_disk_costs_output_and_no_task(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: object, **kwargs: object) -> None:
        raise StorageFull("No room left.")

    monkeypatch.setattr(TaskOutputs, "append", full)
    world = await new_world()
    await world.submit("put something", "t")
    assert (await world.until("t")).state is TaskState.SUCCEEDED


async def test_a_function_that_writes_faster_than_the_disk_waits(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tapes, "HIGH_WATER", 100)
    world = await new_world()
    await world.submit("block", "t")
    task = await world.until("t", TaskState.RUNNING)
    tape = world.tasks._tapes.of(task)
    told: list[bool] = []
    tape.on_room = told.append
    tape.write(b"x" * 90)
    assert told == []
    tape.write(b"x" * 20)
    tape.write(b"x")
    assert told == [False]
    await tape.flush()
    assert told == [False, True]


async def test_watchers_are_bounded(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await new_world()
    await world.submit("block", "t")
    await world.until("t", TaskState.RUNNING)
    world.tasks._feed._limit = 1
    first = asyncio.ensure_future(watched(world, "t"))
    await asyncio.sleep(0.1)
    with pytest.raises(Throttled):
        await watched(world, "t")
    world.runner.release.set()
    assert words(await first)[-1] == "end"
    assert words(await watched(world, "t"))[-1] == "end"


async def test_silence_is_told_now_and_then(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_S", 0.05)
    world = await new_world()
    await world.submit("block", "t")
    await world.until("t", TaskState.RUNNING)
    moments = world.tasks.service.watch("a", "f", "t", Place())
    async with asyncio.timeout(5):
        async for moment in moments:
            if moment is None:
                break
    await moments.aclose()


def test_a_place_is_what_was_given_out() -> None:
    assert place_of("3-17") == Place(events=3, number=17)
    assert place_of("") == Place()
    for text in itertools.chain(("x", "1", "1-", "-1", "1-2-3", "1 - 2", "9" * 20 + "-1")):
        with pytest.raises(InvalidArgument):
            place_of(text)
