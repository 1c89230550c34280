"""Tables `triggers` and `trigger_cursors`: what may start a function, and how far each has come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.store.database import Connection, Database
from roost.store.sealed import TRIGGER
from roost.store.sealing import Sealer
from roost.store.sql import upsert

_COLUMNS = (
    "account", "function", "name", "id", "type", "qualifier", "description", "config", "source_arn", "invocation_role",
    "created", "modified",
)  # fmt: skip
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM triggers ORDER BY account, function, name"  # noqa: S608
# Not a row in the place of another: what hangs on it would go.
_PUT = upsert("triggers", ", ".join(_COLUMNS[:3]), ", ".join(_COLUMNS[3:]))
_PUT_CURSOR = (
    "INSERT INTO trigger_cursors (trigger_id, value) SELECT id, ? FROM triggers WHERE id=?"
    " ON CONFLICT (trigger_id) DO UPDATE SET value=excluded.value"
)


@dataclass(frozen=True, kw_only=True)
class TriggerRecord:
    account: str
    function: str
    name: str
    id: str
    type: str
    qualifier: str
    description: str
    config: Mapping[str, Any]
    created: float
    modified: float
    source_arn: str = ""
    invocation_role: str = ""


class Triggers:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def put(self, record: TriggerRecord) -> None:
        config = TRIGGER.seal(
            self._sealer, json.dumps(dict(record.config)), record.account, record.function, record.name
        )
        values = tuple(config if name == "config" else getattr(record, name) for name in _COLUMNS)

        def work(connection: Connection) -> None:
            connection.execute(_PUT, values)

        await self._database.run(work)

    async def delete(self, account: str, function: str, name: str) -> None:
        """With its cursor."""

        def work(connection: Connection) -> None:
            key = (account, function, name)
            connection.execute("DELETE FROM triggers WHERE account=? AND function=? AND name=?", key)

        await self._database.run(work)

    async def list_all(self) -> list[TriggerRecord]:
        def work(connection: Connection) -> list[TriggerRecord]:
            return [self._record(row) for row in connection.execute(_SELECT)]

        return await self._database.run(work, synced=False)

    async def cursor(self, trigger_id: str) -> str | None:
        """How far the trigger has come, None at its beginning."""

        def work(connection: Connection) -> str | None:
            sql = "SELECT value FROM trigger_cursors WHERE trigger_id=?"
            row = connection.execute(sql, (trigger_id,)).fetchone()
            return None if row is None else str(row[0])

        return await self._database.run(work, synced=False)

    async def put_cursor(self, trigger_id: str, value: str) -> None:
        """Durable when it returns; of a trigger that is gone nothing is kept."""

        def work(connection: Connection) -> None:
            connection.execute(_PUT_CURSOR, (value, trigger_id))

        await self._database.run(work)

    def _record(self, row: tuple[Any, ...]) -> TriggerRecord:
        values = dict(zip(_COLUMNS, row, strict=True))
        values["config"] = json.loads(TRIGGER.unseal(self._sealer, values["config"], *row[:3]))
        return TriggerRecord(**values)
