"""One instance: a room, its guest, and the one task that moves it through its life.

Only `Instance.run` changes the state. Everyone else reads it, takes and gives back slots, or asks (`stop`, `pause`,
`resume`) and wakes the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from roost.instances.decide import Action, View, decide
from roost.instances.ledger import Ledger
from roost.instances.link import WorkerExit, exit_error, start_error
from roost.instances.surroundings import Prepared, Surroundings
from roost.instances.tether import Tether, destroy
from roost.isolation.driver import Branch, Capability, Room, RoomSpec, Usage
from roost.model.errors import InstanceExited, RoostError, Unavailable
from roost.model.function import FunctionSpec
from roost.model.instance import LEASABLE, State, StopReason, check_transition
from roost.model.session import Session
from roost.model.usage import TransitionRecord

log = logging.getLogger(__name__)

RESTART_TIMEOUT = 15.0
#: For an application's own shutdown, where no pre-stop hook says how long it may take.
SHUTDOWN_TIMEOUT = 2.0


class _StopAsked(Exception):
    """The instance was told to stop before it was up."""


class Instance:
    """One room over its life; `generation` counts the rooms it has had (a resume makes a new one).

    `metered_as` stands for the session in its records when it has none.
    """

    def __init__(
        self,
        *,
        id: str,
        spec: FunctionSpec,
        session: Session | None,
        around: Surroundings,
        on_change: Callable[[Instance], None],
        on_free: Callable[[Instance], None] = lambda _: None,
        slots: int,
        app_socket: str,
        metered_as: str = "",
    ) -> None:
        self.id = id
        self.app_socket = app_socket
        self.spec = spec
        self.session = session
        self.slots = slots
        self.state = State.STARTING
        self.ready = False  # the state is READY
        self._leasable = False  # the state is one of LEASABLE
        self.generation = 1
        self.leases = 0
        self.sessions: set[tuple[str, str, str]] = set()  # keys of the sessions pinned here
        self.waiting: deque[asyncio.Future[Instance]] = deque()  # requests pinned here that have no slot yet
        self.kept = False
        self.served = False  # it was ready once: its end is not a failed start
        self.created = around.clock()
        self.room: Room | None = None
        self.failure: RoostError | None = None
        self.ended: StopReason | None = None  # why, once it is on its way out
        self.stopped = asyncio.Event()
        self._around = around
        self._on_change = on_change
        self._on_free = on_free
        self._metered_as = session.id if session else metered_as
        self._tether: Tether | None = None
        self._prepared: Prepared | None = None
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()  # set whenever the state is not on its way to another
        self._exit: WorkerExit | None = None
        self._gone = asyncio.Event()
        self._freezing = asyncio.Lock()  # held from the state's change until the room stands still
        self._stop_wanted: StopReason | None = None
        self._abrupt = False
        self._stop_deadline = float("inf")
        self._pause_wanted = False
        self._keep_memory = False  # of that pause
        self._resume_wanted = False
        self._held = False
        self._restarting = False
        self._forgotten: set[tuple[str, str, str]] = set()
        self._coming_up: asyncio.Task[None] | None = None
        self._ledger = Ledger(self.created)

    # --- slots -------------------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        """Slots that can be leased now."""
        held_back = self._stop_wanted or self._pause_wanted or self._exit or self._restarting or self._held
        if not self._leasable or held_back:
            return 0
        return self.slots - self.leases

    @property
    def freezes(self) -> bool:
        """Whether its room can stand still with memory and processes."""
        return Capability.FREEZE in self._around.driver.capabilities

    @property
    def idle_since(self) -> float:
        """When the last lease was given back, or it became ready."""
        return self._ledger.idle_since

    @property
    def usable(self) -> bool:
        """Whether a request may be sent, or wait, here."""
        return self.state not in (State.DRAINING, State.STOPPING, State.STOPPED) and self._stop_wanted is None

    def take(self) -> None:
        """Reserve a slot; the caller has seen `free_slots`."""
        if self.leases == 0:
            self._ledger.busy(self._around.clock())
        self.leases += 1
        if not self.ready:
            self._wake.set()  # it may be frozen

    def give_back(self) -> None:
        """Return a slot."""
        self.leases -= 1
        if self.leases == 0:
            self._ledger.idle(self._around.clock())
            if self._stop_wanted or self._pause_wanted:
                self._wake.set()
                self._settled.set()  # who waits for a pause looks again: it may be frozen already
        self._on_free(self)

    async def thawed(self) -> None:
        """Return once a leased instance runs. Raises what ended it if it ended."""
        while self.state is State.FROZEN:
            self._settled.clear()
            self._wake.set()
            await self._settled.wait()
        if self.state not in (State.READY, State.DRAINING):
            raise self.failure or Unavailable("The instance ended before it took the request.")

    # --- requests to the task ----------------------------------------------------------------------------------

    def stop(self, reason: StopReason, *, grace: float = float("inf"), abrupt: bool = False) -> None:
        """Take no new leases, stop after the last one, or after `grace` seconds. `abrupt`: its guest is not asked."""
        self._abrupt = self._abrupt or abrupt
        deadline = self._around.clock() + grace
        if self._stop_wanted is None:
            self._stop_wanted = reason
        self._stop_deadline = min(self._stop_deadline, deadline)
        # Nobody has a lease yet, so there is nothing to wait for. Once: a second one would break off the tidying up.
        if self._coming_up is not None and not self._coming_up.cancelling():
            self._coming_up.cancel()
        self._wake.set()

    def keep(self, kept: bool) -> None:
        """Whether it is provisioned, and so not stopped for being idle."""
        if kept is not self.kept:
            self.kept = kept
            self._wake.set()

    def adjust(self, spec: FunctionSpec) -> None:
        """Take over what changed in the function and needs no new room."""
        self.spec = spec
        self._wake.set()

    @property
    def paused(self) -> bool:
        """Whether it takes no request until it is resumed."""
        return self.state is State.PAUSED or self.paused_in_memory

    @property
    def paused_in_memory(self) -> bool:
        """Whether it is paused with memory and processes."""
        return self.state is State.FROZEN and self._pause_wanted and self._keep_memory and self.leases == 0

    async def pause(self, *, memory: bool = False) -> None:
        """When the last lease has ended, keep the files alone, or, frozen, memory and processes too. Where its room
        can't be frozen only files are kept: `paused_in_memory` says what was.

        Raises Unavailable if it does not freeze (it runs on then), or what ended it instead.
        """
        memory = memory and self.freezes
        self.pause_once_up(memory=memory)
        try:
            await self._until(lambda: (self.paused and (memory or self.room is None)) or not self._pause_wanted)
            async with self._freezing:
                if not self._pause_wanted:
                    raise Unavailable("The instance could not be frozen.")
        except asyncio.CancelledError:
            if not self.paused:
                self._pause_wanted = False
                self._wake.set()
            raise

    def pause_once_up(self, *, memory: bool) -> None:
        """The same, without waiting for it; also before `run`."""
        self._pause_wanted = True
        self._keep_memory = memory and self.freezes
        self._wake.set()

    async def up(self) -> None:
        """Return once it takes leases. Raises what prevented it."""
        await self._until(lambda: self.state in LEASABLE)

    async def settled(self) -> None:
        """Return once it is adopted, or made: what an earlier server began is over. Raises what prevented it."""
        await self._until(lambda: self.state not in (State.STARTING, State.STOPPING))

    async def hold(self) -> None:
        """Freeze it, whoever has leases, until it is let go: memory and processes stay. Raises Unavailable if it does
        not freeze (it runs on then), or what ended it instead."""
        self.hold_once_up()
        await self._until(lambda: self.state is State.FROZEN or not self._held)
        async with self._freezing:
            if not self._held:
                raise Unavailable("The instance could not be frozen.")

    def hold_once_up(self) -> None:
        """The same, without waiting for it; also before `run`."""
        self._held = True
        self._wake.set()

    async def let_go(self) -> None:
        """End `hold`; returns once it runs. Raises what ended it instead."""
        self._held = False
        self._wake.set()
        await self._until(lambda: self.state is State.READY)

    async def branch(
        self, target: Path, beside: Mapping[Path, Path] | None = None, *, keep: bool = False, now: bool = False
    ) -> Branch:
        """As `Room.branch`; the control connection, if it breaks by that, is opened anew. Raises RoostError."""
        room, tether = self.room, self._tether
        if room is None or tether is None:
            raise Unavailable("The instance has no room.")
        if not room.lets_go:
            return await room.branch(target, beside, keep=keep, now=now)
        async with tether.loosened(self._around.start_timeout):
            return await room.branch(target, beside, keep=keep, now=now)

    async def resume(self) -> None:
        """End a pause: it runs on, or in a new room over the kept files. Raises what prevented it."""
        self.wake_up()
        await self._until(lambda: self.state in LEASABLE)

    def wake_up(self) -> None:
        """Have a paused instance resumed, without waiting for it."""
        if self.state is State.PAUSED:
            self._resume_wanted = True
            self._wake.set()
        elif self.paused_in_memory:
            self._pause_wanted = False
            self._ledger.idle_since = self._around.clock()
            self._wake.set()

    async def restart_worker(self) -> bool:
        """Kill what runs the function's code and start it anew in the same room. False: it did not come back."""
        if self._tether is None:
            return False
        self._restarting = True  # with a higher concurrency there are free slots, but nobody to serve them
        try:
            await self._tether.link.restart(RESTART_TIMEOUT)
        except RoostError:
            return False
        finally:
            self._restarting = False
        self._forgotten |= self.sessions
        return True

    def forgot(self, session: tuple[str, str, str]) -> bool:
        """Whether it lost what it had in memory of the session, keeping the files. True once for each loss."""
        lost = session in self._forgotten
        self._forgotten.discard(session)
        return lost

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self.state is State.STOPPED:
                raise self.failure or Unavailable("The instance has ended.")
            self._settled.clear()
            await self._settled.wait()

    # --- what ended it -----------------------------------------------------------------------------------------

    async def why(self, timeout: float) -> RoostError:
        """Why a request's connection broke: waits at most `timeout` seconds for the reason to be known."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), timeout)
        return self.failure or self._exit_error() or Unavailable("The instance closed the connection.")

    def _exit_error(self) -> InstanceExited | None:
        return None if self._exit is None else exit_error(self._exit, memory_mb=self._memory_exceeded())

    def _memory_exceeded(self) -> int:
        """Its limit in MB, if the kernel ended something in the room for that; else 0."""
        return self.spec.limits.memory_mb if self.out_of_memory() else 0

    def out_of_memory(self) -> bool:
        """Whether the kernel ended something in the room for memory."""
        used = self._usage()
        return used is not None and used.oom_kills > 0

    # --- the task ----------------------------------------------------------------------------------------------

    async def run(self, *, adopt: Room | None = None, unsettled: bool = False) -> None:
        """The whole life, from STARTING to STOPPED. Never raises but for cancellation, which stops it at once.

        `adopt`: a room that is there already. It is taken down with the instance, however far that comes.
        `unsettled`: a request that nobody waits for any more may still run in the room that is adopted, and is to be
        over before the instance is up.
        """
        reason = StopReason.START_FAILED
        self.served = adopt is not None  # by an earlier server
        self.room = adopt
        try:
            await self._come_up(self._adopt(adopt, unsettled) if adopt else self._boot())
            reason = StopReason.EXITED
            self._move(State.READY)
            reason = await self._live()
        except _StopAsked:
            reason = self._stop_wanted or reason
        except RoostError as error:
            self.failure = start_error(error, memory_mb=self._memory_exceeded())
            log.info("instance %s of %s failed: %s", self.id, self.spec.name, error.message)
        except Exception as error:
            # Whatever it was, those who wait are told, and the start is not tried again and again.
            self.failure = Unavailable(f"The instance could not be made: {error}.")
            log.exception("instance %s of %s", self.id, self.spec.name)
        finally:
            await asyncio.shield(asyncio.ensure_future(self._end(reason)))

    async def _come_up(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work unless `stop` is or was asked for: then it is broken off, with _StopAsked."""
        self._coming_up = asyncio.ensure_future(work)
        if self._stop_wanted is not None:
            self._coming_up.cancel()
        try:
            await self._coming_up
        except asyncio.CancelledError:
            if self._stop_wanted is None:
                raise
            raise _StopAsked from None
        finally:
            self._coming_up = None

    async def _boot(self) -> None:
        self._gone.clear()
        self._exit = None
        prepared = await self._around.preparer.prepare(self.spec, self.id, self.session)
        self._prepared = prepared
        room = await self._create(prepared.room)
        self._ledger.new_room()
        handle = {"room": dict(room.handle), "instance": self.describe()}
        (prepared.room.run_dir / "handle.json").write_text(json.dumps(handle))
        hook = self.spec.initializer.timeout_s if self.spec.initializer else 0.0
        tether = self._tether = self._tether_to(room, prepared.room)
        try:  # what the guest finds as soon as it runs
            await tether.open()
            await prepared.furnish(room)
            await tether.link.start(prepared.start, self._around.start_timeout + hook)
        except RoostError:
            await room.made()  # else this is why
            raise
        await room.settled()

    async def _create(self, spec: RoomSpec) -> Room:
        """Make the room. Not broken off halfway: it takes milliseconds, and what is made can be taken down."""
        making = asyncio.ensure_future(self._around.driver.create(spec))
        try:
            await asyncio.shield(making)
        finally:
            if not making.done():
                await asyncio.wait([making])
            if making.cancelled():
                raise Unavailable("The room was not made: its making was broken off.")
            if making.exception() is None:
                self.room = making.result()
        return making.result()

    async def _adopt(self, room: Room, unsettled: bool) -> None:
        prepared = await self._around.preparer.prepare(self.spec, self.id, self.session)
        self._prepared = prepared
        tether = self._tether = self._tether_to(room, prepared.room)
        await tether.open()
        await prepared.furnish(room)
        await room.thaw()
        await tether.link.attach(self._around.start_timeout)
        if unsettled:
            # A handler may ignore that its caller has gone, and a web server need not even notice.
            await tether.link.restart(RESTART_TIMEOUT)
            self._forgotten |= self.sessions

    def _tether_to(self, room: Room, made_as: RoomSpec) -> Tether:
        spec, on_output = self.spec, self._around.on_output
        return Tether(
            room,
            made_as.run_dir / "guest.sock",
            on_log=lambda stream, text: on_output(spec, self.id, stream, text),
            on_exit=self._worker_exited,
            on_end=self._room_ended,
            on_lost=self._link_lost,
        )

    def _worker_exited(self, how: WorkerExit) -> None:
        if self._exit is None:
            self._exit = how
        self._gone.set()
        self._wake.set()

    def _room_ended(self) -> RoostError:
        self._worker_exited(WorkerExit(code=None, signal=9))
        return self._exit_error() or Unavailable("The room ended.")

    def _link_lost(self) -> None:
        """A room without its control connection ends itself before long, so it gets no new requests."""
        if self._exit is None:
            log.warning("instance %s of %s broke its control connection", self.id, self.spec.name)
            self.stop(StopReason.LOST)

    async def _live(self) -> StopReason:
        while True:
            now = self._around.clock()
            decision = decide(self._view(), now)
            if decision.action is Action.STOP:
                return decision.reason or StopReason.IDLE
            if decision.action is Action.DRAIN:
                self._move(State.DRAINING, reason=self._stop_wanted or "")
            elif decision.action is Action.FREEZE:
                await self._freeze()
            elif decision.action is Action.THAW:
                await self._thaw()
            elif decision.action is Action.PAUSE:
                if reason := await self._sleep_on_disk():
                    return reason
            else:
                await self._sleep_until(decision.wake_at, now)

    def _view(self) -> View:
        return View(
            state=self.state,
            leases=self.leases,
            idle_since=self._ledger.idle_since,
            idle=self.spec.idle,
            kept=self.kept or bool(self.waiting),
            freezes=self.freezes,
            exited=self._exit is not None,
            held=self._held,
            pause_wanted=self._pause_wanted,
            keep_memory=self._keep_memory,
            stop_wanted=self._stop_wanted,
            stop_deadline=self._stop_deadline,
        )

    async def _sleep_until(self, when: float, now: float) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), None if when == float("inf") else max(0.001, when - now))

    async def _freeze(self) -> None:
        # The state changes first: a lease taken during the freeze sees FROZEN, and the next decision thaws.
        async with self._freezing:
            self._move(State.FROZEN)
            try:
                if self.room:
                    await self.room.freeze()
                return
            except RoostError as error:
                log.warning("instance %s: %s", self.id, error.message)
                # Who waits for it is told, and it is not tried again and again.
                self._held = self._pause_wanted = False
        await self._thaw()

    async def _thaw(self) -> None:
        if self.room:
            await self.room.thaw()
        self._ledger.idle_since = self._around.clock()
        self._move(State.READY)

    async def _sleep_on_disk(self) -> StopReason | None:
        """PAUSED until resumed (None) or stopped (the reason)."""
        self._resume_wanted = False
        self._move(State.PAUSED)
        await self._take_down()
        self._settled.set()
        while not self._resume_wanted:
            if self._stop_wanted:
                return self._stop_wanted
            await self._sleep_until(float("inf"), 0)
        self._pause_wanted = self._resume_wanted = False
        self.generation += 1
        self._move(State.RESUMING)
        await self._come_up(self._boot())
        self._forgotten |= self.sessions
        self._ledger.idle_since = self._around.clock()
        self._move(State.READY)
        return None

    async def _end(self, reason: StopReason) -> None:
        if self._exit is not None:
            reason = StopReason.OUT_OF_MEMORY if self.out_of_memory() else reason
            self.failure = self.failure or self._exit_error()
        self.ended = reason
        self._move(State.STOPPING, reason=reason)
        try:
            await self._say_goodbye()
            await self._take_down()
        except Exception:
            log.exception("instance %s of %s: its end", self.id, self.spec.name)
        finally:
            self._move(State.STOPPED, reason=reason)
            self._gone.set()
            self.stopped.set()
            self._on_change(self)

    async def _say_goodbye(self) -> None:
        """Let the guest run its pre-stop hook; asked of every guest, an ASGI application's shutdown depends on it."""
        if self._tether and self.room and self._exit is None and self.served and not self._abrupt:
            with contextlib.suppress(OSError, RoostError):
                await self.room.thaw()
                await self._tether.link.pre_stop(
                    self.spec.pre_stop.timeout_s if self.spec.pre_stop else SHUTDOWN_TIMEOUT
                )

    async def _take_down(self) -> None:
        tether, self._tether = self._tether, None
        if tether is not None:
            tether.let_go()
        if self.room is not None:
            await destroy(self.room, f"instance {self.id} of {self.spec.name}")
            self.room = None
        if tether is not None:
            await tether.close()
        if self._prepared is not None:
            self._prepared.release()
            self._prepared = None

    # --- records -----------------------------------------------------------------------------------------------

    def _move(self, target: State, *, reason: str = "") -> None:
        check_transition(self.state, target)
        now = self._around.clock()
        used = self._usage()
        spent = self._ledger.turn(now, used.cpu_us if used else None)
        record = TransitionRecord(
            instance_id=self.id,
            account=self.spec.account,
            function=self.spec.name,
            version=self.spec.version,
            session_id=self._metered_as,
            generation=self.generation,
            before=self.state,
            after=target,
            at=now,
            held_s=spent.held_s,
            leased_s=spent.leased_s,
            cpu_us=spent.cpu_us,
            memory_mb=self.spec.limits.memory_mb,
            reason=reason,
        )
        self.state = target
        self.ready, self._leasable = target is State.READY, target in LEASABLE
        self.served = self.served or target is State.READY
        self._around.on_transition(record)
        self._settled.set()
        self._on_change(self)

    def memory_bytes(self) -> int:
        """What the room uses now."""
        used = self._usage()
        return used.memory_bytes if used else 0

    def _usage(self) -> Usage | None:
        """None without a room, or while it is going away."""
        try:
            return self.room.usage() if self.room else None
        except OSError:
            return None

    def describe(self) -> dict[str, Any]:
        """What a restarted server needs to know to adopt the instance."""
        return {
            "id": self.id,
            "function": self.spec.name,
            "account": self.spec.account,
            "version": self.spec.version,
            "revision": self.spec.revision,
            "generation": self.generation,
            "created": self.created,
            "runtime": self.spec.runtime.value,
            "session": self.session.id if self.session else "",
            "sessions": sorted(key[2] for key in self.sessions),
            "place": Path(self.app_socket).parent.name,
        }
