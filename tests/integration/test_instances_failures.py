"""What the fleet does when things fail: storms of failing starts, crash loops, lying guests, rooms that don't end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.instances.lease import SessionRef
from roost.instances.surroundings import Prepared
from roost.model.errors import Conflict, InitializerFailed, NotFound, StorageFull, Throttled, Unavailable
from roost.model.function import Idle, Scaling
from roost.model.instance import State, StopReason
from roost.model.session import Session, SessionState
from tests.integration.test_instances_fleet import SESSIONS, SPEC, Bench, until
from tests.support.fake_driver import MemorySessions


class FullDisk(MemorySessions):
    """A store whose disk can be full."""

    full = False

    async def put(self, session: Session) -> None:
        if self.full:
            raise StorageFull("full")
        await super().put(session)

    async def delete(self, account: str, function: str, id: str) -> None:
        if self.full:
            raise StorageFull("full")
        await super().delete(account, function, id)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, store=FullDisk())
    yield bench
    await bench.parts.close()
    assert bench.driver.alive == []
    assert bench.preparer.held == 0


def store(bench: Bench) -> FullDisk:
    assert isinstance(bench.store, FullDisk)
    return bench.store


async def settled(session_id: str, bench: Bench, state: SessionState) -> None:
    await until(lambda: bench.book.get("a", "f", session_id).state is state)


async def test_a_storm_of_requests_for_what_never_starts_is_answered_with_few_starts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_waiting=1000)
    bench.driver.script = "failed"
    results = await asyncio.gather(*(bench.lease(SPEC) for _ in range(1000)), return_exceptions=True)
    assert all(isinstance(result, InitializerFailed) for result in results)
    assert len(bench.driver.rooms) <= SPEC.scaling.max_instances
    with pytest.raises(InitializerFailed):
        await bench.lease(SPEC)
    bench.driver.script = "ready"
    leases = await asyncio.gather(*(bench.lease(SPEC) for _ in range(3)))
    assert len({lease.instance_id for lease in leases}) == 3
    for lease in leases:
        lease.release()
    await bench.parts.close()


async def test_a_start_of_a_former_revision_that_fails_late_fails_nobody_who_waits_for_the_present_one(
    bench: Bench,
) -> None:
    bench.driver.script, bench.driver.stuck = "failed", 3  # it goes slowly: the function is updated meanwhile
    old = asyncio.create_task(bench.lease(SPEC))
    await until(lambda: [i.state for i in bench.roster.instances()] == [State.STOPPING])
    bench.driver.gate, bench.driver.script, bench.driver.stuck = asyncio.Event(), "ready", 0
    new = bench.known["f"] = replace(SPEC, revision="mended")
    bench.roster.function_changed("a", "f")
    waiting = asyncio.create_task(bench.lease(new))
    await until(lambda: bench.driver.alive == [])
    bench.driver.gate.set()
    (await waiting).release()
    (await old).release()


@pytest.mark.parametrize("script", ["failed", "exits", "dies", "crashes", "hangs up"])
async def test_provisioned_instances_that_crash_are_not_started_hot(bench: Bench, script: str) -> None:
    bench.driver.script = script
    spec = bench.known["f"] = replace(SPEC, scaling=Scaling(min_instances=2, max_instances=3))
    bench.roster.provision(spec)
    await asyncio.sleep(0.5)
    assert len(bench.driver.rooms) <= 4
    bench.driver.script = "ready"
    bench.known["f"] = replace(spec, revision="mended")
    bench.roster.function_changed("a", "f")
    await until(
        lambda: [i.state for i in bench.roster.instances() if i.usable] in ([State.READY] * 2, [State.FROZEN] * 2)
    )


@pytest.mark.parametrize("script", ["liar", "flood", "garbage"])
async def test_a_guest_may_say_anything_and_is_ended_cleanly(bench: Bench, script: str) -> None:
    bench.driver.script = script
    (await bench.lease(SPEC)).release()


@pytest.mark.parametrize("script", ["leaves", "shouts"])
async def test_an_instance_without_its_control_connection_goes_after_its_last_request(
    bench: Bench, script: str
) -> None:
    bench.driver.script = script
    lease = await bench.lease(SPEC)
    [instance] = bench.roster.instances()
    await until(lambda: not instance.usable)
    assert bench.driver.alive, "the request that it serves is not cut off"
    lease.release()
    await until(lambda: bench.driver.alive == [])
    assert bench.events.transitions[-1].reason == "lost"


async def test_a_room_that_does_not_end_at_once_is_tried_again(bench: Bench) -> None:
    lease = await bench.lease(SESSIONS, SessionRef(id="s"))
    lease.release()
    bench.driver.rooms[0].stuck = 2
    await bench.book.end(bench.book.get("a", "f", "s"), forget=True)
    assert bench.driver.alive == []
    assert bench.roster.instances() == []


async def test_a_room_that_does_not_freeze_stays_in_use(bench: Bench) -> None:
    (await bench.lease(SPEC)).release()
    bench.driver.rooms[0].rigid = True
    await until(lambda: sum(t.after is State.FROZEN for t in bench.events.transitions) > 1)
    (await bench.lease(SPEC)).release()
    assert len(bench.driver.rooms) == 1


async def test_a_stop_does_not_wait_for_a_start(bench: Bench) -> None:
    bench.driver.script = "silent"
    waiting = asyncio.create_task(bench.lease(SPEC))
    await until(lambda: bench.driver.rooms != [])
    await bench.parts.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting
    assert bench.events.transitions[-1].reason == "shutdown"


async def test_who_waits_for_a_deleted_function_is_told(bench: Bench) -> None:
    held = [await bench.lease(SPEC) for _ in range(3)]
    waiting = asyncio.create_task(bench.lease(SPEC))
    await asyncio.sleep(0)
    bench.known.clear()
    bench.roster.function_changed("a", "f")
    with pytest.raises(NotFound):
        await waiting
    await bench.parts.deleted("a", "f")
    assert bench.driver.alive == []
    for lease in held:
        lease.release()
    assert list(bench.roster.gauges()) == []


async def test_a_deleted_function_does_not_come_back_by_being_provisioned(bench: Bench) -> None:
    spec = bench.known["f"] = replace(SPEC, scaling=Scaling(min_instances=1))
    bench.roster.provision(spec)
    await until(lambda: [i.state for i in bench.roster.instances()] == [State.FROZEN])
    bench.known.clear()
    bench.roster.function_changed("a", "f")
    await until(lambda: bench.roster.instances() == [])
    assert len(bench.driver.rooms) == 1


async def test_an_older_configuration_does_not_undo_an_update(bench: Bench) -> None:
    old, new = SPEC, replace(SPEC, revision="2")
    (await bench.lease(new)).release()
    (await bench.fleet.lease(old)).release()  # a request that was routed before the update
    assert [i.spec.revision for i in bench.roster.instances()] == ["2"]
    assert len(bench.driver.rooms) == 1


async def test_who_finds_the_server_full_is_served_when_another_function_goes_idle(bench: Bench) -> None:
    crowd = replace(SPEC, scaling=Scaling(max_instances=20))
    leases = [await bench.lease(crowd) for _ in range(10)]
    other = asyncio.create_task(bench.lease(replace(SPEC, name="g")))
    await asyncio.sleep(0.02)
    assert not other.done()
    leases.pop().release()
    (await other).release()
    for lease in leases:
        lease.release()


async def test_a_starting_instance_is_not_taken_for_an_idle_one(bench: Bench) -> None:
    spec = replace(SPEC, scaling=Scaling(max_instances=20))
    bench.driver.script = "slow"
    leases = [asyncio.create_task(bench.lease(spec)) for _ in range(4)]
    leases += [asyncio.create_task(bench.lease(replace(spec, name="g"))) for _ in range(4)]
    leases += [asyncio.create_task(bench.lease(replace(spec, name="h"))) for _ in range(4)]
    await until(lambda: sum(task.done() for task in leases) >= 10)
    assert all(t.reason != "scale_in" for t in bench.events.transitions)
    for task in leases[:10]:
        (await task).release()
    for task in leases[10:]:
        (await task).release()


async def test_no_longer_provisioned_is_stopped_when_idle(bench: Bench) -> None:
    idle = Idle(freeze_after_s=0.01, stop_after_s=0.05)
    bench.known["f"] = replace(SPEC, scaling=Scaling(min_instances=1), idle=idle)
    bench.roster.provision(bench.known["f"])
    await until(lambda: [i.state for i in bench.roster.instances()] == [State.FROZEN])
    bench.known["f"] = replace(SPEC, scaling=Scaling(min_instances=0), idle=idle)
    bench.roster.function_changed("a", "f")
    await until(lambda: bench.roster.instances() == [])


async def test_a_worker_that_is_being_replaced_gets_no_requests(bench: Bench) -> None:
    spec = replace(SPEC, concurrency=2)
    lease = await bench.lease(spec)
    room = bench.driver.rooms[0]
    room.script = "slow"
    lease.abandon("timeout")
    await until(lambda: room.restarts == 1)
    assert bench.roster.instances()[0].free_slots == 0
    (await bench.lease(spec)).release()


async def test_an_auto_resumed_session_is_resumed_once_for_all_and_survives_who_goes_away(bench: Bench) -> None:
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()
    await bench.book.change(bench.book.get("a", "f", "s"), {"auto_resume": True})
    await bench.pauses.pause(bench.book.get("a", "f", "s"), memory=False)
    bench.driver.gate = asyncio.Event()
    spec = replace(SESSIONS, concurrency=3)
    first, *others = [asyncio.create_task(bench.lease(SESSIONS, SessionRef(id="s"))) for _ in range(2)]
    await settled("s", bench, SessionState.RESUMING)
    first.cancel()
    bench.driver.gate.set()
    for task in others:
        (await task).release()
    assert bench.book.get("a", "f", "s").state is SessionState.ACTIVE
    assert spec.concurrency == 3


async def test_a_caller_of_pause_that_goes_away_leaves_no_session_halfway(bench: Bench) -> None:
    lease = await bench.lease(SESSIONS, SessionRef(id="s"))
    call = asyncio.create_task(bench.pauses.pause(bench.book.get("a", "f", "s")))
    await settled("s", bench, SessionState.PAUSING)
    call.cancel()
    lease.release()
    await settled("s", bench, SessionState.PAUSED)


async def test_a_full_disk_leaves_no_session_halfway(bench: Bench) -> None:
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()
    session = bench.book.get("a", "f", "s")
    store(bench).full = True
    with pytest.raises(StorageFull):
        await bench.pauses.pause(session)
    assert bench.book.get("a", "f", "s").state is SessionState.ACTIVE
    with pytest.raises(StorageFull):
        await bench.book.end(session, forget=True)
    assert bench.book.get("a", "f", "s").state is SessionState.ACTIVE
    with pytest.raises(StorageFull):
        await bench.lease(SESSIONS, SessionRef(id="new"))
    store(bench).full = False
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()
    await bench.pauses.pause(session)
    store(bench).full = True
    with pytest.raises(StorageFull):
        await bench.pauses.resume(bench.book.get("a", "f", "s"))
    assert bench.book.get("a", "f", "s").state is SessionState.PAUSED
    store(bench).full = False
    await bench.pauses.resume(bench.book.get("a", "f", "s"))
    (await bench.lease(SESSIONS, SessionRef(id="s"))).release()


async def test_a_session_deleted_while_it_is_paused_stays_deleted(bench: Bench) -> None:
    lease = await bench.lease(SESSIONS, SessionRef(id="s"))
    session = bench.book.get("a", "f", "s")
    call = asyncio.create_task(bench.pauses.pause(session))
    await settled("s", bench, SessionState.PAUSING)
    ending = asyncio.create_task(bench.book.end(session, forget=True))
    await asyncio.sleep(0)
    lease.release()
    with pytest.raises((NotFound, Conflict)):
        await call
    await ending
    assert bench.book.list("a", "f") == []
    assert bench.store.rows == {}


async def test_a_session_in_use_is_not_idle(bench: Bench) -> None:
    spec = replace(SESSIONS, sessions=replace(SESSIONS.sessions, idle_timeout_s=1))
    lease = await bench.lease(spec, SessionRef(id="s"))
    session = bench.book.get("a", "f", "s")
    await bench.book.save(replace(session, last_used=session.last_used - 100))
    await bench.book.sweep()
    assert bench.book.get("a", "f", "s").state is SessionState.ACTIVE
    lease.release()


async def test_refused_requests_leave_no_sessions(bench: Bench) -> None:
    held = [await bench.lease(replace(SESSIONS, name="g", scaling=Scaling(max_instances=20)), SessionRef(id=f"h{n}"))
            for n in range(10)]  # fmt: skip
    with pytest.raises(Throttled):
        await bench.lease(SESSIONS, SessionRef(id="x"))
    assert bench.book.list("a", "f") == []
    for lease in held:
        lease.release()


async def test_a_sessions_former_instance_is_waited_for_no_longer_than_asked(bench: Bench) -> None:
    old = await bench.lease(SESSIONS, SessionRef(id="s"))
    with pytest.raises(Throttled, match="busy"):
        await bench.lease(replace(SESSIONS, revision="2"), SessionRef(id="s"), timeout_s=0.05)
    old.release()


async def test_damaged_handles_do_not_keep_a_server_from_starting(bench: Bench) -> None:
    for name, text in {"i-1": "[", "i-2": '{"instance": {"id": 1}}', "i-3": '{"instance": 7, "room": []}'}.items():
        (bench.roster.run_dir / name).mkdir()
        (bench.roster.run_dir / name / "handle.json").write_text(text)
    assert await bench.parts.adoption.run() == 0
    assert list(bench.roster.run_dir.iterdir()) == []


async def test_a_stop_while_the_room_is_made_waits_for_it_and_takes_it_down(bench: Bench) -> None:
    bench.driver.gate = asyncio.Event()
    waiting = asyncio.create_task(bench.lease(SPEC))
    await until(lambda: bench.preparer.held == 1)
    closing = asyncio.create_task(bench.parts.close())
    await asyncio.sleep(0.01)
    bench.driver.gate.set()
    await closing
    assert len(bench.driver.rooms) == 1
    assert bench.driver.alive == []
    with pytest.raises(Unavailable):
        await waiting


@pytest.mark.parametrize("fault", ["stopped at once", "stopped meanwhile", "not prepared"])
async def test_an_adopted_room_is_taken_down_however_far_its_adoption_came(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (await bench.lease(SPEC)).release()
    second = Bench(tmp_path, bench.driver, bench.store)
    begun = asyncio.Event()

    async def prepare(*_: object) -> Prepared:
        begun.set()
        if fault == "not prepared":
            raise Unavailable("not now")
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(second.preparer, "prepare", prepare)
    assert await second.parts.adoption.run() == 1
    [instance] = second.roster.instances()
    if fault == "stopped meanwhile":
        await begun.wait()
    if fault != "not prepared":
        instance.stop(StopReason.TIMEOUT, grace=0)
    await asyncio.wait_for(instance.stopped.wait(), 5)
    assert bench.driver.alive == []
    await second.parts.close()
