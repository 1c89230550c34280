"""The fleet under everything at once: leases, cancels, deaths, updates, deletes, pauses and jumps of the clock."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roost.instances.clock import SteadyClock
from roost.instances.lease import Lease, SessionRef
from roost.instances.roster import FleetLimits
from roost.instances.surroundings import Surroundings
from roost.model.errors import NotFound, RoostError
from roost.model.function import Affinity, FunctionSpec, Idle, IsolationMode, Runtime, Scaling, SessionPolicy
from roost.model.instance import TRANSITIONS, State
from roost.model.session import Session
from tests.support.fake_driver import FakeDriver, FakePreparer, MemorySessions, Recorder
from tests.support.fleet import Parts

T = TypeVar("T")

#: Guests that become ready, and those that don't.
GOOD = ("ready", "slow", "garbage", "liar", "flood")
BAD = ("failed", "exits", "silent", "hangs up", "dies", "leaves", "crashes", "shouts")
MAX_INSTANCES = 6
#: Hypothesis chooses by number: what there is to choose from depends on how fast this machine is.
WHICH = st.integers(0, 7)
PLAIN = FunctionSpec(
    account="a", name="plain", version="LATEST", revision="1", runtime=Runtime.PYTHON, concurrency=2,
    idle=Idle(freeze_after_s=0.01, stop_after_s=5), scaling=Scaling(max_instances=3),
)  # fmt: skip
WARM = replace(PLAIN, name="warm", scaling=Scaling(min_instances=1, max_instances=2))
SESSION = replace(
    PLAIN, name="session", concurrency=1, isolation_mode=IsolationMode.SESSION_EXCLUSIVE,
    scaling=Scaling(max_instances=4),
    sessions=SessionPolicy(affinity=Affinity.HEADER_FIELD, header="x-s"),
)  # fmt: skip
SHARED = replace(
    SESSION, name="shared", concurrency=4, isolation_mode=IsolationMode.SHARE,
    sessions=replace(SESSION.sessions, sessions_per_instance=2),
)  # fmt: skip
FUNCTIONS = {spec.name: spec for spec in (PLAIN, WARM, SESSION, SHARED)}


def pick(things: Sequence[T], which: int) -> T | None:
    return things[which % len(things)] if things else None


class Chaos(RuleBasedStateMachine):
    """One fleet over a driver without rooms; every rule runs the loop for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.troubles: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.troubles.append(context))
        self.folder = tempfile.TemporaryDirectory(prefix="roost-chaos-")
        self.run = Path(self.folder.name) / "run"
        self.run.mkdir()
        self.ahead = 0.0
        self.clock = SteadyClock(wall=lambda: time.time() + self.ahead)
        self.driver = FakeDriver()
        self.events = Recorder()
        self.preparer = FakePreparer(self.run)
        self.known = dict(FUNCTIONS)
        self.parts = Parts(
            specs=self, store=MemorySessions(), run_dir=self.run, clock=self.clock,
            around=Surroundings(
                driver=self.driver, preparer=self.preparer, clock=self.clock,
                on_transition=self.events.transition, on_output=self.events.output,
                start_timeout=0.1, stop_grace=0.1,
            ),
            limits=FleetLimits(max_instances=MAX_INSTANCES, max_waiting=4, stop_grace=0.1),
        )  # fmt: skip
        self.book, self.fleet = self.parts.book, self.parts.fleet
        self.roster, self.pauses = self.parts.roster, self.parts.pauses
        self.asked: list[asyncio.Task[Lease]] = []
        self.others: list[asyncio.Task[Any]] = []

    def resolve(self, account: str, name: str, qualifier: str | None) -> FunctionSpec:
        if name not in self.known:
            raise NotFound(name)
        return self.known[name]

    def do(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        return self.loop.run_until_complete(run())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.do(asyncio.sleep(0))
        return task

    # --- what happens

    @rule(name=st.sampled_from(sorted(FUNCTIONS)), session=st.sampled_from(["", "s1", "s2", "s3"]))
    def ask(self, name: str, session: str) -> None:
        spec = self.known.get(name, FUNCTIONS[name])
        ref = SessionRef(id=session) if spec.sessions.affinity is Affinity.HEADER_FIELD else None
        self.asked.append(self.spawn(self.fleet.lease(spec, ref, timeout_s=0.5)))

    @rule(which=WHICH, how=st.sampled_from(["release", "timeout", "twice"]))
    def give_back(self, which: int, how: str) -> None:
        if (task := pick(self.granted(), which)) is None:
            return
        self.asked.remove(task)
        lease = task.result()

        async def end() -> None:
            if how == "timeout":
                lease.abandon("timeout")
            lease.release()
            if how == "twice":
                lease.release()

        self.do(end())

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        task = pick([task for task in self.asked if not task.done()], which)
        if task is not None:
            task.cancel()

    @rule(script=st.sampled_from(GOOD + BAD))
    def next_guests(self, script: str) -> None:
        self.driver.script = script

    @rule(fails=st.booleans())
    def next_rooms(self, fails: bool) -> None:
        self.driver.fail_create = fails

    @rule(which=WHICH, how=st.sampled_from(["die", "stuck", "rigid", "hang up", "lie"]))
    def harm(self, which: int, how: str) -> None:
        room = pick(self.driver.alive, which)

        async def act() -> None:
            if room is None:
                return
            if how == "die":
                room.die()
            elif how == "stuck":
                room.stuck = 2
            elif how == "rigid":
                room.rigid = True
            elif how == "hang up":
                for writer in list(room.writers):
                    writer.close()
            else:
                room.say({"event": "exited", "code": 10**30, "signal": -1})

        self.do(act())

    @rule(name=st.sampled_from(sorted(FUNCTIONS)), revision=st.sampled_from(["1", "2"]), least=st.integers(0, 1))
    def deploy(self, name: str, revision: str, least: int) -> None:
        spec = FUNCTIONS[name]
        self.known[name] = replace(spec, revision=revision, scaling=replace(spec.scaling, min_instances=least))

        async def act() -> None:
            self.roster.function_changed("a", name)
            self.roster.provision(self.known[name])

        self.do(act())

    @rule(name=st.sampled_from(sorted(FUNCTIONS)))
    def delete(self, name: str) -> None:
        self.known.pop(name, None)

        async def act() -> None:
            self.roster.function_changed("a", name)
            await self.parts.deleted("a", name)

        self.others.append(self.spawn(act()))

    @rule(
        name=st.sampled_from(["session", "shared"]),
        which=WHICH,
        what=st.sampled_from(["pause", "rest", "resume", "end"]),
    )
    def session_verb(self, name: str, which: int, what: str) -> None:
        session = pick(self.book.list("a", name), which)
        if session is None:
            return
        verbs: dict[str, Callable[[Session], Coroutine[Any, Any, object]]] = {
            "pause": self.pauses.pause,
            "rest": lambda session: self.pauses.pause(session, memory=False),
            "resume": self.pauses.resume,
            "end": lambda session: self.book.end(session, forget=True),
        }
        self.others.append(self.spawn(verbs[what](session)))

    @rule(which=WHICH)
    def caller_goes_away(self, which: int) -> None:
        if (task := pick(self.others, which)) is not None:
            task.cancel()

    @rule(seconds=st.sampled_from([-3600.0, -1.0, 1.0, 30.0, 3600.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.ahead += seconds
        self.do(asyncio.wait_for(asyncio.shield(self.loop.create_task(self.book.sweep())), 10))

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.02, 0.08]))
    def wait(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    # --- what must hold

    def granted(self) -> list[asyncio.Task[Lease]]:
        return [t for t in self.asked if t.done() and not t.cancelled() and t.exception() is None]

    @invariant()
    def slots_are_respected(self) -> None:
        for instance in self.roster.instances():
            assert 0 <= instance.leases <= instance.slots
        held = sum(instance.leases for instance in self.roster.instances())
        mine = {task.result().instance_id for task in self.granted()}
        alive = {i.id for i in self.roster.instances() if i.leases}
        assert held >= sum(task.result().instance_id in alive for task in self.granted())
        assert mine <= {i.id for i in self.roster.instances()} | {t.instance_id for t in self.events.transitions}

    @invariant()
    def one_room_has_a_sessions_files(self) -> None:
        users = [
            i.session.key for i in self.roster.instances() if i.session and i.room and i.state is not State.STOPPED
        ]
        created = [i.session.created for i in self.roster.instances() if i.session and i.room]
        assert len(set(zip(users, created, strict=True))) == len(users), "two rooms have one session's layer"

    @invariant()
    def errors_are_roosts_own(self) -> None:
        for task in [*self.asked, *self.others]:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, RoostError), repr(error)
        self.asked = [t for t in self.asked if not t.done() or t in self.granted()]
        self.others = [t for t in self.others if not t.done()]

    @invariant()
    def transitions_are_legal(self) -> None:
        for record in self.events.transitions:
            assert record.after in TRANSITIONS[record.before]
        assert self.troubles == []

    def teardown(self) -> None:
        try:
            self.do(asyncio.wait_for(self.settle(), 30))
            self.transitions_are_legal()
        finally:
            self.loop.close()
            self.folder.cleanup()

    async def settle(self) -> None:
        """Every request is answered within its time, and nothing is left."""
        waiting = [task for task in self.asked if not task.done()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=5)
            assert not late, "requests that nobody answers"
        self.errors_are_roosts_own()
        for task in self.granted():
            task.result().release()
        await self.parts.close()
        if self.others:
            _, late = await asyncio.wait(self.others, timeout=5)
            assert not late, "callers that nobody answers"
        assert self.driver.alive == []
        assert self.preparer.held == 0
        assert self.roster.instances() == []
        assert not self.run.exists() or list(self.run.iterdir()) == []
        left = asyncio.all_tasks() - {asyncio.current_task()}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while left := {t for t in left if not t.done() and not _ours(t)}:
                    await asyncio.sleep(0.01)
        assert not left, left


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=8, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # shrinking takes real time here
)  # fmt: skip


def _ours(task: asyncio.Task[Any]) -> bool:
    """A task of the test, or of a guest that is played in this process."""
    return any(name in repr(task.get_coro()) for name in ("Chaos.do", "FakeRoom._serve"))
