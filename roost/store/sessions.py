"""Table `sessions`: conversations, which outlive their instances and this process."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from roost.model.function import Affinity
from roost.model.session import Session, SessionState
from roost.store.database import Connection, Database
from roost.store.sql import upsert


class Sessions:
    """Writes are not synced to the disk one by one: a session is made on the way of a request. They outlive the death
    of the process; a power cut may take the last moments' (their files are kept apart, and the id makes a new one).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, session: Session) -> None:
        """Create or replace."""
        row = (*session.key, _encode(session))

        def work(connection: Connection) -> None:
            connection.execute(upsert("sessions", "account, function, id", "data"), row)

        await self._database.run(work, synced=False)

    async def get(self, account: str, function: str, session_id: str) -> Session | None:
        def work(connection: Connection) -> Session | None:
            row = connection.execute(
                "SELECT data FROM sessions WHERE account=? AND function=? AND id=?", (account, function, session_id)
            ).fetchone()
            return None if row is None else _decode(row[0])

        return await self._database.run(work, synced=False)

    async def delete(self, account: str, function: str, session_id: str) -> None:
        def work(connection: Connection) -> None:
            key = (account, function, session_id)
            connection.execute("DELETE FROM sessions WHERE account=? AND function=? AND id=?", key)

        await self._database.run(work, synced=False)

    async def list_all(self) -> list[Session]:
        def work(connection: Connection) -> list[Session]:
            rows = connection.execute("SELECT data FROM sessions ORDER BY account, function, id")
            return [_decode(row[0]) for row in rows]

        return await self._database.run(work, synced=False)


def _encode(session: Session) -> str:
    values: dict[str, Any] = {field.name: getattr(session, field.name) for field in fields(Session)}
    values["config"] = dict(session.config)
    return json.dumps(values)


def _decode(text: str) -> Session:
    values = json.loads(text)
    # A field that an older or newer Roost wrote and this one does not know is left out, not fatal.
    known = {field.name: values[field.name] for field in fields(Session) if field.name in values}
    known["affinity"] = Affinity(known["affinity"])
    known["state"] = SessionState(known["state"])
    return Session(**known)
