"""All of it, wired: what accepts tasks, what runs them, what shows them."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from roost.functions.catalog import FunctionCatalog
from roost.functions.names import function_arn
from roost.functions.tasks.backlog import Backlog, BacklogLimits
from roost.functions.tasks.endings import Endings
from roost.functions.tasks.feed import TaskFeed
from roost.functions.tasks.outbox import Admit, Outbox, anywhere
from roost.functions.tasks.policy import TaskSettings, settings_of
from roost.functions.tasks.ports import Publisher, Runner
from roost.functions.tasks.queue import TaskQueue
from roost.functions.tasks.recovery import recover
from roost.functions.tasks.service import Retention, TaskService
from roost.functions.tasks.tapes import Tapes
from roost.functions.tasks.worker import TaskWorker
from roost.instances.background import Background
from roost.model.errors import NotFound
from roost.model.task import MAX_DELAY_S, MAX_HOPS, Task, TaskState
from roost.store.store import Store
from roost.store.tasks import Lane

log = logging.getLogger(__name__)

#: More can't have run at once.
_MAX_HELD = 100_000


class AsyncTasks:
    """Tasks of one server: `open` before the data plane accepts any, `start` when it runs, `close` before it ends."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: FunctionCatalog,
        limits: BacklogLimits,
        retention: Retention,
        clock: Callable[[], float],
        publishers: Mapping[str, Publisher],
        ended: Callable[[Task], None] = lambda task: None,
        requests: Callable[[Lane], int] = lambda lane: 0,
        output_bytes: int = 1 << 20,
        admit: Callable[[str, int], None] | None = None,
        outbound: Admit = anywhere,
        most_hops: int = MAX_HOPS,
    ) -> None:
        self._store = store.tasks
        self._catalog = catalog
        self._clock = clock
        self._ended = ended
        self._background = Background()
        self._backlog = Backlog(limits, admit)
        self._feed = TaskFeed()
        self._tapes = Tapes(store.task_outputs, self._feed, limit=output_bytes, clock=clock)
        self._outbox = Outbox(store.task_outbox, publishers, clock=clock, admit=outbound)
        self._held: list[Task] = []
        self._endings = Endings(
            store.tasks,
            self._backlog,
            clock=clock,
            arn=lambda task: function_arn(catalog.region, task.account, task.function, task.qualifier),
            ended=ended,
            changed=lambda task: self._feed.changed(task.key),
            posted=self._outbox.wake,
            most_hops=most_hops,
        )
        self._worker = TaskWorker(
            store=store.tasks,
            backlog=self._backlog,
            specs=catalog,
            settings=self.settings,
            endings=self._endings,
            tapes=self._tapes,
            feed=self._feed,
            clock=clock,
        )
        self.queue = TaskQueue(
            store.tasks,
            self._backlog,
            clock=clock,
            notify=self._worker.wake,
            settings=self.settings,
            stopped=self._stopped,
            requests=requests,
            background=self._background,
        )
        self.service = TaskService(
            store.tasks,
            self._backlog,
            self._worker,
            retention=retention,
            clock=clock,
            stopped=self._stopped,
            outputs=store.task_outputs,
            feed=self._feed,
            requests=requests,
        )

    def settings(self, task: Task) -> TaskSettings:
        """Those of its qualifier, as they are now."""
        try:
            return settings_of(self._catalog.async_invoke.get(task.account, task.function, task.qualifier).config)
        except NotFound:
            return TaskSettings()

    async def interrupted(self) -> frozenset[str]:
        """Instances that ran tasks when the server before this one ended: their handlers may still be at it.

        Only one server has the store open (its lock says so): a task that somebody holds now, a dead one holds.
        """
        self._held = await self._store.held(limit=_MAX_HELD)
        return frozenset(task.instance_id for task in self._held)

    async def open(self, over: Callable[[str], Awaitable[None]]) -> None:
        """Know what waits, and decide on what ran when the server before this one ended. After `interrupted`.

        `over(instance id)` returns when nothing that the former server began there runs any more.
        """
        now = self._clock()
        if late := await self._store.not_later_than(now + MAX_DELAY_S, now=now):
            log.warning("the machine's clock was set back: %d tasks that waited for a later time run now", late)
        self._backlog.restore(await self._store.waiting())
        self._catalog.subscribe(self._changed)
        if self._held:
            log.info("%d tasks ran when the server ended", len(self._held))
            decided = recover(
                self._held,
                self._endings,
                over=over,
                settings=self.settings,
                clock=self._clock,
                chance=random.random,
                notify=self._worker.wake,
            )
            self._background.spawn(decided)

    def start(self, runner: Runner) -> None:
        self._worker.start(runner)
        self._outbox.start()
        self._background.spawn(self.service.run())

    async def close(self, *, drain_s: float) -> None:
        """What runs gets `drain_s` seconds, then it is broken off."""
        await self._worker.close(drain_s=drain_s)
        await self._tapes.close()
        await self._outbox.close()
        await self._background.close()

    def _stopped(self, task: Task) -> None:
        """Somebody had it stopped; the store knows."""
        if task.state is TaskState.STOPPED:
            self._backlog.left((task.account, task.function, task.session))
            self._ended(task)
        self._worker.stop(task.key)
        self._feed.changed(task.key)

    def _changed(self, account: str, function: str) -> None:
        with contextlib.suppress(NotFound):
            self._catalog.get(account, function)
            return
        self._backlog.forget(account, function)
