"""Table `secrets`: values that their owners gave this server to keep, each sealed for its account, id and version."""

from __future__ import annotations

import base64
import json
from typing import Any

from roost.model.errors import Conflict
from roost.model.secret import Secret
from roost.store.database import Connection, Database
from roost.store.sealing import Sealer


class Secrets:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def seal_all(self) -> None:
        """Seal those that a former Roost left as they were given."""

        def work(connection: Connection) -> None:
            for account, id, data in connection.execute("SELECT account, id, data FROM secrets").fetchall():
                fields = json.loads(data)
                if "value" in fields:
                    sealed = json.dumps(self._sealed(account, id, fields))
                    connection.execute("UPDATE secrets SET data=? WHERE account=? AND id=?", (sealed, account, id))

        await self._database.run(work)

    async def check(self) -> None:
        """Raises Unavailable when one of them does not open."""

        def work(connection: Connection) -> None:
            row = connection.execute("SELECT account, id, name, data FROM secrets LIMIT 1").fetchone()
            if row is not None:
                self._secret(row)

        await self._database.run(work, synced=False)

    async def create(self, secret: Secret) -> None:
        """Raises Conflict when the account has one of this name."""

        def work(connection: Connection) -> None:
            insert = "INSERT INTO secrets (account, id, name, data) VALUES (?,?,?,?) ON CONFLICT DO NOTHING"
            if not connection.execute(insert, self._row(secret)).rowcount:
                raise Conflict(f"A secret named {secret.name!r} exists already.")

        await self._database.run(work)

    async def replace(self, secret: Secret) -> None:
        def work(connection: Connection) -> None:
            row = (self._row(secret)[3], secret.account, secret.name)
            connection.execute("UPDATE secrets SET data=? WHERE account=? AND name=?", row)

        await self._database.run(work)

    async def find(self, account: str, selector: str) -> Secret | None:
        """By id or name."""

        def work(connection: Connection) -> Secret | None:
            row = connection.execute(
                "SELECT account, id, name, data FROM secrets WHERE account=? AND (id=? OR name=?)",
                (account, selector, selector),
            ).fetchone()
            return None if row is None else self._secret(row)

        return await self._database.run(work, synced=False)

    async def list(self, account: str, *, after: str, limit: int) -> list[Secret]:
        """By name."""

        def work(connection: Connection) -> list[Secret]:
            rows = connection.execute(
                "SELECT account, id, name, data FROM secrets WHERE account=? AND name>? ORDER BY name LIMIT ?",
                (account, after, limit),
            )
            return [self._secret(row) for row in rows]

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

    def _row(self, secret: Secret) -> tuple[str, str, str, str]:
        fields = {
            "value": secret.value,
            "version": secret.version,
            "metadata": dict(secret.metadata),
            "created": secret.created,
            "updated": secret.updated,
        }
        return (secret.account, secret.id, secret.name, json.dumps(self._sealed(secret.account, secret.id, fields)))

    def _secret(self, row: Any) -> Secret:
        fields = json.loads(row[3])
        sealed = base64.b64decode(fields.pop("sealed"))
        value = self._sealer.unseal(sealed, _purpose(row[0], row[1], fields["version"]))
        return Secret(account=row[0], id=row[1], name=row[2], value=value, **fields)

    def _sealed(self, account: str, id: str, fields: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in fields.items() if name != "value"}
        sealed = self._sealer.seal(fields["value"], _purpose(account, id, fields["version"]))
        return {**rest, "sealed": base64.b64encode(sealed).decode()}


def _purpose(account: str, id: str, version: int) -> str:
    """What one was sealed for opens no other: rows can't be exchanged, nor an old version be put back."""
    return f"Secret {account}/{id}, version {version},"
