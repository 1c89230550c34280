"""Table `trigger_objects`: the objects of its bucket that a trigger has dealt with, as they were then."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from roost.store.database import Connection, Database

#: Of a statement with a list in it.
_AT_ONCE = 500
_SELECT = "SELECT key, stamp, birth, size, etag FROM trigger_objects WHERE trigger_id=?"
_PUT = (
    "INSERT INTO trigger_objects (trigger_id, key, stamp, birth, size, etag)"
    " SELECT id, ?, ?, ?, ?, ? FROM triggers WHERE id=?"
    " ON CONFLICT (trigger_id, key) DO UPDATE SET stamp=excluded.stamp, birth=excluded.birth, size=excluded.size,"
    " etag=excluded.etag"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenObject:
    """An object as it was when it was dealt with; the fields are `ObjectInfo`'s."""

    key: str
    stamp: str
    birth: str
    size: int
    etag: str


class TriggerObjects:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def between(self, trigger_id: str, after: str, until: str | None, limit: int) -> list[SeenObject]:
        """Those behind `after` and up to `until` (None: the last), in the order of the keys' bytes."""

        def work(connection: Connection) -> list[SeenObject]:
            sql, values = f"{_SELECT} AND key > ?", [trigger_id, after.encode()]
            if until is not None:
                sql, values = f"{sql} AND key <= ?", [*values, until.encode()]
            rows = connection.execute(f"{sql} ORDER BY key LIMIT ?", (*values, limit))
            return [_seen(row) for row in rows]

        return await self._database.run(work, synced=False)

    async def of_keys(self, trigger_id: str, keys: Collection[str]) -> list[SeenObject]:
        """Those of these keys that are known."""
        wanted = [key.encode() for key in keys]

        def work(connection: Connection) -> list[SeenObject]:
            found: list[SeenObject] = []
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"{_SELECT} AND key IN ({marks})", (trigger_id, *some))
                found += [_seen(row) for row in rows]
            return found

        return await self._database.run(work, synced=False)

    async def note(self, trigger_id: str, present: Sequence[SeenObject], gone: Sequence[str]) -> None:
        """Durable when it returns; of a trigger that is gone nothing is kept."""

        def work(connection: Connection) -> None:
            for seen in present:
                connection.execute(_PUT, (seen.key.encode(), seen.stamp, seen.birth, seen.size, seen.etag, trigger_id))
            for key in gone:
                connection.execute(
                    "DELETE FROM trigger_objects WHERE trigger_id=? AND key=?", (trigger_id, key.encode())
                )

        await self._database.run(work)

    async def forget(self, trigger_id: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM trigger_objects WHERE trigger_id=?", (trigger_id,))

        await self._database.run(work)


def _seen(row: tuple[bytes, str, str, int, str]) -> SeenObject:
    key, stamp, birth, size, etag = row
    return SeenObject(key=bytes(key).decode(), stamp=stamp, birth=birth, size=size, etag=etag)
