"""A table as a source of rows: every statement that is sent, and what PostgreSQL's errors mean.

Ids and places go over the wire as texts and are cast to the types of their columns: any type will do that has an order.
Columns are written with their table (`t.`): ORDER BY would take the bare name for the text that is selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from roost.functions.triggers.postgresql import TableSettings
from roost.model.errors import Unavailable

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, NULL) FROM pg_attribute a
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
#: Every transaction holds a lock on itself from its first statement to its end, one that was prepared too.
_RUNNING = """
SELECT DISTINCT l.virtualtransaction FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE a.pid <> pg_backend_pid() AND a.datname = current_database()
   OR l.pid IS NULL AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_PREPARED = "-1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Of a row in the order. Without an id: behind all rows with this order."""

    order: str
    id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    id: str
    body: str  # JSON


@dataclass(frozen=True, kw_only=True)
class Running:
    """Transactions of others. A prepared one has lost the name that it had before."""

    ordinary: frozenset[str]
    prepared: bool


class Table:
    """Methods raise psycopg's errors. `scope` is another one for another database, table or other columns."""

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], settings: TableSettings, types: dict[str, str]
    ) -> None:
        self._connection = connection
        self.name = settings.table
        where = (
            connection.info.dbname,
            settings.table,
            settings.id_column,
            settings.order,
            settings.status_column or "",
        )
        self.scope = " ".join(where)
        self._new_status, self._taken_status = settings.new_status, settings.taken_status
        self._names = {
            "table": _name(*settings.table.split(".")),
            "id": _name(settings.id_column),
            "order": _name(settings.order),
            "status": _name(settings.status_column or settings.id_column),
            # As format_type wrote them, quoted where need be.
            "id_type": sql.SQL(types[settings.id_column]),
            "order_type": sql.SQL(types[settings.order]),
            "status_type": sql.SQL(types[settings.status_column or settings.id_column]),
        }

    async def after(self, place: Place | None, limit: int) -> list[Place]:
        """The rows that follow a place (None: from the first on), in their order."""
        if place is None:
            where, values = "t.{order} IS NOT NULL", []
        elif place.id is None:
            where, values = "t.{order} > %s::{order_type}", [place.order]
        else:  # the first condition is one that an index on the order alone can serve
            where = "t.{order} >= %s::{order_type} AND (t.{order}, t.{id}) > (%s::{order_type}, %s::{id_type})"
            values = [place.order, place.order, place.id]
        select = "SELECT t.{order}::text, t.{id}::text FROM {table} t WHERE " + where  # noqa: S608
        found = await self._all(select + " ORDER BY t.{order}, t.{id} LIMIT %s", [*values, limit])
        return [Place(order=order, id=id) for order, id in found]

    async def newest(self, limit: int) -> list[Place]:
        """The last rows, the very last first."""
        found = await self._all(
            "SELECT t.{order}::text, t.{id}::text FROM {table} t WHERE t.{order} IS NOT NULL"
            " ORDER BY t.{order} DESC, t.{id} DESC LIMIT %s",
            [limit],
        )
        return [Place(order=order, id=id) for order, id in found]

    async def rows(self, ids: Sequence[str]) -> list[Row]:
        """Rows by their ids, in their order."""
        found = await self._all(
            "SELECT t.{id}::text, to_jsonb(t.*)::text FROM {table} t WHERE t.{id} = ANY(%s::text[]::{id_type}[])"
            " ORDER BY t.{order}, t.{id}",
            [list(ids)],
        )
        return [Row(id=id, body=body) for id, body in found]

    async def new(self, limit: int) -> list[str]:
        """Ids of rows whose status says that they are new, in their order."""
        found = await self._all(
            "SELECT t.{id}::text FROM {table} t WHERE t.{status} IS NOT DISTINCT FROM %s::{status_type}"
            " ORDER BY t.{order}, t.{id} LIMIT %s",
            [self._new_status, limit],
        )
        return [id for (id,) in found]

    async def mark(self, ids: Sequence[str]) -> bool:
        """Those of these rows that are still new are taken; whether none of them is new any more."""
        these = " WHERE {id} = ANY(%s::text[]::{id_type}[]) AND {status} IS NOT DISTINCT FROM %s::{status_type}"
        update = "UPDATE {table} SET {status} = %s::{status_type}" + these  # noqa: S608
        await self._connection.execute(self._sql(update), [self._taken_status, list(ids), self._new_status])
        return not await self._all("SELECT 1 FROM {table}" + these + " LIMIT 1", [list(ids), self._new_status])  # noqa: S608

    async def running(self) -> Running:
        """What other transactions of this database there are."""
        found = frozenset(str(name) for (name,) in await self._all(_RUNNING, []))
        prepared = frozenset(name for name in found if name.startswith(_PREPARED))
        return Running(ordinary=found - prepared, prepared=bool(prepared))

    async def _all(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        cursor = await self._connection.execute(self._sql(statement), values)
        return await cursor.fetchall()

    def _sql(self, statement: str) -> sql.Composed:
        return sql.SQL(statement).format(**self._names)


def _name(*parts: str) -> sql.Identifier:
    """In a statement with parameters, where a percent sign would begin one."""
    return sql.Identifier(*(part.replace("%", "%%") for part in parts))


async def open_table(connection: psycopg.AsyncConnection[Any], settings: TableSettings) -> Table:
    """Raises Unavailable when there is no such table, or no such column."""
    where = sql.Identifier(*settings.table.split(".")).as_string(connection)
    found = await (await connection.execute(_COLUMNS, [where])).fetchall()
    types = {str(name): str(type) for name, type in found}
    if not types:
        raise Unavailable(f"There is no table {settings.table} in the database {connection.info.dbname}.")
    for column in (settings.id_column, settings.order, settings.status_column):
        if column is not None and column not in types:
            raise Unavailable(f"Table {settings.table} has no column {column}; it has {', '.join(types)[:300]}.")
    if types[settings.order] == "date":
        raise Unavailable(f"Column {settings.order} is a date: it can't tell which rows of a day are new.")
    return Table(connection, settings, types)


def explained(error: Exception) -> str:
    """What happened, in one sentence and without the password."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    if "FATAL:" in said:  # "connection failed: connection to server at ... failed: FATAL:  password ..."
        said = said.rpartition("FATAL:")[2].strip()
    said = said.removeprefix("connection failed: ")
    return f"PostgreSQL: {said[:400].rstrip('.')}."
