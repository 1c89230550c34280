"""Tables `sandboxes`, `sandbox_ends` and `sandbox_keys`: what exists, what is gone and why, and who asked for it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, fields
from typing import Any

from roost.model.sandbox import Checkpoint, EndedSandbox, PauseMode, Sandbox, SandboxState, SandboxVolume
from roost.store.database import Connection, Database
from roost.store.records import decode_foundation, decode_limits, encode_foundation, encode_limits
from roost.store.sealed import SANDBOX
from roost.store.sealing import Sealer
from roost.store.sql import upsert

_SEALED = "sealed"


@dataclass(frozen=True, kw_only=True)
class CreationKey:
    """An `Idempotency-Key` and what it made."""

    account: str
    key: str
    digest: str  # of the request's body
    sandbox: str
    at: float


class Sandboxes:
    """Writes are not synced to the disk one by one: a sandbox is made while somebody waits for it. They outlive the
    death of the process; a power cut takes the rooms anyway, and may take the last moments' sandboxes with them.
    """

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def create(self, sandbox: Sandbox, key: CreationKey | None) -> None:
        """Both, or neither."""
        row = (sandbox.id, sandbox.account, self._encode(sandbox))

        def work(connection: Connection) -> None:
            connection.execute("INSERT INTO sandboxes (id, account, data) VALUES (?,?,?)", row)
            if key is not None:
                connection.execute(
                    upsert("sandbox_keys", "account, key", "digest, sandbox, at"),
                    (key.account, key.key, key.digest, key.sandbox, key.at),
                )

        await self._database.run(work, synced=False)

    async def update(self, sandbox: Sandbox) -> None:
        """Does nothing for one that is gone."""
        row = (self._encode(sandbox), sandbox.id)

        def work(connection: Connection) -> None:
            connection.execute("UPDATE sandboxes SET data=? WHERE id=?", row)

        await self._database.run(work, synced=False)

    async def end(self, ended: EndedSandbox) -> None:
        """It is gone, and that is remembered."""

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM sandboxes WHERE id=?", (ended.id,))
            connection.execute(
                upsert("sandbox_ends", "id", "account, reason, at"),
                (ended.id, ended.account, ended.reason, ended.at),
            )

        await self._database.run(work, synced=False)

    async def forget(self, ends: list[str], keys: list[tuple[str, str]]) -> None:
        """Drop memories: ids of ended sandboxes, and (account, key)."""

        def work(connection: Connection) -> None:
            connection.executemany("DELETE FROM sandbox_ends WHERE id=?", [(id,) for id in ends])
            connection.executemany("DELETE FROM sandbox_keys WHERE account=? AND key=?", keys)

        await self._database.run(work, synced=False)

    async def load(self) -> tuple[list[Sandbox], list[EndedSandbox], list[CreationKey]]:
        """Everything; what is remembered comes oldest first."""

        def work(connection: Connection) -> tuple[list[Sandbox], list[EndedSandbox], list[CreationKey]]:
            living = [self._decode(*row) for row in connection.execute("SELECT id, data FROM sandboxes ORDER BY id")]
            ends = connection.execute("SELECT id, account, reason, at FROM sandbox_ends ORDER BY at")
            keys = connection.execute("SELECT account, key, digest, sandbox, at FROM sandbox_keys ORDER BY at")
            return (
                living,
                [EndedSandbox(id=row[0], account=row[1], reason=row[2], at=row[3]) for row in ends],
                [CreationKey(account=r[0], key=r[1], digest=r[2], sandbox=r[3], at=r[4]) for r in keys],
            )

        return await self._database.run(work, synced=False)

    def _encode(self, sandbox: Sandbox) -> str:
        values: dict[str, Any] = {field.name: getattr(sandbox, field.name) for field in fields(Sandbox)}
        values["limits"] = encode_limits(sandbox.limits)
        values["foundation"] = encode_foundation(sandbox.foundation)
        values["volumes"] = [[volume.name, volume.path] for volume in sandbox.volumes]
        values["checkpoints"] = [
            {**vars(one), "foundation": encode_foundation(one.foundation)} for one in sandbox.checkpoints
        ]
        for name in ("metadata", "environment", "network"):
            values[name] = dict(values[name])
        return SANDBOX.seal(self._sealer, json.dumps(values), sandbox.id)

    def _decode(self, id: str, data: str) -> Sandbox:
        values = json.loads(SANDBOX.unseal(self._sealer, data, id))
        # A field that an older or newer Roost wrote and this one does not know is left out, not fatal.
        known = {field.name: values[field.name] for field in fields(Sandbox) if field.name in values}
        known["state"] = SandboxState(known["state"])
        known["pause_mode"] = PauseMode(known["pause_mode"]) if known["pause_mode"] else None
        known["limits"] = decode_limits(known["limits"])
        known["foundation"] = decode_foundation(known.get("foundation", {}))
        known["volumes"] = tuple(SandboxVolume(name=name, path=path) for name, path in known["volumes"])
        known["checkpoints"] = tuple(_decode_checkpoint(one) for one in known.get("checkpoints", ()))
        if _SEALED in known.get("network", {}):  # by an older Roost, which sealed nothing else of it
            sealed = base64.b64decode(known["network"][_SEALED])
            purpose = f"The network of sandbox {known['account']}/{id}"
            known["network"] = json.loads(self._sealer.unseal(sealed, purpose))
        return Sandbox(**known)


def _decode_checkpoint(values: dict[str, Any]) -> Checkpoint:
    known = {field.name: values[field.name] for field in fields(Checkpoint) if field.name in values}
    known["foundation"] = decode_foundation(known["foundation"])
    for name in ("contexts", "left_behind", "lost"):
        known[name] = tuple(known.get(name, ()))
    return Checkpoint(**known)
