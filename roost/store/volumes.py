"""Table `volumes`: named storage that sandboxes mount, and the token that opens its files."""

from __future__ import annotations

from roost.model.errors import Conflict
from roost.model.sandbox import Volume
from roost.store.database import Connection, Database
from roost.store.sealed import VOLUME
from roost.store.sealing import Sealer


class Volumes:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def create(self, volume: Volume) -> None:
        """Raises Conflict when the account has one of this name."""
        token = VOLUME.seal(self._sealer, volume.token, volume.id)

        def work(connection: Connection) -> None:
            made = connection.execute(
                "INSERT INTO volumes (account, id, name, token, created) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
                (volume.account, volume.id, volume.name, token, volume.created),
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
            return [
                Volume(account=account, id=id, name=name, token=VOLUME.unseal(self._sealer, token, id), created=created)
                for account, id, name, token, created in rows
            ]

        return await self._database.run(work, synced=False)
