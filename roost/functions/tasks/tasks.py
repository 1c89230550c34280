"""All of it, wired: what accepts tasks, what runs them, what shows them."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable

from roost.functions.catalog import FunctionCatalog
from roost.functions.names import function_arn
from roost.functions.tasks.backlog import Backlog, BacklogLimits
from roost.functions.tasks.endings import Endings
from roost.functions.tasks.policy import TaskSettings, settings_of
from roost.functions.tasks.ports import Runner
from roost.functions.tasks.queue import TaskQueue
from roost.functions.tasks.recovery import recover
from roost.functions.tasks.service import Retention, TaskService
from roost.functions.tasks.worker import TaskWorker
from roost.instances.background import Background
from roost.model.errors import NotFound
from roost.model.task import Task
from roost.store.tasks import Tasks

log = logging.getLogger(__name__)

#: More can't have run at once.
_MAX_HELD = 100_000


class AsyncTasks:
    """Tasks of one server: `open` before the data plane accepts any, `start` when it runs, `close` before it ends."""

    def __init__(
        self,
        *,
        store: Tasks,
        catalog: FunctionCatalog,
        limits: BacklogLimits,
        retention: Retention,
        clock: Callable[[], float],
        ended: Callable[[Task], None] = lambda task: None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._background = Background()
        self._backlog = Backlog(limits)
        self._endings = Endings(
            store,
            self._backlog,
            clock=clock,
            arn=lambda task: function_arn(catalog.region, task.account, task.function, task.qualifier),
            ended=ended,
        )
        self._worker = TaskWorker(
            store=store,
            backlog=self._backlog,
            specs=catalog,
            settings=self.settings,
            endings=self._endings,
            clock=clock,
        )
        self.queue = TaskQueue(store, self._backlog, clock=clock, notify=self._worker.wake)
        self.service = TaskService(store, self._backlog, self._worker, retention=retention, clock=clock, ended=ended)

    def settings(self, task: Task) -> TaskSettings:
        """Those of its qualifier, as they are now."""
        try:
            return settings_of(self._catalog.async_invoke.get(task.account, task.function, task.qualifier).config)
        except NotFound:
            return TaskSettings()

    async def open(self) -> None:
        """Know what waits, and decide on what ran when the server before this one ended.

        Only one server has the store open (its lock says so): a task that somebody holds now, a dead one holds.
        """
        held = await self._store.held(limit=_MAX_HELD)
        self._backlog.restore(await self._store.waiting())
        self._catalog.subscribe(self._changed)
        if held:
            log.info("%d tasks ran when the server ended", len(held))
            decided = recover(
                held,
                self._endings,
                settings=self.settings,
                clock=self._clock,
                chance=random.random,
                notify=self._worker.wake,
            )
            self._background.spawn(decided)

    def start(self, runner: Runner) -> None:
        self._worker.start(runner)
        self._background.spawn(self.service.run())

    async def close(self, *, drain_s: float) -> None:
        """What runs gets `drain_s` seconds, then it is broken off."""
        await self._worker.close(drain_s=drain_s)
        await self._background.close()

    def _changed(self, account: str, function: str) -> None:
        with contextlib.suppress(NotFound):
            self._catalog.get(account, function)
            return
        self._backlog.forget(account, function)
