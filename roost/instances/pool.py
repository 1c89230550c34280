"""The instances of one function version, and the requests that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from roost.instances.decide import to_start
from roost.instances.instance import Instance
from roost.model.errors import RoostError, Throttled
from roost.model.function import Affinity, FunctionSpec
from roost.model.instance import State, StopReason

_STARTING = (State.STARTING, State.RESUMING)
#: Provisioned instances that crash are started again after a pause that doubles up to the longest; one that lived
#: longer than that ends the series.
_REST_S = 0.5
_REST_MAX_S = 60.0

Queue = deque[asyncio.Future[Instance]]


class Pool:
    """Interchangeable instances of `spec`. `start(spec)` makes one more (registered here before it returns).

    Requests that don't care where they run are served oldest first, on the busiest instance with a free slot, so
    that the others can go idle.
    """

    def __init__(self, spec: FunctionSpec, *, max_waiting: int, start: Callable[[Pool], Instance | None]) -> None:
        self.spec = spec
        self.instances: dict[str, Instance] = {}
        self._waiting: Queue = deque()
        self._max_waiting = max_waiting
        self._start = start
        self._closed: RoostError | None = None
        self._failed_starts = 0  # since the last good one
        self._crashes = 0  # in a row
        self._rest: asyncio.TimerHandle | None = None

    # --- leases ------------------------------------------------------------------------------------------------

    async def any_instance(self, timeout_s: float) -> tuple[Instance, bool]:
        """A slot on any instance, and whether it had to be waited for. The slot is taken."""
        instance = self._best() if not self.waiting else None
        if instance is not None:
            instance.take()
            return instance, False
        if not self.spec.scaling.on_demand and self.spec.scaling.min_instances == 0:
            raise Throttled(f"Function {self.spec.name} starts no instances on demand and has none provisioned.")
        future = self._join(self._waiting, self._max_waiting)
        self.scale()
        return await self._wait(future, timeout_s), True

    def at_once(self) -> Instance | None:
        """An instance that takes a request now, without a thaw; the slot is not taken yet. None: `any_instance`."""
        if self._waiting:
            return None
        best: Instance | None = None
        for instance in self.instances.values():
            busier = best is None or (instance.leases, -instance.created) > (best.leases, -best.created)
            if busier and self.takes_at_once(instance) and self._shared(instance):
                best = instance
        return best

    def takes_at_once(self, instance: Instance) -> bool:
        """Whether a request that belongs there need not wait."""
        current = instance.ready and instance.spec.revision == self.spec.revision
        return current and instance.free_slots > 0 and not instance.waiting

    async def this_instance(self, instance: Instance, timeout_s: float) -> bool:
        """A slot on the instance that a session is pinned to; True if it had to be waited for. The slot is taken."""
        if instance.free_slots > 0 and not instance.waiting:
            instance.take()
            return False
        await self._wait(self._join(instance.waiting, self._max_waiting), timeout_s)
        return True

    def _join(self, queue: Queue, limit: int) -> asyncio.Future[Instance]:
        if self._closed is not None:
            raise self._closed
        if len(queue) >= limit:
            _drop_done(queue)
        if len(queue) >= limit:
            raise Throttled(f"Too many requests wait for function {self.spec.name}.", retry_after=1)
        future: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()
        queue.append(future)
        return future

    async def _wait(self, future: asyncio.Future[Instance], timeout_s: float) -> Instance:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            _forget(future)
            raise Throttled(
                f"No instance of function {self.spec.name} was free within {timeout_s:g} seconds.", retry_after=1
            ) from None
        except asyncio.CancelledError:
            _forget(future)
            raise

    def awaits(self, instance: Instance) -> bool:
        """Whether a slot of the instance that becomes free may be somebody's."""
        return bool(self._waiting or instance.waiting)

    def offer(self, instance: Instance) -> None:
        """Give the instance's free slots to those who wait: first to those pinned to it, then to anyone."""
        while instance.free_slots > 0:
            future = _next(instance.waiting)
            if future is None and self._shared(instance):
                future = _next(self._waiting)
            if future is None:
                return
            instance.take()
            future.set_result(instance)

    def _shared(self, instance: Instance) -> bool:
        """Whether a request without a session may run there.

        With an MCP server such a request becomes a session (its reply names it), so there must be room for one more.
        """
        if instance.session is not None or instance.spec.revision != self.spec.revision:
            return False
        if instance.spec.exclusive:
            return not instance.sessions and not (instance.leases and _by_session(instance.spec))
        return not instance.sessions or len(instance.sessions) < instance.spec.sessions.sessions_per_instance

    def _best(self) -> Instance | None:
        free = [i for i in self.instances.values() if i.free_slots > 0 and self._shared(i)]
        return max(free, key=lambda i: (i.ready, i.leases, -i.created), default=None)

    # --- size --------------------------------------------------------------------------------------------------

    def scale(self) -> None:
        """Start what is missing. After a failed start one at a time, until one succeeds: the others would fail too."""
        if self._closed is not None:
            return
        mine = [i for i in self.instances.values() if i.usable]
        shared = [i for i in mine if self._shared(i)]
        starting = sum(i.state in _STARTING for i in shared)
        count = to_start(
            waiting=self.waiting if self.spec.scaling.on_demand else 0,
            starting=starting,
            alive=len(shared),
            slots=self.slots(),
            minimum=self.spec.scaling.min_instances if self._rest is None else 0,
            maximum=self.spec.scaling.max_instances - (len(mine) - len(shared)),
        )
        if self._failed_starts:
            count = min(count, max(0, 1 - starting))
        for _ in range(count):
            try:
                if self._start(self) is None:
                    break
            except Throttled as refused:
                # The account may have no more. Those that it has serve who waits, if there are any.
                if not any(i.usable and self._shared(i) for i in self.instances.values()):
                    _fail(self._waiting, len(self._waiting), refused)
                break
        self._keep()

    def _keep(self) -> None:
        """Mark the provisioned ones: oldest first, up to the minimum."""
        shared = sorted((i for i in self.instances.values() if i.usable and self._shared(i)), key=lambda i: i.created)
        for number, instance in enumerate(shared):
            instance.keep(number < self.spec.scaling.min_instances)

    def slots(self) -> int:
        """Concurrent requests that one instance takes."""
        return self.spec.concurrency

    def update(self, spec: FunctionSpec) -> None:
        """The function changed: instances of another revision take no new requests and end after their last."""
        if spec.revision != self.spec.revision:
            self._failed_starts = self._crashes = 0
            self._stop_resting()
        self._closed = None
        self.spec = spec
        for instance in list(self.instances.values()):
            if instance.spec.revision == spec.revision:
                instance.adjust(spec)  # how long it may idle, and other things that need no new room
            elif instance.usable:
                instance.stop(StopReason.UPDATED)
        self.scale()

    def started(self) -> None:
        """An instance is up: starts no longer go one at a time."""
        if self._failed_starts:
            self._failed_starts = 0
            self.scale()

    def failed_start(self, instance: Instance, error: RoostError) -> None:
        """An instance did not start: those it was started for get the reason, so that no start is retried for ever.

        When no other can serve them, everyone who waits gets it: each would only have seen one more failed start.
        """
        _fail(instance.waiting, len(instance.waiting), error)
        if instance.session is not None or instance.sessions:
            return
        self._failed_starts += 1
        others = any(i.usable and self._shared(i) for i in self.instances.values())
        _fail(self._waiting, instance.slots if others else len(self._waiting), error)

    def crashed(self, lived_s: float) -> None:
        """An instance ended by itself: provisioned ones are not started again at once."""
        self._crashes = 1 if lived_s > _REST_MAX_S else self._crashes + 1
        if self.spec.scaling.min_instances and self._rest is None and self._closed is None:
            pause = min(_REST_S * 2 ** min(self._crashes, 10), _REST_MAX_S)
            self._rest = asyncio.get_running_loop().call_later(pause, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self.scale()

    def _stop_resting(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def close(self, error: RoostError) -> None:
        """Start nothing any more; who waits, and who comes, gets `error`. `update` opens it again."""
        self._closed = error
        self._stop_resting()
        _fail(self._waiting, len(self._waiting), error)

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def waiting(self) -> int:
        """Requests that have no instance yet."""
        return sum(not future.done() for future in self._waiting)


def _by_session(spec: FunctionSpec) -> bool:
    return spec.sessions.affinity is not Affinity.NONE


def _next(queue: Queue) -> asyncio.Future[Instance] | None:
    while queue:
        future = queue.popleft()
        if not future.done():
            return future
    return None


def _fail(queue: Queue, count: int, error: RoostError) -> None:
    for _ in range(count):
        if (future := _next(queue)) is not None:
            future.set_exception(error)


def _drop_done(queue: Queue) -> None:
    alive = [future for future in queue if not future.done()]
    queue.clear()
    queue.extend(alive)


def _forget(future: asyncio.Future[Instance]) -> None:
    """A request stopped waiting: a slot that it was given in the same moment goes to the next one."""
    if not future.done():
        future.cancel()
    elif not future.cancelled() and future.exception() is None:
        future.result().give_back()
