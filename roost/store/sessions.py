"""Table `sessions`: conversations, which outlive their instances and this process."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

from roost.model.function import Affinity
from roost.model.session import Session, SessionState
from roost.store.database import Connection, Database
from roost.store.sealing import Sealer
from roost.store.sql import upsert


class Sessions:
    """Writes are not synced to the disk one by one: a session is made on the way of a request. They outlive the death
    of the process; a power cut may take the last moments' (their files are kept apart, and the id makes a new one).
    """

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def put(self, session: Session) -> None:
        """Create or replace."""
        row = (*session.key, self._encode(session))

        def work(connection: Connection) -> None:
            connection.execute(upsert("sessions", "account, function, id", "data"), row)

        await self._database.run(work, synced=False)

    async def get(self, account: str, function: str, session_id: str) -> Session | None:
        def work(connection: Connection) -> Session | None:
            row = connection.execute(
                "SELECT data FROM sessions WHERE account=? AND function=? AND id=?", (account, function, session_id)
            ).fetchone()
            return None if row is None else self._decode(row[0])

        return await self._database.run(work, synced=False)

    async def delete(self, account: str, function: str, session_id: str) -> None:
        def work(connection: Connection) -> None:
            key = (account, function, session_id)
            connection.execute("DELETE FROM sessions WHERE account=? AND function=? AND id=?", key)

        await self._database.run(work, synced=False)

    async def list_all(self) -> list[Session]:
        def work(connection: Connection) -> list[Session]:
            rows = connection.execute("SELECT data FROM sessions ORDER BY account, function, id")
            return [self._decode(row[0]) for row in rows]

        return await self._database.run(work, synced=False)

    def _encode(self, session: Session) -> str:
        values: dict[str, Any] = {field.name: getattr(session, field.name) for field in fields(Session)}
        config = values["config"] = dict(session.config)
        if "network" in config:  # there may be keys in it
            sealed = self._sealer.seal(json.dumps(config["network"]), _purpose(*session.key))
            config["network"] = {"sealed": base64.b64encode(sealed).decode()}
        return json.dumps(values)

    def _decode(self, text: str) -> Session:
        values = json.loads(text)
        # A field that an older or newer Roost wrote and this one does not know is left out, not fatal.
        known = {field.name: values[field.name] for field in fields(Session) if field.name in values}
        known["affinity"] = Affinity(known["affinity"])
        known["state"] = SessionState(known["state"])
        if "network" in known["config"]:
            sealed = base64.b64decode(known["config"]["network"]["sealed"])
            purpose = _purpose(known["account"], known["function"], known["id"])
            known["config"]["network"] = json.loads(self._sealer.unseal(sealed, purpose))
        return Session(**known)


def _purpose(account: str, function: str, id: str) -> str:
    return f"The network of session {account}/{function}/{id}"
