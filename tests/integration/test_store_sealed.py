"""What users configure, at rest, on both backends: sealed, and so are the stores of a former Roost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from roost.model.errors import StorageFull, Unavailable
from roost.model.function import Limits
from roost.model.role import Role
from roost.model.sandbox import Foundation, Sandbox, Volume
from roost.model.secret import Secret
from roost.model.task import Task, TaskState, Verdict
from roost.model.template import TemplateBuild, TemplateKind, TemplateRecord
from roost.store import migrate, sealed
from roost.store.access_keys import AccessKeys, KeyRecord
from roost.store.database import Database
from roost.store.functions import FunctionRecord
from roost.store.migrate import revisions
from roost.store.provision import QualifierKind, QualifierRecord
from roost.store.records import encode_foundation, encode_limits
from roost.store.sealing import Sealer
from roost.store.secrets import Secrets
from roost.store.store import Store
from roost.store.task_outbox import Letter
from roost.store.triggers import TriggerRecord
from roost.store.versions import VersionRecord
from tests.support.sandboxes import record
from tests.support.stores import Place

HIDDEN = "sk-of-somebody"
PLAIN = "shown-to-all"
URL = f"redis://me:{HIDDEN}@broker.test/0"
CONFIG = {"environmentVariables": {"KEY": HIDDEN}, "description": "é"}
FUNCTION = FunctionRecord(account="a", name="f", id="i", config=CONFIG, created=1.0, modified=1.0, code_digest=PLAIN)
VERSION = VersionRecord(
    account="a", function="f", version=1, description="", snapshot={"config": CONFIG, "layers": []}, created=1.0
)
TRIGGER = TriggerRecord(
    account="a", function="f", name="t", id="ti", type="redis", qualifier="LATEST", description="",
    config={"url": URL, "token": HIDDEN}, created=1.0, modified=1.0,
)  # fmt: skip
SETTING = QualifierRecord(
    account="a", function="f", qualifier="LATEST", kind=QualifierKind.ASYNC,
    config={"destinationConfig": {"onSuccess": {"destination": URL}}}, created=1.0, modified=1.0,
)  # fmt: skip
LETTER = Letter(id="e", account="a", function="f", task="t", destination=URL, created=1.0, due=1.0, body=b"{}")
BOX = record(environment={"KEY": HIDDEN}, envd_token=HIDDEN, network={"rules": {"a.test": [HIDDEN]}})
BUILD = TemplateBuild(
    id="b", template="t", foundation=Foundation(environment={"KEY": HIDDEN}), limits=Limits(), created=1.0
)
VOLUME = Volume(account="a", id="v", name=PLAIN, token=HIDDEN, created=1.0)
TEMPLATE = TemplateRecord(id="t", account="a", kind=TemplateKind.BUILT, name="", created=1.0)
TASK = Task(account="a", function="f", id="t", qualifier="LATEST", request_id="r", enqueued=1.0, ready=1.0, due=1.0)


def _plain(one: Sandbox | TemplateBuild) -> dict[str, Any]:
    """As JSON has it."""
    values = dict(vars(one)) | {"foundation": encode_foundation(one.foundation), "limits": encode_limits(one.limits)}
    return json.loads(json.dumps(values, default=dict))


#: The same rows as a former Roost wrote them.
OLD: dict[str, tuple[Any, ...]] = {
    "INSERT INTO functions (account, name, id, config, code_digest, code_size, code_checksum, layers, last_version,"
    " created, modified) VALUES (?,?,?,?,?,0,'','[]',1,1.0,1.0)": ("a", "f", "i", json.dumps(CONFIG), PLAIN),
    "INSERT INTO versions (account, function, version, description, snapshot, created) VALUES ('a','f',1,'',?,1.0)": (
        json.dumps(dict(VERSION.snapshot)),
    ),
    "INSERT INTO triggers (account, function, name, id, type, qualifier, description, config, created, modified)"
    " VALUES ('a','f','t','ti','redis','LATEST','',?,1.0,1.0)": (json.dumps(dict(TRIGGER.config)),),
    "INSERT INTO provision (account, function, qualifier, kind, config, created, modified)"
    " VALUES ('a','f','LATEST','async',?,1.0,1.0)": (json.dumps(dict(SETTING.config)),),
    "INSERT INTO task_outbox (id, account, function, task, epoch, destination, created, due, attempts, error, body)"
    " VALUES ('e','a','f','t',1,?,1.0,1.0,0,'',?)": (URL, b"{}"),
    "INSERT INTO sandboxes (id, account, data) VALUES (?,'acme',?)": (BOX.id, json.dumps(_plain(BOX))),
    "INSERT INTO templates (id, account, kind, name, created) VALUES ('t','a','built','',?)": (1.0,),
    "INSERT INTO template_builds (id, template, data) VALUES ('b','t',?)": (json.dumps(_plain(BUILD)),),
    "INSERT INTO volumes (account, id, name, token, created) VALUES ('a','v',?,?,1.0)": (PLAIN, HIDDEN),
}


async def fill(store: Store) -> None:
    await store.functions.put(FUNCTION)
    await store.versions.publish(VERSION)
    await store.triggers.put(TRIGGER)
    await store.provision.put(SETTING)
    kept = await store.tasks.enqueue(TASK, b"")
    await store.sandboxes.create(BOX, None)
    await store.templates.save(TEMPLATE, BUILD, [])
    await store.volumes.create(VOLUME)
    held, _ = await store.tasks.claim(kept.task, instance_id="i", now=1.0)
    ended = Verdict(state=TaskState.SUCCEEDED)
    await store.tasks.conclude(held, ended, now=1.0, letter=LETTER)


async def check(store: Store) -> None:
    """All of it is as it was given."""
    [function] = await store.functions.list_all()
    assert (function.config, function.code_digest, function.last_version) == (CONFIG, PLAIN, 1)
    assert await store.versions.list_all() == [VERSION]
    assert await store.triggers.list_all() == [TRIGGER]
    assert await store.provision.list_all() == [SETTING]
    [letter], _ = await store.task_outbox.due(now=9.0, limit=9)
    assert letter.destination == URL
    assert (await store.sandboxes.load())[0] == [BOX]
    assert await store.templates.load() == ([TEMPLATE], [BUILD])
    assert await store.volumes.list_all() == [VOLUME]


async def make_old(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of the schema before, in use; it still has parts of rows that were changed and removed."""
    with monkeypatch.context() as patched:
        former = tuple(revision for revision in revisions() if revision.number < "012")
        patched.setattr(migrate, "revisions", lambda: former)
        async with place.opened() as database:
            if not place.postgres:  # some builds of SQLite are told to overwrite what they remove
                await database.run(lambda connection: connection.execute("PRAGMA secure_delete=OFF").fetchall())
            for sql, values in OLD.items():
                await database.run(lambda connection, sql=sql, values=values: connection.execute(sql, values))
            insert, values = next(iter(OLD.items()))
            for number in range(50):
                other = ("a", f"gone{number}", f"gone{number}", values[3], PLAIN)
                await database.run(lambda connection, other=other: connection.execute(insert, other))
            await database.run(lambda connection: connection.execute("DELETE FROM functions WHERE id LIKE 'gone%'"))
    assert place.raw(log=False).count(HIDDEN.encode()) > 20, "a control: it would be found"


def note(place: Place) -> list[tuple[Any, ...]]:
    return place.rows("SELECT value FROM settings WHERE name='plain text'")


async def test_what_is_configured_comes_back_and_is_in_no_file(place: Place) -> None:
    store = place.store()
    await store.open()
    await fill(store)
    await check(store)
    while_open = place.raw()
    await store.close()
    for raw in (while_open, place.raw()):
        assert HIDDEN.encode() not in raw
        assert PLAIN.encode() in raw, "a control: it would be found"
    again = place.store()
    await again.open()
    try:
        await check(again)
        assert note(place) == []
    finally:
        await again.close()


async def test_a_former_store_is_sealed_at_its_first_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_old(place, monkeypatch)
    for _ in range(2):
        store = place.store()
        await store.open()
        try:
            await check(store)
            assert note(place) == []
            if not place.postgres:
                assert HIDDEN.encode() not in place.raw()
        finally:
            await store.close()
        raw = place.raw(log=False)
        assert HIDDEN.encode() not in raw
        assert PLAIN.encode() in raw


async def test_what_can_not_be_cleaned_up_is_told_and_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await make_old(place, monkeypatch)

    def full(*_: object) -> None:
        raise StorageFull("No room.")

    with monkeypatch.context() as patched:
        patched.setattr("roost.store.sqlite.SqliteBackend.renew", full)
        patched.setattr("roost.store.postgres.PostgresBackend.renew", full)
        store = place.store()
        await store.open()
        await check(store)
        await store.close()
    assert "plain text may be left" in caplog.text and "No room." in caplog.text
    assert note(place) == [("true",)]
    for column in sealed.ALL:
        assert HIDDEN not in str(place.rows(f"SELECT {column.name} FROM {column.table}"))
    store = place.store()
    await store.open()
    await store.close()
    assert note(place) == []
    assert HIDDEN.encode() not in place.raw(log=False)


async def test_who_reads_the_database_meanwhile_is_waited_for_and_not_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await make_old(place, monkeypatch)
    monkeypatch.setattr("roost.store.postgres.RECONNECT_S", 0.2)
    if place.postgres:
        other: Any = psycopg.connect(place.url)
    else:
        other = sqlite3.connect(place.path, isolation_level=None)
        other.execute("BEGIN")
    store = place.store()
    with contextlib.closing(other):
        # PostgreSQL's reader is in the way of the renewal, not of the sealing; SQLite's is in nobody's but the log's.
        other.execute("SELECT count(*) FROM task_outputs" if place.postgres else "SELECT count(*) FROM functions")
        if place.postgres:
            other.execute("LOCK TABLE secrets IN ACCESS SHARE MODE")
        await store.open()
        await check(store)
        await store.close()
    assert "plain text may be left" in caplog.text
    assert note(place) == [("true",)]


SEALING = """
import asyncio, sys
from pathlib import Path
from roost.store.store import Store

async def main():
    print("begin", flush=True)
    store = Store(Path(sys.argv[1]), sys.argv[2])
    await store.open()
    await store.close()

asyncio.run(main())
"""


async def test_a_server_that_is_killed_while_it_seals_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_old(place, monkeypatch)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SEALING, str(place.path), place.url], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"begin\n"
        await asyncio.sleep(random.uniform(0.0, 1.0))
        process.kill()
        process.wait()
        process.stdout.close()
    store = place.store()
    await store.open()
    try:
        await check(store)
        assert note(place) == []
    finally:
        await store.close()
    assert HIDDEN.encode() not in place.raw(log=False)


async def test_a_row_opens_in_its_own_place_alone(place: Place) -> None:
    store = place.store()
    await store.open()
    try:
        await fill(store)
        await store.functions.put(FunctionRecord(account="b", name="g", id="j", config={}, created=1.0, modified=1.0))
        move = "UPDATE functions SET config=(SELECT config FROM functions WHERE id='i') WHERE id='j'"
        await store._database.run(lambda connection: connection.execute(move))
        with pytest.raises(Unavailable, match="Function b/g can't be opened with the key file"):
            await store.functions.list_all()
    finally:
        await store.close()


async def test_without_its_key_file_a_store_does_not_open_and_with_another_nothing_is_read(place: Place) -> None:
    file: Path = place.path.with_name("keys.sealing")
    store = place.store()
    await store.open()
    await fill(store)
    await store.close()
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(Unavailable, match=r"keys\.sealing is missing"):
        await place.store().open()
    assert not file.exists()
    file.write_bytes(bytes(32))
    store = place.store()
    await store.open()
    for table in (store.functions, store.versions, store.triggers, store.provision):
        with pytest.raises(Unavailable, match=r"Function a/f.* can't be opened with the key file .*keys\.sealing"):
            await table.list_all()
    for load in (store.sandboxes.load, store.templates.load, store.volumes.list_all):
        with pytest.raises(Unavailable, match=r"(Sandbox|Build|volume) .* can't be opened with the key file"):
            await load()
    with pytest.raises(Unavailable, match="destination of event e can't be opened"):
        await store.task_outbox.due(now=9.0, limit=9)
    await store.close()
    file.write_bytes(kept)
    store = place.store()
    await store.open()
    try:
        await check(store)
    finally:
        await store.close()


async def seal_network(database: Database, sealer: Sealer) -> None:
    """Of the sandbox, as a former Roost did, and nothing else of it."""
    network = sealer.seal(json.dumps(dict(BOX.network)), f"The network of sandbox acme/{BOX.id}")
    data = json.dumps(_plain(BOX) | {"network": {"sealed": base64.b64encode(network).decode()}})
    await database.run(lambda connection: connection.execute("UPDATE sandboxes SET data=?", (data,)))


async def test_a_store_that_sealed_only_networks_of_sandboxes_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_old(place, monkeypatch)
    sealer = Sealer(place.path.with_name("keys.sealing"))
    sealer.open()
    async with place.opened() as database:
        await seal_network(database, sealer)
    for _ in range(2):
        store = place.store()
        await store.open()
        await check(store)
        await store.sandboxes.update(BOX)
        await store.close()
    place.path.with_name("keys.sealing").unlink()
    with pytest.raises(Unavailable, match=r"keys\.sealing is missing"):
        await place.store().open()


@pytest.mark.parametrize("kind", ["key", "secret", "sandbox", "function", "letter"])
async def test_a_former_store_is_not_sealed_with_another_key_than_it_has_already(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file: Path = place.path.with_name("keys.sealing")
    await make_old(place, monkeypatch)
    sealer = Sealer(file)
    sealer.open()
    async with place.opened() as database:  # as the last server of the former Roost left it
        key = KeyRecord(id="k", account="a", name="", role=Role.ADMIN, sealed=sealer.seal("s", "k"), created=1.0)
        secret = Secret(account="a", id="1", name="n", value=HIDDEN, created=1.0, updated=1.0)
        if kind == "key":
            await AccessKeys(database).create(key, most=9)
        elif kind == "secret":
            await Secrets(database, sealer).create(secret)
        elif kind == "function":
            config = sealed.FUNCTION.seal(sealer, json.dumps(CONFIG), "a", "f")
            await database.run(lambda connection: connection.execute("UPDATE functions SET config=?", (config,)))
        elif kind == "letter":
            there = sealed.LETTER.seal(sealer, URL, "e")
            await database.run(lambda connection: connection.execute("UPDATE task_outbox SET destination=?", (there,)))
        else:
            await seal_network(database, sealer)
    kept = file.read_bytes()
    file.write_bytes(bytes(32))
    with pytest.raises(Unavailable, match=r"can't be opened with the key file"):
        await place.store().open()
    assert note(place) == [("true",)]
    assert HIDDEN in str(place.rows("SELECT token FROM volumes")), "it is as it was"
    file.write_bytes(kept)
    store = place.store()
    await store.open()
    try:
        await check(store)
    finally:
        await store.close()
