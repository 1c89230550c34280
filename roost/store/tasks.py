"""Table `tasks`: asynchronous invocations, from the moment they are accepted until they age out.

What a task may become is `model.task`'s; each verb here reads the record, has it moved there, and writes it back, in
one transaction. A write that names an epoch raises Fenced when the task has gone on without its author.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roost.model import task as model
from roost.model.errors import Conflict, InvalidArgument, NotFound, RoostError
from roost.model.task import Busy, SessionBusy, Task, TaskKey, TaskState, Verdict
from roost.store.database import Connection, Cursor, Database, rows_changed
from roost.store.sealing import Sealer
from roost.store.task_outbox import Letter, post
from roost.store.task_rows import (
    CLAIM,
    COLUMNS,
    HELD,
    INSERT,
    KEY,
    PENDING,
    SELECT,
    UPDATE,
    UPDATE_KNOWN,
    no_task,
    to_changes,
    to_row,
    to_task,
)

#: Rows that one transaction removes: others wait for it.
PRUNE_AT_ONCE = 500

#: (account, function, session): tasks that are started in the order in which they are due.
Lane = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Which tasks of a function, in which order. `token` is where the page before ended."""

    state: TaskState | None = None
    prefix: str = ""
    qualifier: str | None = None
    session: str | None = None
    started_from: float | None = None
    started_to: float | None = None
    descending: bool = True
    limit: int = 20
    token: str = ""
    with_payload: bool = False


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a lane has in store."""

    lane: Lane
    count: int
    due: float  # of its first


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many tasks of a function are in a state, and since when the oldest of them could have been run."""

    account: str
    function: str
    state: TaskState
    count: int
    oldest: float


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The task that has the id of one that came: the `new` one, or one from before; and the tasks that were stopped
    for it."""

    task: Task
    new: bool
    stopped: tuple[Task, ...] = ()


class Tasks:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def enqueue(self, task: Task, payload: bytes, *, busy: Busy = Busy.ENQUEUE, occupied: bool = False) -> Kept:
        """Keep a new task, unless its id is known: then nothing changes.

        `busy` says what is done about other tasks of its session that run or could; `occupied`: the session has other
        work than tasks. What is done and the new task are one change. Raises SessionBusy, Conflict when the id is taken
        by a task that was given other things, NotFound for the function.
        """
        values = _insert(task, payload)

        def kept(connection: Connection, cursor: Cursor) -> Kept:
            return Kept(task=task, new=True) if cursor.rowcount else Kept(task=_known(connection, task), new=False)

        if busy is Busy.ENQUEUE:
            return await self._database.change(INSERT, values, kept)

        def work(connection: Connection) -> Kept:
            if _exists(connection, task.key):
                return Kept(task=_known(connection, task), new=False)
            stopped = _make_way(connection, task, busy, occupied)
            return replace(kept(connection, connection.execute(INSERT, values)), stopped=stopped)

        return await self._database.run(work)

    async def at_work(self, account: str, function: str, *, now: float) -> dict[str, int]:
        """How many tasks each of a function's sessions has that run or could."""

        def work(connection: Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            for which, values in ((f"{PENDING} AND ready <= ?", (now,)), (HELD, ())):
                rows = connection.execute(
                    "SELECT session, count(*) FROM tasks"  # noqa: S608
                    f" WHERE account=? AND function=? AND session <> '' AND {which} GROUP BY session",
                    (account, function, *values),
                )
                for session, count in rows:
                    found[session] = found.get(session, 0) + count
            return found

        return await self._database.run(work, synced=False)

    async def due(self, lanes: Sequence[Lane], *, limit: int) -> list[list[Task]]:
        """The first tasks of each lane, in the order in which they are due, now or later."""

        def work(connection: Connection) -> list[list[Task]]:
            sql = f"{SELECT} WHERE account=? AND function=? AND session=? AND {PENDING} ORDER BY due LIMIT ?"
            return [[to_task(row) for row in connection.execute(sql, (*lane, limit))] for lane in lanes]

        return await self._database.run(work, synced=False)

    async def claim(self, task: Task, *, instance_id: str, now: float) -> tuple[Task, bytes]:
        """Start it: durably Running, in a new epoch, before its payload reaches an instance. Raises Fenced when it is
        not as `task` says any more, NotFound."""
        after = model.begun(task, epoch=task.epoch, instance_id=instance_id, now=now)
        known = (task.epoch, task.state.value)

        def then(connection: Connection, cursor: Cursor) -> tuple[Task, bytes]:
            row = cursor.fetchall()
            if not row:
                raise _gone_on(connection, task)
            return after, row[0][0]

        return await self._database.change(CLAIM, (*to_changes(after), *task.key, *known), then)

    async def heartbeat(self, held: Iterable[tuple[TaskKey, int]], *, now: float) -> list[TaskKey]:
        """Their workers live. Returns those that are theirs no more: taken over, or gone with their function."""
        claims = list(held)

        def work(connection: Connection) -> list[TaskKey]:
            lost = []
            for key, epoch in claims:
                row = connection.execute(
                    f"UPDATE tasks SET heartbeat=?{KEY} AND epoch=? AND {HELD}",  # noqa: S608
                    (now, *key, epoch),
                )
                if not row.rowcount:
                    lost.append(key)
            return lost

        return await self._database.run(work, synced=False)

    async def conclude(
        self,
        task: Task,
        verdict: Verdict,
        *,
        now: float,
        result: bytes | None = None,
        follow: tuple[Task, bytes] | None = None,
        letter: Letter | None = None,
        lost: str = "",
    ) -> Task:
        """End it, or have it wait for another try, as was decided.

        `follow` is the task of its destination, or `letter` the event for it, kept in the same transaction; `lost` is
        why its destination gets neither. Raises
        Fenced when it is not as `task` says any more, NotFound.
        """
        after = model.concluded(task, verdict, epoch=task.epoch, now=now)
        if lost:
            after = model.without_destination(after, lost, now=now)

        def values(ended: Task) -> tuple[Any, ...]:
            return (*to_changes(ended), result, *task.key, task.epoch, task.state.value)

        def check(connection: Connection, cursor: Cursor, *, ended: Task) -> Task:
            if not cursor.rowcount:
                raise _gone_on(connection, task)
            return ended

        def work(connection: Connection) -> Task:
            ended = after
            if follow is not None:
                ended = model.with_destination(after, _follow(connection, *follow))
            if letter is not None:
                ended = replace(after, destination="Pending")
                post(connection, self._sealer, replace(letter, epoch=ended.epoch))
            return check(connection, connection.execute(UPDATE_KNOWN, values(ended)), ended=ended)

        if follow is None and letter is None:
            return await self._database.change(UPDATE_KNOWN, values(after), lambda *found: check(*found, ended=after))
        return await self._database.run(work)

    async def stop(self, key: TaskKey, *, now: float) -> Task:
        """Stopped, or Stopping while a worker has it. Raises NotFound, Fenced when it is over."""
        return await self._change(key, lambda task: model.stopped(task, now=now))

    async def redrive(self, key: TaskKey, *, now: float) -> Task:
        """Enqueued anew. Raises NotFound, Fenced unless it ended without success."""
        return await self._change(key, lambda task: model.redriven(task, now=now), forget_result=True)

    async def get(self, key: TaskKey) -> tuple[Task, bytes, bytes | None]:
        """With its payload and its result. Raises NotFound."""

        def work(connection: Connection) -> tuple[Task, bytes, bytes | None]:
            row = connection.execute(f"SELECT {COLUMNS}, result, payload FROM tasks{KEY}", key).fetchone()  # noqa: S608
            if row is None:
                raise no_task(key)
            return to_task(row), row[-1], row[-2]

        return await self._database.run(work, synced=False)

    async def page(self, account: str, function: str, wanted: TaskFilter) -> tuple[list[tuple[Task, bytes]], str]:
        """A page by the time of acceptance, and the token of the next one, "" at the end. Raises InvalidArgument."""
        sql, values = _query(account, function, wanted)

        def work(connection: Connection) -> tuple[list[tuple[Task, bytes]], str]:
            rows = connection.execute(sql, values).fetchall()
            found = [(to_task(row), row[-1] or b"") for row in rows[: wanted.limit]]
            last = found[-1][0] if len(rows) > wanted.limit else None
            return found, "" if last is None else f"{last.enqueued!r}/{last.id}"

        return await self._database.run(work, synced=False)

    async def not_later_than(self, latest: float, *, now: float) -> int:
        """Have what waits for a time after `latest` wait no more: the machine's clock was ahead when that was set. How
        many there were."""

        return await self._database.change(
            f"UPDATE tasks SET due=?, ready=CASE WHEN ready > ? THEN ? ELSE ready END WHERE {PENDING} AND due > ?",  # noqa: S608
            (now, now, now, latest),
            rows_changed,
        )

    async def waiting(self) -> list[Waiting]:
        """Every lane with tasks that wait for a worker."""

        def work(connection: Connection) -> list[Waiting]:
            rows = connection.execute(
                "SELECT account, function, session, count(*), min(due) FROM tasks"  # noqa: S608
                f" WHERE {PENDING} GROUP BY account, function, session"
            )
            return [Waiting(lane=(row[0], row[1], row[2]), count=row[3], due=row[4]) for row in rows]

        return await self._database.run(work, synced=False)

    async def held(self, *, limit: int) -> list[Task]:
        """Tasks that a worker has, or had when it died."""

        def work(connection: Connection) -> list[Task]:
            return [to_task(row) for row in connection.execute(f"{SELECT} WHERE {HELD} LIMIT ?", (limit,))]

        return await self._database.run(work, synced=False)

    async def tallies(self) -> list[Tally]:
        """Of every function that has tasks which are not finished."""

        def work(connection: Connection) -> list[Tally]:
            return [
                Tally(account=row[0], function=row[1], state=TaskState(row[2]), count=row[3], oldest=row[4])
                for which in (PENDING, HELD)
                for row in connection.execute(
                    "SELECT account, function, state, count(*), min(ready) FROM tasks"  # noqa: S608
                    f" WHERE {which} GROUP BY account, function, state"
                )
            ]

        return await self._database.run(work, synced=False)

    async def prune(self, *, keep: int, ended_before: float) -> int:
        """Remove some of the finished tasks that ended before that time, and of the others all but the latest `keep`.

        How many were removed; to be called again while it is not 0.
        """

        def work(connection: Connection) -> int:
            edge = connection.execute(
                "SELECT ended FROM tasks WHERE ended > 0 ORDER BY ended DESC LIMIT 1 OFFSET ?", (keep,)
            ).fetchone()
            limit = max(ended_before, math.nextafter(edge[0], math.inf) if edge else 0.0)
            return connection.execute(
                "DELETE FROM tasks WHERE (account, function, id) IN"
                " (SELECT account, function, id FROM tasks WHERE ended > 0 AND ended < ? ORDER BY ended LIMIT ?)",
                (limit, PRUNE_AT_ONCE),
            ).rowcount

        return await self._database.run(work, synced=False)

    async def _change(self, key: TaskKey, move: Callable[[Task], Task], *, forget_result: bool = False) -> Task:
        def work(connection: Connection) -> Task:
            task = move(_get(connection, key))
            connection.execute(UPDATE, (*to_changes(task), *task.key))
            if forget_result:
                connection.execute(f"UPDATE tasks SET result=NULL{KEY}", key)  # noqa: S608
            return task

        return await self._database.run(work)


def _at_work(connection: Connection, lane: Lane, now: float) -> list[Task]:
    """A lane's tasks that run or could. Those that their callers want to begin later are no work yet."""
    lane_is = "account=? AND function=? AND session=?"
    found = []
    for which, values in ((f"{PENDING} AND ready <= ?", (*lane, now)), (HELD, lane)):
        rows = connection.execute(f"{SELECT} WHERE {lane_is} AND {which}", values)
        found += [to_task(row) for row in rows]
    return found


def _make_way(connection: Connection, task: Task, busy: Busy, occupied: bool) -> tuple[Task, ...]:
    """Stop what its session works on, or refuse."""
    present = _at_work(connection, (task.account, task.function, task.session), task.enqueued)
    if busy is Busy.REJECT and (present or occupied):
        what = "an instance works on a request of it"
        if present:
            what = f"its task {present[-1].id} is {present[-1].state.value}"  # one that runs comes last
        raise SessionBusy(f"Session {task.session} is busy: {what}.", retry_after=1)
    changed = []
    for one in present:
        after = model.stopped(one, now=task.enqueued, by=task.id)
        if after is not one:
            connection.execute(UPDATE, (*to_changes(after), *after.key))
            changed.append(after)
    return tuple(changed)


def _insert(task: Task, payload: bytes) -> tuple[Any, ...]:
    """The values of INSERT."""
    return (*to_row(task), payload, task.account, task.function)


def _known(connection: Connection, task: Task) -> Task:
    """The one that has its id already. Raises Conflict when that was given other things, and NotFound when there is
    none, for want of the function."""
    row = connection.execute(SELECT + KEY, task.key).fetchone()
    if row is None:
        raise NotFound(f"There is no function {task.function[:80]!r}.", code="FunctionNotFound")
    present = to_task(row)
    if present.digest != task.digest:
        raise Conflict(
            f"There is a task {task.id} already, with another payload, qualifier or session.",
            code="AsyncTaskAlreadyExists",
        )
    return present


def _follow(connection: Connection, task: Task, payload: bytes) -> bool:
    """Whether the destination's task was taken, now or before; not when its function is gone."""
    taken = connection.execute(INSERT, _insert(task, payload)).rowcount
    return bool(taken) or _exists(connection, task.key)


def _exists(connection: Connection, key: TaskKey) -> bool:
    return connection.execute(f"SELECT 1 FROM tasks{KEY}", key).fetchone() is not None  # noqa: S608


def _gone_on(connection: Connection, task: Task) -> RoostError:
    """Why a write that names an epoch and a state found nothing."""
    if not _exists(connection, task.key):
        return no_task(task.key)
    return model.Fenced(f"Task {task.id} has gone on without its worker.")


def _get(connection: Connection, key: TaskKey) -> Task:
    row = connection.execute(SELECT + KEY, key).fetchone()
    if row is None:
        raise no_task(key)
    return to_task(row)


def _query(account: str, function: str, wanted: TaskFilter) -> tuple[str, list[Any]]:
    payload = "payload" if wanted.with_payload else "NULL"
    sql = f"SELECT {COLUMNS}, {payload} FROM tasks WHERE account=? AND function=? AND enqueued>=0"  # noqa: S608
    conditions: list[tuple[str, Any]] = [
        (" AND state=?", wanted.state and wanted.state.value),
        (" AND qualifier=?", wanted.qualifier),
        (" AND session=? AND session <> ''", wanted.session),
        (" AND started>=?", wanted.started_from),
        (" AND started<=? AND started>0", wanted.started_to),
    ]
    every: list[Any] = [account, function]
    for condition, value in conditions:
        if value is not None:
            sql += condition
            every.append(value)
    if wanted.prefix:
        sql += " AND substr(id, 1, ?)=?"
        every += [len(wanted.prefix), wanted.prefix]
    if wanted.token:
        sql += f" AND (enqueued, id) {'<' if wanted.descending else '>'} (?, ?)"
        every += _place(wanted.token)
    direction = "DESC" if wanted.descending else "ASC"
    sql += f" ORDER BY enqueued {direction}, id {direction} LIMIT ?"
    return sql, [*every, wanted.limit + 1]


def _place(token: str) -> tuple[float, str]:
    at, slash, id = token.partition("/")
    try:
        place = float(at)
    except ValueError:
        slash, place = "", 0.0
    if not slash:
        raise InvalidArgument(f"nextToken: {token[:40]!r} is not from an earlier answer.")
    return place, id
