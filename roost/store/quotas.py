"""Table `quotas`: what accounts may use, where that is other than the server's settings say."""

from __future__ import annotations

import json
from collections.abc import Mapping

from roost.store.database import Connection, Database
from roost.store.sql import upsert


class Quotas:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, account: str, limits: Mapping[str, int]) -> None:
        text = json.dumps(dict(limits))

        def work(connection: Connection) -> None:
            connection.execute(upsert("quotas", "account", "data"), (account, text))

        await self._database.run(work)

    async def delete(self, account: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM quotas WHERE account=?", (account,))

        await self._database.run(work)

    async def list_all(self) -> dict[str, dict[str, int]]:
        def work(connection: Connection) -> dict[str, dict[str, int]]:
            rows = connection.execute("SELECT account, data FROM quotas ORDER BY account")
            return {row[0]: json.loads(row[1]) for row in rows}

        return await self._database.run(work, synced=False)
