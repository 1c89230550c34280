"""The fleet over a driver without rooms: leases, sessions, pools, failures, adoption."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from roost.instances import tether
from roost.instances.lease import Lease, SessionRef
from roost.instances.roster import FleetLimits
from roost.instances.service import SessionService
from roost.instances.surroundings import Surroundings
from roost.model.errors import Conflict, InitializerFailed, InstanceExited, NotFound, Throttled, Unavailable
from roost.model.function import Affinity, FunctionSpec, Idle, IsolationMode, Runtime, Scaling, SessionPolicy
from roost.model.instance import State
from roost.model.session import Session, SessionState
from roost.model.taint import NONE, Labels
from tests.support.fake_driver import FakeDriver, FakePreparer, MemorySessions, Recorder
from tests.support.fleet import Parts

SPEC = FunctionSpec(
    account="a", name="f", version="LATEST", revision="1", runtime=Runtime.PYTHON,
    idle=Idle(freeze_after_s=0.05, stop_after_s=60), scaling=Scaling(max_instances=3),
)  # fmt: skip
SESSIONS = replace(
    SPEC,
    isolation_mode=IsolationMode.SESSION_EXCLUSIVE,
    sessions=SessionPolicy(affinity=Affinity.HEADER_FIELD, header="x-s"),
)


class Bench:
    """One server's fleet and all it stands on."""

    def __init__(
        self,
        tmp: Path,
        driver: FakeDriver | None = None,
        store: MemorySessions | None = None,
        *,
        max_waiting: int = 5,
    ) -> None:
        self.driver = driver or FakeDriver()
        self.store = store or MemorySessions()
        self.events = Recorder()
        self.preparer = FakePreparer(tmp)
        self.known: dict[str, FunctionSpec] = {"f": SPEC}
        around = Surroundings(
            driver=self.driver, preparer=self.preparer, clock=time.time,
            on_transition=self.events.transition, on_output=self.events.output,
            start_timeout=3.0, stop_grace=0.5,
        )  # fmt: skip
        self.parts = Parts(
            specs=self, store=self.store, around=around, run_dir=tmp, clock=time.time,
            limits=FleetLimits(max_instances=10, max_waiting=max_waiting, stop_grace=0.2),
        )  # fmt: skip
        self.book, self.fleet = self.parts.book, self.parts.fleet
        self.roster, self.pauses = self.parts.roster, self.parts.pauses

    async def lease(self, spec: FunctionSpec, session: SessionRef | None = None, *, timeout_s: float = 60.0) -> Lease:
        """Lease of a function that is deployed like this."""
        self.known[spec.name] = spec
        return await self.fleet.lease(spec, session, timeout_s=timeout_s)

    def resolve(self, account: str, name: str, qualifier: str | None) -> FunctionSpec:
        if name not in self.known:
            raise NotFound(name)
        return self.known[name]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.parts.close()
    assert bench.driver.alive == []
    assert bench.preparer.held == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_from_zero_then_warm(bench: Bench) -> None:
    first = await bench.lease(SPEC)
    assert first.cold
    first.release()
    second = await bench.lease(SPEC)
    assert not second.cold
    assert second.instance_id == first.instance_id
    second.release()
    second.release()
    assert bench.roster.instances()[0].leases == 0


async def test_one_request_an_instance_up_to_the_maximum_then_the_queue(bench: Bench) -> None:
    leases = await asyncio.gather(*(bench.lease(SPEC) for _ in range(3)))
    assert len({lease.instance_id for lease in leases}) == 3
    waiting = asyncio.create_task(bench.lease(SPEC))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    leases[0].release()
    assert (await waiting).instance_id == leases[0].instance_id
    (await waiting).release()
    for lease in leases[1:]:
        lease.release()


async def test_a_full_queue_and_a_passed_deadline_are_throttled(bench: Bench) -> None:
    leases = [await bench.lease(SPEC) for _ in range(3)]
    waiting = [asyncio.create_task(bench.lease(SPEC, timeout_s=0.05)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Throttled, match="Too many"):
        await bench.lease(SPEC)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, Throttled)
        assert result.retry_after
    for lease in leases:
        lease.release()
    (await bench.lease(SPEC)).release()


async def test_a_cancelled_wait_leaves_nothing_behind(bench: Bench) -> None:
    bench.driver.gate = asyncio.Event()
    waiting = asyncio.create_task(bench.lease(SPEC))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bench.driver.gate.set()
    await until(lambda: bool(bench.roster.instances()) and bench.roster.instances()[0].state is not State.STARTING)
    assert bench.roster.instances()[0].leases == 0


async def test_idle_is_frozen_then_thawed_by_a_lease(bench: Bench) -> None:
    lease = await bench.lease(SPEC)
    lease.release()
    instance = bench.roster.instances()[0]
    await until(lambda: instance.state is State.FROZEN)
    assert bench.driver.rooms[0].frozen
    again = await bench.lease(SPEC)
    assert not bench.driver.rooms[0].frozen
    again.release()


async def test_a_branch_that_costs_the_control_connection_costs_nothing_else(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tether, "LOST_GRACE", 0.0)
    lease = await bench.lease(SPEC)
    (instance,), (room,) = bench.roster.instances(), bench.driver.rooms
    room.lets_go = True
    for name in ("one", "two"):
        assert (await instance.branch(tmp_path / name)).lost == ("there is no memory here",)
        await until(lambda: len(room.writers) == 1)  # the new one
        await asyncio.sleep(0)
        assert instance.usable and instance.state is State.READY
    lease.release()
    with pytest.raises(FileExistsError):
        await instance.branch(tmp_path / "two")
    assert instance.usable
    room.script = "silent"  # it does not answer any more
    with contextlib.suppress(Unavailable):
        await instance.branch(tmp_path / "three")
    await until(lambda: bench.events.transitions[-1].reason == "lost")


async def test_idle_is_stopped(bench: Bench) -> None:
    spec = replace(SPEC, idle=Idle(freeze_after_s=0.01, stop_after_s=0.05))
    (await bench.lease(spec)).release()
    await until(lambda: bench.roster.instances() == [])
    assert bench.events.transitions[-1].reason == "idle"


@pytest.mark.parametrize(
    ("script", "error"), [("failed", InitializerFailed), ("exits", InstanceExited), ("silent", Unavailable)]
)
async def test_a_start_that_fails_tells_the_caller_why(bench: Bench, script: str, error: type[Exception]) -> None:
    bench.driver.script = script
    with pytest.raises(error):
        await bench.lease(SPEC)
    await until(lambda: bench.roster.instances() == [])
    assert len(bench.driver.rooms) == 1, "a failing start is not repeated by itself"
    bench.driver.script = "ready"
    (await bench.lease(SPEC)).release()


async def test_a_room_that_is_begun_and_can_not_be_made(bench: Bench) -> None:
    bench.driver.script = "unmade"
    with pytest.raises(Unavailable, match="mounts: No such file"):
        await bench.lease(SPEC)
    await until(lambda: bench.roster.instances() == [])
    assert bench.driver.alive == []


async def test_a_room_that_can_not_be_made(bench: Bench) -> None:
    bench.driver.fail_create = True
    with pytest.raises(Unavailable, match="loop"):
        await bench.lease(SPEC)


async def test_a_guest_that_talks_nonsense_is_survived(bench: Bench) -> None:
    bench.driver.script = "garbage"
    (await bench.lease(SPEC)).release()


async def test_a_dead_room_gives_its_reason(bench: Bench) -> None:
    lease = await bench.lease(SPEC)
    bench.driver.rooms[0].oom_kills = 1
    bench.driver.rooms[0].die()
    failure = await lease.failure()
    assert isinstance(failure, InstanceExited)
    assert failure.fault.type == "OutOfMemory"
    lease.release()
    await until(lambda: bench.roster.instances() == [])
    assert bench.events.transitions[-1].reason == "out_of_memory"


async def test_an_update_drains_and_replaces(bench: Bench) -> None:
    old = await bench.lease(SPEC)
    new_spec = replace(SPEC, revision="2")
    bench.known["f"] = new_spec
    bench.roster.function_changed("a", "f")
    new = await bench.lease(new_spec)
    assert new.instance_id != old.instance_id
    assert bench.driver.alive[0].id == old.instance_id, "the old one lives while it is leased"
    old.release()
    new.release()
    await until(lambda: len(bench.driver.alive) == 1)


async def test_a_deleted_function_ends_its_instances(bench: Bench) -> None:
    (await bench.lease(SPEC)).release()
    bench.known.clear()
    bench.roster.function_changed("a", "f")
    await until(lambda: bench.driver.alive == [])


async def test_provisioned_instances_stay(bench: Bench) -> None:
    spec = replace(
        SPEC, scaling=Scaling(min_instances=2, max_instances=3), idle=Idle(freeze_after_s=0.01, stop_after_s=0.02)
    )
    bench.known["f"] = spec
    bench.roster.provision(spec)
    await until(lambda: [i.state for i in bench.roster.instances()] == [State.FROZEN] * 2)
    await asyncio.sleep(0.1)
    assert len(bench.driver.alive) == 2


async def test_an_exclusive_session_keeps_its_instance(bench: Bench) -> None:
    one = await bench.lease(SESSIONS, SessionRef(id="s1"))
    two = await bench.lease(SESSIONS, SessionRef(id="s2"))
    assert one.instance_id != two.instance_id
    one.release()
    again = await bench.lease(SESSIONS, SessionRef(id="s1"))
    assert again.instance_id == one.instance_id
    assert not again.restored
    assert bench.store.rows["a", "f", "s1"].instance_id == one.instance_id
    for lease in (two, again):
        lease.release()


async def test_two_first_requests_of_a_session_meet_on_one_instance(bench: Bench) -> None:
    spec = replace(SESSIONS, concurrency=2)
    leases = await asyncio.gather(*(bench.lease(spec, SessionRef(id="s")) for _ in range(2)))
    assert leases[0].instance_id == leases[1].instance_id
    for lease in leases:
        lease.release()


async def test_a_session_whose_instance_died_gets_a_new_one_and_is_told(bench: Bench) -> None:
    one = await bench.lease(SESSIONS, SessionRef(id="s"))
    one.release()
    bench.driver.rooms[0].die()
    await until(lambda: bench.roster.instances() == [])
    two = await bench.lease(SESSIONS, SessionRef(id="s"))
    assert two.restored
    assert two.session is not None
    assert two.session.id == "s"
    two.release()


async def test_a_session_without_an_id_gets_one(bench: Bench) -> None:
    lease = await bench.lease(SESSIONS, SessionRef(id="", generated=True))
    assert lease.session is not None
    assert len(lease.session.id) == 32
    lease.release()


async def test_shared_sessions_fill_an_instance_before_the_next(bench: Bench) -> None:
    spec = replace(
        SPEC, concurrency=10,
        sessions=SessionPolicy(affinity=Affinity.HEADER_FIELD, header="x-s", sessions_per_instance=2),
    )  # fmt: skip
    leases = [await bench.lease(spec, SessionRef(id=f"s{n}")) for n in range(3)]
    assert leases[0].instance_id == leases[1].instance_id != leases[2].instance_id
    for lease in leases:
        lease.release()


async def test_a_pause_with_memory_keeps_the_room_standing_still(bench: Bench) -> None:
    spec = replace(SESSIONS, idle=Idle(freeze_after_s=0.01, stop_after_s=0.02))
    lease = await bench.lease(spec, SessionRef(id="s"))
    session = bench.book.get("a", "f", "s")
    call = asyncio.create_task(bench.pauses.pause(session))
    await until(lambda: bench.book.get("a", "f", "s").state is SessionState.PAUSING)
    [room] = bench.driver.rooms
    assert not room.frozen  # it waits for the request
    lease.release()
    paused = await call
    assert (paused.state, room.frozen, bench.pauses.in_memory(paused)) == (SessionState.PAUSED, True, True)
    await asyncio.sleep(0.1)
    assert bench.driver.alive == [room]  # long beyond its idle time
    with pytest.raises(Conflict):
        await bench.lease(spec, SessionRef(id="s"))
    await bench.pauses.resume(paused)
    again = await bench.lease(spec, SessionRef(id="s"))
    assert (again.instance_id, again.restored, room.frozen) == (lease.instance_id, False, False)
    again.release()
    await until(lambda: bench.driver.alive == [])  # and is as idle as any other then


async def test_a_frozen_instance_is_paused_with_memory_too(bench: Bench) -> None:
    spec = replace(SESSIONS, idle=Idle(freeze_after_s=0, stop_after_s=60))
    (await bench.lease(spec, SessionRef(id="s"))).release()
    await until(lambda: bench.driver.rooms[0].frozen)
    paused = await bench.pauses.pause(bench.book.get("a", "f", "s"))
    assert bench.pauses.in_memory(paused)
    await bench.pauses.resume(paused)
    (await bench.lease(spec, SessionRef(id="s"))).release()
    assert len(bench.driver.rooms) == 1


async def test_what_is_paused_with_memory_makes_place_and_keeps_its_files(bench: Bench) -> None:
    (await bench.lease(SESSIONS, SessionRef(id="s0"))).release()
    paused = await bench.pauses.pause(bench.book.get("a", "f", "s0"))
    leases = [await bench.lease(SESSIONS, SessionRef(id=f"s{n + 1}")) for n in range(10)]
    assert not bench.pauses.in_memory(paused)
    for lease in leases:
        lease.release()
    await bench.pauses.resume(paused)
    again = await bench.lease(SESSIONS, SessionRef(id="s0"))
    assert again.restored
    again.release()


async def test_a_room_that_does_not_freeze_runs_on(bench: Bench) -> None:
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()
    bench.driver.rooms[0].rigid = True
    for memory in (True, False):
        with pytest.raises(Unavailable, match="could not be frozen"):
            await bench.pauses.pause(bench.book.get("a", "f", "s"), memory=memory)
    assert bench.book.get("a", "f", "s").state is SessionState.ACTIVE
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()
    assert len(bench.driver.rooms) == 1


async def test_an_idle_session_is_paused_if_it_asked_for_that(bench: Bench) -> None:
    spec = replace(SESSIONS, sessions=replace(SESSIONS.sessions, idle_timeout_s=10, ttl_s=1000))
    (await bench.lease(spec, SessionRef(id="s"))).release()
    session = bench.book.get("a", "f", "s")
    await bench.book.save(replace(session, last_used=session.last_used - 11, auto_pause=True, auto_resume=True))
    await bench.book.sweep()
    await bench.book.sweep()
    assert bench.book.get("a", "f", "s").state is SessionState.PAUSED
    assert len(bench.driver.alive) == 1
    lease = await bench.lease(spec, SessionRef(id="s"))
    assert not lease.restored
    lease.release()
    session = bench.book.get("a", "f", "s")
    await bench.book.save(replace(session, created=session.created - 1000))  # its whole time is over
    await bench.book.sweep()
    assert bench.book.get("a", "f", "s").state is SessionState.EXPIRED
    assert bench.driver.alive == []


async def test_pause_frees_the_room_and_resume_keeps_both_ids(bench: Bench) -> None:
    lease = await bench.lease(SESSIONS, SessionRef(id="s"))
    lease.release()
    session = bench.book.get("a", "f", "s")
    paused = await bench.pauses.pause(session, memory=False)
    assert paused.state is SessionState.PAUSED
    assert bench.driver.alive == []
    with pytest.raises(Conflict):
        await bench.lease(SESSIONS, SessionRef(id="s"))
    with pytest.raises(Conflict):
        await bench.pauses.pause(paused)
    resumed = await bench.pauses.resume(paused)
    assert resumed.state is SessionState.ACTIVE
    again = await bench.lease(SESSIONS, SessionRef(id="s"))
    assert (again.instance_id, again.restored) == (lease.instance_id, True)
    again.release()
    later = await bench.lease(SESSIONS, SessionRef(id="s"))
    assert not later.restored
    later.release()


class AnyNetwork:
    """Says yes."""

    async def network_changed(self, spec: FunctionSpec, instance_id: str, session: Session) -> None: ...

    def labels_of(self, spec: FunctionSpec | None, session: Session) -> Labels:
        return NONE


async def test_a_network_that_was_changed_is_that_of_the_room_after_a_pause(bench: Bench) -> None:
    service = SessionService(bench.book, bench.pauses, bench.roster, AnyNetwork())
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()
    network = {"network": {"allowOut": ["tight.example"]}}
    await service.update(
        "a", "f", "s", ttl_s=None, idle_timeout_s=None, disable_id_reuse=None, auto_pause=None, auto_resume=None,
        network=network,
    )  # fmt: skip
    await service.pause("a", "f", "s", files_only=True)
    await service.resume("a", "f", "s")
    assert [None if one is None else one.config for one in bench.preparer.sessions] == [{}, network]


async def test_expiry_ends_the_session_and_its_instance(bench: Bench) -> None:
    spec = replace(SESSIONS, sessions=replace(SESSIONS.sessions, idle_timeout_s=1, disable_id_reuse=True))
    (await bench.lease(spec, SessionRef(id="s"))).release()
    session = bench.book.get("a", "f", "s")
    await bench.book.save(replace(session, last_used=session.last_used - 2))
    await bench.book.sweep()
    assert bench.book.get("a", "f", "s").state is SessionState.EXPIRED
    assert bench.driver.alive == []
    with pytest.raises(Conflict, match="can't be used again"):
        await bench.lease(spec, SessionRef(id="s"))


async def test_a_handler_that_does_not_let_go_has_its_worker_replaced(bench: Bench) -> None:
    lease = await bench.lease(SPEC)
    lease.abandon("timeout")
    lease.release()
    await until(lambda: bench.driver.rooms[0].restarts == 1)
    instance = bench.roster.instances()[0]
    await until(lambda: instance.leases == 0)
    assert instance.usable


async def test_with_request_isolation_an_instance_ends_with_its_request(bench: Bench) -> None:
    spec = replace(SPEC, isolation_mode=IsolationMode.REQUEST_EXCLUSIVE, scaling=Scaling(max_instances=1))
    first = await bench.lease(spec)
    waiting = asyncio.create_task(bench.lease(spec))
    await asyncio.sleep(0)
    first.release()
    second = await waiting
    assert second.instance_id != first.instance_id
    second.abandon("timeout")
    await until(lambda: bench.roster.instances() == [])
    assert [r.reason for r in bench.events.transitions if r.after is State.STOPPED] == ["request_ended", "timeout"]


async def test_a_full_server_ends_an_idle_instance_for_a_new_one(bench: Bench) -> None:
    spec = replace(SPEC, scaling=Scaling(max_instances=20))
    leases = [await bench.lease(spec) for _ in range(10)]
    for lease in leases[:3]:
        lease.release()
    other = await bench.lease(replace(SPEC, name="g"))
    other.release()
    for lease in leases[3:]:
        lease.release()
    await until(lambda: len(bench.driver.alive) <= 10)


async def test_a_restarted_server_adopts_what_still_lives(bench: Bench, tmp_path: Path) -> None:
    bench.known["f"] = SESSIONS
    lease = await bench.lease(SESSIONS, SessionRef(id="s"))
    lease.release()
    second = Bench(tmp_path, bench.driver, bench.store)
    second.known["f"] = SESSIONS
    await second.book.load()
    assert await second.parts.adoption.run() == 1
    assert bench.driver.swept == frozenset({lease.instance_id})
    again = await second.lease(SESSIONS, SessionRef(id="s"))
    assert again.instance_id == lease.instance_id
    again.release()
    await second.parts.close()


async def test_a_restarted_server_ends_what_it_can_not_own(bench: Bench, tmp_path: Path) -> None:
    (await bench.lease(SPEC)).release()
    second = Bench(tmp_path, bench.driver, bench.store)
    second.known["f"] = replace(SPEC, revision="other")
    assert await second.parts.adoption.run() == 0
    assert bench.driver.alive == []


async def test_a_closing_fleet_refuses(bench: Bench) -> None:
    (await bench.lease(SPEC)).release()
    await bench.parts.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await bench.lease(SPEC)


async def test_what_is_true_of_a_function_is_told_once_for_all_its_versions(bench: Bench) -> None:
    leases = [await bench.lease(SPEC)]
    published = replace(SPEC, version="1", revision="of version 1")
    bench.known["f"] = published
    leases.append(await bench.fleet.lease(published))
    [told] = bench.roster.gauges()
    assert (told.function, told.leases, told.instances[State.READY]) == ("f", 2, 2)
    for lease in leases:
        lease.release()
