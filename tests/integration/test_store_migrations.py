"""How a store gets the schema of this Roost: a new one, one from before Alembic, one that is behind or ahead."""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from roost.model.errors import Unavailable
from roost.store import migrate
from roost.store.functions import FunctionRecord
from roost.store.migrate import Revision, revisions, to_postgres
from roost.store.store import Store
from tests.support.stores import Place

HEAD = revisions()[-1].number
#: What a Roost before Alembic has released.
OLD = [revision for revision in revisions() if revision.number <= "004"]
FUNCTION = FunctionRecord(account="a", name="f", id="i", config={"x": 1}, created=1.0, modified=1.0)
INSERT = (
    "INSERT INTO functions (account, name, id, config, code_digest, code_size, code_checksum, layers, created,"
    " modified) VALUES ('a', 'f', 'i', '{\"x\": 1}', '', 0, '', '[]', 1.0, 1.0)"
)


def steps(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """This Roost knows the real revisions, and these: each a table of its own."""
    more = [Revision(f"{number:03}", f"CREATE TABLE t{number} (x TEXT);\n") for number in numbers]
    known = (*revisions(), *more)
    monkeypatch.setattr(migrate, "revisions", lambda: known)


def old(path: Path, made: Iterable[int], *, table: bool = True) -> None:
    """A store as a Roost before Alembic left it, with a function in it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for revision in OLD:
            if int(revision.number) in made:
                connection.executescript(revision.script)
        connection.execute(INSERT)
        connection.execute(f"PRAGMA user_version={max(made)}")
        if table:
            connection.execute("CREATE TABLE migrations (number INTEGER NOT NULL PRIMARY KEY)")
            connection.executemany("INSERT INTO migrations VALUES (?)", [(number,) for number in made])
        connection.commit()


def schema(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {re.sub(r"\s+", " ", row[0]) for row in rows}


async def opened(store: Store) -> list[FunctionRecord]:
    await store.open()
    try:
        return await store.functions.list_all()
    finally:
        await store.close()


async def test_a_new_store_has_the_newest_schema_and_says_so(place: Place) -> None:
    for _ in range(2):
        assert await opened(place.store()) == []
        assert place.rows("SELECT version_num FROM alembic_version") == [(HEAD,)]


async def test_one_that_is_behind_is_brought_forward_step_by_step(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.store()
    await store.open()
    await store.functions.put(FUNCTION)
    await store.close()
    for more in ([901], [901, 902, 905]):
        steps(monkeypatch, *more)
        assert await opened(place.store()) == [FUNCTION]
        assert place.rows("SELECT version_num FROM alembic_version") == [(f"{more[-1]}",)]
        for number in more:
            assert place.rows(f"SELECT x FROM t{number}") == []
        monkeypatch.undo()


async def test_a_step_that_fails_leaves_what_was_before_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await opened(place.store()) == []
    known = (
        *revisions(),
        Revision("901", "CREATE TABLE good (x TEXT);\n"),
        Revision("902", "CREATE TABLE half (x TEXT);\nINSERT INTO nowhere VALUES (1);\n"),
    )
    monkeypatch.setattr(migrate, "revisions", lambda: known)
    with pytest.raises(Unavailable, match="nowhere"):
        await place.store().open()
    assert place.rows("SELECT version_num FROM alembic_version") == [("901",)]
    assert place.rows("SELECT x FROM good") == []
    with pytest.raises(Exception, match="half"):
        place.rows("SELECT x FROM half")


async def test_a_store_of_a_newer_roost_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 901)
    assert await opened(place.store()) == []
    monkeypatch.undo()
    with pytest.raises(Unavailable, match=rf"newer Roost \(schema 901; this one knows {HEAD}\)"):
        await place.store().open()


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("made", [(1,), (1, 2, 3, 4), (1, 2, 4)])
async def test_a_store_from_before_alembic_is_taken_over_with_all_that_is_in_it(
    tmp_path: Path, made: tuple[int, ...], table: bool
) -> None:
    if not table and len(made) != made[-1]:
        made = tuple(range(1, made[-1] + 1))  # before there was that table, numbers had no gaps
    path, new = tmp_path / "roost.db", tmp_path / "new" / "roost.db"
    old(path, made, table=table)
    for _ in range(2):
        assert await opened(Store(path)) == [FUNCTION]
    assert await opened(Store(new)) == []
    assert schema(path) == schema(new)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (int(HEAD),), "an older Roost sees it is newer"


@pytest.mark.parametrize("table", [True, False])
async def test_a_store_from_before_alembic_that_is_newer_all_the_same_is_refused(tmp_path: Path, table: bool) -> None:
    path = tmp_path / "roost.db"
    old(path, (1, 2, 999), table=table)
    before = schema(path)
    with pytest.raises(Unavailable, match=r"newer Roost \(schema 999"):
        await Store(path).open()
    assert schema(path) == before


async def test_a_database_of_another_program_is_refused(postgres_url: str, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('ae1027a6acf')")
    with pytest.raises(Unavailable, match="belongs to another program"):
        await Store(tmp_path / "roost.db", postgres_url).open()


UPGRADE = """
import asyncio, sys
from pathlib import Path
from roost.store import migrate
from roost.store.migrate import Revision, revisions
from roost.store.store import Store

filler = "".join(f"INSERT INTO x{{n}} VALUES ('{i}');\\n" for i in range(60))
known = (*revisions(), *(
    Revision(f"{n}", f"CREATE TABLE x{n} (x TEXT);\\n" + filler.replace("{n}", str(n))) for n in range(901, 921)))
migrate.revisions = lambda: known

async def main():
    store = Store(Path(sys.argv[1]), sys.argv[2])
    print("begin", flush=True)
    await store.open()
    await store.close()

asyncio.run(main())
"""


async def test_a_server_that_is_killed_in_mid_migration_loses_nothing(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.functions.put(FUNCTION)
    await store.close()
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", UPGRADE, str(place.path), place.url], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"begin\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.02, 0.4))
        process.kill()
        process.wait()
        process.stdout.close()
        [(number,)] = place.rows("SELECT version_num FROM alembic_version")
        for step in range(901, int(number) + 1):
            assert place.rows(f"SELECT count(*) FROM x{step}") == [(60,)]
        if int(number) < 920:
            with pytest.raises(Exception, match=f"x{max(int(number), 900) + 1}"):
                place.rows(f"SELECT 1 FROM x{max(int(number), 900) + 1}")
    done = subprocess.run([sys.executable, "-c", UPGRADE, str(place.path), place.url], check=False)
    assert done.returncode == 0
    assert place.rows("SELECT version_num FROM alembic_version") == [("920",)]
    assert place.rows("SELECT name FROM functions") == [("f",)]


def test_a_start_at_the_newest_schema_does_not_pay_for_alembic(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from roost.store.store import Store\n"
        "async def main():\n store = Store(Path(sys.argv[1])); await store.open(); await store.close()\n"
        "asyncio.run(main()); asyncio.run(main())\n"
        "print([name for name in ('alembic', 'sqlalchemy', 'psycopg') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "db")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_numbers_are_in_order_and_nobodys_twice() -> None:
    numbers = [revision.number for revision in revisions()]
    assert numbers == sorted(set(numbers))
    assert all(revision.script.rstrip().endswith(";") for revision in revisions())
    assert all(list(revision.statements()) for revision in revisions())


def test_types_are_translated_and_nothing_else() -> None:
    table = 'CREATE TABLE "TEXT" (a TEXT, b INTEGER NOT NULL DEFAULT 0, c REAL, d BLOB, e TEXT -- a REAL one\n)'
    assert to_postgres(f"{table} WITHOUT ROWID;") == (
        'CREATE TABLE "TEXT" (a TEXT COLLATE "C", b BIGINT NOT NULL DEFAULT 0, c DOUBLE PRECISION, d BYTEA,'
        ' e TEXT COLLATE "C" -- a REAL one\n) ;'
    )
    insert = "INSERT INTO t VALUES ('INTEGER', 'it''s TEXT')"
    assert to_postgres(insert) == insert
