"""All instances of this server: leases, pinned sessions, starts and ends, adoption of those that outlived a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from roost.instances.instance import Instance, Surroundings
from roost.instances.lease import Lease, SessionRef
from roost.instances.pool import Pool, exclusive
from roost.instances.sessions import Key, SessionBook
from roost.model.errors import AccessDenied, Conflict, NotFound, RoostError, Throttled, Unavailable
from roost.model.function import Affinity, FunctionSpec, IsolationMode, Runtime
from roost.model.instance import ALIVE, LEASABLE, State, StopReason
from roost.model.session import Session, SessionState, check_session_transition
from roost.telemetry.metrics import FunctionGauges

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Function Compute: with session affinity an instance takes 200 requests at once, shared by its sessions.
AFFINITY_SLOTS = 200
_ATTEMPTS = 3
_PAUSE_TIMEOUT = 30.0
#: What an instance's end may take beside its requests and its pre-stop hook.
_CLOSE_MARGIN = 30.0
#: Instances that may be on their way out, beyond the limit, while others take their place.
_OVERLAP = 8


class Specs(Protocol):
    """Looks up the current configuration of a function. Raises NotFound."""

    def resolve(self, account: str, name: str, qualifier: str | None) -> FunctionSpec: ...


@dataclass(frozen=True, kw_only=True)
class FleetLimits:
    """Bounds of one server."""

    max_instances: int
    max_waiting: int
    stop_grace: float


class _Moved(RoostError):
    """The instance that a request waited for ended; the request is placed anew."""


class InstanceLease:
    """One slot on one instance. See `lease.Lease`."""

    def __init__(
        self, instance: Instance, session: Session | None, *, fleet: InstanceFleet, cold: bool, restored: bool
    ) -> None:
        self.spec = instance.spec
        self.instance_id = instance.id
        self.app_socket = instance.app_socket
        self.session = session
        self.cold = cold
        self.restored = restored
        self.request_headers: Mapping[str, str] = fleet.session_headers(instance.spec, session)
        self._instance = instance
        self._fleet = fleet
        self._released = False
        fleet.granted(session)

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._fleet.returned(self.session)
            if self.spec.isolation_mode is IsolationMode.REQUEST_EXCLUSIVE:
                self._instance.stop(StopReason.REQUEST_ENDED)
            self._instance.give_back()

    def abandon(self, reason: str) -> None:
        if not self._released:
            self._released = True
            self._fleet.returned(self.session)
            self._fleet.abandoned(self._instance, reason)

    async def failure(self) -> Exception:
        return await self._instance.why(1.0)


class InstanceFleet:
    """Implements `lease.Fleet`. One event loop; nothing here blocks it."""

    def __init__(
        self,
        *,
        specs: Specs,
        around: Surroundings,
        book: SessionBook,
        limits: FleetLimits,
        run_dir: Path,
        session_dir: Callable[[FunctionSpec, Session], str],
    ) -> None:
        self.run_dir = run_dir
        self._specs = specs
        self._around = around
        self._book = book
        self._limits = limits
        self._session_dir = session_dir
        self._pools: dict[tuple[str, str, str], Pool] = {}
        self._pinned: dict[Key, Instance] = {}  # by session key
        self._hungry: dict[Pool, None] = {}  # they found the server full, in this order
        self._resuming: dict[Key, asyncio.Task[Session]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    # --- leases ------------------------------------------------------------------------------------------------

    def try_lease(self, spec: FunctionSpec, session: SessionRef | None = None) -> Lease | None:
        pool = self._pools.get(spec.key)
        if pool is None or pool.spec is not spec:
            return None
        if session is None:
            instance, known = pool.at_once(), None
        else:
            known = self._book.find((spec.account, spec.name, session.id)) if session.id else None
            instance = self._at_home(pool, known) if known is not None else None
        if instance is None:
            return None
        instance.take()
        restored = known is not None and instance.forgot(known.key)
        return InstanceLease(instance, known, fleet=self, cold=False, restored=restored)

    def _at_home(self, pool: Pool, session: Session) -> Instance | None:
        """The instance of an active session, if it can take a request at once."""
        instance = self._pinned.get(session.key)
        if instance is None or session.state is not SessionState.ACTIVE or session.instance_id != instance.id:
            return None
        return instance if pool.takes_at_once(instance) else None

    async def lease(self, spec: FunctionSpec, session: SessionRef | None = None, *, timeout_s: float = 60.0) -> Lease:
        pool = self._pool(spec)
        if session is None:
            instance, cold = await pool.any_instance(timeout_s)
            return await self._granted(instance, None, cold=cold)
        deadline = asyncio.get_running_loop().time() + timeout_s
        known = self._known(spec, session)
        opened = known or self._book.open(spec, spec.version, session.id, {})
        try:
            return await self._lease_session(spec, opened, deadline)
        except BaseException:
            if known is None:
                self._book.discard(opened)  # unless an instance was started for it
            raise

    def _known(self, spec: FunctionSpec, ref: SessionRef) -> Session | None:
        known = self._book.find((spec.account, spec.name, ref.id)) if ref.id else None
        if known is None and ref.id and ref.generated:
            # Only the server hands these out: one that it does not know was planted, or is over.
            raise _no_session(spec.name, ref.id)
        return known

    async def _granted(
        self, instance: Instance, session: Session | None, *, cold: bool, restored: bool = False
    ) -> InstanceLease:
        """The lease of a slot that was taken; thawed."""
        try:
            lease = InstanceLease(instance, session, fleet=self, cold=cold, restored=restored)
        except BaseException:
            instance.give_back()
            raise
        try:
            if instance.state is State.FROZEN:
                await instance.thawed()
        except BaseException:
            lease.release()
            raise
        return lease

    async def _lease_session(self, spec: FunctionSpec, session: Session, deadline: float) -> Lease:
        for _ in range(_ATTEMPTS):
            await self._active(session.key)
            pool = self._pool(spec)  # the function may have changed while it was waited for
            with contextlib.suppress(_Moved):
                return await self._lease_placed(pool, session.key, deadline)
        raise Unavailable(f"The session's instance keeps ending; see the logs of {spec.name}.", retry_after=1)

    async def _lease_placed(self, pool: Pool, key: Key, deadline: float) -> Lease:
        instance = await self._place(pool, key, deadline)
        session = self._book.get(*key)
        restored = bool(session.instance_id) and session.instance_id != instance.id
        stored: asyncio.Task[None] | None = None
        if session.instance_id != instance.id:
            session = self._book.assign(session, instance.id)
            stored = self._spawn(self._book.persist(key))  # the commit runs beside the instance's start
        instance.wake_up()
        cold = await pool.this_instance(instance, deadline - asyncio.get_running_loop().time())
        restored = instance.forgot(key) or restored
        lease = await self._granted(instance, session, cold=cold, restored=restored)
        try:
            if stored is not None:
                await asyncio.shield(stored)
        except BaseException:
            lease.release()
            raise
        return lease

    async def _active(self, key: Key) -> None:
        """The session is ready for a request. Raises Conflict when it is paused and does not resume by itself."""
        session = self._book.get(*key)
        if session.state is SessionState.RESUMING or (session.state is SessionState.PAUSED and session.auto_resume):
            session = await self._resumed(session)
        if session.state is not SessionState.ACTIVE:
            raise Conflict(f"Session {session.id} is {session.state.value}.", code="SessionStatusConflict")

    async def _place(self, pool: Pool, key: Key, deadline: float) -> Instance:
        """The session's instance; a new one when it has none, or when the function has changed since."""
        while (instance := self._pinned.get(key)) is not None:
            if instance.usable and instance.spec.revision == pool.spec.revision:
                return instance
            if instance.session is None:
                break
            # Its files are in use until it has stopped.
            instance.stop(StopReason.UPDATED)
            try:
                async with asyncio.timeout_at(deadline):
                    await instance.stopped.wait()
            except TimeoutError:
                raise Throttled("The session's former instance is still busy.", retry_after=1) from None
        if self._closing or pool.closed:
            raise _Moved("The function was deleted, or the server stops.")
        session = self._book.find(key)
        if session is None:
            raise _no_session(key[1], key[2])
        chosen = self._shareable(pool, pool.spec) or self._start(pool, session if exclusive(pool.spec) else None)
        if chosen is None:
            raise Throttled("This server has no room for another instance.", retry_after=1)
        chosen.sessions.add(key)
        self._pinned[key] = chosen
        return chosen

    @staticmethod
    def _shareable(pool: Pool, spec: FunctionSpec) -> Instance | None:
        if exclusive(spec):
            return None
        roomy = [
            i
            for i in pool.instances.values()
            if i.usable
            and i.spec.revision == spec.revision
            and len(i.sessions) < spec.sessions.sessions_per_instance
            and (i.sessions or i.leases < i.slots)
        ]
        return max(roomy, key=lambda i: (len(i.sessions), -i.created), default=None)

    def bind(self, spec: FunctionSpec, session_id: str, instance_id: str) -> None:
        """A session whose id the user's own server made (MCP) belongs to this instance."""
        instance = self._pool(spec).instances.get(instance_id)
        if instance is None:
            return
        key = (spec.account, spec.name, session_id)
        if self._book.find(key) is None:
            try:
                self._book.open(spec, spec.version, session_id, {"instance_id": instance_id})
            except RoostError as error:  # the user's server may send anything
                log.info("function %s: its session is not kept: %s", spec.name, error.message)
                return
            self._spawn(self._book.persist(key))
        instance.sessions.add(key)
        self._pinned[key] = instance

    def end(self, spec: FunctionSpec, session_id: str) -> None:
        """The client ended a session."""
        session = self._book.find((spec.account, spec.name, session_id))
        if session is not None:
            self._spawn(self._book.end(session, forget=True))

    def session_headers(self, spec: FunctionSpec, session: Session | None) -> Mapping[str, str]:
        """What the guest is told of the request's session."""
        if session is None:
            return {}
        return {"x-fc-session-id": session.id, "x-roost-session-dir": self._session_dir(spec, session)}

    def granted(self, session: Session | None) -> None:
        """A lease begins."""
        if session is not None:
            self._book.enter(session.key)

    def returned(self, session: Session | None) -> None:
        """A lease ended."""
        if session is not None:
            self._book.leave(session.key)

    def abandoned(self, instance: Instance, reason: str) -> None:
        """A handler did not let go of its request: kill what must be killed, and no more."""
        if instance.leases > 1 or instance.spec.isolation_mode is IsolationMode.REQUEST_EXCLUSIVE:
            instance.stop(StopReason.TIMEOUT)
            instance.give_back()
            return
        self._spawn(self._replace_worker(instance, reason))

    async def _replace_worker(self, instance: Instance, reason: str) -> None:
        # The slot stays taken meanwhile: no request meets the worker that is being replaced.
        log.info("instance %s: its worker is replaced (%s)", instance.id, reason)
        if not await instance.restart_worker():
            instance.stop(StopReason.TIMEOUT, grace=0)
        instance.give_back()

    # --- instances ---------------------------------------------------------------------------------------------

    def _pool(self, spec: FunctionSpec) -> Pool:
        """The pool of the function's version. Raises NotFound if that is gone, Unavailable when the server stops."""
        if self._closing:
            raise Unavailable("Roost is shutting down.", retry_after=5)
        pool = self._pools.get(spec.key)
        if pool is not None and not pool.closed and (pool.spec is spec or pool.spec == spec):
            return pool
        # What the caller looked up may be older than the last change.
        current = self._specs.resolve(*spec.key)
        if pool is None:
            pool = Pool(current, max_waiting=self._limits.max_waiting, start=lambda p: self._start(p, None))
            self._pools[spec.key] = pool
        elif pool.closed or pool.spec != current:
            pool.update(current)
        return pool

    def _start(self, pool: Pool, session: Session | None) -> Instance | None:
        """Start an instance, ending an idle one elsewhere if the server is full. None: it is full of busy ones."""
        if self._closing:
            return None
        alive = [i for p in self._pools.values() for i in p.instances.values() if i.state in ALIVE]
        if len(alive) >= self._limits.max_instances:
            idle = [i for i in alive if i.leases == 0 and not i.waiting and not i.kept and i.usable and _is_up(i)]
            if not idle or len(alive) >= self._limits.max_instances + _OVERLAP:
                if session is None:
                    self._hungry[pool] = None
                return None
            min(idle, key=lambda i: i.idle_since).stop(StopReason.SCALE_IN)
        instance = self._new(pool, f"i-{secrets.token_hex(8)}", pool.spec, session)
        self._spawn(instance.run())
        return instance

    def _feed(self) -> None:
        """An instance is idle or has ended: pools that found the server full try again."""
        hungry, self._hungry = self._hungry, {}
        for pool in hungry:
            pool.scale()

    def _new(self, pool: Pool, id: str, spec: FunctionSpec, session: Session | None) -> Instance:
        instance = Instance(
            id=id,
            spec=spec,
            session=session,
            around=self._around,
            on_change=lambda i: self._changed(pool, i),
            slots=_slots(spec),
            app_socket=self.run_dir / id / "app.sock",
        )
        pool.instances[id] = instance
        return instance

    def _changed(self, pool: Pool, instance: Instance) -> None:
        if instance.state is not State.STOPPED:
            if instance.free_slots > 0:
                pool.started()
                pool.offer(instance)
            elif instance.state is State.PAUSED:
                _move_on(instance)
            if self._hungry and instance.leases == 0 and _is_up(instance):
                asyncio.get_running_loop().call_soon(self._feed)
            return
        pool.instances.pop(instance.id, None)
        for key in instance.sessions:
            if self._pinned.get(key) is instance:
                del self._pinned[key]
        if instance.failure is not None:
            pool.crashed(self._around.clock() - instance.created)
            if not instance.served:
                pool.failed_start(instance, instance.failure)
        _move_on(instance)
        shutil.rmtree(self.run_dir / instance.id, ignore_errors=True)
        if pool.closed and not pool.instances and self._pools.get(pool.spec.key) is pool:
            del self._pools[pool.spec.key]
        if not self._closing:
            pool.scale()
            self._feed()

    def instances(self) -> list[Instance]:
        """All that are not stopped, oldest first."""
        every = (i for pool in self._pools.values() for i in pool.instances.values())
        return sorted(every, key=lambda i: i.created)

    def function_changed(self, account: str, name: str) -> None:
        """Its code or configuration changed, or it was deleted."""
        for key, pool in list(self._pools.items()):
            if key[:2] != (account, name):
                continue
            try:
                pool.update(self._specs.resolve(*key))
            except AccessDenied:
                continue  # its invocations are switched off for now; what runs goes idle
            except NotFound as gone:
                pool.close(gone)
                for instance in pool.instances.values():
                    instance.stop(StopReason.DELETED, grace=self._limits.stop_grace)
                if not pool.instances:
                    del self._pools[key]

    async def function_deleted(self, account: str, name: str) -> None:
        """Its sessions end, and its instances; returns when nothing of them is left."""
        await self._book.forget_function(account, name)
        pools = [pool for key, pool in self._pools.items() if key[:2] == (account, name) and pool.closed]
        await asyncio.gather(*(i.stopped.wait() for pool in pools for i in list(pool.instances.values())))

    def gauges(self) -> Iterator[FunctionGauges]:
        """What is true of each function now."""
        for (account, name, _), pool in self._pools.items():
            states: dict[State, int] = {}
            for instance in pool.instances.values():
                states[instance.state] = states.get(instance.state, 0) + 1
            yield FunctionGauges(
                account=account,
                function=name,
                instances=states,
                leases=sum(i.leases for i in pool.instances.values()),
                waiting=pool.waiting,
                memory_bytes=sum(i.memory_bytes() for i in pool.instances.values()),
                sessions=sum(len(i.sessions) for i in pool.instances.values()),
            )

    def provision(self, spec: FunctionSpec) -> None:
        """Have the provisioned instances of a function running."""
        if spec.scaling.min_instances:
            with contextlib.suppress(NotFound, AccessDenied, Unavailable):  # deleted or switched off meanwhile
                self._pool(spec).scale()

    # --- sessions ----------------------------------------------------------------------------------------------

    async def pause_session(self, session: Session) -> Session:
        """Keep the files on disk, free memory and processes. Raises Conflict when it can't be paused now."""
        instance = self._pinned.get(session.key)
        if instance is not None and instance.session is None:
            raise Conflict("A session that shares its instance can't be paused; use SESSION_EXCLUSIVE isolation.")
        # In a task of its own: a caller that goes away leaves no session halfway.
        return await asyncio.shield(self._spawn(self._pause(session)))

    async def _pause(self, session: Session) -> Session:
        session = await self._book.move(session, SessionState.PAUSING)
        instance = self._pinned.get(session.key)
        try:
            if instance is not None and instance.usable:
                async with asyncio.timeout(_PAUSE_TIMEOUT):
                    await instance.pause()
        except TimeoutError:
            self._book.put_back(session.key, SessionState.ACTIVE)
            await self._book.persist(session.key)
            raise Conflict(f"Session {session.id} is busy; it was not paused.", code="SessionBusy") from None
        except RoostError as error:
            log.info("session %s: its instance ended while it was paused: %s", session.id, error.message)
        try:
            return await self._book.move(session, SessionState.PAUSED)
        finally:
            self._book.put_back(session.key, SessionState.ACTIVE)  # if it could not be stored

    async def resume_session(self, session: Session) -> Session:
        """Wake it. Its instance keeps its id; memory is not restored by a driver that can't. Raises Conflict."""
        check_session_transition(session, SessionState.RESUMING)
        return await self._resumed(session)

    async def _resumed(self, session: Session) -> Session:
        """The session, resumed once for all who ask. In a task of its own, as a pause."""
        task = self._resuming.get(session.key)
        if task is None:
            task = self._resuming[session.key] = self._spawn(self._resume(session))
            task.add_done_callback(lambda _: self._resuming.pop(session.key))
        return await asyncio.shield(task)

    async def _resume(self, session: Session) -> Session:
        try:
            session = await self._book.move(session, SessionState.RESUMING)
            instance = self._pinned.get(session.key)
            if instance is not None and instance.state is State.PAUSED:
                await instance.resume()
            return await self._book.move(session, SessionState.ACTIVE)
        finally:
            self._book.put_back(session.key, SessionState.PAUSED)  # if it did not come so far

    async def session_ended(self, session: Session) -> None:
        """It expired or was deleted: its own instance ends too."""
        instance = self._pinned.pop(session.key, None)
        if instance is None:
            return
        instance.sessions.discard(session.key)
        if instance.session is not None or exclusive(instance.spec):
            instance.stop(StopReason.SESSION_ENDED, grace=self._limits.stop_grace)
            await instance.stopped.wait()

    # --- the server's own life ---------------------------------------------------------------------------------

    async def adopt(self) -> int:
        """Take over instances that outlived an earlier server; end those that can't be owned. How many were adopted."""
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        adopted: set[str] = set()
        for file in sorted(self.run_dir.glob("*/handle.json")):
            try:
                if id := await self._adopt_one(_read_handle(file)):
                    adopted.add(id)
            except (RoostError, OSError, LookupError, TypeError, AttributeError) as error:
                log.warning("%s: what it tells of is not adopted: %s", file, error)
        try:
            await self._around.driver.sweep(frozenset(adopted))
        except RoostError as error:  # a room that does not end keeps no server from starting
            log.warning("something of the server before is left: %s", error.message)
        for directory in self.run_dir.iterdir():
            if directory.name not in adopted:
                shutil.rmtree(directory, ignore_errors=True)
        return len(adopted)

    async def _adopt_one(self, handle: dict[str, Any]) -> str:
        about = handle.get("instance", {})
        room = await self._around.driver.recover(handle["room"]) if about else None
        if room is None:
            return ""
        with contextlib.suppress(NotFound, AccessDenied):
            spec = self._specs.resolve(about["account"], about["function"], about["version"])
            session = self._book.find((spec.account, spec.name, about["session"])) if about["session"] else None
            free = session is None or session.key not in self._pinned
            if spec.revision == about["revision"] and bool(session) == bool(about["session"]) and free:
                instance = self._new(self._pool(spec), about["id"], spec, session)
                for known in [session] if session else self._book.list(spec.account, spec.name):
                    # The files of a session's own instance are in use there, whatever was noted of it since.
                    if session or (known.instance_id == instance.id and known.state is SessionState.ACTIVE):
                        instance.sessions.add(known.key)
                        self._pinned[known.key] = instance
                self._spawn(instance.run(adopt=room))
                return instance.id
        await room.destroy()
        return ""

    async def close(self) -> None:
        """Stop every instance; returns when nothing of them is left, or it is clear that a room does not end."""
        self._closing = True
        for pool in self._pools.values():
            pool.close(Unavailable("Roost is shutting down.", retry_after=5))
        everyone = self.instances()
        for instance in everyone:
            instance.stop(StopReason.SHUTDOWN, grace=self._limits.stop_grace)
        hooks = [i.spec.pre_stop.timeout_s for i in everyone if i.spec.pre_stop]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.stop_grace + max(hooks, default=0.0) + _CLOSE_MARGIN):
                await asyncio.gather(*(i.stopped.wait() for i in everyone))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            self.run_dir.rmdir()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, RoostError):
            log.error("a background task failed", exc_info=error)


def _slots(spec: FunctionSpec) -> int:
    if spec.sessions.affinity is not Affinity.NONE and spec.runtime is Runtime.CUSTOM:
        return max(spec.concurrency, AFFINITY_SLOTS)
    return spec.concurrency


def _is_up(instance: Instance) -> bool:
    return instance.state in LEASABLE


def _move_on(instance: Instance) -> None:
    """Requests that wait for this instance are placed anew."""
    while instance.waiting:
        future = instance.waiting.popleft()
        if not future.done():
            future.set_exception(_Moved("The session's instance ended."))


def _no_session(function: str, id: str) -> NotFound:
    return NotFound(f"Session {id} of function {function} does not exist.", code="SessionNotFound")


def _read_handle(file: Path) -> dict[str, Any]:
    """What `Instance` wrote; {} when the server was killed in the middle of writing it."""
    try:
        handle = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return handle if isinstance(handle, dict) else {}
