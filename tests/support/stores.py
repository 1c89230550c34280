"""Where a test's store is: `place` runs the test once for each backend."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from roost.store.connect import database
from roost.store.database import Database
from roost.store.store import Store


@dataclass(frozen=True)
class Place:
    """A data directory, and for PostgreSQL an empty database's URL."""

    path: Path
    url: str = ""

    @property
    def postgres(self) -> bool:
        return bool(self.url)

    @property
    def options(self) -> list[str]:
        """Of a server that keeps its store here."""
        return ["--database", self.url] if self.url else []

    def store(self) -> Store:
        return Store(self.path, self.url)

    def database(self) -> Database:
        return database(self.path, self.url)

    @contextlib.asynccontextmanager
    async def opened(self) -> Any:
        """The database, which is closed at the end."""
        found = self.database()
        await found.open()
        try:
            yield found
        finally:
            await found.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What is stored now, read past the store."""
        if self.url:
            with psycopg.connect(self.url) as connection:
                return connection.execute(sql).fetchall()
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as file:
            return file.execute(sql).fetchall()

    def raw(self, *, log: bool = True) -> bytes:
        """All that the database's files hold, unused parts as well, and PostgreSQL's log if asked for."""
        if not self.url:
            return b"".join(file.read_bytes() for file in self.path.parent.glob(f"{self.path.name}*"))
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            found = connection.execute(
                "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname=current_database()"
            ).fetchone()
        assert found is not None
        data = Path(found[0])
        folders = [data / "base" / str(found[1]), *([data / "pg_wal"] if log else [])]
        return b"".join(file.read_bytes() for folder in folders for file in folder.iterdir() if file.is_file())


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty one."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    yield Place(tmp_path / "roost.db", url)
