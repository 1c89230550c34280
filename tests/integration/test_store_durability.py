"""The store on a real file: what it promises when the process dies, the disk fills, or two servers want it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.model.errors import StorageFull, Unavailable
from roost.model.function import Affinity
from roost.model.session import Session, SessionState
from roost.store.aliases import AliasRecord
from roost.store.connect import database as sqlite
from roost.store.database import Connection, Database, rows_changed
from roost.store.functions import FunctionRecord
from roost.store.layers import LayerRecord
from roost.store.migrate import revisions
from roost.store.provision import QualifierKind, QualifierRecord
from roost.store.store import Store
from roost.store.triggers import TriggerRecord
from roost.store.versions import VersionRecord
from tests.support.stores import Place


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    found = place.store()
    await found.open()
    yield found
    await found.close()


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    async with place.opened() as found:
        yield found


def function(name: str = "f", **fields: object) -> FunctionRecord:
    record = FunctionRecord(
        account="a", name=name, id=f"id-{name}", config={"runtime": "python3"}, created=1.5, modified=2.5
    )
    return replace(record, **fields)  # type: ignore[arg-type]


def session(session_id: str = "s", **fields: object) -> Session:
    made = Session(
        account="a",
        function="f",
        id=session_id,
        affinity=Affinity.HEADER_FIELD,
        created=1.0,
        modified=2.0,
        last_used=3.0,
        ttl_s=60,
        idle_timeout_s=30,
        config={"nasConfig": {"mountPoints": [{"serverAddr": "v:/x"}]}},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


async def test_every_record_comes_back_as_it_went_in(store: Store) -> None:
    record = function(
        code_digest="d", code_size=3, code_checksum="9", layers=({"arn": "x", "size": 1, "digest": "l"},),
        restriction={"reason": "r", "modified": 1.0},
    )  # fmt: skip
    version = VersionRecord(account="a", function="f", version=1, description="one", snapshot={"k": [1]}, created=4.0)
    alias = AliasRecord(
        account="a",
        function="f",
        name="p",
        version="1",
        weights={"LATEST": 0.25},
        description="",
        created=1,
        modified=2,
    )
    trigger = TriggerRecord(
        account="a", function="f", name="t", id="i", type="http", qualifier="p", description="d",
        config={"methods": ["GET"]}, created=1, modified=2,
    )  # fmt: skip
    layer = LayerRecord(
        account="a", name="l", version=1, description="", license="MIT", runtimes=("python3",), code_digest="d",
        code_size=1, code_checksum="1", created=1,
    )  # fmt: skip
    setting = QualifierRecord(
        account="a", function="f", qualifier="p", kind=QualifierKind.SCALING, config={"minInstances": 1}, created=1,
        modified=2,
    )  # fmt: skip
    await store.functions.put(record)
    await store.versions.publish(version)
    await store.aliases.put(alias)
    await store.triggers.put(trigger)
    await store.layers.publish(layer)
    await store.layers.set_public("a", "l", True)
    await store.provision.put(setting)
    await store.concurrency.put("a", "f", 3)
    await store.tags.change([("a", "function", "f")], put={"k": "v", "gone": "x"})
    await store.tags.change([("a", "function", "f")], remove=["gone"])
    await store.sessions.put(session(state=SessionState.PAUSED))
    await store.settings.put("secret", {"k": "ü"})

    assert await store.functions.list_all() == [replace(record, last_version=1)]
    assert await store.versions.list_all() == [version]
    assert await store.aliases.list_all() == [alias]
    assert await store.triggers.list_all() == [trigger]
    assert await store.layers.list_all() == [layer]
    assert [(name.public, name.last_version) for name in await store.layers.list_names()] == [(True, 1)]
    assert await store.provision.list_all() == [setting]
    assert await store.concurrency.list_all() == {("a", "f"): 3}
    assert await store.tags.list_all() == {("a", "function", "f"): {"k": "v"}}
    assert await store.sessions.list_all() == [session(state=SessionState.PAUSED)]
    assert await store.sessions.get("a", "f", "s") == session(state=SessionState.PAUSED)
    assert await store.settings.get("secret") == {"k": "ü"}
    assert await store.settings.get("none") is None

    await store.functions.delete("a", "f")
    for table in (store.functions, store.versions, store.aliases, store.triggers, store.provision):
        assert await table.list_all() == []
    assert await store.concurrency.list_all() == {}
    assert await store.tags.list_all() == {}
    assert await store.sessions.list_all() != [], "its sessions are the session manager's to end"


async def test_an_update_keeps_what_hangs_on_a_function(store: Store) -> None:
    await store.functions.put(function())
    await store.concurrency.put("a", "f", 3)
    await store.functions.put(function(config={"runtime": "custom"}))
    assert await store.concurrency.list_all() == {("a", "f"): 3}


async def test_the_settings_of_a_version_and_an_alias_go_with_them(store: Store) -> None:
    await store.functions.put(function())
    await store.versions.publish(
        VersionRecord(account="a", function="f", version=1, description="", snapshot={}, created=1)
    )
    for qualifier in ("1", "p", "LATEST"):
        await store.provision.put(
            QualifierRecord(
                account="a", function="f", qualifier=qualifier, kind=QualifierKind.PROVISION, config={}, created=1,
                modified=1,
            )
        )  # fmt: skip
    await store.versions.delete("a", "f", 1)
    await store.aliases.delete("a", "f", "p")
    assert [record.qualifier for record in await store.provision.list_all()] == ["LATEST"]


async def test_a_second_server_is_turned_away(store: Store, place: Place) -> None:
    with pytest.raises(Unavailable, match="Another Roost uses the data directory"):
        await place.store().open()
    await store.functions.put(function())
    await store.close()
    again = place.store()
    await again.open()
    assert len(await again.functions.list_all()) == 1
    await again.close()
    await again.close()


PUT = "INSERT INTO settings VALUES (?, '1')"
NAMES = "SELECT name FROM settings WHERE name LIKE 'n%' ORDER BY name"


async def names(database: Database) -> list[str]:
    return await database.run(lambda c: [row[0] for row in c.execute(NAMES)])


async def test_one_that_fails_does_not_take_the_others_of_its_commit_along(database: Database) -> None:
    def fail(connection: Connection) -> None:
        connection.execute("INSERT INTO settings VALUES ('nhalf', '1')")
        raise ValueError("mine")

    def break_off(connection: Connection) -> None:
        connection.execute("INSERT INTO settings VALUES ('nquarter', '1')")
        connection.execute("INSERT INTO settings VALUES (NULL, '1')")

    def put(name: str, connection: Connection) -> str:
        connection.execute(PUT, (name,))
        return name

    works = [database.run(lambda c, n=f"n{i:02}": put(n, c)) for i in range(20)]
    works += [database.change(PUT, (f"n{i:02}",), lambda c, done: done.rowcount) for i in range(20, 40)]
    works.insert(7, database.run(fail))
    works.insert(9, database.run(break_off))
    works.insert(30, database.change(PUT, (None,), lambda c, done: done.rowcount))
    results = await asyncio.gather(*works, return_exceptions=True)
    assert [type(r).__name__ for r in results if isinstance(r, Exception)] == [
        "ValueError",
        "Unavailable",
        "Unavailable",
    ]
    assert results[-1] == 1
    assert await names(database) == [f"n{i:02}" for i in range(40)]
    await database.close()
    with pytest.raises(Unavailable, match="closed"):
        await database.run(fail)


async def test_many_writers_share_a_commit(tmp_path: Path) -> None:
    database = sqlite(tmp_path / "db")
    await database.open()
    commits: list[str] = []
    await database.run(lambda c: c.set_trace_callback(commits.append))  # type: ignore[attr-defined]
    await asyncio.gather(
        *(database.run(lambda c, i=i: c.execute("INSERT INTO settings VALUES (?, '1')", (str(i),)) and None)
          for i in range(400))
    )  # fmt: skip
    await database.close()
    assert 1 <= commits.count("COMMIT") <= 40


async def test_a_caller_that_gives_up_does_not_stop_the_write(database: Database) -> None:
    task = asyncio.ensure_future(database.run(lambda c: c.execute(PUT, ("n",)) and None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(database) == ["n"]


async def test_a_full_disk_is_named_and_the_store_lives_on(tmp_path: Path) -> None:
    database = sqlite(tmp_path / "db")
    await database.open()
    pages = await database.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await database.run(lambda c: c.execute(f"PRAGMA max_page_count={pages + 8}").fetchone())

    def fill(connection: Connection) -> None:
        connection.execute("INSERT INTO settings VALUES ('big', ?)", ("x" * 200_000,))

    with pytest.raises(StorageFull, match="No room left"):
        await database.run(fill)
    await database.run(lambda c: c.execute("INSERT INTO settings VALUES ('small', '1')") and None)
    assert await database.run(lambda c: [row[0] for row in c.execute("SELECT name FROM settings")]) == ["small"]
    await database.close()


@pytest.mark.parametrize(
    "content", [b"this is no database at all, not even nearly" * 40, b"SQLite format 3\0" + b"\xff" * 9000]
)
async def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "roost.db"
    path.write_bytes(content)
    with pytest.raises(Unavailable, match=r"damaged|failed"):
        await Store(path).open()
    assert path.read_bytes() == content
    # The lock is free again.
    path.unlink()
    store = Store(path)
    await store.open()
    await store.close()


async def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="file"):
        await Store(tmp_path / "file" / "roost.db").open()


WRITER = """
import asyncio, sys
from pathlib import Path
from roost.store.functions import FunctionRecord
from roost.store.store import Store

async def main():
    store = Store(Path(sys.argv[1]), sys.argv[2])
    await store.open()
    async def write(lane):
        for number in range(100_000):
            name = f"f-{lane}-{number}"
            await store.functions.put(FunctionRecord(
                account="a", name=name, id=name, config={}, created=1.0, modified=1.0))
            print(name, flush=True)
    await asyncio.gather(*(write(lane) for lane in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 37, 160])
async def test_what_was_acknowledged_outlives_a_kill(place: Place, lines: int) -> None:
    command = [sys.executable, "-c", WRITER, str(place.path), place.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(lines)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    process.stdout.close()
    store = place.store()
    await store.open()
    kept = {record.name for record in await store.functions.list_all()}
    await store.close()
    assert "" not in acknowledged
    assert len(acknowledged) >= lines
    assert set(acknowledged) <= kept


async def test_the_file_gives_back_what_is_no_longer_used_and_writes_go_on_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "roost.db"
    database = sqlite(path)
    await database.open()
    for number in range(8):
        await database.change("INSERT INTO settings VALUES (?, ?)", (f"{number}", "x" * 4_000_000), rows_changed)
    await database.change("INSERT INTO settings VALUES ('last', '1')", (), rows_changed)
    assert path.stat().st_size + path.with_name("roost.db-wal").stat().st_size > 30_000_000
    await database.change("DELETE FROM settings WHERE name <> 'last'", (), rows_changed)
    for number in range(5):
        assert await database.change("UPDATE settings SET value=?", (f"{number}",), rows_changed) == 1
    deadline = time.monotonic() + 20
    while path.stat().st_size > 8_000_000 or path.with_name("roost.db-wal").stat().st_size > 0:
        assert time.monotonic() < deadline, path.stat().st_size
        await asyncio.sleep(0.05)
    await database.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM settings").fetchall() == [("last", "4")]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_what_is_in_the_log_gets_into_the_file_while_writes_go_on(tmp_path: Path) -> None:
    path = tmp_path / "roost.db"
    store = Store(path)
    await store.open()
    try:
        rounds = 0
        while _in_the_file(path) < 3000:
            assert rounds < 100
            rounds += 1
            await asyncio.gather(*(store.settings.put(f"{rounds}-{n}", "x" * 100) for n in range(500)))
        assert _in_the_file(path) <= rounds * 500
    finally:
        await store.close()
    assert _in_the_file(path) >= rounds * 500


def _in_the_file(path: Path) -> int:
    """Rows that are there without the log."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as file:
            return int(file.execute("SELECT count(*) FROM settings").fetchone()[0])
    except sqlite3.DatabaseError:  # read while it is being written
        return 0


async def test_a_file_from_before_that_learns_it_once(tmp_path: Path) -> None:
    path = tmp_path / "roost.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for revision in revisions()[:4]:
            connection.executescript(revision.script)
        connection.execute("PRAGMA user_version=4")
        connection.execute("INSERT INTO settings VALUES ('k', '1')")
        connection.commit()
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    store = Store(path)
    await store.open()
    assert await store.settings.get("k") == 1
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
