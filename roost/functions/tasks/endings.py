"""Writes down what became of a task, with its destination's task in the same transaction, and sees to what follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from roost.functions.tasks import policy
from roost.functions.tasks.backlog import Backlog
from roost.functions.tasks.destinations import End, follow_up, letter_of, scheme_of
from roost.functions.tasks.policy import Run, TaskSettings
from roost.model.errors import NotFound, StorageFull, Throttled, Unavailable
from roost.model.task import FINISHED, PENDING, Fenced, Task, TaskState, Verdict
from roost.store.task_outbox import Letter
from roost.store.tasks import Lane, Tasks

log = logging.getLogger(__name__)

#: Between two tries to write while the store can't take it (a full disk): the outcome is not lost as long as we live.
_PAUSE_S = 1.0
_TOO_MANY = "{} invocations led to this one, each started by the one before: {} is not started"


class Endings:
    """`arn` names a task's function. `ended` is told of every task that is over, `changed` of each whose record is
    another now; `posted` is called when there is something in the outbox. No task follows from one that `most_hops`
    invocations led to."""

    def __init__(
        self,
        store: Tasks,
        backlog: Backlog,
        *,
        clock: Callable[[], float],
        arn: Callable[[Task], str],
        ended: Callable[[Task], None],
        changed: Callable[[Task], None],
        posted: Callable[[], None],
        most_hops: int,
    ) -> None:
        self._most_hops = most_hops
        self._store = store
        self._backlog = backlog
        self._clock = clock
        self._arn = arn
        self._ended = ended
        self._changed = changed
        self._posted = posted

    async def conclude(self, lane: Lane, task: Task, run: Run, verdict: Verdict, settings: TaskSettings) -> None:
        """Returns when it is durable, or when the task has gone on without us."""
        while True:
            try:
                after, follow = await self._write(task, run, verdict, settings)
                break
            except NotFound:
                return  # it went with its function
            except Fenced:
                again = await self._stopping_now(task)
                if again is None:
                    log.warning("task %s/%s went on without its worker", task.function, task.id)
                    return
                task = again
                verdict = policy.after(task, run, settings, now=self._clock(), chance=0.0, stopping=True)
            except (StorageFull, Throttled, Unavailable) as error:
                log.warning("task %s/%s: its end can't be stored yet: %s", task.function, task.id, error.message)
                await asyncio.sleep(_PAUSE_S)
        self._count(lane, task, after)
        self._changed(after)
        if after.state in FINISHED:
            self._ended(after)
        if after.destination == "Pending":
            self._posted()
        if follow is not None:
            self._backlog.returned((follow.account, follow.function, follow.session), follow.due)

    async def _write(self, task: Task, run: Run, verdict: Verdict, settings: TaskSettings) -> tuple[Task, Task | None]:
        now = self._clock()
        follow: tuple[Task, bytes] | None = None
        letter: Letter | None = None
        lost = ""
        to = settings.destination(verdict.state)
        if to:
            _, payload, _ = await self._store.get(task.key)
            end = End(task=task, payload=payload, run=run, verdict=verdict, arn=self._arn(task), now=now)
            if scheme_of(to):
                letter = letter_of(end, to=to)
            else:
                follow = follow_up(end, to=to, most_hops=self._most_hops)
                lost = "" if follow is not None else _TOO_MANY.format(task.hops, to)
        after = await self._store.conclude(
            task, verdict, now=now, result=run.result, follow=follow, letter=letter, lost=lost
        )
        taken = follow is not None and after.destination == "Succeeded"
        return after, follow[0] if follow is not None and taken else None

    async def _stopping_now(self, task: Task) -> Task | None:
        """The record, if what has happened to it since is that somebody asked to stop it."""
        if task.state is not TaskState.RUNNING:
            return None
        try:
            present, _, _ = await self._store.get(task.key)
        except NotFound:
            return None
        return present if present.state is TaskState.STOPPING and present.epoch == task.epoch else None

    def _count(self, lane: Lane, before: Task, after: Task) -> None:
        waits = after.state in PENDING
        if before.state in PENDING:
            self._backlog.added(lane, after.due) if waits else self._backlog.left(lane)
        elif waits:
            self._backlog.returned(lane, after.due)
