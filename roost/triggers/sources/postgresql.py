"""Rows of a PostgreSQL table: each becomes a task, or a part of one, once. Nothing is installed in the database.

Numbers of a sequence and times are given out before their transactions commit, so rows show up out of order: a cursor
that just goes up would miss some. So the cursor (`low`) stays behind. Rows above it that were dealt with are in the
store one by one, and from time to time all above it are looked at again. It moves up to a place that had been reached
before when every transaction of that time has ended (their locks on themselves say so) and one more look has been taken
since.

With a status column there is no cursor: what is new says so itself, and is marked when its task is durable.

Before anything is enqueued the store has what will be, so that a server that was killed meanwhile makes the same tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import psycopg
from psycopg import sql

from roost.functions.triggers.postgresql import Start, TableSettings
from roost.functions.triggers.settings import settings_of
from roost.model.errors import Unavailable
from roost.store.trigger_rows import TriggerRows
from roost.store.triggers import TriggerRecord
from roost.triggers.delivery import enqueue_patiently
from roost.triggers.ports import Cursors, Delivery, DeliveryRefused, Event, Report, task_id
from roost.triggers.sources.postgresql_table import Place, Row, Table, explained, open_table

#: Rows whose ids are looked at together, and those whose contents are held in memory together.
_IDS, _ROWS = 1000, 100
#: Of one task's event; a row that is larger alone is not taken.
_MOST_BYTES = 900 << 10
#: Rows below the newest that may still be joined by others when the trigger is made.
_NEAR_THE_TOP = 1000
_CONNECT_S = 10
#: Times are UTC in ISO's form, for they come back to the server as texts.
_SESSION = "SET TIME ZONE 'UTC'; SET DateStyle = 'ISO'; SET extra_float_digits = 1; SET statement_timeout = '60s'"
#: Of the time that looks at everything above the cursor may take: a long transaction keeps many rows there.
_SHARE = 10


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Rows that are being dealt with: the ids of each task's. `number` is another one for each claim."""

    number: int
    tasks: tuple[tuple[str, ...], ...]

    @property
    def ids(self) -> list[str]:
        return [id for task in self.tasks for id in task]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is kept of a trigger. `low`: every row up to there has been dealt with; None: none has."""

    scope: str
    low: str | None = None
    generation: int = 0  # of the rows that are dealt with now
    number: int = 0  # of the last claim
    claim: Claim | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        known = json.loads(text)
        claim = known.pop("claim")
        tasks = tuple(tuple(ids) for ids in claim or ())
        return cls(**known, claim=Claim(number=known["number"], tasks=tasks) if tasks else None)

    def text(self) -> str:
        return json.dumps(
            {
                "scope": self.scope,
                "low": self.low,
                "generation": self.generation,
                "number": self.number,
                "claim": self.claim.tasks if self.claim else None,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How far rows had come at a time, and which transactions ran then."""

    at: str
    generation: int
    running: frozenset[str]


@dataclass(kw_only=True)
class _Look:
    """What one connection has seen."""

    table: Table
    top: Place | None = None  # the last row that was dealt with
    mark: Mark | None = None
    full_at: float = field(default=0.0)  # when everything above the cursor is looked at next


class TableRows:
    """Implements `Source`."""

    def __init__(self, record: TriggerRecord, *, rows: TriggerRows, cursors: Cursors) -> None:
        self._record = record
        self._rows = rows
        self._cursors = cursors
        self._settings = settings_of(TableSettings, record)
        self._progress = Progress(scope="")

    async def run(self, delivery: Delivery, report: Report) -> None:
        try:
            async with _connected(self._settings.dsn) as connection:
                table = await open_table(connection, self._settings)
                await self._resume(table)
                await self._serve(connection, _Look(table=table), delivery, report)
        except (psycopg.Error, OSError) as error:
            raise Unavailable(explained(error)) from error

    async def _serve(
        self, connection: psycopg.AsyncConnection[Any], look: _Look, delivery: Delivery, report: Report
    ) -> None:
        if self._settings.channel:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._settings.channel)))
        if self._progress.claim is not None:
            await self._deal_with(self._progress.claim, look.table, delivery, report)
        loop = asyncio.get_running_loop()
        report.connected()
        while True:
            began = loop.time()
            if self._settings.status_column is not None:
                await self._take_new(look.table, delivery, report)
                look.full_at = loop.time() + self._settings.poll_seconds
            elif began >= look.full_at:
                await self._look_above(look, delivery, report)
                took = loop.time() - began
                look.full_at = loop.time() + max(self._settings.poll_seconds, took * _SHARE)
            else:
                await self._look_behind(look, look.top or self._low(), delivery, report)
            report.connected()
            async for _ in connection.notifies(timeout=max(0.0, look.full_at - loop.time()), stop_after=1):
                pass

    # --- where it begins ---------------------------------------------------------------------------------------

    async def _resume(self, table: Table) -> None:
        kept = await self._cursors.cursor(self._record.id)
        known = Progress.read(kept) if kept else Progress(scope="")
        if known.scope == table.scope:
            self._progress = known
            return
        self._progress = Progress(scope=table.scope, generation=known.generation + 1, number=known.number)
        if self._settings.start is Start.LATEST and self._settings.status_column is None:
            # Rows near the top were dealt with, so to speak; others may yet show up between them.
            newest = await table.newest(_NEAR_THE_TOP + 1)
            low = newest[-1].order if len(newest) > _NEAR_THE_TOP else None
            self._progress = replace(self._progress, low=low)
            ids = [place.id for place in newest[:_NEAR_THE_TOP] if place.id is not None]
            await self._rows.note(self._record.id, ids, self._progress.generation, known.text())
        await self._rows.passed(self._record.id, known.generation, self._progress.text())

    def _low(self) -> Place | None:
        """The cursor as a place: behind all rows with its number or time."""
        return None if self._progress.low is None else Place(order=self._progress.low, id=None)

    # --- rows in their order -----------------------------------------------------------------------------------

    async def _look_above(self, look: _Look, delivery: Delivery, report: Report) -> None:
        """Look at everything above the cursor, and move it where that is safe."""
        running = await look.table.running()
        await self._look_behind(look, self._low(), delivery, report)
        mark = look.mark
        if mark is not None and not (mark.running & running.ordinary) and not running.prepared:
            # What ran when the mark was made had ended before this look: whatever it left has been seen.
            self._progress = replace(self._progress, low=mark.at)
            await self._rows.passed(self._record.id, mark.generation, self._progress.text())
            look.mark = mark = None
        if mark is None and look.top is not None and look.top.order != self._progress.low:
            now = await look.table.running()
            look.mark = Mark(at=look.top.order, generation=self._progress.generation, running=now.ordinary)
            self._progress = replace(self._progress, generation=self._progress.generation + 1)

    async def _look_behind(self, look: _Look, after: Place | None, delivery: Delivery, report: Report) -> None:
        """Deal with the rows behind a place that have not been dealt with."""
        while page := await look.table.after(after, _IDS):
            seen = await self._rows.seen(self._record.id, [place.id for place in page if place.id])
            new = [place.id for place in page if place.id and place.id not in seen]
            for start in range(0, len(new), _ROWS):
                await self._take(new[start : start + _ROWS], look.table, delivery, report)
            look.top = after = page[-1]
            if len(page) < _IDS:
                return

    # --- rows with a status ------------------------------------------------------------------------------------

    async def _take_new(self, table: Table, delivery: Delivery, report: Report) -> None:
        while ids := await table.new(_ROWS):
            await self._take(ids, table, delivery, report)

    # --- what becomes of rows ----------------------------------------------------------------------------------

    async def _take(self, ids: Sequence[str], table: Table, delivery: Delivery, report: Report) -> None:
        """Rows that were not dealt with: put down what tasks they will be, then deal with them."""
        rows = await table.rows(ids)
        tasks = tuple(batches(rows, count=self._settings.batch_size, size=_MOST_BYTES))
        if not tasks:
            return
        claim = Claim(number=self._progress.number + 1, tasks=tasks)
        claimed = replace(self._progress, number=claim.number, claim=claim)
        await self._cursors.put_cursor(self._record.id, claimed.text())
        self._progress = claimed
        await self._deal_with(claim, table, delivery, report, {row.id: row for row in rows})

    async def _deal_with(
        self, claim: Claim, table: Table, delivery: Delivery, report: Report, known: dict[str, Row] | None = None
    ) -> None:
        rows = known if known is not None else {row.id: row for row in await table.rows(claim.ids)}
        tries = (
            self._enqueue(f"{claim.number}.{index}", [rows[id] for id in ids if id in rows], table, delivery, report)
            for index, ids in enumerate(claim.tasks)
        )
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        if self._settings.status_column is not None and not await table.mark(claim.ids):
            raise Unavailable(f"Rows of {table.name} that got a status are as new as before; what changes it back?")
        done = replace(self._progress, claim=None)
        noted = [] if self._settings.status_column is not None else claim.ids
        await self._rows.note(self._record.id, noted, done.generation, done.text())
        self._progress = done

    async def _enqueue(
        self, occurrence: str, rows: Sequence[Row], table: Table, delivery: Delivery, report: Report
    ) -> None:
        if not rows:  # they were deleted meanwhile
            return
        id = task_id(self._record, occurrence)
        try:
            await enqueue_patiently(delivery, Event(id=id, body=event_body(table.name, rows), task_id=id), report)
        except DeliveryRefused as error:
            report.failed(len(rows), f"Row {rows[0].id[:80]} can't be taken: {error.message}")


def batches(rows: Sequence[Row], *, count: int, size: int) -> Iterator[tuple[str, ...]]:
    """Ids of rows, in their order, so many at most together, and no more than so many bytes unless it is one row."""
    ids: list[str] = []
    held = 0
    for row in rows:
        if ids and (len(ids) == count or held + len(row.body) > size):
            yield tuple(ids)
            ids, held = [], 0
        ids.append(row.id)
        held += len(row.body)
    if ids:
        yield tuple(ids)


def event_body(table: str, rows: Sequence[Row]) -> bytes:
    """The event that the function gets. The rows are JSON already."""
    head = json.dumps({"source": "roost:postgresql", "table": table})[:-1]
    return f'{head}, "rows": [{", ".join(row.body for row in rows)}]}}'.encode()


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    connection = await psycopg.AsyncConnection.connect(
        dsn,
        autocommit=True,
        connect_timeout=_CONNECT_S,
        application_name="roost",
        keepalives_idle=30,
        keepalives_interval=10,
        keepalives_count=3,
        tcp_user_timeout=30_000,
    )
    try:
        await connection.execute(_SESSION)
        yield connection
    finally:
        await connection.close()
