"""Tables `layer_names` and `layers`: shared files for functions, in immutable versions."""

from __future__ import annotations

import json
from dataclasses import dataclass

from roost.store.database import Connection, Database


@dataclass(frozen=True, kw_only=True)
class LayerName:
    """A layer, apart from its versions."""

    account: str
    name: str
    public: bool = False
    last_version: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One version of a layer."""

    account: str
    name: str
    version: int
    description: str
    license: str
    runtimes: tuple[str, ...]
    code_digest: str
    code_size: int
    code_checksum: str
    created: float


class Layers:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(self, record: LayerRecord) -> None:
        """Add the version and move the layer's counter to it, together."""

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO layer_names (account, name, last_version) VALUES (?,?,?)"
                " ON CONFLICT (account, name) DO UPDATE SET last_version=excluded.last_version",
                (record.account, record.name, record.version),
            )
            connection.execute(
                "INSERT INTO layers (account, name, version, description, license, runtimes, code_digest, code_size,"
                " code_checksum, created) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    record.account,
                    record.name,
                    record.version,
                    record.description,
                    record.license,
                    json.dumps(record.runtimes),
                    record.code_digest,
                    record.code_size,
                    record.code_checksum,
                    record.created,
                ),
            )

        await self._database.run(work)

    async def set_public(self, account: str, name: str, public: bool) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                "UPDATE layer_names SET public=? WHERE account=? AND name=?", (int(public), account, name)
            )

        await self._database.run(work)

    async def delete(self, account: str, name: str, version: int) -> None:
        def work(connection: Connection) -> None:
            key = (account, name, version)
            connection.execute("DELETE FROM layers WHERE account=? AND name=? AND version=?", key)

        await self._database.run(work)

    async def list_names(self) -> list[LayerName]:
        def work(connection: Connection) -> list[LayerName]:
            rows = connection.execute("SELECT account, name, public, last_version FROM layer_names")
            return [LayerName(account=r[0], name=r[1], public=bool(r[2]), last_version=r[3]) for r in rows]

        return await self._database.run(work, synced=False)

    async def list_all(self) -> list[LayerRecord]:
        def work(connection: Connection) -> list[LayerRecord]:
            rows = connection.execute(
                "SELECT account, name, version, description, license, runtimes, code_digest, code_size,"
                " code_checksum, created FROM layers ORDER BY account, name, version"
            )
            return [
                LayerRecord(
                    account=row[0],
                    name=row[1],
                    version=row[2],
                    description=row[3],
                    license=row[4],
                    runtimes=tuple(json.loads(row[5])),
                    code_digest=row[6],
                    code_size=row[7],
                    code_checksum=row[8],
                    created=row[9],
                )
                for row in rows
            ]

        return await self._database.run(work, synced=False)
