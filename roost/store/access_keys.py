"""Table `access_keys`: keys of accounts, with sealed secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.model.errors import Throttled
from roost.model.role import ROLES, Role
from roost.store.database import Connection, Database

_COLUMNS = "id, account, name, role, sealed, created, used, revoked, grants"


@dataclass(frozen=True, kw_only=True)
class KeyRecord:
    """Times are Unix seconds, 0 for never."""

    id: str
    account: str
    name: str
    role: Role
    sealed: bytes = field(repr=False)  # empty once it is revoked
    created: float
    used: float = 0.0
    revoked: float = 0.0
    grants: tuple[str, ...] = ()


class AccessKeys:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, key: KeyRecord, *, most: int) -> None:
        """Raises Throttled when the account has `most` keys that are not revoked."""

        def work(connection: Connection) -> None:
            count = "SELECT count(*) FROM access_keys WHERE account=? AND revoked=0"
            if connection.execute(count, (key.account,)).fetchone()[0] >= most:
                raise Throttled(f"An account has at most {most} keys; revoke some.")
            times = key.created, key.used, key.revoked
            row = (key.id, key.account, key.name, key.role.name.lower(), key.sealed, *times, " ".join(key.grants))
            connection.execute(f"INSERT INTO access_keys ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)", row)  # noqa: S608

        await self._database.run(work)

    async def revoke(self, id: str, at: float, *, kept: int) -> None:
        """Its secret is forgotten; of the account's revoked keys only the last `kept` are remembered."""

        def work(connection: Connection) -> None:
            connection.execute("UPDATE access_keys SET revoked=?, sealed=? WHERE id=?", (at, b"", id))
            connection.execute(
                "DELETE FROM access_keys WHERE id IN (SELECT k.id FROM access_keys k WHERE k.revoked>0 AND k.account="
                "(SELECT account FROM access_keys WHERE id=?) ORDER BY k.revoked DESC LIMIT 1000000 OFFSET ?)",
                (id, kept),
            )

        await self._database.run(work)

    async def used(self, times: Mapping[str, float]) -> None:
        """When keys were last used."""

        def work(connection: Connection) -> None:
            rows = [(at, id) for id, at in times.items()]
            connection.executemany("UPDATE access_keys SET used=? WHERE id=?", rows)

        await self._database.run(work, synced=False)

    async def list_all(self) -> list[KeyRecord]:
        def work(connection: Connection) -> list[KeyRecord]:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM access_keys ORDER BY account, created, id")  # noqa: S608
            return [_record(row) for row in rows]

        return await self._database.run(work, synced=False)


def _record(row: Any) -> KeyRecord:
    return KeyRecord(
        id=row[0],
        account=row[1],
        name=row[2],
        role=ROLES[row[3]],
        sealed=bytes(row[4]),
        created=row[5],
        used=row[6],
        revoked=row[7],
        grants=tuple(row[8].split()),
    )
