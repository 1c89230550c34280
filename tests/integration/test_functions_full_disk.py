"""A disk that is really full: clear errors, nothing half-written, and all is well once there is room again."""

from __future__ import annotations

import io
import os
import random
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.functions.packages import PackageStore
from roost.model.errors import StorageFull
from roost.store.functions import FunctionRecord
from roost.store.store import Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "roost-test-disk", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def package(size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data", random.Random(size).randbytes(size))
    return out.getvalue()


async def test_a_package_without_room_leaves_nothing(small_disk: Path) -> None:
    store = PackageStore(small_disk / "code")
    store.open()
    with pytest.raises(StorageFull, match="No room left"):
        async with store.adding(package(3 << 20)):
            pass
    assert list(store.root.iterdir()) == []
    async with store.adding(package(1 << 20)) as added:
        assert (store.path(added.digest) / "data").stat().st_size == 1 << 20


async def test_the_store_says_that_it_is_full_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    def record(name: str, size: int) -> FunctionRecord:
        return FunctionRecord(account="a", name=name, id=name, config={"x": "y" * size}, created=1, modified=1)

    store = Store(small_disk / "roost.db")
    await store.open()
    await store.functions.put(record("first", 10))
    ballast = small_disk / "ballast"
    with ballast.open("wb") as out:
        free = os.statvfs(small_disk)
        out.write(bytes(free.f_bavail * free.f_frsize))
    with pytest.raises(StorageFull, match="No room left"):
        await store.functions.put(record("second", 500_000))
    assert [found.name for found in await store.functions.list_all()] == ["first"]
    ballast.unlink()
    await store.functions.put(record("third", 500_000))
    await store.close()
    again = Store(small_disk / "roost.db")
    await again.open()
    assert [found.name for found in await again.functions.list_all()] == ["first", "third"]
    await again.close()
