"""Table `task_outbox`: events about tasks that have ended, until their destinations have them.

A letter is posted in the transaction that ends its task, and goes in the one that writes down in the task's record what
became of it. In between it may be delivered more often than once, always with the same id.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter

from roost.model import task as model
from roost.store.database import Connection, Database, rows_changed
from roost.store.sealed import LETTER
from roost.store.sealing import Sealer
from roost.store.task_rows import KEY, SELECT, UPDATE, to_changes, to_task

_NAMES = (
    "id", "account", "function", "task", "epoch", "destination", "created", "due", "attempts", "error", "body",
)  # fmt: skip
_VALUES = attrgetter(*_NAMES)
_COLUMNS = ", ".join(_NAMES)
_INSERT = f"INSERT INTO task_outbox ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))}) ON CONFLICT DO NOTHING"  # noqa: S608


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """An event for a destination."""

    id: str
    account: str
    function: str
    task: str
    epoch: int = 0
    destination: str
    created: float
    due: float
    attempts: int = 0
    error: str = ""
    body: bytes


def post(connection: Connection, sealer: Sealer, letter: Letter) -> None:
    """Part of another change."""
    sealed = replace(letter, destination=LETTER.seal(sealer, letter.destination, letter.id))
    connection.execute(_INSERT, _VALUES(sealed))


class TaskOutbox:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def due(self, *, now: float, limit: int) -> tuple[list[Letter], float | None]:
        """Those that are due, and when the first of the others is."""

        def work(connection: Connection) -> tuple[list[Letter], float | None]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM task_outbox WHERE due <= ? ORDER BY due LIMIT ?",  # noqa: S608
                (now, limit),
            ).fetchall()
            later = connection.execute("SELECT min(due) FROM task_outbox WHERE due > ?", (now,)).fetchone()
            letters = [Letter(**dict(zip(_NAMES, row, strict=True))) for row in rows]
            return [self._opened(letter) for letter in letters], later[0]

        return await self._database.run(work, synced=False)

    async def again(self, letter: Letter, *, due: float, error: str) -> None:
        """It was not taken, and is tried again."""
        values = (due, letter.attempts + 1, error, letter.id)

        update = "UPDATE task_outbox SET due=?, attempts=?, error=? WHERE id=?"
        await self._database.change(update, values, rows_changed, synced=False)

    async def done(self, letter: Letter, *, now: float, taken: bool, detail: str) -> None:
        """It was taken, or never will be: gone, and written down in the task's record, if that is still there."""
        key = (letter.account, letter.function, letter.task)

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM task_outbox WHERE id=?", (letter.id,))
            row = connection.execute(SELECT + KEY, key).fetchone()
            if row is None:
                return
            after = model.delivered(to_task(row), epoch=letter.epoch, now=now, taken=taken, detail=detail)
            if after is not None:
                connection.execute(UPDATE, (*to_changes(after), *after.key))

        await self._database.run(work)

    async def not_later_than(self, latest: float, *, now: float) -> None:
        """Have what waits for a time after `latest` wait no more: the machine's clock was ahead when that was set."""
        update = "UPDATE task_outbox SET due=? WHERE due > ?"
        await self._database.change(update, (now, latest), rows_changed, synced=False)

    async def waiting(self) -> int:
        """How many there are."""

        def work(connection: Connection) -> int:
            return int(connection.execute("SELECT count(*) FROM task_outbox").fetchone()[0])

        return await self._database.run(work, synced=False)

    def _opened(self, letter: Letter) -> Letter:
        return replace(letter, destination=LETTER.unseal(self._sealer, letter.destination, letter.id))
