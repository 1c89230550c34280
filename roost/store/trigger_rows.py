"""Table `trigger_rows`: the rows above its cursor that a trigger on a table has dealt with."""

from __future__ import annotations

from collections.abc import Collection

from roost.store.database import Connection, Database

_PUT = (
    "INSERT INTO trigger_rows (trigger_id, id, generation) SELECT id, ?, ? FROM triggers WHERE id=?"
    " ON CONFLICT (trigger_id, id) DO UPDATE SET generation=excluded.generation"
)
_PUT_CURSOR = (
    "INSERT INTO trigger_cursors (trigger_id, value) SELECT id, ? FROM triggers WHERE id=?"
    " ON CONFLICT (trigger_id) DO UPDATE SET value=excluded.value"
)
#: Of a statement with a list in it.
_AT_ONCE = 500


class TriggerRows:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def seen(self, trigger_id: str, ids: Collection[str]) -> set[str]:
        """Those of `ids` that were dealt with."""
        wanted = list(ids)

        def work(connection: Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                sql = f"SELECT id FROM trigger_rows WHERE trigger_id=? AND id IN ({marks})"  # noqa: S608
                found |= {str(row[0]) for row in connection.execute(sql, (trigger_id, *some))}
            return found

        return await self._database.run(work, synced=False)

    async def note(self, trigger_id: str, ids: Collection[str], generation: int, cursor: str) -> None:
        """Rows that were dealt with, and the cursor, at once. Durable; of a trigger that is gone nothing is kept."""

        def work(connection: Connection) -> None:
            for id in ids:
                connection.execute(_PUT, (id, generation, trigger_id))
            connection.execute(_PUT_CURSOR, (cursor, trigger_id))

        await self._database.run(work)

    async def passed(self, trigger_id: str, generation: int, cursor: str) -> None:
        """The cursor has passed the rows of this generation and those before it."""

        def work(connection: Connection) -> None:
            connection.execute(_PUT_CURSOR, (cursor, trigger_id))
            connection.execute(
                "DELETE FROM trigger_rows WHERE trigger_id=? AND generation<=?", (trigger_id, generation)
            )

        await self._database.run(work)
