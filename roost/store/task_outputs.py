"""Table `task_outputs`: what tasks put out and report while they run, bounded for each task.

Rows are numbered as they came. They are written in batches, without waiting for the disk: the death of the process
loses what had not been handed over yet, a power cut perhaps a little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from roost.model.task import FINISHED, Task, TaskKey
from roost.store.database import Connection, Database
from roost.store.task_rows import KEY, SELECT, no_task, to_task

_TASK = "account=? AND function=? AND task=?"
#: Of the bound, what reports of progress may take up beside the output.
PROGRESS_SHARE = 0.25


class Kind(StrEnum):
    OUTPUT = "output"
    PROGRESS = "progress"  # JSON
    CUT = "cut"  # output beyond the bound was left out


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row. `number` is its place among the task's, 0 while it has none."""

    kind: Kind
    attempt: int
    at: float
    data: bytes
    number: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What a task has there, so that its writer need not count it each time."""

    number: int  # the last one's
    output: int  # bytes
    progress: int
    report: int  # number of the last progress, 0 for none
    cut: bool


class TaskOutputs:
    """`limit`: bytes of output that are kept of a task."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self, key: TaskKey, epoch: int, entries: Sequence[Entry], used: Used | None, *, limit: int
    ) -> Used | None:
        """Write them down; what the task has then. None: it has gone on without its worker, and nothing was written.

        `used` is the answer to the writer's last call, None at its first.
        """

        def work(connection: Connection) -> Used | None:
            alive = "SELECT 1 FROM tasks WHERE account=? AND function=? AND id=? AND epoch=?"
            if connection.execute(alive, (*key, epoch)).fetchone() is None:
                return None
            now = used or _used(connection, key)
            for entry in entries:
                now = _append(connection, key, entry, now, limit)
            return now

        return await self._database.run(work, synced=False)

    async def after(self, key: TaskKey, number: int, *, limit: int) -> tuple[Task, bytes | None, list[Entry]]:
        """The task, its result once it has ended, and its next rows after that number; all as of one moment.

        Raises NotFound.
        """

        def work(connection: Connection) -> tuple[Task, bytes | None, list[Entry]]:
            row = connection.execute(SELECT + KEY, key).fetchone()
            if row is None:
                raise no_task(key)
            task, result = to_task(row), None
            if task.state in FINISHED:
                result = connection.execute(f"SELECT result FROM tasks{KEY}", key).fetchone()[0]  # noqa: S608
            rows = connection.execute(
                "SELECT number, attempt, at, kind, data FROM task_outputs"  # noqa: S608
                f" WHERE {_TASK} AND number > ? ORDER BY number LIMIT ?",
                (*key, number, limit),
            )
            found = [Entry(number=row[0], attempt=row[1], at=row[2], kind=Kind(row[3]), data=row[4]) for row in rows]
            return task, result, found

        return await self._database.run(work, synced=False)

    async def progress(self, key: TaskKey) -> Entry | None:
        """The last report."""

        def work(connection: Connection) -> Entry | None:
            row = connection.execute(
                "SELECT number, attempt, at, data FROM task_outputs"  # noqa: S608
                f" WHERE {_TASK} AND kind='progress' ORDER BY number DESC LIMIT 1",
                key,
            ).fetchone()
            return row and Entry(number=row[0], attempt=row[1], at=row[2], kind=Kind.PROGRESS, data=row[3])

        return await self._database.run(work, synced=False)


def _append(connection: Connection, key: TaskKey, entry: Entry, used: Used, limit: int) -> Used:
    data, size = entry.data, len(entry.data)
    if entry.kind is Kind.PROGRESS:
        if used.report and used.progress + size > limit * PROGRESS_SHARE:
            # There are too many: of the latest ones only the last is kept.
            connection.execute(f"DELETE FROM task_outputs WHERE {_TASK} AND number=?", (*key, used.report))  # noqa: S608
        number = _insert(connection, key, entry, used.number)
        return replace(used, number=number, report=number, progress=used.progress + size)
    if used.cut:
        return used
    room = limit - used.output
    if room > 0:
        number = _insert(connection, key, replace(entry, data=data[:room]), used.number)
        used = replace(used, number=number, output=used.output + min(size, room))
    if size > room:
        number = _insert(connection, key, replace(entry, kind=Kind.CUT, data=b""), used.number)
        used = replace(used, number=number, cut=True)
    return used


def _insert(connection: Connection, key: TaskKey, entry: Entry, last: int) -> int:
    connection.execute(
        "INSERT INTO task_outputs (account, function, task, number, attempt, at, kind, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, last + 1, entry.attempt, entry.at, entry.kind.value, entry.data),
    )
    return last + 1


def _used(connection: Connection, key: TaskKey) -> Used:
    rows = connection.execute(
        f"SELECT kind, max(number), sum(length(data)) FROM task_outputs WHERE {_TASK} GROUP BY kind",  # noqa: S608
        key,
    )
    found = {row[0]: (int(row[1]), int(row[2])) for row in rows}
    output, progress = found.get("output", (0, 0)), found.get("progress", (0, 0))
    return Used(
        number=max((number for number, _ in found.values()), default=0),
        output=output[1],
        progress=progress[1],
        report=progress[0],
        cut="cut" in found,
    )
