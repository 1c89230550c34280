"""Table `labels`: where data came from, by what keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from roost.model.taint import LABELS, Labels
from roost.store.database import Connection, Database
from roost.store.sql import upsert


class LabelRows:
    """Writes are synced: files may outlive a power cut, and so must what is known of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, labels: Mapping[str, Labels]) -> None:
        """All of them, or nothing."""
        rows = [(holder, json.dumps(sorted(given))) for holder, given in labels.items()]

        def work(connection: Connection) -> None:
            connection.executemany(upsert("labels", "holder", "data"), rows)

        await self._database.run(work)

    async def delete(self, holders: Iterable[str]) -> None:
        gone = [(holder,) for holder in holders]

        def work(connection: Connection) -> None:
            connection.executemany("DELETE FROM labels WHERE holder=?", gone)

        await self._database.run(work)

    async def list_all(self) -> dict[str, Labels]:
        def work(connection: Connection) -> dict[str, Labels]:
            rows = connection.execute("SELECT holder, data FROM labels ORDER BY holder")
            return {row[0]: LABELS.intersection(json.loads(row[1])) for row in rows}

        return await self._database.run(work, synced=False)
