"""Keeps one task for every enabled trigger, as the triggers are now."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from roost.functions.catalog import FunctionCatalog
from roost.functions.tasks.queue import TaskQueue
from roost.functions.triggers.kinds import is_enabled
from roost.model.errors import NotFound, RoostError
from roost.store.triggers import TriggerRecord
from roost.triggers.delivery import FunctionDelivery
from roost.triggers.ports import Factory, Invoker
from roost.triggers.status import Statuses, TriggerStatus

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
#: A source that has run for so long is tried again soon when it fails.
_GOOD_S = 120.0


@dataclass(eq=False)
class _Place:
    """Where a trigger's sources run, one at a time: the next begins when the one before has ended."""

    record: TriggerRecord | None = None  # what runs
    task: asyncio.Task[None] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


async def _as_it_is(record: TriggerRecord) -> TriggerRecord:
    return record


class TriggerManager:
    """`start` when functions can be invoked, `close` before that ends. `admit` gives a trigger with addresses that
    may be connected to."""

    def __init__(
        self,
        *,
        catalog: FunctionCatalog,
        queue: TaskQueue,
        invoker: Invoker,
        factories: Mapping[str, Factory],
        statuses: Statuses,
        admit: Callable[[TriggerRecord], Awaitable[TriggerRecord]] = _as_it_is,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._catalog = catalog
        self._queue = queue
        self._invoker = invoker
        self._factories = factories
        self._statuses = statuses
        self._admit = admit
        self._chance = chance
        self._functions: dict[tuple[str, str], dict[str, _Place]] = {}  # then by the trigger's id
        self._ending: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        self._unsubscribe = self._catalog.subscribe(self._changed)
        for account, function in self._catalog.names():
            self._changed(account, function)

    async def close(self, *, grace_s: float) -> None:
        """Tell every source to end; one that has not within `grace_s` is left. May be called again."""
        self._unsubscribe()
        self._unsubscribe = lambda: None
        for places in self._functions.values():
            for place in places.values():
                self._stop(place)
        self._functions.clear()
        if self._ending:
            _, left = await asyncio.wait(self._ending, timeout=grace_s)
            if left:
                log.warning("%d triggers did not end within %g seconds", len(left), grace_s)

    def delivery(self, record: TriggerRecord) -> FunctionDelivery:
        """The way to a trigger's function."""
        return FunctionDelivery(
            record,
            specs=self._catalog,
            invoker=self._invoker,
            queue=self._queue,
            status=self._statuses.of(record),
        )

    # -- what is to run

    def _changed(self, account: str, function: str) -> None:
        try:
            triggers = self._catalog.triggers.list(account, function)
        except NotFound:
            triggers = []
        wanted = {record.id: record for record in triggers}
        places = self._functions.setdefault((account, function), {})
        for trigger_id in [one for one in places if one not in wanted]:
            self._stop(places.pop(trigger_id))
            self._statuses.forget(trigger_id)
        for record in triggers:
            if record.type in self._factories:
                self._follow(places.setdefault(record.id, _Place()), record)
        if not places:
            del self._functions[account, function]

    def _follow(self, place: _Place, record: TriggerRecord) -> None:
        if place.record == record:
            return
        self._stop(place)
        status = self._statuses.of(record)
        if is_enabled(record):
            place.record = record
            place.task = asyncio.get_running_loop().create_task(self._serve(place, record, status))

    def _stop(self, place: _Place) -> None:
        task, place.task, place.record = place.task, None, None
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    # -- one trigger

    async def _serve(self, place: _Place, record: TriggerRecord, status: TriggerStatus) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        async with place.turn:
            while True:
                began = loop.time()
                await self._once(record, status)
                if loop.time() - began > _GOOD_S:
                    pause_s = _FIRST_PAUSE_S
                await asyncio.sleep(pause_s * (0.75 + self._chance() / 2))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _once(self, record: TriggerRecord, status: TriggerStatus) -> None:
        """Until its source ends, which it should not."""
        try:
            admitted = await self._admit(record)  # each time: what a name leads to changes
            await self._factories[record.type](admitted).run(self.delivery(record), status)
            status.trouble("The source has ended.")
        except RoostError as error:
            status.trouble(error.message)
        except Exception as error:
            status.trouble(f"{type(error).__name__}: {error}")
            log.warning("trigger %s of %s/%s: %s", record.name, record.account, record.function, status.last_error)
            log.debug("trigger %s", record.id, exc_info=True)  # a client's error may hold its password
        finally:
            status.stopped()
