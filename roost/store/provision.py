"""Table `provision`: settings of one qualifier of a function (provisioned instances, scaling, async invocation)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from roost.store.database import Connection, Database
from roost.store.sealed import SETTING
from roost.store.sealing import Sealer
from roost.store.sql import upsert

_PUT = upsert("provision", "account, function, qualifier, kind", "config, created, modified")


class QualifierKind(StrEnum):
    """Which of a qualifier's settings a record holds."""

    PROVISION = "provision"
    SCALING = "scaling"
    ASYNC = "async"


@dataclass(frozen=True, kw_only=True)
class QualifierRecord:
    account: str
    function: str
    qualifier: str
    kind: QualifierKind
    config: Mapping[str, Any]
    created: float
    modified: float


class Provision:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def put(self, record: QualifierRecord) -> None:
        key = (record.account, record.function, record.qualifier, record.kind.value)
        config = SETTING.seal(self._sealer, json.dumps(dict(record.config)), *key)

        def work(connection: Connection) -> None:
            connection.execute(_PUT, (*key, config, record.created, record.modified))

        await self._database.run(work)

    async def delete(self, account: str, function: str, qualifier: str, kind: QualifierKind) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                "DELETE FROM provision WHERE account=? AND function=? AND qualifier=? AND kind=?",
                (account, function, qualifier, kind.value),
            )

        await self._database.run(work)

    async def list_all(self) -> list[QualifierRecord]:
        def work(connection: Connection) -> list[QualifierRecord]:
            rows = connection.execute(
                "SELECT account, function, qualifier, kind, config, created, modified FROM provision"
            )
            return [
                QualifierRecord(
                    account=row[0],
                    function=row[1],
                    qualifier=row[2],
                    kind=QualifierKind(row[3]),
                    config=json.loads(SETTING.unseal(self._sealer, row[4], *row[:4])),
                    created=row[5],
                    modified=row[6],
                )
                for row in rows
            ]

        return await self._database.run(work, synced=False)
