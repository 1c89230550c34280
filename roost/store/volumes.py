"""Table `volumes`: named storage that sandboxes mount, and the token that opens its files."""

from __future__ import annotations

from roost.model.errors import Conflict
from roost.model.sandbox import Volume
from roost.store.database import Connection, Database


class Volumes:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, volume: Volume) -> None:
        """Raises Conflict when the account has one of this name."""

        def work(connection: Connection) -> None:
            made = connection.execute(
                "INSERT INTO volumes (account, id, name, token, created) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
                (volume.account, volume.id, volume.name, volume.token, volume.created),
            )
            if not made.rowcount:
                raise Conflict(f"A volume named {volume.name!r} exists already.")

        await self._database.run(work)

    async def delete(self, id: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM volumes WHERE id=?", (id,))

        await self._database.run(work)

    async def list_all(self) -> list[Volume]:
        def work(connection: Connection) -> list[Volume]:
            rows = connection.execute("SELECT account, id, name, token, created FROM volumes ORDER BY account, name")
            return [Volume(account=r[0], id=r[1], name=r[2], token=r[3], created=r[4]) for r in rows]

        return await self._database.run(work, synced=False)
