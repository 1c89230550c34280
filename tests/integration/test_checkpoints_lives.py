"""Checkpoints over a driver without rooms: what fails halfway, what goes by a rule, what a killed server leaves."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.isolation.driver import Branch, Left, LiveCopy, MemoryLost, WholeCopy
from roost.model.errors import Conflict, RoostError, StorageFull, Throttled, Unavailable
from roost.model.sandbox import Sandbox, SandboxState
from roost.sandboxes import ahead, checkpoints, lives
from roost.sandboxes.checkpoints import CROWDED, DISK_FULL, FULL, LOST, OVER_QUOTA, NoCheckpoint
from roost.sandboxes.fleet import Gone
from tests.integration.test_sandboxes_lives import ORDER
from tests.integration.test_snapshots_lives import Copies
from tests.support.triggers import until


class Memory:
    """What a driver would hold of one context."""

    def __init__(self, bytes: int = 10, most: int = 0) -> None:
        self.bytes = bytes
        self.most = most or bytes  # as long as it was not counted
        self.there = True
        self.drops = 0
        self.spills = False  # whether it can
        self.on_disk = 0
        self.fails: RoostError | None = None
        self.moves: list[str] = []
        self.gate: asyncio.Event | None = None  # what a spill waits for

    async def alive(self) -> bool:
        return self.there

    async def measure(self) -> int:
        return 0 if self.on_disk else self.bytes

    async def spill(self, directory: Path, most: int) -> int:
        assert directory.is_dir()
        self.moves.append("spill")
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.on_disk = self.bytes
        return self.bytes

    async def recall(self) -> None:
        if self.on_disk and self.fails is not None:
            raise self.fails
        self.moves += ["recall"] if self.on_disk else []
        self.on_disk = 0

    async def drop(self) -> None:
        self.drops += 1

    @property
    def branch(self) -> Branch:
        left = Left(threads=0, processes=0, files=())
        copy = LiveCopy(
            held=None,
            drop=self.drop,
            alive=self.alive,
            measure=self.measure,
            most=self.most,
            spill=self.spill if self.spills else None,
            recall=self.recall if self.spills else None,
            id="c0",
            cwd="/",
            default=True,
            left=left,
            kept=True,
        )
        return Branch(copies=(copy,))


class World:
    """One server with a sandbox that has an interpreter."""

    def __init__(self, copies: Copies, sandbox: Sandbox) -> None:
        self.copies = copies
        self.bench = copies.bench
        self.verbs = copies.checkpoints
        self.id = sandbox.id
        self.entry = self.bench.lives.entries[sandbox.id]
        self.entry.sandbox = replace(sandbox, foundation=replace(sandbox.foundation, interpreter=True))

    async def take(self, label: str = "", memory: Memory | WholeRoom | None = None) -> str:
        if memory is not None:
            self.bench.room(self.entry.sandbox).branches.append(memory.branch)
        self.bench.clock.ahead += 1
        return (await self.verbs.take("acme", self.id, label)).checkpoint.id

    async def back(self, checkpoint: str) -> None:
        """And the old room is gone."""
        await self.verbs.rollback("acme", self.id, checkpoint)
        await self.bench.lives.leaving.drained()

    async def tree(self) -> dict[str, str]:
        return {shown.checkpoint.id: shown.memory for shown in await self.verbs.tree("acme", self.id)}

    @property
    def alive(self) -> list[str]:
        return [room.spec.run_dir.name for room in self.bench.driver.alive]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """No room is made ahead here: see `test_rooms_ahead`."""
    monkeypatch.setattr(ahead, "_MOST", 0)
    copies = Copies(tmp_path)
    yield World(copies, await copies.bench.fleet.create(ORDER))
    await copies.bench.close()


async def test_a_rollback_has_another_room_of_the_checkpoint_and_the_old_one_goes(world: World) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    before = world.entry.sandbox
    await world.back(checkpoint)
    after = world.entry.sandbox
    assert (after.id, after.envd_token, after.traffic_token) == (before.id, before.envd_token, before.traffic_token)
    assert after.place == f"{before.id}-1"
    room = world.bench.room(after)
    assert room.spec.branch is not None and len(room.spec.branch.copies) == 1
    assert room.spec.lower == world.bench.assembly.images.paths(after.foundation.layers)
    assert world.alive == world.bench.layers == [after.place]
    await world.back(checkpoint)
    assert world.alive == world.bench.layers == [f"{before.id}-2"]
    assert await world.tree() == {checkpoint: "held"}
    await world.bench.fleet.kill("acme", world.id)
    assert memory.drops == 1
    assert world.copies.images == frozenset()
    assert world.bench.layers == []


async def test_who_goes_back_finds_what_ran_standing_still_and_does_not_wait_for_its_end(world: World) -> None:
    checkpoint = await world.take("one", Memory())
    before = world.bench.room(world.entry.sandbox)
    before.stuck = 2
    await asyncio.wait_for(world.verbs.rollback("acme", world.id, checkpoint), 5)
    assert before.frozen and not before.destroyed
    await world.bench.lives.leaving.drained()
    assert before.destroyed and world.bench.layers == [f"{world.id}-1"]


async def test_what_is_killed_while_it_is_gone_back_from_is_waited_for(world: World) -> None:
    """It is asked for a last word, and so does not stand still any more."""
    checkpoint = await world.take("one", Memory())
    before = world.bench.room(world.entry.sandbox)
    await world.bench.fleet.pause("acme", world.id)
    before.stuck = 2
    world.bench.driver.gate = asyncio.Event()
    rolling = asyncio.create_task(world.verbs.rollback("acme", world.id, checkpoint))
    await until(lambda: len(world.entry.places) == 2)
    killing = asyncio.create_task(world.bench.fleet.kill("acme", world.id))
    await until(lambda: bool(world.entry.ending))
    world.bench.driver.gate.set()
    await until(lambda: world.entry.sandbox.rollbacks == 1)
    done, _ = await asyncio.wait([rolling], timeout=0.05)
    assert not done
    before.ended.set()
    await asyncio.wait_for(rolling, 5)
    await asyncio.wait_for(killing, 5)
    await world.bench.lives.leaving.drained()
    assert world.alive == world.bench.layers == []


async def test_what_does_not_stand_still_is_waited_for_and_what_it_held_is_not(world: World) -> None:
    checkpoint = await world.take("one", Memory())
    before = world.bench.room(world.entry.sandbox)
    before.rigid = True
    before.stuck = 2  # what it holds is not free at once
    rolling = asyncio.create_task(world.verbs.rollback("acme", world.id, checkpoint))
    await until(lambda: world.entry.sandbox.rollbacks == 1)
    done, _ = await asyncio.wait([rolling], timeout=0.05)
    assert not done
    before.ended.set()
    await asyncio.wait_for(rolling, 5)
    assert not before.destroyed and world.bench.layers == [world.id, f"{world.id}-1"]
    await world.bench.lives.leaving.drained()
    assert before.destroyed and world.bench.layers == [f"{world.id}-1"]


async def test_a_room_that_does_not_end_is_not_waited_for_without_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "_LEAVE_S", 0.05)
    checkpoint = await world.take("one", Memory())
    before = world.bench.room(world.entry.sandbox)
    before.rigid, before.stuck = True, 1000
    await asyncio.wait_for(world.verbs.rollback("acme", world.id, checkpoint), 5)
    place = world.entry.sandbox.place
    with pytest.raises(Unavailable, match="does not end"):  # else there would be more and more of those
        await world.verbs.rollback("acme", world.id, checkpoint)
    assert world.entry.sandbox.place == place and world.bench.room(world.entry.sandbox).destroyed is False
    before.stuck = 0
    await world.bench.lives.leaving.drained()
    await world.back(checkpoint)
    assert world.bench.layers == [f"{world.id}-2"]


async def test_a_network_that_changes_during_a_rollback_holds_for_each_of_its_rooms(world: World) -> None:
    checkpoint = await world.take("one", Memory())
    doors, driver, after = world.bench.doors, world.bench.driver, f"{world.id}-1"
    driver.gate = asyncio.Event()
    rolling = asyncio.create_task(world.verbs.rollback("acme", world.id, checkpoint))
    await until(lambda: after in doors.allow)
    await world.bench.fleet.set_network("acme", world.id, {"allowOut": ["one.example"]}, None)
    assert doors.allow == {world.id: ("one.example",), after: ("one.example",)}
    before = world.bench.room(world.entry.sandbox)
    before.stuck = 1000
    driver.gate.set()
    await until(lambda: world.entry.sandbox.rollbacks == 1)
    await world.bench.fleet.set_network("acme", world.id, {"allowOut": ["two.example"]}, None)
    assert doors.allow == {world.id: ("two.example",), after: ("two.example",)}
    before.stuck = 0
    await rolling
    await world.bench.lives.leaving.drained()
    assert doors.allow == {after: ("two.example",)}


async def test_a_server_that_stops_leaves_no_room_in_whose_place_another_is(world: World) -> None:
    checkpoint = await world.take("one", Memory())
    before = world.bench.room(world.entry.sandbox)
    before.stuck = 2
    before.ended.set()
    await world.verbs.rollback("acme", world.id, checkpoint)
    await world.bench.close()
    assert before.destroyed and world.bench.layers == [f"{world.id}-1"]


@pytest.mark.parametrize("script", ["failed", "dies", "exits"])
async def test_a_rollback_that_fails_leaves_the_sandbox_as_it_was(world: World, script: str) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    before = world.entry.sandbox
    world.bench.driver.script = script
    with pytest.raises(RoostError):
        await world.back(checkpoint)
    assert world.entry.sandbox == before
    assert world.alive == world.bench.layers == [before.id]
    assert memory.drops == 0
    world.bench.driver.script = "ready"
    world.bench.store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await world.back(checkpoint)
    assert world.entry.sandbox == before
    assert world.alive == world.bench.layers == [before.id]
    world.bench.store.error = None
    lease = world.bench.traffic.try_lease(world.id)  # it serves as before
    assert lease is not None
    lease.release()
    await world.back(checkpoint)


@pytest.mark.parametrize("told", [True, False])
async def test_what_stood_still_for_a_rollback_that_cannot_be_recorded_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    checkpoint = await world.take("one", Memory())
    before = world.entry.sandbox
    room = world.bench.room(before)
    stood: list[bool] = []

    thaw, tries = room.thaw, 0

    async def freeze() -> None:
        room.frozen = True
        if not told:
            raise OSError(errno.EMFILE, "Too many open files")

    async def thaw_again() -> None:
        nonlocal tries
        tries += 1
        if not told and tries == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        await thaw()

    monkeypatch.setattr(room, "freeze", freeze)
    monkeypatch.setattr(room, "thaw", thaw_again)

    async def commit(sandbox: Sandbox) -> None:
        stood.append(room.frozen)
        raise StorageFull("full")

    monkeypatch.setattr(world.bench.lives.book, "commit", commit)
    with pytest.raises(StorageFull):
        await world.back(checkpoint)
    assert (stood, room.frozen, room.ended.is_set()) == ([True], False, False)
    assert world.alive == world.bench.layers == [before.id]


async def test_a_checkpoint_that_cannot_be_recorded_leaves_nothing(world: World) -> None:
    memory = Memory()
    world.bench.store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await world.take("one", memory)
    assert memory.drops == 1
    assert world.copies.images == frozenset()
    world.bench.store.error = None
    assert await world.tree() == {}
    world.bench.room(world.entry.sandbox).die()
    with pytest.raises(Unavailable):
        await world.take("two")
    assert world.copies.images == frozenset()


async def test_requests_that_run_are_told(world: World) -> None:
    checkpoint = await world.take("one")
    lease = world.bench.traffic.try_lease(world.id)
    assert lease is not None
    told: list[str] = []
    lease.on_revoked = lambda: told.append(lease.why)
    await world.back(checkpoint)
    assert told == ["rolled_back"]
    assert not lease.held


async def test_a_cell_that_does_not_end_is_waited_for_or_not(world: World) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    room = world.bench.room(world.entry.sandbox)
    room.busy = True
    with pytest.raises(Conflict):
        await world.back(checkpoint)
    assert world.entry.sandbox.rollbacks == 0
    busy = Memory()
    branch = busy.branch
    branch.busy = True
    room.branches.append(branch)
    with pytest.raises(Conflict):
        await world.take("two")
    assert busy.drops == 1
    assert list(await world.tree()) == [checkpoint]
    assert len(world.copies.images) == 1
    await world.verbs.rollback("acme", world.id, checkpoint, now=True)
    assert world.entry.sandbox.rollbacks == 1


async def test_what_has_died_or_is_paused_is_rolled_back_and_runs(world: World) -> None:
    checkpoint = await world.take("one", Memory())
    world.bench.room(world.entry.sandbox).die()
    await world.bench.until_paused(world.entry.sandbox)
    await world.back(checkpoint)
    assert world.entry.sandbox.state is SandboxState.RUNNING
    await world.bench.fleet.pause("acme", world.id)
    await world.back(checkpoint)
    assert world.entry.sandbox.state is SandboxState.RUNNING
    assert len(world.alive) == 1


async def test_what_is_rolled_back_is_found_and_listed_as_it_is(world: World) -> None:
    checkpoint = await world.take("one", Memory())
    await world.bench.fleet.pause("acme", world.id)
    world.bench.clock.ahead += 100
    await world.back(checkpoint)
    sandbox = world.entry.sandbox
    assert (sandbox.state, sandbox.reason) == (SandboxState.RUNNING, "")
    assert world.bench.fleet.of_account("acme") == world.bench.traffic.known() == [sandbox]
    assert world.bench.traffic.find(world.id) == sandbox == world.bench.store.rows[world.id]
    assert not world.bench.traffic.why_gone(world.id).paused
    assert (await world.tree()).keys() == {one.id for one in world.bench.traffic.known()[0].checkpoints}


async def test_forks_of_a_checkpoint_and_who_may_not(world: World) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    await world.back(await world.take("two"))
    (fork,), copied = await world.copies.snapshots.fork("acme", world.id, count=1, timeout_s=60, checkpoint=checkpoint)
    assert isinstance(fork, Sandbox)
    assert (fork.checkpoints, fork.at, fork.place) == ((), "", fork.id)
    room = world.bench.room(fork)
    assert room.spec.branch is not None and len(room.spec.branch.copies) == 1
    assert (copied.lost, memory.drops) == ((), 0)
    for attempt in (world.verbs.tree("other", world.id), world.verbs.rollback("other", world.id, checkpoint)):
        with pytest.raises(Gone):
            await attempt
    for id in ("", "nothing", "x" * 64):
        with pytest.raises(NoCheckpoint):
            await world.verbs.rollback("acme", world.id, id)
        with pytest.raises(NoCheckpoint):
            await world.verbs.remove("acme", world.id, id)
    await world.copies.fork(world.entry.sandbox)
    with pytest.raises(Throttled):
        await world.copies.snapshots.fork("acme", world.id, count=1, timeout_s=60, checkpoint=checkpoint)


@pytest.mark.parametrize("script", ["ready", "failed"])
@pytest.mark.parametrize("how", ["removed", "too old", "killed"])
async def test_what_forks_are_made_of_stays_until_they_are_made(world: World, how: str, script: str) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    await world.back(await world.take("two"))
    world.bench.driver.gate = asyncio.Event()
    world.bench.driver.script = script
    forking = asyncio.create_task(
        world.copies.snapshots.fork("acme", world.id, count=2, timeout_s=60, checkpoint=checkpoint)
    )
    await until(lambda: len(world.bench.lives.entries) == 3)
    match how:
        case "removed":
            await world.verbs.remove("acme", world.id, checkpoint)
        case "too old":
            await world.bench.fleet.set_timeout("acme", world.id, 10_000)
            world.bench.clock.ahead += 2000
            await world.verbs._prune(world.entry)
        case _:
            await world.bench.fleet.kill("acme", world.id)
    drops = memory.drops
    world.bench.driver.gate.set()
    forks, copied = await forking
    assert (checkpoint in world.entry.held, copied.lost, drops, memory.drops) == (False, (), 0, 1)
    for fork in forks:
        assert isinstance(fork, Sandbox) is (script == "ready")
        if isinstance(fork, Sandbox):
            room = world.bench.room(fork)
            assert room.spec.branch is not None and len(room.spec.branch.copies) == 1
            await world.bench.fleet.kill("acme", fork.id)
    if how != "killed":
        await world.bench.fleet.kill("acme", world.id)
    assert world.copies.images == frozenset()
    assert memory.drops == 1


async def test_what_was_read_since_is_not_forgotten_by_a_rollback(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = await world.take("one")
    await world.back(checkpoint)
    assert world.entry.sandbox.foundation.labels == ()  # the positive control
    monkeypatch.setattr(world.bench.assembly, "labels", lambda sandbox: frozenset({"private"}))
    await world.back(checkpoint)
    assert world.entry.sandbox.foundation.labels == ("private",)
    assert world.entry.sandbox.checkpoints[0].foundation.labels == ()


async def test_by_count_and_age_they_go_with_their_files(world: World) -> None:
    memories = [Memory(bytes=1) for _ in range(6)]
    ids = [await world.take(str(number), memory) for number, memory in enumerate(memories)]
    assert list(await world.tree()) == ids[2:]
    assert [memory.drops for memory in memories] == [1, 1, 0, 0, 0, 0]
    parents = {one.id: one.parent for one in world.entry.sandbox.checkpoints}
    assert parents == {ids[2]: "", ids[3]: ids[2], ids[4]: ids[3], ids[5]: ids[4]}
    assert len(world.copies.images) == 4
    world.bench.clock.ahead += 2000
    last = await world.take("last")
    assert list(await world.tree()) == [last]
    assert len(world.copies.images) == 1


async def test_by_memory_the_least_used_keep_their_files(world: World) -> None:
    memories = [Memory(bytes=400) for _ in range(2)]
    first, second = [await world.take(str(number), memory) for number, memory in enumerate(memories)]
    world.bench.clock.ahead += 1
    await world.back(first)  # used, so it is not the one to go
    third = await world.take("third", Memory(bytes=400))
    assert await world.tree() == {first: "held", second: f"dropped: {FULL}", third: "held"}
    assert [memory.drops for memory in memories] == [0, 1]
    _, copied = await world.verbs.rollback("acme", world.id, second)
    assert "memory" in copied.left_behind
    assert copied.lost == (f"its memory was dropped: {FULL}",)
    world.copies.over_quota = 1
    await world.verbs.bound_memory()
    assert (await world.tree())[first] == f"dropped: {OVER_QUOTA}"
    world.copies.over_quota = 0
    world.bench.room(world.entry.sandbox).anonymous_bytes = world.entry.sandbox.limits.memory_mb << 20
    await world.verbs.bound_memory()
    assert (await world.tree())[third] == f"dropped: {CROWDED}"
    assert not world.entry.held


async def test_what_is_held_is_counted_before_anything_goes_for_it(world: World) -> None:
    first = await world.take("first", Memory(bytes=400))
    await world.take("second", Memory(bytes=10, most=700))  # which would be too much
    assert set((await world.tree()).values()) == {"held"}
    assert world.entry.memory_bytes == 410
    await world.verbs.remove("acme", world.id, first)
    await world.take("third", Memory(bytes=20, most=700))  # which is not
    await until(lambda: world.entry.memory_bytes == 30)


def spilling(bytes: int) -> Memory:
    memory = Memory(bytes)
    memory.spills = True
    return memory


async def test_by_memory_the_least_used_go_to_disk_and_come_back(world: World) -> None:
    memories = [spilling(400) for _ in range(3)]
    first, second, third = [await world.take(str(number), memory) for number, memory in enumerate(memories)]
    assert await world.tree() == {first: "on disk", second: "held", third: "held"}
    (shown, *_) = await world.verbs.tree("acme", world.id)
    assert (shown.memory_bytes, shown.disk_bytes) == (0, 400)
    world.bench.clock.ahead += 1
    _, copied = await world.verbs.rollback("acme", world.id, first)
    assert (copied.lost, memories[0].moves) == ((), ["spill", "recall"])
    room = world.bench.room(world.entry.sandbox)
    assert room.spec.branch is not None and len(room.spec.branch.copies) == 1
    await world.verbs.bound_memory()
    assert await world.tree() == {first: "held", second: "on disk", third: "held"}
    world.copies.over_quota = 1
    await world.verbs.bound_memory()
    world.copies.over_quota = 0
    assert await world.tree() == {first: "held", second: "on disk", third: "on disk"}
    (fork,), copied = await world.copies.snapshots.fork("acme", world.id, count=1, timeout_s=60, checkpoint=third)
    assert isinstance(fork, Sandbox) and copied.lost == ()
    assert sum(memory.drops for memory in memories) == 0
    await world.bench.fleet.kill("acme", world.id)
    assert [memory.drops for memory in memories] == [1, 1, 1]


async def test_by_disk_the_least_used_keep_their_files(world: World) -> None:
    memories = [spilling(600) for _ in range(3)]
    first, second, third = [await world.take(str(number), memory) for number, memory in enumerate(memories)]
    assert await world.tree() == {first: f"dropped: {DISK_FULL}", second: "on disk", third: "held"}
    assert [memory.drops for memory in memories] == [1, 0, 0]


class WholeRoom:
    """What a driver would hold of a room whose kernel can write itself down."""

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes
        self.drops = 0

    async def drop(self) -> None:
        self.drops += 1

    @property
    def branch(self) -> Branch:
        return Branch(whole=WholeCopy(held=None, drop=self.drop, disk_bytes=lambda: self.bytes))


async def test_a_whole_room_is_on_disk_counted_there_and_bounded_by_that_alone(world: World) -> None:
    rooms = [WholeRoom(400) for _ in range(3)]
    first, second = [await world.take(str(number), room) for number, room in enumerate(rooms[:2])]
    assert await world.tree() == {first: "on disk", second: "on disk"}
    assert [(one.memory_bytes, one.disk_bytes) for one in await world.verbs.tree("acme", world.id)] == [(0, 400)] * 2
    assert (world.verbs.held_bytes("acme"), world.entry.disk_bytes) == (0, 800)
    world.copies.over_quota = 1  # of memory, which they do not take
    world.bench.room(world.entry.sandbox).anonymous_bytes = world.entry.sandbox.limits.memory_mb << 20
    await world.verbs.bound_memory()
    assert await world.tree() == {first: "on disk", second: "on disk"}
    await world.back(first)
    room = world.bench.room(world.entry.sandbox)
    assert room.spec.branch is not None and room.spec.branch.whole is not None
    assert (await world.tree())[first] == "on disk"
    third = await world.take("third", rooms[2])
    assert await world.tree() == {first: "on disk", second: f"dropped: {DISK_FULL}", third: "on disk"}
    rooms[2].bytes = 700  # what was written has come there since
    assert [one.disk_bytes for one in await world.verbs.tree("acme", world.id)] == [400, 0, 700]
    async with world.verbs.using(world.entry, first) as copied:
        await world.verbs.bound_memory()  # not what is in use
        assert copied.branch.whole is not None
    assert [room.drops for room in rooms] == [0, 1, 1]
    assert await world.tree() == {first: "on disk", second: f"dropped: {DISK_FULL}", third: f"dropped: {DISK_FULL}"}
    await world.bench.fleet.kill("acme", world.id)
    assert [room.drops for room in rooms] == [1, 1, 1]


async def test_what_is_wanted_again_while_others_make_place_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = [spilling(400) for _ in range(2)]
    first, second = [await world.take(str(number), memory) for number, memory in enumerate(memories)]
    world.copies.over_quota = 800
    await world.verbs.bound_memory()
    assert await world.tree() == {first: "on disk", second: "on disk"}
    world.copies.over_quota = 0
    monkeypatch.setattr(world.verbs, "_bounds", replace(world.verbs._bounds, disk_bytes=0))
    update, begun, go_on = world.bench.store.update, asyncio.Event(), asyncio.Event()

    async def slow(sandbox: Sandbox) -> None:
        begun.set()
        await go_on.wait()
        await update(sandbox)

    monkeypatch.setattr(world.bench.store, "update", slow)
    world.bench.driver.gate = asyncio.Event()
    bounding = asyncio.create_task(world.verbs.bound_memory())
    await begun.wait()
    forking = asyncio.create_task(
        world.copies.snapshots.fork("acme", world.id, count=1, timeout_s=60, checkpoint=second)
    )
    await until(lambda: len(world.bench.lives.entries) == 2)
    go_on.set()
    await bounding
    world.bench.driver.gate.set()
    (fork,), copied = await forking
    assert [memory.drops for memory in memories] == [1, 0]
    assert isinstance(fork, Sandbox) and copied.lost == ()
    assert (await world.tree())[second] == "held"


async def test_what_can_not_be_on_disk_is_dropped(world: World) -> None:
    memory = spilling(600)
    memory.fails = StorageFull("The disk is full.")
    first = await world.take("first", memory)
    await world.take("second", spilling(600))
    assert (await world.tree())[first] == f"dropped: {FULL}, and it can't be on disk: The disk is full."
    assert memory.drops == 1


async def test_an_image_that_can_not_be_read(world: World) -> None:
    memory = spilling(600)
    first = await world.take("first", memory)
    second = await world.take("second", spilling(600))
    before = world.entry.sandbox
    memory.fails = Unavailable("no memory")
    with pytest.raises(Unavailable, match="no memory"):
        await world.back(first)
    assert world.entry.sandbox == before
    assert await world.tree() == {first: "on disk", second: "held"}
    memory.fails = MemoryLost("its image was changed")
    _, copied = await world.verbs.rollback("acme", world.id, first)
    assert copied.lost == ("its memory was dropped: its image was changed",)
    assert (await world.tree())[first] == "dropped: its image was changed"
    assert memory.drops == 1


async def test_what_is_on_its_way_to_disk_is_waited_for_or_goes(world: World) -> None:
    memories = [spilling(600), spilling(600)]
    first = await world.take("first", memories[0])
    memories[0].gate = asyncio.Event()
    taking = asyncio.create_task(world.take("second", memories[1]))
    async with asyncio.timeout(5):
        while memories[0].moves != ["spill"]:
            await asyncio.sleep(0.01)
    going_back = asyncio.create_task(world.back(first))
    await asyncio.sleep(0.05)
    assert not going_back.done()
    memories[0].gate.set()
    await asyncio.gather(going_back, taking)
    assert memories[0].moves == ["spill", "recall"]
    memories[1].gate = asyncio.Event()
    bounding = asyncio.create_task(world.verbs.bound_memory())
    async with asyncio.timeout(5):
        while memories[1].moves != ["spill"]:
            await asyncio.sleep(0.01)
    await world.bench.fleet.kill("acme", world.id)
    memories[1].gate.set()
    await bounding
    assert [memory.drops for memory in memories] == [1, 1]


async def test_rules_are_seen_to_while_nobody_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_EVERY_S", 0.01)
    monkeypatch.setattr(checkpoints, "_LOOKED_AT", 1)
    memories = [Memory(bytes=1), Memory(bytes=1), Memory(bytes=1)]
    first, second, third = [await world.take(str(number), memory) for number, memory in enumerate(memories)]
    watching = asyncio.create_task(world.verbs.watch())
    memories[1].bytes = 5000  # it was changed since
    memories[2].there = False
    async with asyncio.timeout(5):
        while [memory.drops for memory in memories] != [1, 1, 1]:
            await asyncio.sleep(0.01)
    assert await world.tree() == {first: f"dropped: {FULL}", second: f"dropped: {FULL}", third: f"dropped: {LOST}"}
    await world.bench.fleet.set_timeout("acme", world.id, 10_000)
    world.bench.clock.ahead += 2000
    async with asyncio.timeout(5):
        while await world.tree():
            await asyncio.sleep(0.01)
    watching.cancel()
    assert world.copies.images == frozenset()


async def test_a_rule_that_fails_keeps_no_other_from_being_seen_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []

    async def fails(*about: object) -> None:
        failures.append("once more")
        raise OSError("what nobody foresaw")

    monkeypatch.setattr(checkpoints, "_EVERY_S", 0.01)
    memory = Memory(bytes=1)
    checkpoint = await world.take("one", memory)
    memory.bytes = 5000
    monkeypatch.setattr(world.verbs, "_prune", fails)
    watching = asyncio.create_task(world.verbs.watch())
    await until(lambda: memory.drops == 1)
    monkeypatch.setattr(world.verbs, "_measure_some", fails)
    await until(lambda: len(failures) > 10)
    watching.cancel()
    assert await world.tree() == {checkpoint: f"dropped: {FULL}"}


async def test_what_held_the_memory_has_ended(world: World) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    memory.there = False
    assert await world.tree() == {checkpoint: f"dropped: {LOST}"}
    assert memory.drops == 1
    await world.back(checkpoint)


async def test_what_is_dropped_while_another_change_is_stored_is_known_to_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, kept = await world.take("going"), await world.take("kept", Memory())
    store, lives = world.bench.store, world.bench.lives
    update = store.update

    async def slow(sandbox: Sandbox) -> None:
        monkeypatch.setattr(store, "update", update)
        await world.verbs._drop_memory(world.entry, kept, FULL)
        await update(sandbox)

    monkeypatch.setattr(store, "update", slow)
    await world.verbs.remove("acme", world.id, going)
    assert await world.tree() == {kept: f"dropped: {FULL}"}
    assert lives.entries[world.id].sandbox == store.rows[world.id] == lives.book.find(world.id)


async def test_many_at_once(world: World) -> None:
    memories = [Memory(bytes=1) for _ in range(20)]
    first = await world.take("first", memories[0])
    for memory in memories[1:]:
        world.bench.room(world.entry.sandbox).branches.append(memory.branch)
    await asyncio.gather(*(world.verbs.take("acme", world.id, "many") for _ in memories[1:]))
    assert sum(memory.drops for memory in memories) == 16
    results = await asyncio.gather(
        *(world.verbs.rollback("acme", world.id, id) for id in list(await world.tree()) * 3),
        world.verbs.rollback("acme", world.id, first),
        return_exceptions=True,
    )
    assert sum(isinstance(result, NoCheckpoint) for result in results) == 1
    await world.bench.lives.leaving.drained()
    assert len(world.alive) == len(world.bench.layers) == 1
    killing = asyncio.gather(
        world.back(next(iter(await world.tree()))), world.bench.fleet.kill("acme", world.id), return_exceptions=True
    )
    await killing
    await world.bench.lives.leaving.drained()
    assert (world.alive, world.bench.layers, world.copies.images) == ([], [], frozenset())
    assert sum(memory.drops for memory in memories) == 20


async def test_the_next_server_has_the_tree_and_the_files_and_no_memory(tmp_path: Path) -> None:
    first = Copies(tmp_path)
    world = World(first, await first.bench.fleet.create(ORDER))
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    place = world.entry.sandbox.place
    half = first.bench.assembly.layer(f"{world.id}-2")  # of a rollback that was not recorded
    half.touch()

    second = Copies(tmp_path, driver=first.bench.driver, store=first.bench.store, templates=first.store)
    await second.book.load()
    await second.bench.care.load()
    room = world.bench.room(world.entry.sandbox)
    assert not second.bench.care.adopt({"id": world.id, "place": world.id}, room)
    assert not second.bench.care.adopt({"id": world.id, "place": f"{world.id}-2"}, room)
    assert second.bench.care.adopt({"id": world.id, "place": place}, room)
    await second.bench.care.reconcile()
    assert not half.exists()
    assert second.images == first.images
    (shown,) = await second.checkpoints.tree("acme", world.id)
    assert (shown.memory, shown.checkpoint.label, shown.current) == (f"dropped: {LOST}", "one", True)
    await second.bench.fleet.kill("acme", world.id)
    assert second.images == frozenset()
    await second.bench.care.close()
    await first.bench.close()
