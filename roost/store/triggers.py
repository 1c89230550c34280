"""Table `triggers`: what may start a function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.store.database import Connection, Database
from roost.store.sql import upsert

_PUT = upsert("triggers", "account, function, name", "id, type, qualifier, description, config, created, modified")


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


class Triggers:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, record: TriggerRecord) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                _PUT,
                (
                    record.account,
                    record.function,
                    record.name,
                    record.id,
                    record.type,
                    record.qualifier,
                    record.description,
                    json.dumps(dict(record.config)),
                    record.created,
                    record.modified,
                ),
            )

        await self._database.run(work)

    async def delete(self, account: str, function: str, name: str) -> None:
        def work(connection: Connection) -> None:
            key = (account, function, name)
            connection.execute("DELETE FROM triggers WHERE account=? AND function=? AND name=?", key)

        await self._database.run(work)

    async def list_all(self) -> list[TriggerRecord]:
        def work(connection: Connection) -> list[TriggerRecord]:
            rows = connection.execute(
                "SELECT account, function, name, id, type, qualifier, description, config, created, modified"
                " FROM triggers ORDER BY account, function, name"
            )
            return [
                TriggerRecord(
                    account=row[0],
                    function=row[1],
                    name=row[2],
                    id=row[3],
                    type=row[4],
                    qualifier=row[5],
                    description=row[6],
                    config=json.loads(row[7]),
                    created=row[8],
                    modified=row[9],
                )
                for row in rows
            ]

        return await self._database.run(work, synced=False)
