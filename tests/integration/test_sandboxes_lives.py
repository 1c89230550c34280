"""Sandboxes over a driver without rooms: what happens when starts fail, rooms die, disks are full, callers go away."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.instances.surroundings import Surroundings
from roost.isolation.driver import Room, Template
from roost.model.errors import Conflict, NotFound, RoostError, StorageFull, Throttled, Unavailable
from roost.model.function import FunctionSpec, Limits
from roost.model.instance import State, StopReason
from roost.model.sandbox import Foundation, PauseMode, Sandbox, SandboxState
from roost.model.taint import NONE, Holder, Holdings, Labels
from roost.sandboxes.assembly import Places, SandboxAssembly
from roost.sandboxes.book import SandboxBook
from roost.sandboxes.care import SandboxCare
from roost.sandboxes.fleet import Gone, Order, SandboxFleet
from roost.sandboxes.image_shelf import ImageShelf
from roost.sandboxes.launcher import Launcher
from roost.sandboxes.lives import Lives
from roost.sandboxes.templates import SandboxTemplate
from roost.sandboxes.traffic import SandboxTraffic
from tests.support.fake_driver import FakeDriver, FakeRoom, Recorder
from tests.support.sandboxes import MemorySandboxes
from tests.support.triggers import until

ORDER = Order(account="acme", template="base", timeout_s=300)


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


class OneTemplate:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.standing: list[tuple[str, ...]] = []

    def get(self, name: str, account: str = "") -> SandboxTemplate:
        if name != "base":
            raise NotFound(f"template '{name}' not found")
        return SandboxTemplate(id="base", names=("base",), foundation=Foundation(), limits=Limits())

    def layers(self) -> list[tuple[str, ...]]:
        return self.standing

    async def root(self, foundation: Foundation) -> Template:
        return Template(name="host", root=self._root)


class EmptyImages:
    full = False

    async def layer_over(self, snapshots: Sequence[Path], layer: Path, size_mb: int) -> tuple[Path, ...]:
        if self.full:
            raise StorageFull("full")
        layer.touch()
        return tuple(snapshots)

    async def snapshot(self, layer: Path, target: Path) -> None:
        if self.full:
            raise StorageFull("full")
        target.write_bytes(layer.read_bytes())

    def discard(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def forget(self, path: Path) -> None: ...


class Doors:
    """Nothing but what `allowOut` says, by the folder of each room. `gate`, if set, holds every attach."""

    def __init__(self) -> None:
        self.allow: dict[str, tuple[str, ...]] = {}
        self.gate: asyncio.Event | None = None
        self.attaching = 0
        self.broken = False

    async def furnish(self, spec: FunctionSpec, run_dir: Path, room: Room) -> None: ...

    async def attach(
        self, spec: FunctionSpec, run_dir: Path, holdings: Holdings
    ) -> tuple[Path | None, Mapping[str, str]]:
        self.attaching += 1
        if self.gate is not None:
            await self.gate.wait()
        self.allow[run_dir.name] = spec.egress.allow
        return None, {}

    async def change(self, spec: FunctionSpec, run_dir: Path) -> bool:
        if run_dir.name not in self.allow:
            return False
        if self.broken:
            raise Unavailable("The room's authority can't be kept.")
        self.allow[run_dir.name] = spec.egress.allow
        return True

    def detach(self, run_dir: Path) -> None:
        self.allow.pop(run_dir.name, None)

    def labels_of(self, holders: Collection[Holder]) -> Labels:
        return NONE

    async def forget_labels(self, name: str) -> None: ...


class Bench:
    """Everything of one server's sandboxes. A second one over the same folder and store is the next server."""

    def __init__(self, folder: Path, *, driver: FakeDriver | None = None, store: MemorySandboxes | None = None) -> None:
        self.folder = folder
        self.driver = driver or FakeDriver()
        self.store = store or MemorySandboxes()
        self.clock = Clock()
        self.images = EmptyImages()
        self.doors = Doors()
        self.recorder = Recorder()
        # A socket's path may have 107 bytes only, and a test's folder is long.
        self.run_dir = Path(tempfile.gettempdir()) / f"roost-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"
        templates = OneTemplate(folder)
        self.assembly = SandboxAssembly(
            places=Places(layers=folder / "layers", run=self.run_dir),
            roots=templates,
            layers=self.images,
            images=ImageShelf(folder / "snapshots", self.images, most_bytes=1 << 30),
            volumes=None,  # type: ignore[arg-type]  # none is mounted here
            egress=self.doors,
            region="local",
            time_zone="UTC",
        )
        self.lives = Lives(
            book=SandboxBook(self.store, clock=self.clock),
            templates=templates,
            assembly=self.assembly,
            around=Surroundings(
                driver=self.driver,
                preparer=None,  # type: ignore[arg-type]  # each sandbox has its own
                on_transition=self.recorder.transition,
                on_output=self.recorder.output,
                clock=self.clock,
                start_timeout=2.0,
                stop_grace=1.0,
            ),
            max_running=3,
        )
        self.fleet = SandboxFleet(self.lives, Launcher(self.lives))
        self.traffic = SandboxTraffic(self.lives)
        self.care = SandboxCare(self.lives)

    @property
    def layers(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "layers").iterdir())

    @property
    def run(self) -> list[str]:
        return sorted(path.name for path in self.run_dir.iterdir()) if self.run_dir.exists() else []

    async def close(self) -> None:
        """Everything is put away, and nothing is left of what ran."""
        for gate in (self.driver.gate, self.doors.gate):
            if gate is not None:
                gate.set()
        await self.care.close()
        assert self.driver.alive == []
        assert self.run == []
        assert self.doors.allow == {}
        if self.run_dir.exists():
            self.run_dir.rmdir()

    def room(self, sandbox: Sandbox) -> FakeRoom:
        return [room for room in self.driver.rooms if room.id == sandbox.id][-1]

    def state(self, sandbox: Sandbox) -> SandboxState:
        return self.fleet.get("acme", sandbox.id).state

    async def until_paused(self, sandbox: Sandbox) -> Sandbox:
        async with asyncio.timeout(10):
            while self.state(sandbox) is not SandboxState.PAUSED:
                await asyncio.sleep(0.005)
        return self.fleet.get("acme", sandbox.id)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_a_sandbox_is_metered_by_its_transitions(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    lease = bench.traffic.try_lease(sandbox.id)
    assert lease is not None
    lease.release()
    await bench.fleet.pause("acme", sandbox.id)
    await bench.fleet.connect("acme", sandbox.id, 60)
    await bench.fleet.kill("acme", sandbox.id)
    moves = [(record.before, record.after) for record in bench.recorder.transitions]
    assert moves == [
        (State.STARTING, State.READY),
        (State.READY, State.FROZEN),
        (State.FROZEN, State.READY),
        (State.READY, State.STOPPING),
        (State.STOPPING, State.STOPPED),
    ]
    assert {(record.function, record.session_id) for record in bench.recorder.transitions} == {
        ("sandbox:base", sandbox.id)
    }
    assert bench.recorder.transitions[-1].reason == StopReason.KILLED


@pytest.mark.parametrize("script", ["failed", "exits", "hangs up", "dies"])
async def test_a_start_that_fails_leaves_nothing(bench: Bench, script: str) -> None:
    bench.driver.script = script
    with pytest.raises(RoostError):
        await bench.fleet.create(ORDER)
    assert bench.layers == []
    assert bench.store.rows == {}
    assert bench.fleet.of_account("acme") == []


async def test_a_full_disk_makes_no_sandbox(bench: Bench) -> None:
    bench.driver.full = True
    with pytest.raises(StorageFull):
        await bench.fleet.create(ORDER)
    bench.driver.full = False
    bench.store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await bench.fleet.create(ORDER)
    bench.store.error = None
    assert bench.layers == []
    assert bench.fleet.of_account("acme") == []
    assert bench.driver.alive == []


async def test_a_full_server_says_so_and_files_take_no_place(bench: Bench) -> None:
    made = [await bench.fleet.create(ORDER) for _ in range(3)]
    with pytest.raises(Throttled, match="max_sandboxes"):
        await bench.fleet.create(ORDER)
    await bench.fleet.pause("acme", made[0].id)
    with pytest.raises(Throttled):
        await bench.fleet.create(ORDER)
    await bench.fleet.connect("acme", made[0].id, 60)
    await bench.fleet.pause("acme", made[0].id, memory=False)
    await bench.fleet.create(ORDER)
    with pytest.raises(Throttled):
        await bench.fleet.connect("acme", made[0].id, 60)
    assert bench.state(made[0]) is SandboxState.PAUSED


async def test_many_at_once_with_one_key_are_one(bench: Bench) -> None:
    made = await asyncio.gather(*(bench.fleet.create(ORDER, "key") for _ in range(5)))
    assert len({sandbox.id for sandbox in made}) == 1
    assert len(bench.driver.rooms) == 1
    other = replace(ORDER, timeout_s=7)
    with pytest.raises(Conflict):
        await bench.fleet.create(other, "key")
    results = await asyncio.gather(
        bench.fleet.create(ORDER, "two"), bench.fleet.create(other, "two"), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 1


async def test_a_key_whose_start_failed_may_be_used_again(bench: Bench) -> None:
    bench.driver.script = "failed"
    with pytest.raises(RoostError):
        await bench.fleet.create(ORDER, "key")
    bench.driver.script = "ready"
    assert (await bench.fleet.create(ORDER, "key")).id == (await bench.fleet.create(ORDER, "key")).id


async def test_nobody_elses_sandbox_exists(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    with pytest.raises(Gone):
        bench.fleet.get("other", sandbox.id)
    with pytest.raises(Gone):
        await bench.fleet.kill("other", sandbox.id)
    await bench.fleet.kill("acme", sandbox.id)
    with pytest.raises(Gone, match="killed by request"):
        bench.fleet.get("acme", sandbox.id)
    with pytest.raises(Gone) as gone:
        bench.fleet.get("other", sandbox.id)
    assert gone.value.reason == ""


async def test_pausing_breaks_off_what_is_under_way(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    lease = bench.traffic.try_lease(sandbox.id)
    assert lease is not None
    told: list[bool] = []
    lease.on_revoked = lambda: told.append(True)
    await bench.fleet.pause("acme", sandbox.id)
    assert told == [True]
    assert bench.room(sandbox).frozen
    assert bench.traffic.try_lease(sandbox.id) is None
    with pytest.raises(Gone, match="is paused"):
        await bench.traffic.lease(sandbox.id)
    lease.release()
    await bench.fleet.connect("acme", sandbox.id, 60)
    assert not bench.room(sandbox).frozen
    again = bench.traffic.try_lease(sandbox.id)
    assert again is not None
    again.release()


async def test_a_room_that_does_not_freeze_runs_on_or_loses_its_memory_when_its_time_is_up(bench: Bench) -> None:
    sandbox = await bench.fleet.create(replace(ORDER, auto_pause=True))
    bench.room(sandbox).rigid = True
    with pytest.raises(Unavailable):
        await bench.fleet.pause("acme", sandbox.id)
    lease = bench.traffic.try_lease(sandbox.id)
    assert lease is not None
    lease.release()
    await bench.fleet.set_timeout("acme", sandbox.id, 0)
    paused = await bench.until_paused(sandbox)
    assert (paused.pause_mode, paused.reason) == (PauseMode.FILESYSTEM, StopReason.TIMEOUT)
    assert bench.layers == [sandbox.id]


async def test_a_room_that_dies_leaves_its_files_and_the_reason(bench: Bench) -> None:
    sandbox = await bench.fleet.create(replace(ORDER, auto_resume=True))
    bench.room(sandbox).oom_kills = 1
    bench.room(sandbox).die()
    paused = await bench.until_paused(sandbox)
    assert (paused.pause_mode, paused.reason) == (PauseMode.FILESYSTEM, StopReason.OUT_OF_MEMORY)
    with pytest.raises(Gone, match="ran out of memory"):
        await bench.traffic.lease(sandbox.id)  # it would only die again
    assert bench.layers == [sandbox.id]
    await bench.fleet.connect("acme", sandbox.id, 60)
    assert bench.state(sandbox) is SandboxState.RUNNING
    assert len(bench.driver.rooms) == 2


async def test_a_held_room_that_dies_is_a_sandbox_of_files(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    await bench.fleet.pause("acme", sandbox.id)
    bench.room(sandbox).die()
    async with asyncio.timeout(10):
        while bench.fleet.get("acme", sandbox.id).pause_mode is not PauseMode.FILESYSTEM:
            await asyncio.sleep(0.005)
    await bench.fleet.connect("acme", sandbox.id, 60)
    assert bench.state(sandbox) is SandboxState.RUNNING


async def test_a_resume_that_fails_leaves_it_paused(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    await bench.fleet.pause("acme", sandbox.id, memory=False)
    bench.driver.fail_create = True
    with pytest.raises(Unavailable):
        await bench.fleet.connect("acme", sandbox.id, 60)
    bench.driver.fail_create = False
    bench.driver.script = "dies"
    with pytest.raises(RoostError):
        await bench.fleet.resume("acme", sandbox.id, 60, auto_pause=True)
    assert bench.state(sandbox) is SandboxState.PAUSED
    assert bench.fleet.of_account("acme") == [bench.fleet.get("acme", sandbox.id)] == list(bench.store.rows.values())
    assert bench.layers == [sandbox.id]
    bench.driver.script = "ready"
    await bench.fleet.resume("acme", sandbox.id, 60)
    with pytest.raises(Conflict):
        await bench.fleet.resume("acme", sandbox.id, 60)


async def test_a_kill_does_not_wait_for_a_start(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    await bench.fleet.pause("acme", sandbox.id, memory=False)
    bench.driver.script = "silent"
    resuming = asyncio.ensure_future(bench.fleet.connect("acme", sandbox.id, 60))
    async with asyncio.timeout(10):
        while len(bench.driver.alive) < 1:
            await asyncio.sleep(0.001)
        await bench.fleet.kill("acme", sandbox.id)
        with pytest.raises(RoostError):
            await resuming
    assert bench.layers == []
    assert bench.fleet.of_account("acme") == []


@pytest.mark.parametrize(
    ("reason", "words"), [(StopReason.KILLED, "killed by request"), (StopReason.TIMEOUT, "timeout had passed")]
)
async def test_what_is_about_to_end_says_why(bench: Bench, reason: StopReason, words: str) -> None:
    sandbox = await bench.fleet.create(ORDER)
    async with bench.lives.entries[sandbox.id].lock:
        coming = asyncio.ensure_future(bench.fleet.connect("acme", sandbox.id, 60))
        await asyncio.sleep(0.01)
        ending = [asyncio.ensure_future(bench.fleet.kill("acme", sandbox.id, why)) for why in (reason, StopReason.LOST)]
        await asyncio.sleep(0.01)
    with pytest.raises(Gone, match=words):
        await coming
    await asyncio.gather(*ending)
    with pytest.raises(Gone, match=words):
        bench.fleet.get("acme", sandbox.id)


async def test_verbs_on_one_sandbox_at_once_end_in_a_state_that_is_true(bench: Bench) -> None:
    for _ in range(5):
        sandbox = await bench.fleet.create(ORDER)
        verbs = [
            bench.fleet.pause("acme", sandbox.id),
            bench.fleet.connect("acme", sandbox.id, 60),
            bench.fleet.pause("acme", sandbox.id, memory=False),
            bench.fleet.connect("acme", sandbox.id, 60, memory=False),
            bench.fleet.pause("acme", sandbox.id),
        ]
        results = await asyncio.gather(*verbs, return_exceptions=True)
        assert all(not isinstance(r, BaseException) or isinstance(r, Conflict) for r in results), results
        assert bench.state(sandbox) is SandboxState.PAUSED
        assert bench.room(sandbox).frozen
        await bench.fleet.kill("acme", sandbox.id)


async def test_a_caller_that_goes_away_leaves_no_sandbox_halfway(bench: Bench) -> None:
    bench.driver.gate = asyncio.Event()
    creating = asyncio.ensure_future(bench.fleet.create(ORDER))
    await asyncio.sleep(0.01)
    creating.cancel()
    bench.driver.gate.set()
    async with asyncio.timeout(10):
        while not bench.fleet.of_account("acme"):
            await asyncio.sleep(0.005)
    [sandbox] = bench.fleet.of_account("acme")
    lease = bench.traffic.try_lease(sandbox.id)
    assert lease is not None
    lease.release()


async def test_traffic_wakes_once_for_all_who_come(bench: Bench) -> None:
    sandbox = await bench.fleet.create(replace(ORDER, auto_pause=True, auto_resume=True))
    await bench.fleet.set_timeout("acme", sandbox.id, 0)
    await bench.until_paused(sandbox)
    leases = await asyncio.gather(*(bench.traffic.lease(sandbox.id) for _ in range(5)), return_exceptions=True)
    for lease in leases:
        assert not isinstance(lease, BaseException), lease
        lease.release()
    assert len(bench.driver.rooms) == 1
    assert bench.fleet.get("acme", sandbox.id).reason == ""


async def test_a_timeout_follows_the_clock_that_it_is_told_by(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    await bench.fleet.set_timeout("acme", sandbox.id, 1)
    await bench.fleet.set_timeout("acme", sandbox.id, 600)
    bench.clock.ahead += 500
    bench.lives.set_timer(bench.lives.entries[sandbox.id])
    assert bench.state(sandbox) is SandboxState.RUNNING
    bench.clock.ahead += 200
    bench.lives.set_timer(bench.lives.entries[sandbox.id])
    async with asyncio.timeout(10):
        while bench.fleet.of_account("acme"):
            await asyncio.sleep(0.005)
    with pytest.raises(Gone, match="timeout had passed"):
        bench.fleet.get("acme", sandbox.id)


async def test_the_next_server_has_every_sandbox_with_its_files(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    running = await first.fleet.create(replace(ORDER, auto_resume=True), "key")
    held = await first.fleet.create(ORDER)
    await first.fleet.pause("acme", held.id)
    gone = await first.fleet.create(ORDER)
    await first.fleet.kill("acme", gone.id)
    await first.close()

    second = Bench(tmp_path, store=first.store)
    await second.care.load()
    await second.care.reconcile()
    assert second.layers == sorted([running.id, held.id])
    for sandbox in (running, held):
        found = second.fleet.get("acme", sandbox.id)
        assert (found.state, found.pause_mode) == (SandboxState.PAUSED, PauseMode.FILESYSTEM)
        assert found.reason == StopReason.SHUTDOWN
    assert (await second.fleet.create(ORDER_RESUMING, "key")).id == running.id
    lease = await second.traffic.lease(running.id)
    assert lease.restored
    lease.release()
    with pytest.raises(Gone, match="killed by request"):
        second.fleet.get("acme", gone.id)
    await second.close()


ORDER_RESUMING = replace(ORDER, auto_resume=True)


async def test_a_killed_server_s_rooms_are_adopted_and_what_it_left_half_made_goes(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    running, held, dead = [await first.fleet.create(ORDER) for _ in range(3)]
    await first.fleet.pause("acme", held.id)
    rooms = {sandbox.id: first.room(sandbox) for sandbox in (running, held)}
    rows = dict(first.store.rows)
    stray = tmp_path / "layers" / "i9999999999999999999.img"
    stray.touch()
    lost = replace(running, id="i8888888888888888888")

    # What a killed server leaves is what it had stored, its files, and its rooms.
    store = MemorySandboxes()
    store.rows = {**rows, lost.id: lost}
    second = Bench(tmp_path, driver=first.driver, store=store)
    await second.care.load()
    for id, room in rooms.items():
        assert second.care.adopt({"id": id, "runtime": "sandbox"}, room)
    assert not second.care.adopt({"id": "i9999999999999999999"}, rooms[running.id])
    assert not second.care.adopt({"id": running.id}, rooms[running.id]), "it is owned already"
    await second.care.reconcile()

    lease = await second.traffic.lease(running.id)
    assert not lease.restored
    lease.release()
    assert second.fleet.get("acme", held.id).pause_mode is PauseMode.FULL
    async with asyncio.timeout(10):
        while not rooms[held.id].frozen:
            await asyncio.sleep(0.005)
    await second.fleet.connect("acme", held.id, 60)
    assert not rooms[held.id].frozen
    found = second.fleet.get("acme", dead.id)
    assert (found.state, found.reason) == (SandboxState.PAUSED, StopReason.LOST)
    with pytest.raises(Gone, match="room was lost"):
        second.fleet.get("acme", lost.id)
    assert second.layers == sorted([running.id, held.id, dead.id])
    await second.care.close()
    await first.close()


TIGHTER = {"allowOut": ["tight.example"]}


async def held_up(bench: Bench, work: Coroutine[Any, Any, Sandbox]) -> asyncio.Task[Sandbox]:
    """A change that makes a room, when that is about to have its doors."""
    bench.doors.attaching, bench.doors.gate = 0, asyncio.Event()
    task = asyncio.ensure_future(work)
    await until(lambda: bench.doors.attaching == 1)
    return task


async def test_a_network_that_changes_while_a_room_is_made_holds_for_it(bench: Bench) -> None:
    sandbox = await bench.fleet.create(replace(ORDER, network={"allowOut": ["wide.example"]}))
    assert bench.doors.allow == {sandbox.id: ("wide.example",)}
    await bench.fleet.pause("acme", sandbox.id, memory=False)
    resuming = await held_up(bench, bench.fleet.resume("acme", sandbox.id, 60))
    await bench.fleet.set_network("acme", sandbox.id, TIGHTER, None)
    assert bench.doors.gate is not None and not resuming.done()
    bench.doors.gate.set()
    await resuming
    assert bench.doors.allow == {sandbox.id: ("tight.example",)}


async def test_a_room_whose_rules_can_not_be_had_is_not_made(bench: Bench) -> None:
    sandbox = await bench.fleet.create(ORDER)
    await bench.fleet.pause("acme", sandbox.id, memory=False)
    resuming = await held_up(bench, bench.fleet.resume("acme", sandbox.id, 60))
    await bench.fleet.set_network("acme", sandbox.id, TIGHTER, None)
    bench.doors.broken = True
    assert bench.doors.gate is not None
    bench.doors.gate.set()
    with pytest.raises(Unavailable, match="authority"):
        await resuming
    assert (bench.doors.allow, bench.driver.alive, bench.state(sandbox)) == ({}, [], SandboxState.PAUSED)


async def test_a_network_that_changes_while_a_room_is_adopted_holds_for_it(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    sandbox = await first.fleet.create(ORDER)
    second = Bench(tmp_path, driver=first.driver, store=first.store)
    await second.care.load()
    second.doors.gate = asyncio.Event()
    assert second.care.adopt({"id": sandbox.id}, first.room(sandbox))
    await until(lambda: second.doors.attaching == 1)
    await second.fleet.set_network("acme", sandbox.id, TIGHTER, None)
    second.doors.gate.set()
    (await second.traffic.lease(sandbox.id)).release()
    assert second.doors.allow == {sandbox.id: ("tight.example",)}
    await second.close()
    await first.care.close()
