"""Triggers on buckets: a real store, real files, a real S3 server; only the queue is a list."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from roost.model.errors import StorageFull
from roost.objects import local_watch
from roost.objects.local import LocalStore
from roost.objects.ports import ObjectStore
from roost.objects.s3 import S3
from roost.store.store import Store
from roost.store.triggers import TriggerRecord
from roost.triggers.ports import Source
from roost.triggers.sources.objects import Bucket
from tests.support.s3 import KEY_ID, SECRET, S3Server
from tests.support.sources import Inbox, opened, quiet, serving, trigger, until
from tests.support.stores import Place

CREATED, REMOVED = "ObjectCreated", "ObjectRemoved"
BOTH = ["oss:ObjectCreated:*", "oss:ObjectRemoved:*"]


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
async def local(tmp_path: Path) -> LocalStore:
    found = LocalStore(tmp_path / "objects")
    await found.prepare()
    return found


@pytest.fixture
def bucket(tmp_path: Path, local: LocalStore) -> Path:
    local.make("inbox")
    return tmp_path / "objects" / "inbox"


def remote(s3: S3Server) -> S3:
    return S3(endpoint=s3.endpoint, region="us-east-1", access_key_id=KEY_ID, access_key_secret=SECRET)


def source(store: Store, objects: ObjectStore, record: TriggerRecord) -> Callable[[], Source]:
    return lambda: Bucket(record, store=objects, seen=store.trigger_objects, cursors=store.triggers, region="local")


async def on(store: Store, bucket: str = "inbox", **config: Any) -> TriggerRecord:
    settings = {"events": BOTH, "bucketName": bucket, "pollSeconds": 1, **config}
    return await trigger(store, "oss", settings, id=f"t-{bucket}")


async def test_each_change_of_a_file_is_one_event(store: Store, local: LocalStore, bucket: Path) -> None:
    inbox = Inbox()
    record = await on(store, filter={"key": {"prefix": "in/", "suffix": ".txt"}})
    async with serving(source(store, local, record), inbox) as notes:
        await until(lambda: notes.up)
        (bucket / "in/deep/er").mkdir(parents=True)
        (bucket / "in/deep/er/a.txt").write_text("one")
        (bucket / "in/b.dat").write_text("no such suffix")
        (bucket / "c.txt").write_text("no such prefix")
        os.mkfifo(bucket / "in/fifo.txt")
        (bucket / "in/link.txt").symlink_to("/etc/hostname")
        await until(lambda: len(inbox.tasks) == 1)
        (bucket / "in/deep/er/a.txt").write_text("another")
        await until(lambda: len(inbox.tasks) == 2)
        (bucket / "in/deep/er/a.txt").chmod(0o600)  # no write
        (bucket / "in/deep/er/a.txt").rename(bucket / "in/d.txt")
        await until(lambda: len(inbox.tasks) == 4)
        (bucket / "in/d.txt").unlink()
        await quiet(inbox)
    name = "in/deep/er/a.txt"
    assert Counter(inbox.objects) == {
        (CREATED, name): 2, (REMOVED, name): 1, (CREATED, "in/d.txt"): 1, (REMOVED, "in/d.txt"): 1
    }  # fmt: skip
    assert notes.errors == []
    said = next(iter(inbox.tasks.values()))["events"][0]
    assert said["eventSource"] == "acs:oss" and said["oss"]["bucket"]["arn"] == "acs:oss:local:default:inbox"
    assert said["oss"]["object"]["size"] == 3 and said["oss"]["object"]["deltaSize"] == 3


async def test_a_file_that_comes_back_as_it_was_is_an_event_again(
    store: Store, local: LocalStore, bucket: Path, tmp_path: Path
) -> None:
    inbox = Inbox()
    async with serving(source(store, local, await on(store)), inbox) as notes:
        await until(lambda: notes.up)
        (bucket / "a").write_text("x")
        await until(lambda: len(inbox.tasks) == 1)
        (bucket / "a").rename(tmp_path / "away")
        await until(lambda: len(inbox.tasks) == 2)
        (tmp_path / "away").rename(bucket / "a")
        await until(lambda: len(inbox.tasks) == 3)
    assert inbox.objects == [(CREATED, "a"), (REMOVED, "a"), (CREATED, "a")]


async def test_a_file_counts_when_its_writer_has_closed_it(store: Store, local: LocalStore, bucket: Path) -> None:
    """Also for a source that starts while it is being written."""
    inbox = Inbox()
    record = await on(store)
    with (bucket / "slow").open("w") as before:
        before.write("half")
        before.flush()
        async with serving(source(store, local, record), inbox) as notes:
            await until(lambda: notes.up)
            with (bucket / "slower").open("w") as during:
                during.write("half")
                during.flush()
                (bucket / "quick").write_text("whole")
                await until(lambda: inbox.objects == [(CREATED, "quick")])
                await asyncio.sleep(2.5)  # longer than until unfinished ones are looked at again
                assert inbox.objects == [(CREATED, "quick")]
                before.write(" and whole")
                before.close()
                await until(lambda: len(inbox.tasks) == 2)
            await until(lambda: len(inbox.tasks) == 3)
    assert sorted(key for _, key in inbox.objects) == ["quick", "slow", "slower"]
    sizes = {
        said["oss"]["object"]["key"]: said["oss"]["object"]["size"]
        for t in inbox.tasks.values()
        for said in t["events"]
    }
    assert sizes["slow"] == len("half and whole")


async def test_what_happens_while_nobody_looks_is_found_later(store: Store, local: LocalStore, bucket: Path) -> None:
    inbox = Inbox()
    for name in ("kept", "changed", "removed"):
        (bucket / name).write_text(name)
    # Written after the trigger was made, and so events; then the server is down.
    record = await on(store, events=BOTH)
    async with serving(source(store, local, record), inbox):
        await until(lambda: len(inbox.tasks) == 3)
    (bucket / "changed").write_text("another")
    (bucket / "removed").unlink()
    (bucket / "new").write_text("new")
    (bucket / "sub").mkdir()
    (bucket / "sub/new").write_text("new")
    inbox.tasks.clear()
    async with serving(source(store, local, record), inbox):
        await until(lambda: len(inbox.tasks) == 4)
        await quiet(inbox)
    assert sorted(inbox.objects) == [(CREATED, "changed"), (CREATED, "new"), (CREATED, "sub/new"), (REMOVED, "removed")]


async def test_objects_that_were_there_before_the_trigger_are_no_events(
    store: Store, local: LocalStore, bucket: Path
) -> None:
    inbox = Inbox()
    (bucket / "old").write_text("old")
    await asyncio.sleep(1.2)
    record = await on(store)
    (bucket / "new").write_text("new")
    async with serving(source(store, local, record), inbox) as notes:
        await until(lambda: notes.up and len(inbox.tasks) == 1)
        (bucket / "old").unlink()
        await until(lambda: len(inbox.tasks) == 2)
    assert inbox.objects == [(CREATED, "new"), (REMOVED, "old")]


async def test_another_prefix_begins_anew(store: Store, local: LocalStore, bucket: Path) -> None:
    inbox = Inbox()
    (bucket / "a").write_text("a")
    (bucket / "b").write_text("b")
    async with serving(source(store, local, await on(store, filter={"key": {"prefix": "a"}})), inbox):
        await until(lambda: len(inbox.tasks) == 1)
    await asyncio.sleep(1.2)
    async with serving(source(store, local, await on(store)), inbox) as notes:
        await until(lambda: notes.up)
        (bucket / "c").write_text("c")
        await until(lambda: len(inbox.tasks) == 2)
    assert inbox.objects == [(CREATED, "a"), (CREATED, "c")]


async def test_a_moved_folder_is_all_its_objects(store: Store, local: LocalStore, bucket: Path) -> None:
    inbox = Inbox()
    (bucket / "x/y").mkdir(parents=True)
    for name in ("x/1", "x/y/2"):
        (bucket / name).write_text("")
    async with serving(source(store, local, await on(store)), inbox):
        await until(lambda: len(inbox.tasks) == 2)
        (bucket / "x").rename(bucket / "z")
        await until(lambda: len(inbox.tasks) == 6)
        (bucket / "z/y/3").write_text("")  # seen by its new name
        await until(lambda: len(inbox.tasks) == 7)
    assert sorted(inbox.objects[2:6]) == [(CREATED, "z/1"), (CREATED, "z/y/2"), (REMOVED, "x/1"), (REMOVED, "x/y/2")]
    assert inbox.objects[6] == (CREATED, "z/y/3")


async def test_a_bucket_that_cannot_be_watched_is_listed(
    store: Store, local: LocalStore, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's inotify instances are used up."""

    def none_left(**options: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(local_watch, "Inotify", none_left)
    inbox = Inbox()
    with (bucket / "slow").open("w") as slow:
        async with serving(source(store, local, await on(store)), inbox) as notes:
            await until(lambda: notes.up)
            (bucket / "a").write_text("a")
            await until(lambda: inbox.objects == [(CREATED, "a")])
            slow.close()
            await until(lambda: len(inbox.tasks) == 2)
    assert notes.errors == []


async def test_a_full_disk_loses_nothing(store: Store, local: LocalStore, bucket: Path) -> None:
    full = True
    inbox = Inbox(refuse=lambda: StorageFull("No room.") if full else None)
    async with serving(source(store, local, await on(store)), inbox) as notes:
        (bucket / "a").write_text("a")
        await until(lambda: "No room." in notes.errors)
        full = False
        await until(lambda: inbox.objects == [(CREATED, "a")])


async def test_tasks_that_were_not_noted_are_the_same_again(
    any_store: Store, local: LocalStore, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the two."""
    store = any_store
    inbox, note, failures = Inbox(), store.trigger_objects.note, iter(range(3))

    async def failing(*given: Any) -> None:
        if next(failures, None) is not None:
            raise StorageFull("No room.")
        await note(*given)

    monkeypatch.setattr(store.trigger_objects, "note", failing)
    for name in "abc":
        (bucket / name).write_text(name)
    async with serving(source(store, local, await on(store)), inbox):
        await until(lambda: inbox.offered == 12)
        (bucket / "b").unlink()
        await until(lambda: len(inbox.tasks) == 4)
        await quiet(inbox)
    assert inbox.objects == [(CREATED, "a"), (CREATED, "b"), (CREATED, "c"), (REMOVED, "b")]


async def test_ten_thousand_files_at_once(store: Store, local: LocalStore, bucket: Path) -> None:
    """More than the kernel's queue of events and than one hint holds; cut off in the middle, twice."""
    inbox = Inbox()
    record = await on(store)
    names = [f"{number % 7}/{number}" for number in range(10_000)]

    def write() -> None:
        for number in range(7):
            (bucket / str(number)).mkdir()
        for name in names:
            os.close(os.open(bucket / name, os.O_WRONLY | os.O_CREAT))

    writing = asyncio.create_task(asyncio.to_thread(write))
    for enough in (1000, 5000):
        async with serving(source(store, local, record), inbox):
            await until(lambda n=enough: len(inbox.tasks) >= n, 60)
    await writing
    async with serving(source(store, local, record), inbox):
        await until(lambda: len(inbox.tasks) >= 10_000, 60)
        await quiet(inbox)
    assert Counter(inbox.objects) == Counter((CREATED, name) for name in names)
    assert inbox.most <= 200  # that are on their way at once


# --- S3 --------------------------------------------------------------------------------------------------------------


async def test_each_change_in_a_bucket_of_s3_is_one_event(store: Store, s3: S3Server) -> None:
    inbox, client, name = Inbox(), s3.client(), s3.bucket()
    client.put_object(Bucket=name, Key="in/old.txt", Body=b"old")
    await asyncio.sleep(1.2)
    record = await on(store, name, filter={"key": {"prefix": "in/", "suffix": ".txt"}})
    async with serving(source(store, remote(s3), record), inbox) as notes:
        await until(lambda: notes.up)
        client.put_object(Bucket=name, Key="in/a-b.txt", Body=b"one")
        client.put_object(Bucket=name, Key="in/a/b.txt", Body=b"one")
        client.put_object(Bucket=name, Key="in/a.dat", Body=b"one")
        client.put_object(Bucket=name, Key="inner.txt", Body=b"one")
        client.put_object(Bucket=name, Key="zoo.txt", Body=b"one")
        await until(lambda: len(inbox.tasks) == 2)
        await asyncio.sleep(1.1)
        client.put_object(Bucket=name, Key="in/a/b.txt", Body=b"one")  # the same bytes, and a write
        await until(lambda: len(inbox.tasks) == 3)
        client.delete_object(Bucket=name, Key="in/a/b.txt")
        client.delete_object(Bucket=name, Key="in/old.txt")
        await until(lambda: len(inbox.tasks) == 5)
        await quiet(inbox, 1.5)
    assert notes.errors == []
    assert Counter(inbox.objects) == {
        (CREATED, "in/a-b.txt"): 1,
        (CREATED, "in/a/b.txt"): 2,
        (REMOVED, "in/a/b.txt"): 1,
        (REMOVED, "in/old.txt"): 1,
    }


async def test_s3_is_down_or_has_no_such_bucket(store: Store, s3: S3Server) -> None:
    inbox, name = Inbox(), s3.bucket()
    wrong = S3(endpoint=s3.endpoint, region="us-east-1", access_key_id=KEY_ID, access_key_secret="another-secret")
    async with serving(source(store, wrong, await on(store, name)), inbox) as notes:
        await until(lambda: bool(notes.errors))
    assert notes.errors[0] == f"The object store refuses the key of this server at bucket {name}."
    record = await on(store, "no-such-bucket")
    async with serving(source(store, remote(s3), record), inbox) as notes:
        await until(lambda: bool(notes.errors))
    assert notes.errors[0] == "There is no bucket no-such-bucket."
    nowhere = S3(endpoint="http://127.0.0.1:9", region="us-east-1", access_key_id=KEY_ID, access_key_secret=SECRET)
    async with serving(source(store, nowhere, await on(store, name)), inbox) as notes:
        await until(lambda: bool(notes.errors))
    assert notes.errors[0].startswith(f"The object store failed at bucket {name}: ")
    assert inbox.tasks == {}


async def test_thousands_of_objects_of_s3_at_once(store: Store, s3: S3Server) -> None:
    """More than two pages of a listing; cut off in the middle, then half of them removed while nobody looks."""
    inbox, name = Inbox(), s3.bucket()
    record = await on(store, name)
    keys = [f"{number % 5}/{number}" for number in range(2200)]
    filling = asyncio.create_task(asyncio.to_thread(s3.fill, name, keys))
    async with serving(source(store, remote(s3), record), inbox):
        await until(lambda: len(inbox.tasks) >= 500, 60)
    await filling
    async with serving(source(store, remote(s3), record), inbox):
        await until(lambda: len(inbox.tasks) >= 2200, 60)
        await quiet(inbox, 1.5)
    assert Counter(inbox.objects) == Counter((CREATED, key) for key in keys)
    client = s3.client()
    for start in range(0, 1500, 500):
        some = [{"Key": key} for key in sorted(keys)[start : start + 500]]
        await asyncio.to_thread(client.delete_objects, Bucket=name, Delete={"Objects": some})
    inbox.tasks.clear()
    async with serving(source(store, remote(s3), record), inbox):
        await until(lambda: len(inbox.tasks) >= 1500, 60)
        await quiet(inbox, 1.5)
    assert Counter(inbox.objects) == Counter((REMOVED, key) for key in sorted(keys)[:1500])
