"""Table `settings`: what the server itself has to remember (its id, secrets it made)."""

from __future__ import annotations

import json
from typing import Any

from roost.store.database import Connection, Database
from roost.store.sql import upsert


class Settings:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Any:
        """The value, or None."""

        def work(connection: Connection) -> Any:
            row = connection.execute("SELECT value FROM settings WHERE name=?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])

        return await self._database.run(work, synced=False)

    async def put(self, name: str, value: Any) -> None:
        """`value` is anything JSON can hold."""
        text = json.dumps(value)

        def work(connection: Connection) -> None:
            connection.execute(upsert("settings", "name", "value"), (name, text))

        await self._database.run(work)

    async def delete(self, name: str) -> None:
        """Does nothing when there is none."""

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM settings WHERE name=?", (name,))

        await self._database.run(work)
