"""What every object store does: a directory, and a real S3 server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.model.errors import InvalidArgument, NotFound, PayloadTooLarge
from roost.objects.local import LocalStore
from roost.objects.ports import ObjectStore
from roost.objects.s3 import S3
from tests.support.s3 import KEY_ID, SECRET, S3Server


@pytest.fixture(params=["local", "s3"])
async def filled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectStore, str]:
    """A store and a bucket of it."""
    if request.param == "local":
        local = LocalStore(tmp_path / "objects")
        await local.prepare()
        local.make("bucket")
        return local, "bucket"
    s3: S3Server = request.getfixturevalue("s3")
    return S3(endpoint=s3.endpoint, region="us-east-1", access_key_id=KEY_ID, access_key_secret=SECRET), s3.bucket()


async def pieces(*given: bytes | Exception) -> AsyncIterator[bytes]:
    for one in given:
        if isinstance(one, Exception):
            raise one
        yield one


async def content(store: ObjectStore, bucket: str, key: str) -> bytes:
    info, stream = await store.get(bucket, key)
    found = b"".join([piece async for piece in stream])
    assert info.size == len(found) and info.key == key
    return found


async def keys(store: ObjectStore, bucket: str, prefix: str = "", after: str = "") -> list[str]:
    return [info.key async for page in store.list(bucket, prefix, after) for info in page]


async def test_what_is_put_can_be_got(filled: tuple[ObjectStore, str]) -> None:
    store, bucket = filled
    large = os.urandom(7 << 20)
    for key, body in {"a/b/ü c.bin": large, "empty": b"", "z": b"z"}.items():
        info = await store.put(bucket, key, pieces(body[: len(body) // 2], body[len(body) // 2 :]))
        assert info.size == len(body)
        assert await content(store, bucket, key) == body
    stamp = (await store.heads(bucket, ["z", "gone"]))["z"].stamp
    await asyncio.sleep(0.01)
    await store.put(bucket, "z", pieces(b"another"))
    heads = await store.heads(bucket, ["z", "gone"])
    assert list(heads) == ["z"] and heads["z"].stamp != stamp and heads["z"].size == 7
    await store.remove(bucket, "z")
    await store.remove(bucket, "z")
    with pytest.raises(NotFound):
        await store.get(bucket, "z")


async def test_a_listing_is_in_the_order_of_bytes(filled: tuple[ObjectStore, str]) -> None:
    store, bucket = filled
    names = ["a-b", "a.c", "a/b", "a/c/d", "a0", "b", "b%c", "B", "é", "~", "a/c!", "dir/x", "dir/y/z"]
    for name in names:
        await store.put(bucket, name, pieces(b"x"))
    every = sorted(names, key=str.encode)
    assert await keys(store, bucket) == every
    for prefix in ("a", "a/", "a/c", "dir/", "dir/y", "é", "none", "~"):
        assert await keys(store, bucket, prefix) == [key for key in every if key.startswith(prefix)], prefix
    for after in ("a", "a/b", "a/zz", "dir/", "~", "é"):
        assert await keys(store, bucket, "", after) == [key for key in every if key.encode() > after.encode()], after


async def test_a_broken_upload_leaves_all_as_it_was(filled: tuple[ObjectStore, str]) -> None:
    store, bucket = filled
    await store.put(bucket, "a", pieces(b"before"))
    for large in (b"x" * 1000, b"x" * (6 << 20)):
        with pytest.raises(PayloadTooLarge):
            await store.put(bucket, "a", pieces(large, PayloadTooLarge("too much")))
    assert await content(store, bucket, "a") == b"before"
    assert await keys(store, bucket) == ["a"]


async def test_names_that_none_can_have(filled: tuple[ObjectStore, str]) -> None:
    store, bucket = filled
    for key in ("", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "x" * 256, "x/" * 600 + "x", "\udc80"):
        with pytest.raises(InvalidArgument):
            await store.put(bucket, key, pieces(b"x"))
    for name in ("..", "a", "A" * 5, "a_b_c", "-abc", "x" * 64, ".parts", "a/b"):
        with pytest.raises(InvalidArgument):
            await store.put(name, "a", pieces(b"x"))
    with pytest.raises(NotFound):
        await keys(store, "no-such-bucket-here")


async def test_descriptors_are_closed_whoever_goes_away(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "objects")
    await store.prepare()
    for number in range(50):
        await store.put("bucket", f"d{number}/{number}", pieces(b"x" * 1000))
    before = len(os.listdir("/proc/self/fd"))

    async def all_of_it() -> None:
        while True:
            await keys(store, "bucket")
            await store.heads("bucket", [f"d{n}/{n}" for n in range(50)])
            await content(store, "bucket", "d1/1")
            await store.get("bucket", "d2/2")  # and nobody reads it
            await store.put("bucket", "new", pieces(b"x"))
            async with store.watch("bucket", "", 10) as watch:
                await watch.next(0)

    for number in range(30):
        task = asyncio.create_task(all_of_it())
        await asyncio.sleep(0.002 * number)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert os.listdir(tmp_path / "objects/.parts") == []
