"""Table `functions`: the latest, mutable state of each function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.store.database import Connection, Database
from roost.store.sealed import FUNCTION
from roost.store.sealing import Sealer

_COLUMNS = (
    "account, name, id, config, code_digest, code_size, code_checksum, layers, restriction, last_version,"
    " created, modified"
)


@dataclass(frozen=True, kw_only=True)
class FunctionRecord:
    """One function. `config` is its definition as the API takes it, validated, without the package itself."""

    account: str
    name: str
    id: str
    config: Mapping[str, Any]
    code_digest: str = ""
    code_size: int = 0
    code_checksum: str = ""
    layers: tuple[Mapping[str, Any], ...] = ()  # `arn`, `size` and `digest` of each, as found when it was set
    restriction: Mapping[str, Any] | None = None  # why invocations are refused, if they are
    last_version: int = 0  # never given out again, even if that version is deleted
    created: float
    modified: float


class Functions:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def put(self, record: FunctionRecord) -> None:
        """Create or replace; everything else of the function stays."""

        def work(connection: Connection) -> None:
            connection.execute(
                f"INSERT INTO functions ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608
                " ON CONFLICT (account, name) DO UPDATE SET config=excluded.config, code_digest=excluded.code_digest,"
                " code_size=excluded.code_size, code_checksum=excluded.code_checksum, layers=excluded.layers,"
                " restriction=excluded.restriction, last_version=excluded.last_version, modified=excluded.modified",
                self._row(record),
            )

        await self._database.run(work)

    async def delete(self, account: str, name: str) -> None:
        """With its versions, aliases, triggers, limits and tags."""

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM functions WHERE account=? AND name=?", (account, name))
            connection.execute("DELETE FROM tags WHERE account=? AND kind='function' AND name=?", (account, name))

        await self._database.run(work)

    async def list_all(self) -> list[FunctionRecord]:
        def work(connection: Connection) -> list[FunctionRecord]:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM functions ORDER BY account, name")  # noqa: S608
            return [self._record(row) for row in rows]

        return await self._database.run(work, synced=False)

    def _row(self, record: FunctionRecord) -> tuple[Any, ...]:
        return (
            record.account,
            record.name,
            record.id,
            FUNCTION.seal(self._sealer, json.dumps(dict(record.config)), record.account, record.name),
            record.code_digest,
            record.code_size,
            record.code_checksum,
            json.dumps([dict(layer) for layer in record.layers]),
            None if record.restriction is None else json.dumps(dict(record.restriction)),
            record.last_version,
            record.created,
            record.modified,
        )

    def _record(self, row: tuple[Any, ...]) -> FunctionRecord:
        return FunctionRecord(
            account=row[0],
            name=row[1],
            id=row[2],
            config=json.loads(FUNCTION.unseal(self._sealer, row[3], row[0], row[1])),
            code_digest=row[4],
            code_size=row[5],
            code_checksum=row[6],
            layers=tuple(json.loads(row[7])),
            restriction=None if row[8] is None else json.loads(row[8]),
            last_version=row[9],
            created=row[10],
            modified=row[11],
        )
