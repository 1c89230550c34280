"""Tasks as an API's caller sees them, and their upkeep: listed, stopped, retried, counted, aged out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass

from roost.functions.tasks.backlog import Backlog
from roost.functions.tasks.feed import TaskFeed
from roost.functions.tasks.watching import Moment, Place, watch
from roost.functions.tasks.worker import TaskWorker
from roost.model.errors import RoostError
from roost.model.task import PENDING, Task
from roost.store.task_outputs import Entry, TaskOutputs
from roost.store.tasks import Lane, Tally, TaskFilter, Tasks
from roost.telemetry.metrics import TaskGauges

log = logging.getLogger(__name__)

_DAY_S = 86400.0
_UPKEEP_S = 5.0
_BETWEEN_BATCHES_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long finished tasks are kept: both bounds hold."""

    count: int = 100_000
    days: float = 7.0


@dataclass(frozen=True, kw_only=True)
class SessionWork:
    """Tasks that run or could, and requests that an instance works on; those of running tasks are among them."""

    tasks: int
    requests: int

    @property
    def busy(self) -> bool:
        return bool(self.tasks or self.requests)


class TaskService:
    """The verbs of the API."""

    def __init__(
        self,
        store: Tasks,
        backlog: Backlog,
        worker: TaskWorker,
        *,
        retention: Retention,
        clock: Callable[[], float],
        stopped: Callable[[Task], None],
        outputs: TaskOutputs,
        feed: TaskFeed,
        requests: Callable[[Lane], int],
    ) -> None:
        self._store = store
        self._backlog = backlog
        self._worker = worker
        self._retention = retention
        self._clock = clock
        self._stopped = stopped
        self._outputs = outputs
        self._feed = feed
        self._requests = requests
        self._tallies: Sequence[Tally] = ()

    async def get(self, account: str, function: str, task_id: str) -> tuple[Task, bytes, bytes | None]:
        """With its payload and its result. Raises NotFound."""
        return await self._store.get((account, function, task_id))

    async def page(self, account: str, function: str, wanted: TaskFilter) -> tuple[list[tuple[Task, bytes]], str]:
        """A page and the token of the next one. Raises InvalidArgument."""
        return await self._store.page(account, function, wanted)

    async def stop(self, account: str, function: str, task_id: str) -> Task:
        """Raises NotFound, Conflict when it is over."""
        key = (account, function, task_id)
        task = await self._store.stop(key, now=self._clock())
        self._stopped(task)
        return task

    async def retry(self, account: str, function: str, task_id: str) -> Task:
        """Enqueue anew a task that ended without success. Raises NotFound, Conflict, Throttled."""
        key = (account, function, task_id)
        present, _, _ = await self._store.get(key)
        lane = (account, function, present.session)
        self._backlog.reserve(lane)
        try:
            task = await self._store.redrive(key, now=self._clock())
        except Exception:
            self._backlog.left(lane)
            raise
        self._backlog.added(lane, task.due)
        self._worker.wake()
        self._feed.changed(key)
        return task

    async def progress(self, account: str, function: str, task_id: str) -> Entry | None:
        """What it reported last."""
        return await self._outputs.progress((account, function, task_id))

    async def work_of(self, account: str, function: str, sessions: Collection[str]) -> list[SessionWork]:
        """What each of these sessions is busy with."""
        tasks = await self._store.at_work(account, function, now=self._clock()) if sessions else {}
        return [
            SessionWork(tasks=tasks.get(session, 0), requests=self._requests((account, function, session)))
            for session in sessions
        ]

    def watch(self, account: str, function: str, task_id: str, place: Place) -> AsyncGenerator[Moment | None, None]:
        """What happens to a task, from `place` on to its end; None now and then, while nothing does.

        Raises NotFound when it is gone, Throttled when too many watch."""
        key = (account, function, task_id)
        return watch(self._outputs, self._feed, key, place)

    def gauges(self) -> list[TaskGauges]:
        """What is not finished, as of the last upkeep."""
        by_function: dict[tuple[str, str], list[Tally]] = {}
        for tally in self._tallies:
            by_function.setdefault((tally.account, tally.function), []).append(tally)
        return [
            TaskGauges(
                account=account,
                function=function,
                tasks={tally.state.value: tally.count for tally in tallies},
                oldest_s=max([0.0, *(self._clock() - one.oldest for one in tallies if one.state in PENDING)]),
            )
            for (account, function), tallies in by_function.items()
        ]

    async def run(self) -> None:
        """Upkeep, until it is cancelled."""
        while True:
            try:
                await self._prune()
                self._tallies = await self._store.tallies()
            except RoostError as error:
                log.warning("upkeep of tasks failed: %s", error.message)
            await asyncio.sleep(_UPKEEP_S)

    async def _prune(self) -> None:
        before = self._clock() - self._retention.days * _DAY_S
        gone = 1
        while gone:
            gone = await self._store.prune(keep=self._retention.count, ended_before=before)
            await asyncio.sleep(_BETWEEN_BATCHES_S)  # others write meanwhile
