"""Disk images: made, attached once at a time, checked when not unmounted cleanly, and gone when nobody uses them."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from roost.isolation.disks import Disks
from roost.model.errors import StorageFull, Unavailable

STATE = 1024 + 0x3A


def _write(disk_fd: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=disk_fd)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


async def test_files_stay_in_an_image(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    await disks.create(image, 16)
    with await disks.attach(image) as disk:
        _write(disk.mount_fd, "file", b"kept")
    assert await disks.released(image)
    with await disks.attach(image) as disk:
        assert os.listdir(disk.mount_fd) == ["file", "lost+found"] or "file" in os.listdir(disk.mount_fd)
    assert await disks.released(image)


async def test_an_image_is_sparse_and_of_its_size(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    await disks.create(image, 512)
    stat = image.stat()
    assert stat.st_size == 512 << 20 and stat.st_blocks * 512 < 2 << 20
    with pytest.raises(FileExistsError):
        await disks.create(image, 512)


async def test_clones_show_one_file_system(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    with await disks.scratch(16) as disk:
        other = disk.clone()
        try:
            _write(disk.mount_fd, "file", b"x")
            assert "file" in os.listdir(other)
        finally:
            os.close(other)


async def test_an_image_in_use_is_waited_for_and_not_longer(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    await disks.create(image, 16)
    disk = await disks.attach(image)
    with pytest.raises(Unavailable, match="still in use"):
        await disks.attach(image, timeout_s=0.05)
    assert not await disks.released(image, timeout_s=0.05)
    waiting = asyncio.create_task(disks.attach(image, timeout_s=10))
    await asyncio.sleep(0.02)
    disk.close()
    (await waiting).close()


async def test_an_image_that_was_not_unmounted_is_checked_first(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    await disks.create(image, 16)
    with image.open("r+b") as file:
        file.seek(STATE)
        file.write(struct.pack("<H", 0))
    with await disks.attach(image) as disk:
        _write(disk.mount_fd, "file", b"x")
    assert await disks.released(image)
    assert struct.unpack("<H", image.read_bytes()[STATE : STATE + 2]) == (1,)


async def test_what_is_no_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(Unavailable, match="e2fsck failed"):
        await disks.attach(image)
    with pytest.raises(Unavailable, match="cannot be used: No such file"):
        await disks.attach(tmp_path / "missing")
    with pytest.raises(Unavailable, match=r"mkfs\.ext4 failed"):
        await disks.create(tmp_path / "tiny", 0)
    assert not (tmp_path / "tiny").exists()


async def test_a_full_host_disk_is_storage_full(tmp_path: Path) -> None:
    """The images lie on a disk of their own here, which is too small for them."""
    disks = Disks(tmp_path / "disks")
    with await disks.scratch(4) as small:
        directory = Path(f"/proc/self/fd/{small.mount_fd}")
        _write(small.mount_fd, "rest", b"")
        with (directory / "rest").open("wb") as file, pytest.raises(OSError, match="No space left"):
            while file.write(bytes(4096)):
                file.flush()
        with pytest.raises(StorageFull, match="is full"):
            await disks.create(directory / "image", 16)
        assert "image" not in os.listdir(small.mount_fd)
