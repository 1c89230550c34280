"""The schema's version, and the way forward from every older one.

`schema/NNN_name.sql` brings a store from version NNN-1 to NNN; `PRAGMA user_version` says where a file is. A released
file never changes: a new one is added.
"""

from __future__ import annotations

import sqlite3
from importlib import resources

from roost.model.errors import Unavailable


def scripts() -> list[tuple[int, str]]:
    """(version, SQL) of every migration, oldest first."""
    folder = resources.files("roost.store") / "schema"
    found = [(int(entry.name[:3]), entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return sorted(found)


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the open store to the newest version, each step in a transaction; return that version.

    Raises Unavailable when a newer Roost made it (there is no way back).
    """
    steps = scripts()
    newest = steps[-1][0]
    present = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if present > newest:
        raise Unavailable(
            f"This data directory was made by a newer Roost (schema {present}; this one knows {newest}). Update Roost."
        )
    for version, script in steps:
        if version <= present:
            continue
        # executescript would commit first; the script and its number must land together.
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={version};\nCOMMIT;")
    return newest
