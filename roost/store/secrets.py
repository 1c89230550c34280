"""Table `secrets`: values that their owners gave this server to keep. The store's file is its owner's alone."""

from __future__ import annotations

import json
from typing import Any

from roost.model.errors import Conflict
from roost.model.secret import Secret
from roost.store.database import Connection, Database


class Secrets:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, secret: Secret) -> None:
        """Raises Conflict when the account has one of this name."""

        def work(connection: Connection) -> None:
            insert = "INSERT INTO secrets (account, id, name, data) VALUES (?,?,?,?) ON CONFLICT DO NOTHING"
            if not connection.execute(insert, _row(secret)).rowcount:
                raise Conflict(f"A secret named {secret.name!r} exists already.")

        await self._database.run(work)

    async def replace(self, secret: Secret) -> None:
        def work(connection: Connection) -> None:
            row = (_row(secret)[3], secret.account, secret.name)
            connection.execute("UPDATE secrets SET data=? WHERE account=? AND name=?", row)

        await self._database.run(work)

    async def find(self, account: str, selector: str) -> Secret | None:
        """By id or name."""

        def work(connection: Connection) -> Secret | None:
            row = connection.execute(
                "SELECT account, id, name, data FROM secrets WHERE account=? AND (id=? OR name=?)",
                (account, selector, selector),
            ).fetchone()
            return None if row is None else _secret(row)

        return await self._database.run(work, synced=False)

    async def list(self, account: str, *, after: str, limit: int) -> list[Secret]:
        """By name."""

        def work(connection: Connection) -> list[Secret]:
            rows = connection.execute(
                "SELECT account, id, name, data FROM secrets WHERE account=? AND name>? ORDER BY name LIMIT ?",
                (account, after, limit),
            )
            return [_secret(row) for row in rows]

        return await self._database.run(work, synced=False)

    async def count(self, account: str) -> int:
        def work(connection: Connection) -> int:
            query = "SELECT count(*) FROM secrets WHERE account=?"
            return int(connection.execute(query, (account,)).fetchone()[0])

        return await self._database.run(work, synced=False)

    async def delete(self, account: str, id: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM secrets WHERE account=? AND id=?", (account, id))

        await self._database.run(work)


def _row(secret: Secret) -> tuple[str, str, str, str]:
    data = {
        "value": secret.value,
        "version": secret.version,
        "metadata": dict(secret.metadata),
        "created": secret.created,
        "updated": secret.updated,
    }
    return (secret.account, secret.id, secret.name, json.dumps(data))


def _secret(row: Any) -> Secret:
    return Secret(account=row[0], id=row[1], name=row[2], **json.loads(row[3]))
