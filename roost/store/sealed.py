"""Columns that are sealed, each text for its own row: whoever has the database alone reads none of them.

SQL can't look into them either: what it asks for has columns of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roost.store.database import Connection
from roost.store.sealing import Sealer

_MARK = "sealed:"  # what begins so is; plain JSON and addresses don't


@dataclass(frozen=True)
class SealedColumn:
    """`key` are the columns that name a row. `row` names it for people, and a text opens with the words that it was
    sealed with alone: they stay as they are."""

    table: str
    name: str
    key: tuple[str, ...]
    row: str

    def seal(self, sealer: Sealer, text: str, *key: object) -> str:
        return _MARK + base64.b64encode(sealer.seal(text, self.row.format(*key))).decode()

    def unseal(self, sealer: Sealer, text: str, *key: object) -> str:
        """Also what a former Roost left in plain text. Raises Unavailable as the sealer does."""
        if not text.startswith(_MARK):
            return text
        return sealer.unseal(base64.b64decode(text[len(_MARK) :]), self.row.format(*key))

    def check(self, sealer: Sealer, connection: Connection) -> None:
        """Raises Unavailable if one that is sealed does not open."""
        for text, *key in self._rows(connection, "LIKE"):
            self.unseal(sealer, text, *key)

    def seal_all(self, sealer: Sealer, connection: Connection) -> None:
        """Those that a former Roost left in plain text."""
        row_is = " AND ".join(f"{name}=?" for name in self.key)
        for text, *key in self._rows(connection, "NOT LIKE"):
            update = f"UPDATE {self.table} SET {self.name}=? WHERE {row_is}"  # noqa: S608
            connection.execute(update, (self.seal(sealer, text, *key), *key))

    def has_sealed(self, connection: Connection) -> bool:
        found = f"SELECT 1 FROM {self.table} WHERE {self.name} LIKE ? LIMIT 1"  # noqa: S608
        return connection.execute(found, (f"{_MARK}%",)).fetchone() is not None

    def _rows(self, connection: Connection, is_sealed: str) -> Sequence[Sequence[Any]]:
        """Text and key of each row that is sealed ("LIKE") or not ("NOT LIKE")."""
        columns = ", ".join((self.name, *self.key))
        select = f"SELECT {columns} FROM {self.table} WHERE {self.name} {is_sealed} ?"  # noqa: S608
        return connection.execute(select, (f"{_MARK}%",)).fetchall()


#: Environment variables, and whatever else defines a function.
FUNCTION = SealedColumn("functions", "config", ("account", "name"), "Function {}/{}")
VERSION = SealedColumn("versions", "snapshot", ("account", "function", "version"), "Function {}/{}, version {},")
#: Tokens, and passwords in addresses.
TRIGGER = SealedColumn("triggers", "config", ("account", "function", "name"), "Function {}/{}, trigger {},")
SETTING = SealedColumn("provision", "config", ("account", "function", "qualifier", "kind"), "Function {}/{}:{}, {},")
LETTER = SealedColumn("task_outbox", "destination", ("id",), "The destination of event {}")
#: Variables, tokens and rules of networks.
SANDBOX = SealedColumn("sandboxes", "data", ("id",), "Sandbox {}")
BUILD = SealedColumn("template_builds", "data", ("id",), "Build {} of a template")
VOLUME = SealedColumn("volumes", "token", ("id",), "The token of volume {}")
ALL = (FUNCTION, VERSION, TRIGGER, SETTING, LETTER, SANDBOX, BUILD, VOLUME)
