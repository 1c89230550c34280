"""The rungs of a pause over a driver without rooms: what goes to disk, what stays, what is left of it when it fails."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.isolation.driver import Branch, MemoryLost
from roost.model.errors import RoostError, StorageFull, Unavailable
from roost.model.instance import StopReason
from roost.model.sandbox import PauseMode, SandboxState
from roost.sandboxes import ahead, ladder
from roost.sandboxes.fleet import CameBack
from roost.sandboxes.ladder import PauseLadder
from tests.integration.test_checkpoints_lives import Memory, World, spilling
from tests.integration.test_sandboxes_lives import ORDER
from tests.integration.test_snapshots_lives import Copies
from tests.support.triggers import until

AFTER_S = 600.0


class Paused(World):
    """The sandbox of a server, paused, of which `ladder` may be told to look now."""

    ladder: PauseLadder

    async def paused(self, memory: Memory | None) -> None:
        await self.bench.fleet.pause("acme", self.id)
        if memory is not None:
            self.bench.room(self.entry.sandbox).branches.append(memory.branch)

    async def later(self) -> PauseMode | None:
        """Its rung, when it has been paused for long enough."""
        self.bench.clock.ahead += AFTER_S
        await self.ladder._descend(self.entry)
        return self.entry.sandbox.pause_mode

    async def resume(self, *, memory: bool = True) -> CameBack | None:
        return (await self.bench.fleet.connect("acme", self.id, 60, memory=memory))[1]

    @property
    def log(self) -> list[str]:
        return [line.text for line in self.entry.lines.all()]


@pytest.fixture
async def paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Paused]:
    monkeypatch.setattr(ahead, "_MOST", 0)
    copies = Copies(tmp_path)
    world = Paused(copies, await copies.bench.fleet.create(ORDER))
    world.ladder = PauseLadder(copies.bench.lives, spills=tmp_path / "spills", disk_bytes=1000, after_s=AFTER_S)
    yield world
    await copies.bench.close()


async def test_its_room_goes_and_another_comes(paused: Paused) -> None:
    memory = spilling(400)
    await paused.paused(memory)
    await paused.ladder._descend(paused.entry)
    assert paused.entry.sandbox.pause_mode is PauseMode.FULL  # it is not time yet
    assert await paused.later() is PauseMode.DISK
    assert (paused.alive, paused.bench.layers, paused.entry.instance) == ([], [paused.id], None)
    assert (memory.moves, paused.entry.disk_bytes) == (["spill"], 400)
    assert await paused.resume() is CameBack.MEMORY
    assert paused.entry.sandbox.state is SandboxState.RUNNING
    room = paused.bench.room(paused.entry.sandbox)
    assert room.spec.branch is not None and len(room.spec.branch.copies) == 1
    assert (memory.moves, memory.drops, paused.entry.restored) == (["spill", "recall"], 1, False)
    assert paused.entry.disk_bytes == 0


async def test_it_is_seen_to_while_nobody_asks(paused: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "_EVERY_S", 0.01)
    watching = asyncio.create_task(paused.ladder.watch())
    await paused.paused(spilling(400))
    await asyncio.sleep(0.05)
    assert paused.entry.sandbox.pause_mode is PauseMode.FULL
    paused.bench.clock.ahead += AFTER_S
    async with asyncio.timeout(5):
        while paused.entry.sandbox.pause_mode is not PauseMode.DISK:
            await asyncio.sleep(0.01)
    watching.cancel()


@pytest.mark.parametrize("error", [None, StorageFull("full"), Unavailable("too large")])
async def test_what_can_not_go_stands_still_as_before(paused: Paused, error: RoostError | None) -> None:
    memory = spilling(400)
    memory.fails = error
    await paused.paused(memory if error is not None else None)  # without: a thread runs in it
    room = paused.bench.room(paused.entry.sandbox)
    assert await paused.later() is PauseMode.FULL
    assert room.frozen and paused.alive == [paused.id] and paused.entry.kept is None
    assert memory.drops == (1 if error is not None else 0)
    thaws = room.thaws
    room.ties = "it runs other programs"
    assert await paused.later() is PauseMode.FULL
    assert room.thaws == thaws  # it did not run for that
    room.ties = ""
    again = spilling(400)
    room.branches.append(again.branch)
    await paused.ladder._descend(paused.entry)
    assert again.moves == []  # not before as much time again
    assert await paused.later() is PauseMode.DISK


async def test_what_nobody_foresaw_leaves_it_standing_still_and_others_go_on(
    paused: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave() -> Branch:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ladder, "_EVERY_S", 0.01)
    other = Paused(paused.copies, await paused.bench.fleet.create(ORDER))
    room = paused.bench.room(paused.entry.sandbox)
    monkeypatch.setattr(room, "leave", leave)
    memory, another = spilling(400), spilling(400)
    await paused.paused(memory)
    await other.paused(another)
    paused.bench.clock.ahead += AFTER_S
    watching = asyncio.create_task(paused.ladder.watch())
    await until(lambda: other.entry.sandbox.pause_mode is PauseMode.DISK)
    assert (paused.entry.sandbox.pause_mode, room.frozen, room.thaws) == (PauseMode.FULL, True, 1)
    monkeypatch.undo()
    monkeypatch.setattr(ladder, "_EVERY_S", 0.01)
    paused.bench.clock.ahead += AFTER_S
    await until(lambda: paused.entry.sandbox.pause_mode is PauseMode.DISK)
    watching.cancel()


async def test_what_can_not_be_had_again(paused: Paused) -> None:
    memory = spilling(400)
    await paused.paused(memory)
    await paused.later()
    memory.fails = Unavailable("no memory")
    with pytest.raises(Unavailable, match="no memory"):
        await paused.resume()
    assert (paused.entry.sandbox.pause_mode, paused.alive) == (PauseMode.DISK, [])
    memory.fails = MemoryLost("it was changed")
    assert await paused.resume() is CameBack.FILES
    assert (paused.entry.sandbox.state, paused.entry.restored) == (SandboxState.RUNNING, True)
    assert paused.log == ["The memory that was on disk is lost, its files are kept: it was changed"]
    room = paused.bench.room(paused.entry.sandbox)
    assert room.spec.branch is None and memory.drops == 1


async def test_what_held_it_has_ended_or_it_is_not_wanted(paused: Paused) -> None:
    for there in (False, True):
        memory = spilling(400)
        await paused.paused(memory)
        await paused.later()
        memory.there = there
        assert await paused.resume(memory=not there) is CameBack.FILES
        assert (memory.moves, memory.drops, paused.entry.restored) == (["spill"], 1, True)
        assert paused.bench.room(paused.entry.sandbox).spec.branch is None
        assert paused.log == ["The memory that was on disk is lost, its files are kept: what held it has ended"]
    await paused.paused(None)
    assert await paused.resume() is CameBack.MEMORY
    assert await paused.resume() is None  # it ran


async def test_what_is_lost_while_nobody_asks_is_known(paused: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "_EVERY_S", 0.01)
    monkeypatch.setattr(ladder, "_LOOKED_AT", 1)
    other = Paused(paused.copies, await paused.bench.fleet.create(ORDER))
    other.ladder = paused.ladder
    memories = [spilling(400), spilling(400)]
    for world, memory in zip((paused, other), memories, strict=True):
        await world.paused(memory)
        assert await world.later() is PauseMode.DISK
    watching = asyncio.create_task(paused.ladder.watch())
    memories[1].there = False
    await until(lambda: other.entry.sandbox.pause_mode is PauseMode.FILESYSTEM)
    watching.cancel()
    assert (other.entry.sandbox.reason, other.entry.kept, memories[1].drops) == (StopReason.LOST, None, 1)
    assert other.log == ["The memory that was on disk is lost, its files are kept: what held it has ended"]
    assert (paused.entry.sandbox.pause_mode, paused.log, memories[0].drops) == (PauseMode.DISK, [], 0)
    assert (await other.resume(), await paused.resume()) == (CameBack.FILES, CameBack.MEMORY)


async def test_a_room_that_can_not_be_made_leaves_it_paused(paused: Paused) -> None:
    memory = spilling(400)
    await paused.paused(memory)
    await paused.later()
    paused.bench.driver.script = "failed"
    with pytest.raises(RoostError):
        await paused.resume()
    assert (paused.entry.sandbox.pause_mode, memory.drops) == (PauseMode.DISK, 0)
    assert (paused.entry.disk_bytes, paused.verbs.held_bytes("acme")) == (0, 400)  # it is in memory
    memory.fails = StorageFull("full")
    memory.bytes = 300
    await paused.ladder._look(paused.entry)
    assert (paused.entry.disk_bytes, paused.verbs.held_bytes("acme")) == (0, 300)
    memory.fails = None
    await paused.ladder._look(paused.entry)
    assert paused.entry.disk_bytes == 0  # not before as much time again
    paused.bench.clock.ahead += AFTER_S
    await paused.ladder._look(paused.entry)
    assert (paused.entry.disk_bytes, paused.verbs.held_bytes("acme")) == (300, 0)
    paused.bench.driver.script = "ready"
    assert await paused.resume() is CameBack.MEMORY
    assert (memory.moves, memory.drops) == (["spill", "recall", "spill", "spill", "recall"], 1)
    assert (paused.entry.disk_bytes, paused.verbs.held_bytes("acme")) == (0, 0)


async def test_what_came_back_for_a_room_that_can_not_be_made_goes_to_disk_again(
    paused: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "_EVERY_S", 0.01)
    memory = spilling(400)
    await paused.paused(memory)
    await paused.later()
    watching = asyncio.create_task(paused.ladder.watch())
    paused.bench.driver.script = "failed"
    with pytest.raises(RoostError):
        await paused.resume()
    await until(lambda: memory.moves == ["spill", "recall", "spill"])
    await until(lambda: paused.entry.disk_bytes == 400)
    watching.cancel()
    assert paused.verbs.held_bytes("acme") == 0


async def test_it_goes_with_the_sandbox_with_a_rollback_and_with_the_server(paused: Paused) -> None:
    checkpoint = await paused.take("one", spilling(100))
    memories = [spilling(400) for _ in range(3)]
    await paused.paused(memories[0])
    await paused.later()
    await paused.back(checkpoint)
    assert (paused.entry.sandbox.state, memories[0].drops) == (SandboxState.RUNNING, 1)
    await paused.paused(memories[1])
    await paused.later()
    await paused.bench.lives.put_away(paused.entry)
    assert (paused.entry.sandbox.pause_mode, memories[1].drops) == (PauseMode.FILESYSTEM, 1)
    assert paused.entry.sandbox.reason == StopReason.SHUTDOWN
    await paused.resume()
    await paused.paused(memories[2])
    await paused.later()
    await paused.bench.fleet.kill("acme", paused.id)
    assert memories[2].drops == 1
    assert paused.bench.layers == []


async def test_forks_and_checkpoints_of_it_have_files_alone(paused: Paused) -> None:
    memory = spilling(400)
    await paused.paused(memory)
    await paused.later()
    _, copied = await paused.copies.snapshots.fork("acme", paused.id, count=1, timeout_s=60)
    assert copied.left_behind == ("memory", "processes")
    checkpoint = await paused.take("one")
    assert await paused.tree() == {checkpoint: "dropped: no Python context ran"}
    assert (memory.moves, memory.drops) == (["spill"], 0)


async def test_checkpoints_give_place_to_it(paused: Paused) -> None:
    first = await paused.take("first", spilling(600))
    await paused.take("second", spilling(600))
    assert (await paused.tree())[first] == "on disk"
    await paused.paused(spilling(500))
    await paused.later()
    assert paused.entry.disk_bytes == 1100  # this driver does not count for itself
    await paused.verbs.bound_memory()
    assert paused.entry.disk_bytes == 500
    assert (await paused.tree())[first].startswith("dropped: ")
    await paused.resume()
