"""Triggers on a table of a real PostgreSQL server; only the queue is a list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from roost.model.errors import StorageFull
from roost.store.store import Store
from roost.store.triggers import TriggerRecord
from roost.triggers.ports import Source
from roost.triggers.sources.postgresql import TableRows
from tests.support.postgres import Postgres
from tests.support.postgres import serving as postgres_serving
from tests.support.sources import Inbox, opened, quiet, serving, trigger, until
from tests.support.stores import Place

#: Several looks at all that is above the cursor.
LOOKS_S = 0.6
TABLE = (
    "CREATE TABLE orders (id bigserial PRIMARY KEY, item text NOT NULL, status text, created timestamptz DEFAULT now())"
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as found:
        yield found


@pytest.fixture
async def any_store(place: Place) -> AsyncIterator[Store]:
    """One of each kind."""
    async with opened(place.path.parent, place.url) as found:
        yield found


@pytest.fixture
def database(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(TABLE)
        yield connection


async def on(store: Store, url: str, **config: Any) -> TriggerRecord:
    settings = {"dsn": url, "table": "orders", "idColumn": "id", "channel": "orders", "pollSeconds": 0.15, **config}
    return await trigger(store, "postgresql", settings)


def source(store: Store, record: TriggerRecord) -> Callable[[], Source]:
    return lambda: TableRows(record, rows=store.trigger_rows, cursors=store.triggers)


def insert(connection: psycopg.Connection[Any], *items: str) -> None:
    for item in items:
        connection.execute("INSERT INTO orders (item) VALUES (%s)", [item])


def items(inbox: Inbox) -> list[str]:
    return [row["item"] for row in inbox.rows]


async def test_each_row_is_a_task(store: Store, postgres_url: str, database: psycopg.Connection[Any]) -> None:
    """At once when somebody says so, at the next look otherwise; rows from before the trigger are none."""
    insert(database, "old")
    inbox = Inbox()
    async with serving(source(store, await on(store, postgres_url, pollSeconds=2)), inbox) as notes:
        await until(lambda: notes.up)
        await asyncio.sleep(0.2)
        insert(database, "first")
        database.execute("NOTIFY orders")
        await until(lambda: items(inbox) == ["first"], 1.5)
        insert(database, "second")
        await until(lambda: items(inbox) == ["first", "second"])
    (task, _) = inbox.tasks.values()
    assert task["source"] == "roost:postgresql" and task["table"] == "orders"
    assert task["rows"][0]["id"] == 2 and set(task["rows"][0]) == {"id", "item", "status", "created"}
    assert notes.errors == []


async def test_rows_from_the_time_when_the_server_was_down(
    store: Store, postgres_url: str, database: psycopg.Connection[Any]
) -> None:
    inbox = Inbox()
    record = await on(store, postgres_url, start="earliest")
    insert(database, "old")
    async with serving(source(store, record), inbox):
        await until(lambda: items(inbox) == ["old"])
    insert(database, *"abc")
    async with serving(source(store, record), inbox):
        await until(lambda: len(inbox.tasks) == 4)
        await quiet(inbox)
    assert items(inbox) == ["old", *"abc"]


@pytest.mark.parametrize("order", ["id", "created"])
async def test_transactions_that_overlap(
    store: Store, postgres_url: str, database: psycopg.Connection[Any], order: str
) -> None:
    """The one that took its number, and its time, first commits last: after the cursor has seen all the others, and
    the server has been down."""
    inbox = Inbox()
    record = await on(store, postgres_url, orderColumn=order)
    with psycopg.connect(postgres_url) as slow, psycopg.connect(postgres_url) as slower:
        slower.execute("SELECT now()")  # began first; it has no number yet, and writes nothing for a while
        async with serving(source(store, record), inbox) as notes:
            await until(lambda: notes.up)
            slow.execute("INSERT INTO orders (item) VALUES ('slow')")
            for item in "abcdef":
                insert(database, item)
                await until(lambda n=item: n in items(inbox))
            await asyncio.sleep(LOOKS_S)  # several looks
        async with serving(source(store, record), inbox):
            insert(database, "g")
            await until(lambda: "g" in items(inbox))
            await asyncio.sleep(LOOKS_S)
            slow.commit()
            await until(lambda: "slow" in items(inbox))
            slower.execute("INSERT INTO orders (item) VALUES ('slower')")  # its `created` is when it began
            insert(database, "h")
            await until(lambda: "h" in items(inbox))
            await asyncio.sleep(LOOKS_S)
            slower.commit()
            await until(lambda: "slower" in items(inbox))
            await quiet(inbox, LOOKS_S)
    assert Counter(items(inbox)) == Counter([*"abcdefgh", "slow", "slower"])


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """One that may be killed."""
    with postgres_serving(max_prepared_transactions="5") as server:
        yield server


async def test_a_prepared_transaction_holds_the_cursor(store: Store, own_postgres: Postgres) -> None:
    inbox = Inbox()
    with own_postgres.database() as url, psycopg.connect(url, autocommit=True) as database:
        database.execute(TABLE)
        async with serving(source(store, await on(store, url)), inbox) as notes:
            await until(lambda: notes.up)
            with psycopg.connect(url, autocommit=True) as other:
                other.execute("BEGIN")
                other.execute("INSERT INTO orders (item) VALUES ('prepared')")
                insert(database, "a")
                await until(lambda: items(inbox) == ["a"])
                other.execute("PREPARE TRANSACTION 'p'")
            await asyncio.sleep(LOOKS_S)
            insert(database, "b")
            await until(lambda: "b" in items(inbox))
            await asyncio.sleep(LOOKS_S)
            database.execute("COMMIT PREPARED 'p'")
            await until(lambda: Counter(items(inbox)) == Counter(["a", "b", "prepared"]))


async def test_the_cursor_moves_up_and_what_is_below_it_is_forgotten(
    store: Store, postgres_url: str, database: psycopg.Connection[Any]
) -> None:
    inbox = Inbox()
    record = await on(store, postgres_url, start="earliest")
    async with serving(source(store, record), inbox):
        for round in range(4):
            insert(database, *(f"{round}-{number}" for number in range(25)))
            await until(lambda n=round: len(inbox.tasks) == 25 * (n + 1))

        deadline = time.monotonic() + 20
        while json.loads(await store.triggers.cursor(record.id) or "{}")["low"] != "100":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert await store.trigger_rows.seen(record.id, [str(number) for number in range(1, 101)]) == set()


async def test_rows_with_a_status_are_taken_and_may_be_new_again(
    store: Store, postgres_url: str, database: psycopg.Connection[Any]
) -> None:
    insert(database, "before")
    inbox = Inbox()
    record = await on(store, postgres_url, statusColumn="status", takenStatus="taken", batchSize=10)
    async with serving(source(store, record), inbox) as notes:
        await until(lambda: items(inbox) == ["before"])
        with psycopg.connect(postgres_url) as slow:
            slow.execute("INSERT INTO orders (item) VALUES ('slow')")
            insert(database, "quick")
            await until(lambda: "quick" in items(inbox))
            slow.commit()
        await until(lambda: "slow" in items(inbox))
        await quiet(inbox)
        assert Counter(items(inbox)) == Counter(["before", "quick", "slow"])
        database.execute("UPDATE orders SET status = NULL WHERE item = 'quick'")
        await until(lambda: items(inbox).count("quick") == 2)
        await quiet(inbox)
    assert notes.errors == []
    statuses = database.execute("SELECT DISTINCT status FROM orders").fetchall()
    assert statuses == [("taken",)]


async def test_rows_whose_status_is_changed_back_are_taken_once(
    store: Store, postgres_url: str, database: psycopg.Connection[Any]
) -> None:
    database.execute("CREATE RULE none AS ON UPDATE TO orders DO INSTEAD NOTHING")
    insert(database, "a")
    inbox = Inbox()
    async with serving(source(store, await on(store, postgres_url, statusColumn="status")), inbox) as notes:
        await until(lambda: len(notes.errors) > 2)
    assert "what changes it back" in notes.errors[0]
    assert len(inbox.tasks) == 1


@pytest.mark.parametrize("status", [None, "status"])
async def test_tasks_that_were_not_noted_are_the_same_again(
    any_store: Store,
    postgres_url: str,
    database: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    status: str | None,
) -> None:
    """As after a crash between the two; more rows, and a change of one, have come meanwhile."""
    store = any_store  # which may be in the same database
    inbox, note, failures = Inbox(), store.trigger_rows.note, iter(range(3))

    async def failing(*given: Any) -> None:
        if next(failures, None) is not None:
            insert(database, "late")
            database.execute("UPDATE orders SET created = now()")
            raise StorageFull("No room.")
        await note(*given)

    insert(database, *"abc")
    extra = {"statusColumn": status} if status else {}
    record = await on(store, postgres_url, start="earliest", batchSize=2, **extra)
    make = source(store, record)
    monkeypatch.setattr(store.trigger_rows, "note", failing)
    async with serving(make, inbox):
        await until(lambda: len(inbox.rows) == 6)
        await quiet(inbox)
    assert Counter(items(inbox)) == {"a": 1, "b": 1, "c": 1, "late": 3}
    assert inbox.offered > len(inbox.tasks)


async def test_strange_names_and_types(store: Store, postgres_url: str, database: psycopg.Connection[Any]) -> None:
    database.execute('CREATE SCHEMA "odd"; CREATE TYPE "odd"."St%ate" AS ENUM (\'new\', \'done\')')
    database.execute(
        'CREATE TABLE "odd"."The %s; ""Table""" ("I d" uuid PRIMARY KEY DEFAULT gen_random_uuid(), '
        '"at%" timestamp NOT NULL DEFAULT clock_timestamp(), "s" "odd"."St%ate" NOT NULL DEFAULT \'new\')'
    )
    insert_one = 'INSERT INTO "odd"."The %s; ""Table""" DEFAULT VALUES'
    inbox = Inbox()
    names = {"table": 'odd.The %s; "Table"', "idColumn": "I d", "orderColumn": "at%", "channel": 'a"b', "batchSize": 2}
    async with serving(source(store, await on(store, postgres_url, **names)), inbox) as notes:
        await until(lambda: notes.up)
        await asyncio.sleep(0.2)
        for _ in range(3):
            database.execute(insert_one)
        await until(lambda: len(inbox.rows) == 3)
    assert notes.errors == []


async def test_batches_have_bounds(store: Store, postgres_url: str, database: psycopg.Connection[Any]) -> None:
    """Of rows and of bytes; a row that is too large alone is told of, and not in the way of others."""
    insert(database, *map(str, range(25)))
    database.execute("INSERT INTO orders (item) SELECT repeat('x', 400000) FROM generate_series(1, 5)")
    database.execute("INSERT INTO orders (item) VALUES ('last')")
    inbox = Inbox()
    async with serving(source(store, await on(store, postgres_url, start="earliest", batchSize=10)), inbox):
        await until(lambda: len(inbox.rows) == 31)
    assert [len(task["rows"]) for task in inbox.tasks.values()] == [10, 10, 7, 2, 2]
    assert items(inbox)[:25] == [str(number) for number in range(25)] and items(inbox)[-1] == "last"


async def test_what_is_wrong_is_said_in_a_sentence(
    store: Store, postgres: Postgres, postgres_url: str, database: psycopg.Connection[Any]
) -> None:
    name = postgres_url.rpartition("/")[2]
    database.execute("ALTER TABLE orders ALTER status TYPE date USING NULL")
    wrong: list[tuple[str, dict[str, Any]]] = [
        (f"There is no table nothing in the database {name}.", {"table": "nothing"}),
        ("Table orders has no column nothing; it has id, item, status, created.", {"idColumn": "nothing"}),
        ("Column status is a date: it can't tell which rows of a day are new.", {"orderColumn": "status"}),
        (
            'PostgreSQL: password authentication failed for user "roost".',
            {"dsn": postgres.url(name, password="sesame-street")},
        ),
        ('PostgreSQL: database "nowhere" does not exist.', {"dsn": postgres.url("nowhere")}),
    ]
    for sentence, settings in wrong:
        async with serving(source(store, await on(store, postgres_url, **settings)), Inbox()) as notes:
            await until(lambda n=notes: bool(n.errors))
        assert notes.errors[0] == sentence


async def test_a_restart_of_postgresql_loses_nothing(store: Store, own_postgres: Postgres) -> None:
    inbox, server = Inbox(), own_postgres
    with server.database() as url:
        with psycopg.connect(url, autocommit=True) as database:
            database.execute(TABLE)
        async with serving(source(store, await on(store, url)), inbox) as notes:
            await until(lambda: notes.up)
            with psycopg.connect(url, autocommit=True) as database:
                insert(database, "before")
            await until(lambda: len(inbox.tasks) == 1)
            server.kill()
            await until(lambda: not notes.up)
            server.start()
            with psycopg.connect(url, autocommit=True) as database:
                insert(database, "after")
            await until(lambda: items(inbox) == ["before", "after"])


@pytest.mark.parametrize("status", [None, "status"])
async def test_ten_thousand_rows_at_once(
    store: Store, postgres_url: str, database: psycopg.Connection[Any], status: str | None
) -> None:
    """Written by several at once, each with a row that it commits later; cut off in the middle, twice."""
    inbox = Inbox()
    extra = {"statusColumn": status} if status else {}
    record = await on(store, postgres_url, batchSize=3, **extra)
    async with serving(source(store, record), inbox) as notes:
        await until(lambda: notes.up)

    def write(writer: int) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as one, psycopg.connect(postgres_url) as other:
            for part in range(5):
                other.execute("INSERT INTO orders (item) VALUES (%s)", [f"{writer}-{part}-late"])
                one.execute(
                    "INSERT INTO orders (item) SELECT %s || n FROM generate_series(1, 499) n", [f"{writer}-{part}-"]
                )
                one.execute("NOTIFY orders")
                other.commit()

    writing = asyncio.gather(*(asyncio.to_thread(write, writer) for writer in range(4)))
    for enough in (500, 2000):
        async with serving(source(store, record), inbox):
            with contextlib.suppress(TimeoutError):
                await until(lambda n=enough: len(inbox.tasks) >= n, 60)
    await writing
    async with serving(source(store, record), inbox):
        await until(lambda: len(inbox.rows) >= 10_000, 60)
        await quiet(inbox)
    counts = Counter(items(inbox))
    assert len(counts) == 10_000 and set(counts.values()) == {1}
    assert inbox.most <= 200
