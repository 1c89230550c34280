"""Rooms made ahead of rollbacks, over a driver without rooms: when there is one, who gets it, and that it goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.model.errors import RoostError, StorageFull, Throttled, Unavailable
from roost.model.function import GVISOR
from roost.model.instance import State, StopReason
from roost.model.sandbox import SandboxState
from roost.sandboxes import ahead, care, lives
from roost.sandboxes.ahead import RoomAhead
from roost.sandboxes.entry import Entry
from tests.integration.test_checkpoints_lives import Memory, World
from tests.integration.test_sandboxes_lives import ORDER
from tests.integration.test_snapshots_lives import Copies
from tests.support.fake_driver import FakeRoom
from tests.support.triggers import until


class Ahead(World):
    """Whose rooms ahead come at once."""

    @property
    def place(self) -> str:
        return self.entry.sandbox.place

    @property
    def coming(self) -> RoomAhead:
        assert isinstance(self.entry.ahead, RoomAhead)
        return self.entry.ahead

    async def next(self) -> FakeRoom:
        """The room that is there for the next rollback."""
        await until(lambda: isinstance(self.entry.ahead, RoomAhead) and self.entry.ahead.copied is not None)
        return self.at(self._place)

    @property
    def _place(self) -> str:
        assert self.coming.new is not None
        return self.coming.new.sandbox.place

    def at(self, place: str) -> FakeRoom:
        return next(room for room in self.bench.driver.rooms if room.spec.run_dir.name == place)

    async def alone(self) -> None:
        """The sandbox has its room, and there is no other, nor files of any."""
        await until(lambda: self.entry.ahead is None)
        await until(lambda: self.alive == self.bench.layers == self.bench.run == [self.place])
        assert self.entry.places == {self.place}


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ahead]:
    for module in (ahead, lives):
        monkeypatch.setattr(module, "SOON_S", 0.001)
    copies = Copies(tmp_path)
    yield Ahead(copies, await copies.bench.fleet.create(ORDER))
    await copies.bench.close()


async def test_the_next_rollback_to_the_same_finds_its_room_there(world: Ahead) -> None:
    memory = Memory()
    checkpoint = await world.take("one", memory)
    assert world.entry.ahead is None
    await world.back(checkpoint)
    room = await world.next()
    assert room.frozen and not world.at(world.place).frozen
    assert room.spec.branch is not None and len(room.spec.branch.copies) == 1
    assert sorted(world.alive) == world.bench.layers == [f"{world.id}-1", f"{world.id}-2"]
    world.bench.driver.gate = asyncio.Event()  # no room can be made now
    world.bench.clock.ahead += 5
    sandbox, copied = await asyncio.wait_for(world.verbs.rollback("acme", world.id, checkpoint), 5)
    assert (sandbox.place, sandbox.at, sandbox.state) == (f"{world.id}-2", checkpoint, SandboxState.RUNNING)
    assert (copied.memory, copied.lost) == ("contexts", ())
    assert not room.frozen and world.entry.instance is not None and world.entry.instance.state is State.READY
    assert world.bench.clock() - world.entry.held[checkpoint].used < 4
    await world.bench.lives.leaving.drained()
    assert not room.ended.is_set()
    world.bench.driver.gate.set()
    assert (await world.next()).spec.run_dir.name == f"{world.id}-3"  # and so on
    lease = world.bench.traffic.try_lease(world.id)
    assert lease is not None
    lease.release()
    await world.bench.fleet.kill("acme", world.id)
    assert world.alive == world.bench.layers == world.bench.run == []
    assert world.copies.images == frozenset() and memory.drops == 1


async def test_what_is_not_taken_goes(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT_S", 0.05)
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    await world.next()
    await world.alone()
    await world.back(checkpoint)
    assert world.place == f"{world.id}-3"  # no two rooms have one place


async def test_a_rollback_to_another_has_a_room_of_its_own(world: Ahead) -> None:
    one, two = await world.take("one", Memory()), await world.take("two", Memory())
    await world.back(one)
    room = await world.next()
    await world.back(two)
    assert (world.place, world.entry.sandbox.at) == (f"{world.id}-3", two)
    await until(room.ended.is_set)
    assert world.coming.checkpoint == two


async def test_checkpoints_on_the_way_change_nothing(world: Ahead) -> None:
    """As where several are made of one state, one after the other."""
    one = await world.take("one", Memory())
    await world.back(one)
    await world.next()
    two = await world.take("two", Memory())
    await world.verbs.remove("acme", world.id, two)
    await world.back(one)
    assert world.place == f"{world.id}-2"


async def test_what_is_asked_for_while_it_is_made_is_waited_for(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    await world.verbs.rollback("acme", world.id, checkpoint)
    world.bench.driver.gate = asyncio.Event()
    await until(lambda: world.entry.ahead is not None and world.coming.new is not None)
    rolling = asyncio.create_task(world.verbs.rollback("acme", world.id, checkpoint))
    done, _ = await asyncio.wait([rolling], timeout=0.05)
    assert not done
    world.bench.driver.gate.set()
    sandbox, _ = await asyncio.wait_for(rolling, 5)
    assert sandbox.place == f"{world.id}-2"


async def test_what_is_asked_for_before_it_is_begun_is_made_at_once(
    world: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "SOON_S", 60.0)
    monkeypatch.setattr(lives, "SOON_S", 60.0)
    checkpoint = await world.take("one", Memory())
    await world.verbs.rollback("acme", world.id, checkpoint)
    await asyncio.wait_for(world.verbs.rollback("acme", world.id, checkpoint), 5)  # nor is the end of the old put off
    assert world.place == f"{world.id}-2"
    world.entry.wanted.set()


@pytest.mark.parametrize("script", ["failed", "dies", "silent"])
async def test_a_room_that_does_not_come_up_is_nobodys_trouble(world: Ahead, script: str) -> None:
    checkpoint = await world.take("one", Memory())
    await world.verbs.rollback("acme", world.id, checkpoint)
    world.bench.driver.script, rooms = script, len(world.bench.driver.rooms)
    await until(lambda: len(world.bench.driver.rooms) > rooms)
    if script != "silent":
        await world.alone()
    world.bench.driver.script = "ready"
    await world.back(checkpoint)  # silent: it was waited for in vain
    assert world.entry.sandbox.state is SandboxState.RUNNING
    assert not world.at(world.place).frozen


async def test_one_that_ends_by_itself_is_not_taken(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    (await world.next()).die()
    await world.alone()
    await world.back(checkpoint)
    (await world.next()).die()
    await world.back(checkpoint)  # nobody has heard of it
    assert world.entry.sandbox.state is SandboxState.RUNNING


async def test_a_rollback_that_cannot_be_recorded_leaves_the_sandbox_as_it_was(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    before, room = world.entry.sandbox, await world.next()
    world.bench.store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await world.verbs.rollback("acme", world.id, checkpoint)
    assert world.entry.sandbox == before and room.destroyed
    assert not world.at(before.place).frozen
    world.bench.store.error = None
    await world.alone()
    await world.back(checkpoint)


@pytest.mark.parametrize("how", ["files", "memory", "kill", "dies", "removed", "timeout", "close"])
async def test_it_goes_with_what_it_was_made_for(world: Ahead, how: str) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room, fleet = await world.next(), world.bench.fleet
    match how:
        case "files" | "memory":
            await fleet.pause("acme", world.id, memory=how == "memory")
        case "kill":
            await fleet.kill("acme", world.id)
        case "dies":
            world.at(world.place).die()
            await world.bench.until_paused(world.entry.sandbox)
        case "removed":
            await world.verbs.remove("acme", world.id, checkpoint)
        case "timeout":
            await world.bench.lives.kill(world.entry, StopReason.TIMEOUT)
        case "close":
            await world.bench.care.close()
    assert room.destroyed and world.entry.ahead is None
    assert f"{world.id}-2" not in world.bench.layers
    if how == "removed":
        await world.alone()
        assert world.copies.images == frozenset(world.entry.sandbox.foundation.layers)


async def test_a_kill_does_not_wait_for_its_making(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    world.bench.driver.script = "silent"
    await until(lambda: world.entry.ahead is not None and world.coming.new is not None)
    await asyncio.wait_for(world.bench.fleet.kill("acme", world.id), 1)
    assert world.alive == world.bench.layers == []


@pytest.mark.parametrize("internet", [None, True])
async def test_what_was_made_before_its_network_changed_is_not_taken(world: Ahead, internet: bool | None) -> None:
    """What of it a room has from its start, as its indexes and variables, is of when it was made."""
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room = await world.next()
    network = {} if internet else {"allowOut": ["one.example"]}
    await world.bench.fleet.set_network("acme", world.id, network, internet)
    assert world.bench.doors.allow[f"{world.id}-2"] == tuple(network.get("allowOut", ()))  # should it be
    await world.back(checkpoint)
    assert world.place == f"{world.id}-3"
    await until(lambda: room.destroyed)
    await world.next()
    await world.verbs.rollback("acme", world.id, checkpoint)
    assert world.place == f"{world.id}-4"


async def test_what_the_sandbox_has_read_since_is_not_forgotten(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room = await world.next()
    monkeypatch.setattr(world.bench.assembly, "labels", lambda sandbox: frozenset({"private_data"}))
    await world.back(checkpoint)
    assert world.entry.sandbox.foundation.labels == ("private_data",)
    assert world.place == f"{world.id}-3"
    await until(lambda: room.destroyed)


@pytest.mark.parametrize("why", ["full", "program", "rigid", "many", "large", "disk"])
async def test_there_is_none_where_it_would_cost_too_much(
    world: Ahead, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    memory = Memory()
    memory.spills = True
    checkpoint = await world.take("one", memory)
    if why == "full":
        world.bench.lives._max_running = 1
    elif why == "program":
        (made,) = world.entry.sandbox.checkpoints
        made = replace(made, foundation=replace(made.foundation, start_command="serve"))
        world.entry.sandbox = replace(world.entry.sandbox, checkpoints=(made,))
    elif why == "rigid":
        monkeypatch.setattr(world.bench.driver, "capabilities", frozenset())
    elif why == "many":
        monkeypatch.setattr(ahead, "_MOST", 0)
    elif why == "large":
        monkeypatch.setattr(ahead, "_MOST_BYTES", 0)
    rooms = len(world.bench.driver.rooms)
    await world.verbs.rollback("acme", world.id, checkpoint)
    if why == "disk":
        world.entry.held[checkpoint].disk_bytes = 10
    await asyncio.sleep(0.1)
    assert world.entry.ahead is None and world.alive == [world.place]
    assert len(world.bench.driver.rooms) == rooms + (2 if why == "large" else 1)


async def test_a_killed_server_leaves_one_that_the_next_does_not_own(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    await world.next()
    new = world.coming.new
    assert new is not None
    instance, world.entry.instance = world.entry.instance, None
    about = {**new.instance.describe(), "place": new.sandbox.place}
    assert not world.bench.care.adopt(about, world.at(new.sandbox.place))
    assert world.bench.care.adopt({**about, "place": world.place}, world.at(world.place))
    await world.entry.instance.up()
    world.entry.instance = instance


async def test_rollbacks_and_kills_at_once_leave_nothing(world: Ahead) -> None:
    one, two = await world.take("one", Memory()), await world.take("two", Memory())

    async def back(number: int) -> None:
        for _ in range(4):
            await asyncio.sleep(0.003 * number)
            try:
                await world.verbs.rollback("acme", world.id, (one, two)[number % 2])
            except RoostError:
                return

    async def kill() -> None:
        await asyncio.sleep(0.03)
        await world.bench.fleet.kill("acme", world.id)

    await asyncio.gather(*(back(number) for number in range(3)), kill())
    await world.bench.lives.leaving.drained()
    await until(lambda: world.alive == world.bench.layers == world.bench.run == [])
    assert world.copies.images == frozenset()


async def test_one_whose_time_is_over_while_it_is_taken_stays(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT_S", 0.1)
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room = await world.next()
    thaw = room.thaw

    async def slowly() -> None:
        await asyncio.sleep(0.2)
        await thaw()

    monkeypatch.setattr(room, "thaw", slowly)
    await world.verbs.rollback("acme", world.id, checkpoint)
    await asyncio.sleep(0.1)
    assert not room.destroyed and world.place == f"{world.id}-2"
    assert world.bench.assembly.has_files(world.place)


async def test_one_that_does_not_go_on_is_laid_down(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room = await world.next()

    async def never() -> None:
        raise Unavailable("it does not thaw")

    monkeypatch.setattr(room, "thaw", never)
    await world.back(checkpoint)
    assert room.destroyed and world.place == f"{world.id}-3"
    assert f"{world.id}-2" not in world.bench.layers


def _nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ahead, lives):
        monkeypatch.setattr(module, "GONE_S", 0.05)


@pytest.mark.parametrize("how", ["pause", "died", "remove", "kill", "close"])
async def test_one_that_does_not_end_holds_up_nothing(world: Ahead, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    _nobody_waits_long(monkeypatch)
    monkeypatch.setattr(care, "_CLOSE_S", 0.2)
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room, fleet = await world.next(), world.bench.fleet
    room.stuck = 1000
    async with asyncio.timeout(1.5):
        match how:
            case "pause":
                await fleet.pause("acme", world.id)
                assert world.entry.sandbox.state is SandboxState.PAUSED
            case "died":
                world.at(world.place).die()
                await world.bench.until_paused(world.entry.sandbox)
            case "remove":
                await world.verbs.remove("acme", world.id, checkpoint)
            case "kill":
                await fleet.kill("acme", world.id)
            case "close":
                await world.bench.care.close()
                assert world.entry.sandbox.state is SandboxState.PAUSED
    assert not world.entry.lock.locked()
    room.stuck = 0
    await until(lambda: room.destroyed and f"{world.id}-2" not in world.bench.run)


@pytest.mark.parametrize("how", ["close", "kill"])
async def test_what_was_not_taken_is_waited_for(world: Ahead, how: str) -> None:
    one, two = await world.take("one", Memory()), await world.take("two", Memory())
    await world.back(one)
    room = await world.next()
    room.stuck = 1
    await world.verbs.rollback("acme", world.id, two)
    assert not room.destroyed
    await (world.bench.care.close() if how == "close" else world.bench.fleet.kill("acme", world.id))
    assert room.destroyed and f"{world.id}-2" not in world.bench.layers


async def test_its_image_stays_as_long_as_it_does(world: Ahead) -> None:
    one, two = await world.take("one", Memory()), await world.take("two", Memory())
    await world.back(one)
    layers = set(world.entry.sandbox.foundation.layers)
    room = await world.next()
    room.stuck = 1
    await world.verbs.rollback("acme", world.id, two)
    await world.bench.lives._hurry(world.entry, 0)
    await world.verbs.remove("acme", world.id, one)
    assert layers <= world.copies.images and not room.destroyed
    await world.bench.lives.leaving.drained()
    await until(lambda: not layers & world.copies.images)
    assert room.destroyed


@pytest.mark.parametrize("how", ["kill", "pause", "rollback"])
async def test_a_making_that_hangs_holds_up_nothing(world: Ahead, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    _nobody_waits_long(monkeypatch)
    monkeypatch.setattr(ahead, "_MADE_S", 0.05)
    checkpoint = await world.take("one", Memory())
    await world.verbs.rollback("acme", world.id, checkpoint)
    world.bench.driver.gate = gate = asyncio.Event()
    await until(lambda: world.entry.ahead is not None and world.coming.new is not None)
    rooms = len(world.bench.driver.rooms)
    verb = world.verbs if how == "rollback" else world.bench.fleet
    if how == "rollback":
        rolling = asyncio.create_task(world.verbs.rollback("acme", world.id, checkpoint))
        await until(lambda: f"{world.id}-3" in world.entry.places)  # another one is made
        gate.set()
        await asyncio.wait_for(rolling, 5)
    else:
        await asyncio.wait_for(getattr(verb, how)("acme", world.id), 1)
        assert len(world.bench.driver.rooms) == rooms
        gate.set()
    await until(lambda: f"{world.id}-2" not in world.bench.layers and f"{world.id}-2" not in world.entry.places)


@pytest.mark.parametrize("when", ["before", "while", "after"])
async def test_what_goes_to_disk_is_not_brought_back_for_it(
    world: Ahead, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    memory = Memory()
    memory.spills = True
    checkpoint = await world.take("one", memory)
    await world.verbs.rollback("acme", world.id, checkpoint)
    memory.gate = asyncio.Event() if when != "before" else None
    spilling = asyncio.create_task(world.verbs._spill(world.entry, checkpoint, "full") if when != "after" else _no())
    if when == "after":  # it is asked whether it is there
        asked = memory.alive

        async def alive() -> bool:
            nonlocal spilling
            spilling = asyncio.create_task(world.verbs._spill(world.entry, checkpoint, "full"))
            await asyncio.sleep(0.01)
            return await asked()

        monkeypatch.setattr(world.entry.held[checkpoint].branch.copies[0], "alive", alive, raising=False)
    await until(lambda: world.entry.ahead is None)
    if memory.gate is not None:
        memory.gate.set()
    await spilling
    await asyncio.sleep(0.02)
    assert memory.moves == ["spill"] and world.alive == [world.place]


async def _no() -> None: ...


async def test_what_is_given_up_is_given_up_there_too(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory(900))
    await world.back(checkpoint)
    room = await world.next()
    world.copies.over_quota = 1
    await world.verbs.bound_memory()
    assert (await world.tree())[checkpoint].startswith("dropped")
    await until(lambda: room.destroyed)


async def test_what_grows_is_tried_once(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_BYTES", 0)
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    await until(lambda: len(world.bench.driver.rooms) == 3)
    await world.alone()
    await world.back(checkpoint)
    await until(lambda: world.entry.ahead is None)
    assert len(world.bench.driver.rooms) == 4


async def test_what_is_expected_of_one_is_not_ended_with_another(world: Ahead) -> None:
    memory = Memory()
    one, two = await world.take("one", Memory()), await world.take("two", memory)
    await world.back(one)
    room = await world.next()
    memory.there = False
    assert (await world.tree())[two].startswith("dropped")
    await world.verbs.remove("acme", world.id, two)
    await world.verbs.rollback("acme", world.id, one)
    assert not room.destroyed and world.place == f"{world.id}-2"


async def test_a_rollback_waits_for_rooms_that_begin_to_go_meanwhile(
    world: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "KEPT_S", 0.05)
    checkpoint = await world.take("one", Memory())
    before = world.at(world.place)
    before.stuck = 1  # 0.1 s
    await world.verbs.rollback("acme", world.id, checkpoint)
    room = await world.next()
    room.stuck = 1
    await world.verbs.rollback("acme", world.id, checkpoint)
    await world.bench.lives.leaving.drained()
    assert before.destroyed and not world.entry.leaving


async def test_a_server_that_is_full_or_stops_has_no_room_more(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room, lives_ = await world.next(), world.bench.lives
    place, rooms = world.place, len(world.bench.driver.rooms)
    lives_.closing = True
    with pytest.raises(Unavailable, match="shutting down"):
        await world.verbs.rollback("acme", world.id, checkpoint)
    await until(lambda: room.destroyed)
    with pytest.raises(Unavailable, match="shutting down"):
        await world.verbs.rollback("acme", world.id, checkpoint)
    lives_.closing = False
    world.at(place).die()
    await world.bench.until_paused(world.entry.sandbox)
    lives_._max_running = 0
    with pytest.raises(Throttled):
        await world.verbs.rollback("acme", world.id, checkpoint)
    assert world.place == place and len(world.bench.driver.rooms) == rooms
    lives_._max_running = 3
    await world.back(checkpoint)


async def test_what_failed_is_not_waited_for(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MADE_S", 60.0)
    checkpoint = await world.take("one", Memory())
    await world.verbs.rollback("acme", world.id, checkpoint)
    world.bench.driver.gate = gate = asyncio.Event()
    await until(lambda: world.entry.ahead is not None and world.coming.new is not None)
    rolling = asyncio.create_task(world.verbs.rollback("acme", world.id, checkpoint))
    await asyncio.sleep(0.02)
    world.bench.driver.script = "failed"
    gate.set()
    await until(lambda: f"{world.id}-3" in world.entry.places)
    world.bench.driver.script = "ready"
    with contextlib.suppress(RoostError):  # it may have failed as that did
        await asyncio.wait_for(rolling, 5)


async def test_numbers_of_places_go_on_after_a_restart(world: Ahead) -> None:
    checkpoint = await world.take("one", Memory())
    for _ in range(2):
        await world.back(checkpoint)
    assert Entry(world.entry.sandbox).latest == world.entry.sandbox.rollbacks == 2


async def test_so_many_at_once_and_no_more(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST", 1)
    checkpoint = await world.take("one", Memory())
    for _ in range(3):  # each gives its place back
        await world.back(checkpoint)
        room = await world.next()
    other = World(world.copies, await world.bench.fleet.create(ORDER))
    await other.back(await other.take("one", Memory()))
    assert other.entry.ahead is None
    await world.bench.fleet.kill("acme", world.id)
    assert room.destroyed
    (checkpoint,) = other.entry.held
    await other.back(checkpoint)
    assert other.entry.ahead is not None


@pytest.mark.parametrize("what", ["paused", "gvisor", "killed"])
async def test_there_is_none_for_what_does_not_run(world: Ahead, what: str) -> None:
    checkpoint = await world.take("one", Memory())
    if what == "gvisor":
        world.bench.assembly.isolation = GVISOR
    await world.verbs.rollback("acme", world.id, checkpoint)
    if what == "paused":
        await world.bench.fleet.pause("acme", world.id)
    elif what == "killed":
        world.entry.ending = "killed"
    rooms = len(world.bench.driver.rooms)
    await until(lambda: world.entry.ahead is None)
    assert len(world.bench.driver.rooms) == rooms


async def test_the_end_of_the_room_before_comes_later(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "SOON_S", 60.0)
    monkeypatch.setattr(ahead, "_MOST", 0)
    checkpoint = await world.take("one", Memory())
    for _ in range(2):
        before = world.bench.room(world.entry.sandbox)
        await world.verbs.rollback("acme", world.id, checkpoint)
        await asyncio.sleep(0.05)
        assert before.frozen and not before.destroyed
    await world.bench.fleet.kill("acme", world.id)
    assert before.destroyed and world.alive == []


async def test_labels_that_were_cleared_are_neither_lost_by_it_nor_given(
    world: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes a room of a checkpoint gives it the labels of that."""
    labels = frozenset({"private_data"})
    monkeypatch.setattr(world.bench.assembly, "labels", lambda sandbox: labels)
    checkpoint = await world.take("one", Memory())
    await world.back(checkpoint)
    room = await world.next()
    labels = frozenset()
    await world.back(checkpoint)
    assert world.place == f"{world.id}-3" and world.entry.sandbox.foundation.labels == ("private_data",)
    await until(lambda: room.destroyed and world.entry.ahead is None)
    assert [each.spec.run_dir.name for each in world.bench.driver.rooms][-1] == world.place  # nor is there a next one
