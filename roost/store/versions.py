"""Table `versions`: published, immutable snapshots of functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.store.database import Connection, Database
from roost.store.sealed import VERSION
from roost.store.sealing import Sealer


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """One version. `snapshot`: `config`, `code_digest`, `code_size`, `code_checksum`, `layers` as when published."""

    account: str
    function: str
    version: int
    description: str
    snapshot: Mapping[str, Any]
    created: float


class Versions:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def publish(self, record: VersionRecord) -> None:
        """Add the version and move the function's counter to it, together."""
        key, snapshot = (record.account, record.function, record.version), json.dumps(dict(record.snapshot))

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO versions (account, function, version, description, snapshot, created)"
                " VALUES (?,?,?,?,?,?)",
                (*key, record.description, VERSION.seal(self._sealer, snapshot, *key), record.created),
            )
            connection.execute(
                "UPDATE functions SET last_version=? WHERE account=? AND name=?",
                (record.version, record.account, record.function),
            )

        await self._database.run(work)

    async def delete(self, account: str, function: str, version: int) -> None:
        """With the settings of its qualifier."""

        def work(connection: Connection) -> None:
            key = (account, function, version)
            connection.execute("DELETE FROM versions WHERE account=? AND function=? AND version=?", key)
            connection.execute(
                "DELETE FROM provision WHERE account=? AND function=? AND qualifier=?",
                (account, function, str(version)),
            )

        await self._database.run(work)

    async def list_all(self) -> list[VersionRecord]:
        def work(connection: Connection) -> list[VersionRecord]:
            rows = connection.execute(
                "SELECT account, function, version, description, snapshot, created FROM versions"
                " ORDER BY account, function, version"
            )
            return [
                VersionRecord(
                    account=row[0],
                    function=row[1],
                    version=row[2],
                    description=row[3],
                    snapshot=json.loads(VERSION.unseal(self._sealer, row[4], *row[:3])),
                    created=row[5],
                )
                for row in rows
            ]

        return await self._database.run(work, synced=False)
