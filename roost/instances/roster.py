"""Every instance of this server, by pool: started, replaced, made room for and ended; and where sessions are pinned."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roost.instances.background import Background
from roost.instances.instance import Instance
from roost.instances.pool import Pool
from roost.instances.sessions import Key
from roost.instances.surroundings import Surroundings
from roost.isolation.driver import Room
from roost.model.errors import AccessDenied, NotFound, RoostError, Throttled, Unavailable
from roost.model.function import Affinity, FunctionSpec, Runtime
from roost.model.instance import ALIVE, LEASABLE, State, StopReason
from roost.model.session import Session
from roost.telemetry.metrics import FunctionGauges

log = logging.getLogger(__name__)

#: Function Compute: with session affinity an instance takes 200 requests at once, shared by its sessions.
AFFINITY_SLOTS = 200
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


class Moved(RoostError):
    """The instance that a request waited for ended; the request is placed anew."""


class Roster:
    """Every live instance, by pool. `pinned` says which instance a session has, by the session's key."""

    def __init__(
        self,
        *,
        specs: Specs,
        around: Surroundings,
        limits: FleetLimits,
        run_dir: Path,
        admit: Callable[[str, int], None] = lambda account, memory_mb: None,
    ) -> None:
        """`admit` may refuse an account one more instance with so much memory: it raises Throttled."""
        self.run_dir = run_dir
        self.around = around
        self.pinned: dict[Key, Instance] = {}
        self.closing = False
        self._admit = admit
        self._specs = specs
        self._limits = limits
        self._pools: dict[tuple[str, str, str], Pool] = {}
        self._hungry: dict[Pool, None] = {}  # they found the server full, in this order
        self._background = Background()

    # --- pools -------------------------------------------------------------------------------------------------

    def current(self, spec: FunctionSpec) -> Pool | None:
        """The pool of exactly this spec, if it has one."""
        pool = self._pools.get(spec.key)
        return pool if pool is not None and pool.spec is spec else None

    def pool(self, spec: FunctionSpec) -> Pool:
        """The pool of the function's version. Raises NotFound if that is gone, Unavailable when the server stops."""
        if self.closing:
            raise Unavailable("Roost is shutting down.", retry_after=5)
        pool = self._pools.get(spec.key)
        if pool is not None and not pool.closed and (pool.spec is spec or pool.spec == spec):
            return pool
        # What the caller looked up may be older than the last change.
        current = self._specs.resolve(*spec.key)
        if pool is None:
            pool = Pool(current, max_waiting=self._limits.max_waiting, start=lambda p: self.start(p, None))
            self._pools[spec.key] = pool
        elif pool.closed or pool.spec != current:
            pool.update(current)
        return pool

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

    async def emptied(self, account: str, name: str) -> None:
        """Returns when nothing is left of the instances of a deleted function."""
        pools = [pool for key, pool in self._pools.items() if key[:2] == (account, name) and pool.closed]
        await asyncio.gather(*(i.stopped.wait() for pool in pools for i in list(pool.instances.values())))

    def gauges(self) -> Iterator[FunctionGauges]:
        """What is true of each function now, all its versions together."""
        functions: dict[tuple[str, str], list[Pool]] = {}
        for (account, name, _), pool in self._pools.items():
            functions.setdefault((account, name), []).append(pool)
        for (account, name), pools in functions.items():
            instances = [instance for pool in pools for instance in pool.instances.values()]
            yield FunctionGauges(
                account=account,
                function=name,
                instances=Counter(instance.state for instance in instances),
                leases=sum(i.leases for i in instances),
                waiting=sum(pool.waiting for pool in pools),
                memory_bytes=sum(i.memory_bytes() for i in instances),
                sessions=sum(len(i.sessions) for i in instances),
            )

    def provision(self, spec: FunctionSpec) -> None:
        """Have the provisioned instances of a function running."""
        if spec.scaling.min_instances:
            with contextlib.suppress(NotFound, AccessDenied, Unavailable):  # deleted or switched off meanwhile
                self.pool(spec).scale()

    # --- instances ---------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """All that are not stopped, oldest first."""
        every = (i for pool in self._pools.values() for i in pool.instances.values())
        return sorted(every, key=lambda i: i.created)

    def start(self, pool: Pool, session: Session | None) -> Instance | None:
        """Start an instance, ending an idle one elsewhere if the server is full. None: it is full of busy ones.

        Raises Throttled when the account may have no more.
        """
        if self.closing:
            return None
        alive = [i for p in self._pools.values() for i in p.instances.values() if i.state in ALIVE]
        self._make_room_of(pool.spec.account, pool.spec.limits.memory_mb, alive)
        if len(alive) >= self._limits.max_instances:
            idle = [i for i in alive if _is_idle(i)]
            if not idle or len(alive) >= self._limits.max_instances + _OVERLAP:
                if session is None:
                    self._hungry[pool] = None
                return None
            min(idle, key=lambda i: i.idle_since).stop(StopReason.SCALE_IN)
        instance = self.add(pool, f"i-{secrets.token_hex(8)}", pool.spec, session)
        self.run(instance)
        return instance

    def _make_room_of(self, account: str, memory_mb: int, alive: list[Instance]) -> None:
        """End an idle instance of the account if it may have no more. Raises Throttled when all are busy."""
        try:
            self._admit(account, memory_mb)
        except Throttled:
            idle = [i for i in alive if i.spec.account == account and _is_idle(i)]
            if not idle:
                raise
            min(idle, key=lambda i: i.idle_since).stop(StopReason.SCALE_IN)

    def add(self, pool: Pool, id: str, spec: FunctionSpec, session: Session | None) -> Instance:
        """A new member of the pool, not running yet."""
        instance = Instance(
            id=id,
            spec=spec,
            session=session,
            around=self.around,
            on_change=lambda i: self._changed(pool, i),
            on_free=lambda i: self._freed(pool, i),
            slots=_slots(spec),
            app_socket=str(self.run_dir / id / "app.sock"),
        )
        pool.instances[id] = instance
        return instance

    def run(self, instance: Instance, *, adopt: Room | None = None, unsettled: bool = False) -> None:
        """Let it live, in a room of its own or in one that outlived a server. `unsettled`: see `Instance.run`."""
        self._background.spawn(instance.run(adopt=adopt, unsettled=unsettled))

    async def settled(self, instance_id: str) -> None:
        """Return when nothing runs there any more that was begun before it was adopted; it may be gone."""
        for pool in self._pools.values():
            if (instance := pool.instances.get(instance_id)) is not None:
                with contextlib.suppress(RoostError):
                    await instance.settled()
                return

    def pin(self, key: Key, instance: Instance) -> None:
        """The session has this instance from now on."""
        instance.sessions.add(key)
        self.pinned[key] = instance

    def _freed(self, pool: Pool, instance: Instance) -> None:
        """A slot was given back. On the path of every request: mostly nobody has waited for it."""
        if self._hungry or pool.awaits(instance):
            self._changed(pool, instance)

    def _changed(self, pool: Pool, instance: Instance) -> None:
        if instance.state is not State.STOPPED:
            if instance.free_slots > 0:
                pool.started()
                pool.offer(instance)
            elif instance.paused:
                _move_on(instance)
            if self._hungry and instance.leases == 0 and _is_up(instance):
                asyncio.get_running_loop().call_soon(self._feed)
            return
        pool.instances.pop(instance.id, None)
        for key in instance.sessions:
            if self.pinned.get(key) is instance:
                del self.pinned[key]
        # What a former revision did says nothing of the present one, nor to those who wait for it.
        if instance.failure is not None and instance.spec.revision == pool.spec.revision:
            pool.crashed(self.around.clock() - instance.created)
            if not instance.served:
                pool.failed_start(instance, instance.failure)
        _move_on(instance)
        shutil.rmtree(self.run_dir / instance.id, ignore_errors=True)
        if pool.closed and not pool.instances and self._pools.get(pool.spec.key) is pool:
            del self._pools[pool.spec.key]
        if not self.closing:
            pool.scale()
            self._feed()

    def _feed(self) -> None:
        """An instance is idle or has ended: pools that found the server full try again."""
        hungry, self._hungry = self._hungry, {}
        for pool in hungry:
            pool.scale()

    async def close(self) -> None:
        """Stop every instance; returns when nothing of them is left, or it is clear that a room does not end."""
        self.closing = True
        for pool in self._pools.values():
            pool.close(Unavailable("Roost is shutting down.", retry_after=5))
        everyone = self.instances()
        for instance in everyone:
            instance.stop(StopReason.SHUTDOWN, grace=self._limits.stop_grace)
        hooks = [i.spec.pre_stop.timeout_s for i in everyone if i.spec.pre_stop]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.stop_grace + max(hooks, default=0.0) + _CLOSE_MARGIN):
                await asyncio.gather(*(i.stopped.wait() for i in everyone))
        await self._background.close()
        with contextlib.suppress(OSError):
            self.run_dir.rmdir()


def _slots(spec: FunctionSpec) -> int:
    if spec.sessions.affinity is not Affinity.NONE and spec.runtime is Runtime.CUSTOM:
        return max(spec.concurrency, AFFINITY_SLOTS)
    return spec.concurrency


def _is_idle(instance: Instance) -> bool:
    """Nobody misses it."""
    busy = instance.leases or instance.waiting or instance.kept
    return not busy and instance.usable and _is_up(instance)


def _is_up(instance: Instance) -> bool:
    return instance.state in LEASABLE


def _move_on(instance: Instance) -> None:
    """Requests that wait for this instance are placed anew."""
    while instance.waiting:
        future = instance.waiting.popleft()
        if not future.done():
            future.set_exception(Moved("The session's instance ended."))
