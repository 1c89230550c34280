"""Table `aliases`: names that point to versions, with traffic weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from roost.store.database import Connection, Database
from roost.store.sql import upsert

_PUT = upsert("aliases", "account, function, name", "version, weights, description, created, modified")


@dataclass(frozen=True, kw_only=True)
class AliasRecord:
    account: str
    function: str
    name: str
    version: str  # a number, or LATEST
    weights: Mapping[str, float]  # additional version -> share of the traffic
    description: str
    created: float
    modified: float


class Aliases:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, record: AliasRecord) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                _PUT,
                (
                    record.account,
                    record.function,
                    record.name,
                    record.version,
                    json.dumps(dict(record.weights)),
                    record.description,
                    record.created,
                    record.modified,
                ),
            )

        await self._database.run(work)

    async def delete(self, account: str, function: str, name: str) -> None:
        """With the settings of its qualifier."""

        def work(connection: Connection) -> None:
            key = (account, function, name)
            connection.execute("DELETE FROM aliases WHERE account=? AND function=? AND name=?", key)
            connection.execute("DELETE FROM provision WHERE account=? AND function=? AND qualifier=?", key)

        await self._database.run(work)

    async def list_all(self) -> list[AliasRecord]:
        def work(connection: Connection) -> list[AliasRecord]:
            rows = connection.execute(
                "SELECT account, function, name, version, weights, description, created, modified FROM aliases"
                " ORDER BY account, function, name"
            )
            return [
                AliasRecord(
                    account=row[0],
                    function=row[1],
                    name=row[2],
                    version=row[3],
                    weights=json.loads(row[4]),
                    description=row[5],
                    created=row[6],
                    modified=row[7],
                )
                for row in rows
            ]

        return await self._database.run(work, synced=False)
