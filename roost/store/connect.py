"""Which backend a store has."""

from __future__ import annotations

import importlib
from pathlib import Path

from roost.model.errors import Unavailable
from roost.store.database import Backend, Database
from roost.store.sqlite import SqliteBackend


def database(path: Path, url: str = "") -> Database:
    """The SQLite file at `path`, or the PostgreSQL database that `url` names. Raises Unavailable without its driver."""
    backend = _postgres(url) if url else SqliteBackend(path)
    return Database(backend, lock=path.with_name(path.name + ".lock"))


def _postgres(url: str) -> Backend:
    # Its driver is an extra, and takes its time to import: who uses SQLite has neither.
    try:
        module = importlib.import_module("roost.store.postgres")
    except ImportError as error:
        raise Unavailable(
            "'database' is set, which needs Roost's 'postgres' extra: pip install 'roost[postgres]'."
        ) from error
    backend: Backend = module.PostgresBackend(url)
    return backend
