"""Which changes of the schema a store has had, and those it still needs.

`schema/NNN_name.sql` is one change; a released file never changes: a new one is added. Numbers say the order in which
they are made where several are due. They may have gaps, and a lower one may come later than a higher one: the table
`migrations` names those that were made. `PRAGMA user_version` is the highest, for servers that know no such table.
"""

from __future__ import annotations

import sqlite3
from importlib import resources

from roost.model.errors import Unavailable

_TABLE = "CREATE TABLE IF NOT EXISTS migrations (number INTEGER NOT NULL PRIMARY KEY)"


def scripts() -> list[tuple[int, str]]:
    """(number, SQL) of every migration, in order."""
    folder = resources.files("roost.store") / "schema"
    found = [(int(entry.name[:3]), entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return sorted(found)


def migrate(connection: sqlite3.Connection) -> int:
    """Make every change that the open store has not had, each in a transaction; return the highest number.

    Raises Unavailable when a newer Roost made it (there is no way back).
    """
    steps = scripts()
    known = {number for number, _ in steps}
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    made = _made(connection, version)
    if strange := [*(made - known), *({version} - {0} - known)]:
        raise Unavailable(
            f"This data directory was made by a newer Roost (schema {max(strange)}; this one knows {max(known)})."
        )
    for number, script in steps:
        if number in made:
            continue
        version = max(version, number)
        # executescript would commit first; the script and its number must land together.
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{_TABLE};\n{script}\n{_note(made | {number})}\nPRAGMA user_version={version};\nCOMMIT;"
        )
        made.add(number)
    return version


def _note(numbers: set[int]) -> str:
    rows = ", ".join(f"({number})" for number in sorted(numbers))
    return f"INSERT OR IGNORE INTO migrations (number) VALUES {rows};"  # noqa: S608


def _made(connection: sqlite3.Connection, version: int) -> set[int]:
    """The numbers of the changes that were made."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE type='table' AND name='migrations'").fetchone():
        return {int(number) for (number,) in connection.execute("SELECT number FROM migrations")}
    return set(range(1, version + 1))  # before there was that table, numbers had no gaps
