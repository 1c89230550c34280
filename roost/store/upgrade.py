"""Alembic over the revisions of `migrate`: imported only when a store is behind (it costs most of a second and 40 MB).

The files of `schema/` are the revisions: there is no folder of Python scripts, and nothing of it is generated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script.base import Script
from alembic.script.revision import RevisionMap
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, StaticPool

from roost.store.migrate import Revision

#: Called in a step's transaction with the number that the store has then.
_Stamp = Callable[[Connection, str], None]


def upgrade_sqlite(connection: sqlite3.Connection, revisions: Sequence[Revision]) -> None:
    """`connection` commits by itself (isolation_level None), and stays open."""
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    # SQLite's schema is transactional, but its driver begins no transaction for a change of it.
    event.listen(engine, "begin", lambda opened: opened.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as opened:
        _upgrade(opened, revisions, postgres=False, stamp=_tell_older_servers)


def upgrade_postgres(url: str, revisions: Sequence[Revision]) -> None:
    address = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_engine(address, poolclass=NullPool)
    try:
        with engine.connect() as opened:
            _upgrade(opened, revisions, postgres=True, stamp=lambda opened, number: None)
    finally:
        engine.dispose()


def _upgrade(connection: Connection, revisions: Sequence[Revision], *, postgres: bool, stamp: _Stamp) -> None:
    """To the newest revision, each step in a transaction of its own, with the note that it was made.

    Raises the driver's own errors."""
    scripts = RevisionMap(lambda: _scripts(revisions, postgres))

    def steps(present: tuple[str, ...], context: MigrationContext) -> list[MigrationStep]:
        found = scripts.iterate_revisions("head", present)
        return [MigrationStep.upgrade_from_script(scripts, each) for each in reversed(list(found))]  # type: ignore[arg-type]

    options = {
        "fn": steps,
        "transaction_per_migration": True,
        "transactional_ddl": True,
        "on_version_apply": (lambda *, step, **_: stamp(connection, step.up_revision_id),),
    }
    try:
        MigrationContext.configure(connection, opts=options).run_migrations(connection=connection)
    except DBAPIError as error:
        raise (error.orig or error) from error


def _scripts(revisions: Sequence[Revision], postgres: bool) -> Iterator[Script]:
    before: str | None = None
    for revision in revisions:
        module: Any = ModuleType(f"revision_{revision.number}")
        module.revision, module.down_revision = revision.number, before
        module.upgrade = _runner(revision, postgres)
        yield Script(module, revision.number, f"{revision.number}.sql")
        before = revision.number


def _runner(revision: Revision, postgres: bool) -> Callable[..., None]:
    def upgrade(*, connection: Connection) -> None:
        for statement in revision.statements(postgres=postgres):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    return upgrade


def _tell_older_servers(connection: Connection, number: str) -> None:
    connection.exec_driver_sql(f"PRAGMA user_version={int(number)}")
