"""What PostgreSQL alone can do to a store: break the connection restart, fill up, serve somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from roost.model.errors import RoostError, StorageFull, Unavailable
from roost.store import postgres as backend
from roost.store.connect import database as connect
from roost.store.database import Connection, Database
from roost.store.postgres import numbered
from roost.store.store import Store
from roost.store.tasks import Kept, TaskFilter
from tests.support.postgres import USER, Postgres, serving
from tests.support.stores import Place
from tests.unit.test_tasks_model import task

COUNT_UP = "UPDATE settings SET value=CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE name='n'"


@contextlib.asynccontextmanager
async def opened(path: Path, url: str) -> AsyncIterator[Database]:
    database = connect(path / "roost.db", url)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def count_up(database: Database) -> int:
    """Once; how many rows that changed."""
    return await database.change(COUNT_UP, (), lambda connection, cursor: cursor.rowcount)


async def counter(database: Database) -> int:
    def work(connection: Connection) -> int:
        return int(connection.execute("SELECT value FROM settings WHERE name='n'").fetchone()[0])

    return await database.run(work)


async def start_counting(database: Database) -> None:
    await database.run(lambda connection: connection.execute("INSERT INTO settings VALUES ('n', '0')") and None)


# --- at the start ----------------------------------------------------------------------------------------------------


async def test_what_keeps_it_from_opening_is_one_sentence(postgres: Postgres, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        wrong = {
            postgres.url("postgres", password="wrong"): f'password authentication failed for user "{USER}"',
            postgres.url("nowhere"): 'database "nowhere" does not exist',
            f"postgresql://127.0.0.1:{unused.getsockname()[1]}/x": "Connection refused",
            "postgresql://host.invalid/x": "host.invalid",
            "postgresql://127.0.0.1:port/x?secret": "not a PostgreSQL URL",
        }
        for url, expected in wrong.items():
            with pytest.raises(Unavailable) as caught:
                await Store(tmp_path / "roost.db", url).open()
            message = caught.value.message
            assert expected in message
            assert message.endswith(".") and "\n" not in message and "wrong@" not in message and "secret" not in message


async def test_a_database_that_another_roost_holds_is_named(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "LOCK_WAIT_S", 0.2)
    async with opened(tmp_path / "one", postgres_url):
        with pytest.raises(Unavailable, match="Another Roost uses the PostgreSQL database 'test_"):
            await Store(tmp_path / "two" / "roost.db", postgres_url).open()
    async with opened(tmp_path / "two", postgres_url):
        pass


async def test_text_that_is_not_utf8_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(Unavailable, match="must have the encoding UTF8"):
            await Store(tmp_path / "roost.db", postgres.url("latin")).open()
    finally:
        postgres.execute("DROP DATABASE latin WITH (FORCE)")


# --- values ----------------------------------------------------------------------------------------------------------


async def test_order_is_that_of_the_bytes_whatever_the_locale(postgres: Postgres, tmp_path: Path) -> None:
    postgres.execute("CREATE DATABASE icu LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C.UTF-8' TEMPLATE template0")
    names = ["_x", "B", "a", "Z", "é", "-", "a-b", "ab", "A"]
    try:
        async with opened(tmp_path, postgres.url("icu")) as database:

            def work(connection: Connection) -> list[str]:
                connection.executemany("INSERT INTO settings VALUES (?, '')", [(name,) for name in names])
                found = connection.execute("SELECT name FROM settings WHERE name>? AND value='' ORDER BY name", ("",))
                return [row[0] for row in found]

            assert await database.run(work) == sorted(names)
    finally:
        postgres.execute("DROP DATABASE icu WITH (FORCE)")


async def test_text_with_a_nul_is_kept_as_far_as_it_can_be(postgres_url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, postgres_url) as database:
        insert = "INSERT INTO settings VALUES (?, ?)"
        done = [database.change(insert, (f"k{n}", value), lambda c, found: found.rowcount)
                for n, value in enumerate(["a\0b", "plain", "\ud800"])]  # fmt: skip
        found = await asyncio.gather(*done, return_exceptions=True)
        assert found[:2] == [1, 1]
        assert isinstance(found[2], UnicodeError)  # as SQLite
        read = "SELECT value FROM settings WHERE name IN (?, ?) ORDER BY name"
        rows = await database.run(lambda c: c.execute(read, ("k0", "k1")).fetchall())
        assert rows == [("a\ufffdb",), ("plain",)]


async def test_numbers_in_columns_of_the_other_kind(place: Place) -> None:
    store = place.store()
    await store.open()
    try:
        from tests.integration.test_store_durability import function

        await store.functions.put(function(created=1, modified=2**31 + 0.125, code_size=2**40))
        [found] = await store.functions.list_all()
        assert (found.created, found.modified, found.code_size) == (1.0, 2**31 + 0.125, 2**40)
        assert isinstance(found.created, float) and isinstance(found.code_size, int)
        for number in range(3):
            made = task(id=f"t{number}", enqueued=1 + number, due=0, ready=2**33)
            assert await store.tasks.enqueue(made, b"") == Kept(task=made, new=True)
        page, _ = await store.tasks.page("a", "f", TaskFilter(started_from=0, prefix="t"))
        assert [each.id for each, _ in page] == ["t2", "t1", "t0"]
    finally:
        await store.close()


def test_places_of_values_are_numbered_and_nothing_else() -> None:
    assert numbered("SELECT '?', \"?\" -- ?\nFROM t WHERE a=? AND b LIKE '%''?' AND c IN (?,?)") == (
        "SELECT '?', \"?\" -- ?\nFROM t WHERE a=$1 AND b LIKE '%''?' AND c IN ($2,$3)"
    )


# --- when the connection breaks --------------------------------------------------------------------------------------


async def test_a_connection_that_is_ended_again_and_again_loses_and_repeats_nothing(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='roost'"
    async with opened(tmp_path, postgres_url) as database:
        await start_counting(database)
        counted = 0

        async def caller() -> None:
            nonlocal counted
            for _ in range(25):
                changed = await count_up(database)
                counted += changed

        async def breaker() -> None:
            for _ in range(8):
                await asyncio.to_thread(postgres.execute, kill)
                await asyncio.sleep(0.02)

        await asyncio.gather(breaker(), *(caller() for _ in range(20)))
        assert counted == await counter(database) == 500


async def test_a_server_that_crashes_under_load_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with serving() as server, server.database() as url:
        async with opened(tmp_path, url) as database:
            await start_counting(database)
            counted, stop = 0, asyncio.Event()

            async def caller() -> None:
                nonlocal counted
                while not stop.is_set():
                    changed = await count_up(database)
                    counted += changed

            callers = [asyncio.create_task(caller()) for _ in range(20)]
            for end in (server.kill, server.stop):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(end)
                await asyncio.to_thread(server.start)
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.gather(*callers)
            assert counted == await counter(database) > 100


async def test_writes_fail_clearly_while_it_is_down_and_go_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "RECONNECT_S", 0.3)
    with serving() as server, server.database() as url:
        async with opened(tmp_path, url) as database:
            await start_counting(database)
            await asyncio.to_thread(server.stop)
            for _ in range(3):
                with pytest.raises(Unavailable, match=r"Can't open the PostgreSQL database 'test_.*refused\."):
                    await count_up(database)
            await asyncio.to_thread(server.start)
            assert await count_up(database) == 1
            assert await counter(database) == 1
            await asyncio.to_thread(server.stop)
        # It is closed while its database is down: that takes no wait.
        await asyncio.to_thread(server.start)


class Cable:
    """Between a store and its server, until `cut(data)` says so of what the store sends: before or after it is sent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut: Callable[[bytes], str] = lambda data: ""
        self.port = 0

    @contextlib.asynccontextmanager
    async def laid(self) -> AsyncIterator[Cable]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._copy(far_reader, writer))
        try:
            while data := await reader.read(65536):
                when = self.cut(data)
                if when == "before":
                    break
                if when == "after":  # the answer is lost
                    back.cancel()
                    await asyncio.wait({back})
                far_writer.write(data)
                await far_writer.drain()
                if when == "after":
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(far_reader.read(1), 0.5)  # it has taken effect
                    break
        finally:
            back.cancel()
            writer.close()
            far_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("statement", [b"COMMIT", b"UPDATE settings"])
async def test_a_cable_that_is_cut_leaves_nothing_in_doubt(
    postgres: Postgres, postgres_url: str, tmp_path: Path, statement: bytes, when: str
) -> None:
    async with Cable(postgres.port).laid() as cable:
        url = postgres_url.replace(f":{postgres.port}/", f":{cable.port}/")
        async with opened(tmp_path, url) as database:
            await start_counting(database)
            cuts = 0

            def cut(data: bytes) -> str:
                nonlocal cuts
                if statement not in data or cuts >= 2:
                    return ""
                cuts += 1
                return when

            cable.cut = cut
            assert await asyncio.gather(*(count_up(database) for _ in range(10))) == [1] * 10
            assert cuts
            assert await counter(database) == 10


async def test_what_can_not_be_known_is_said(
    postgres: Postgres, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "IN_DOUBT_S", 0.3)
    async with Cable(postgres.port).laid() as cable:
        url = postgres_url.replace(f":{postgres.port}/", f":{cable.port}/")
        async with opened(tmp_path, url) as database:
            await start_counting(database)
            broken = False

            def cut(data: bytes) -> str:
                nonlocal broken
                broken = broken or b"COMMIT" in data
                return "before" if broken else ""

            cable.cut = cut
            with pytest.raises(Unavailable, match="whether what was written is kept is not known"):
                await count_up(database)
            cable.cut = lambda data: ""
            assert await counter(database) == 0


async def test_a_database_that_somebody_else_had_meanwhile_is_left_alone(
    postgres: Postgres, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(backend, "RECONNECT_S", 0.3)
    async with Cable(postgres.port).laid() as cable:
        url = postgres_url.replace(f":{postgres.port}/", f":{cable.port}/")
        async with opened(tmp_path / "one", url) as database:
            await start_counting(database)
            cable.cut = lambda data: "before"
            with pytest.raises(Unavailable):
                await count_up(database)
            async with opened(tmp_path / "two", postgres_url) as other:
                assert await count_up(other) == 1
                cable.cut = lambda data: ""
                with pytest.raises(Unavailable, match="Another Roost uses"):
                    await count_up(database)
            for _ in range(2):
                with pytest.raises(Unavailable, match=r"Another Roost has used .* restart this one"):
                    await count_up(database)


# --- when the disk is full -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(postgres: Postgres) -> Iterator[tuple[str, Path]]:
    """The URL of a database on a disk of 24 MB, and a file on it that can make room."""
    import pwd

    owner = pwd.getpwnam("postgres")
    with tempfile.TemporaryDirectory(prefix="roost-postgres-disk-") as folder:
        options = f"size=24m,uid={owner.pw_uid},gid={owner.pw_gid},mode=700"
        os.chmod(folder, 0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "roost-test", folder], check=True)
        try:
            postgres.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
            postgres.execute("CREATE DATABASE small TABLESPACE small")
            ballast = Path(folder) / "ballast"
            ballast.write_bytes(b"\0" * 4_000_000)
            yield postgres.url("small"), ballast
            postgres.execute("DROP DATABASE small WITH (FORCE)")
            postgres.execute("DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_disk_is_named_and_the_store_lives_on(small_disk: tuple[str, Path], tmp_path: Path) -> None:
    url, ballast = small_disk
    async with opened(tmp_path, url) as database:
        await start_counting(database)
        await database.run(lambda c: c.execute("ALTER TABLE settings ALTER value SET STORAGE EXTERNAL") and None)
        insert = "INSERT INTO settings VALUES (?, ?)"
        blobs = [(f"big{number}", "x" * 1_000_000) for number in range(40)]
        works = [database.change(insert, blob, lambda c, done: done.rowcount) for blob in blobs]
        works.insert(20, count_up(database))
        found = await asyncio.gather(*works, return_exceptions=True)
        full = [each for each in found if isinstance(each, Exception)]
        assert full and all(isinstance(each, StorageFull) for each in full)
        assert "No room left on the disk of the PostgreSQL database 'small'" in full[0].message  # type: ignore[attr-defined]
        assert found.count(1) > 0
        stored = "SELECT count(*) FROM settings WHERE name LIKE 'big%'"
        assert await database.run(lambda c: c.execute(stored).fetchone()[0]) + 1 == found.count(1)
        assert await counter(database) == 1
        ballast.unlink()
        assert await database.change(insert, ("big", "x" * 1_000_000), lambda c, done: done.rowcount) == 1


def test_it_says_which_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "roost.store.postgres", None)
    with pytest.raises(RoostError, match=r"pip install 'roost\[postgres\]'"):
        Store(tmp_path / "roost.db", "postgresql://127.0.0.1/x")
