"""Table `concurrency`: how many instances a function may have at most."""

from __future__ import annotations

from roost.store.database import Connection, Database
from roost.store.sql import upsert


class Concurrency:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, account: str, function: str, reserved: int) -> None:
        def work(connection: Connection) -> None:
            connection.execute(upsert("concurrency", "account, function", "reserved"), (account, function, reserved))

        await self._database.run(work)

    async def delete(self, account: str, function: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM concurrency WHERE account=? AND function=?", (account, function))

        await self._database.run(work)

    async def list_all(self) -> dict[tuple[str, str], int]:
        """(account, function) -> limit."""

        def work(connection: Connection) -> dict[tuple[str, str], int]:
            rows = connection.execute("SELECT account, function, reserved FROM concurrency")
            return {(row[0], row[1]): row[2] for row in rows}

        return await self._database.run(work, synced=False)
