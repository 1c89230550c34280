"""Which schema a store has, and how it gets the one that this Roost works with.

`schema/NNN_name.sql` is one revision; a released file never changes: a new one is added. They are made in the order of
their numbers, and the table `alembic_version` says up to which. A new store is made here, from all of them at once; one
that is behind is brought forward by Alembic (`upgrade`), which is imported only then: it takes longer than all other
parts of a start. Types are written as SQLite's; other databases have them translated.
"""

from __future__ import annotations

import importlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from roost.model.errors import Unavailable

if TYPE_CHECKING:
    from roost.store.database import Connection

VERSION_TABLE = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
_NUMBER = re.compile(r"[0-9]{3}")
#: What stays as it is (strings, quoted names, comments), and the words that PostgreSQL has others for. Its own order of
#: text depends on the server's language; SQLite's is that of the bytes, and so is "C".
_WORDS = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|\b(?:TEXT|INTEGER|REAL|BLOB)\b|\bWITHOUT ROWID\b")
_POSTGRES = {
    "TEXT": 'TEXT COLLATE "C"',
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "BLOB": "BYTEA",
    "WITHOUT ROWID": "",
}


@dataclass(frozen=True)
class Revision:
    """One change of the schema."""

    number: str  # three digits
    script: str

    def statements(self, *, postgres: bool = False) -> Iterator[str]:
        """One by one, as SQLite or PostgreSQL takes them."""
        lines: list[str] = []
        for line in self.script.splitlines():
            lines.append(line)
            if sqlite3.complete_statement(text := "\n".join(lines)):
                yield to_postgres(text) if postgres else text
                lines.clear()


@cache
def revisions() -> tuple[Revision, ...]:
    """All of them, in order."""
    folder = resources.files("roost.store") / "schema"
    found = [(entry.name[:3], entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return tuple(Revision(number, script) for number, script in sorted(found))


def to_postgres(statement: str) -> str:
    return _WORDS.sub(lambda word: _POSTGRES.get(word[0], word[0]), statement)


def migrate_sqlite(connection: sqlite3.Connection) -> None:
    """Bring the open file to the newest revision; each step happens or does not. Raises Unavailable when a newer Roost
    made it (there is no way back)."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if _has_table(connection, "alembic_version"):
        present = _check(connection, "This data directory")
    elif version or _has_table(connection, "migrations"):
        present = _adopt(connection, version)
    else:
        _in_transaction(connection, [*_everything(), *_stamp(revisions()[-1].number)])
        return
    if present != revisions()[-1].number:
        importlib.import_module("roost.store.upgrade").upgrade_sqlite(connection, revisions())


def migrate_postgres(connection: Connection, *, name: str, url: str) -> None:
    """The same for an open PostgreSQL database, which nobody else may migrate meanwhile."""
    if not connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()[0]:
        statements = [*_everything(postgres=True), VERSION_TABLE, _version(revisions()[-1].number)]
        connection.execute(";\n".join(["BEGIN", *(each.strip().rstrip(";") for each in statements), "COMMIT"]))
    elif _check(connection, name) != revisions()[-1].number:
        importlib.import_module("roost.store.upgrade").upgrade_postgres(url, revisions())


def _everything(*, postgres: bool = False) -> list[str]:
    return [statement for revision in revisions() for statement in revision.statements(postgres=postgres)]


def _check(connection: Connection | sqlite3.Connection, name: str) -> str:
    """The store's revision. Raises Unavailable for one that this Roost does not know."""
    row = connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()
    present, known = str(row[0]), [revision.number for revision in revisions()]
    if present not in known:
        what = "is of a newer Roost" if _NUMBER.fullmatch(present) else "belongs to another program"
        raise Unavailable(f"{name} {what} (schema {present[:32]}; this one knows {known[-1]}).")
    return present


# --- SQLite, and stores from before Alembic --------------------------------------------------------------------------


def _adopt(connection: sqlite3.Connection, version: int) -> str:
    """A store that had its revisions in the table `migrations`, or before that in `PRAGMA user_version` alone.

    That table could have gaps; what is missing below its highest number is made now. The number of its revision then.
    """
    made = {f"{number:03}" for number in range(1, version + 1)}
    if _has_table(connection, "migrations"):
        made = {f"{number:03}" for (number,) in connection.execute("SELECT number FROM migrations")}
    known = {revision.number for revision in revisions()}
    if strange := [*(made - known), *({f"{version:03}"} - {"000"} - known)]:
        raise Unavailable(
            f"This data directory is of a newer Roost (schema {max(strange)}; this one knows {max(known)})."
        )
    highest = max(made)
    missing = [each for each in revisions() if each.number not in made and each.number < highest]
    late = [statement for revision in missing for statement in revision.statements()]
    _in_transaction(connection, [*late, "DROP TABLE IF EXISTS migrations", *_stamp(highest)])
    return highest


def _stamp(number: str) -> list[str]:
    """`user_version` tells a Roost from before Alembic that the store is newer."""
    return [VERSION_TABLE, _version(number), f"PRAGMA user_version={int(number)}"]


def _version(number: str) -> str:
    return f"INSERT INTO alembic_version VALUES ('{int(number):03}')"  # noqa: S608


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (name,))
    return found.fetchone() is not None


def _in_transaction(connection: sqlite3.Connection, statements: list[str]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
