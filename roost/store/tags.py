"""Table `tags`: keys and values on functions and layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from roost.store.database import Connection, Database
from roost.store.sql import upsert

#: (account, kind of resource, its name)
TagOwner = tuple[str, str, str]


class Tags:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(
        self, owners: Iterable[TagOwner], *, put: Mapping[str, str] | None = None, remove: Iterable[str] | None = None
    ) -> None:
        """On every owner: set the tags in `put` and remove the keys in `remove`, all or nothing."""
        targets, values, keys = list(owners), dict(put or {}), list(remove or ())

        def work(connection: Connection) -> None:
            connection.executemany(
                upsert("tags", "account, kind, name, key", "value"),
                [(*owner, key, value) for owner in targets for key, value in values.items()],
            )
            connection.executemany(
                "DELETE FROM tags WHERE account=? AND kind=? AND name=? AND key=?",
                [(*owner, key) for owner in targets for key in keys],
            )

        await self._database.run(work)

    async def list_all(self) -> dict[TagOwner, dict[str, str]]:
        def work(connection: Connection) -> dict[TagOwner, dict[str, str]]:
            found: dict[TagOwner, dict[str, str]] = {}
            rows = connection.execute("SELECT account, kind, name, key, value FROM tags ORDER BY key")
            for account, kind, name, key, value in rows:
                found.setdefault((account, kind, name), {})[key] = value
            return found

        return await self._database.run(work, synced=False)
