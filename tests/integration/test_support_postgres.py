"""The PostgreSQL server that tests run: it keeps what it took over a restart and a kill, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import Postgres, serving


def test_each_test_has_a_database_of_its_own(postgres: Postgres, postgres_url: str) -> None:
    with postgres.database() as other:
        for url in (postgres_url, other):
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE t (x int)")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(other)


def test_a_server_that_was_restarted_or_killed_has_what_it_had_and_is_gone_at_the_end() -> None:
    with serving() as server:
        server.execute("CREATE TABLE t (x int)")
        server.stop()
        server.start()
        server.execute("INSERT INTO t VALUES (1)")
        server.kill()
        server.start()
        assert server.execute("SELECT x FROM t") == [(1,)]
    assert not server.folder.exists()
    assert not [each for each in Path("/proc").glob("[0-9]*/cmdline") if str(server.folder) in _text(each)]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
