"""Disk images: made, attached once at a time, checked when not unmounted cleanly, and gone when nobody uses them."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from roost.isolation import drafts, loops
from roost.isolation.disks import Disk, Disks
from roost.isolation.namespaces import wire
from roost.model.errors import StorageFull, Unavailable

STATE = 1024 + 0x3A


def _directory(disk: Disk) -> Path:
    return Path(f"/proc/self/fd/{disk.mount_fd}")


def _state(image: Path) -> int:
    """1: cleanly unmounted."""
    return int(struct.unpack("<H", image.read_bytes()[STATE : STATE + 2])[0])


def _write(disk_fd: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=disk_fd)
    try:
        written = os.write(fd, data)
        if written < len(data):
            os.write(fd, data[written:])
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
    assert loops.device_of(image) is None and loops.device_of(tmp_path / "missing") is None
    with await disks.attach(image) as disk:
        assert (_directory(disk) / "file").read_text() == "kept"
    assert await disks.released(image)


async def test_what_waits_to_be_written_is_bounded_while_a_room_has_the_device(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    await disks.create(image, 16)
    disk = await disks.attach(image)
    block = Path("/sys/block") / Path(disk.device).name
    if not (block / "bdi" / "strict_limit").exists():
        pytest.skip("this kernel is older than Linux 6.2")
    assert (block / "bdi" / "strict_limit").read_text() == "1\n"
    assert 0 < int((block / "bdi" / "max_bytes").read_text()) <= 9 << 20  # the kernel rounds it
    loops.unbound()
    assert (block / "bdi" / "strict_limit").read_text() == "1\n"
    disk.close()
    assert await disks.released(image)
    for _ in range(20):  # another test may have had the device just then
        disks.close()
        if (block / "loop").exists() or (block / "bdi" / "strict_limit").read_text() == "0\n":
            return
    pytest.fail("the device stays bounded")


async def test_an_image_is_sparse_and_of_its_size(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    await disks.create(image, 512)
    stat = image.stat()
    assert stat.st_size == 512 << 20 and stat.st_blocks * 512 < 2 << 20
    with pytest.raises(FileExistsError):
        await disks.create(image, 512)


async def test_a_disk_gets_its_name_when_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(tmp_path / "disks")
    image = tmp_path / "image"
    unwanted = await disks.nameless(16)
    with (await disks.nameless(16)).name(image) as disk:
        _write(disk.mount_fd, "file", b"kept")
        assert loops.device_of(image) == disk.device  # by which another mount of it is made
        with monkeypatch.context() as patched:  # what is known of devices may be old
            for known in (
                {},
                {disk.device: (0, 0)},
                {"/dev/loop-none": loops._identity(image.stat()), **loops._images},
            ):
                patched.setattr(loops, "_images", dict(known))
                assert loops.device_of(image) == disk.device
        with pytest.raises(Unavailable, match="still in use"):
            await disks.attach(image, timeout_s=0.05)
    assert await disks.released(image)
    with await disks.attach(image) as disk:
        assert (_directory(disk) / "file").read_text() == "kept"
    unwanted.discard()
    assert [path.name for path in (tmp_path / "disks").iterdir()] == ["blank-16.img"]


async def test_a_name_that_can_not_be_given_leaves_nothing(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    with pytest.raises(Unavailable, match="No such file"):
        (await disks.nameless(16)).name(tmp_path / "missing" / "image")
    assert [path.name for path in (tmp_path / "disks").iterdir()] == ["blank-16.img"]


async def test_what_a_killed_server_made_ahead_is_swept(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    await disks.nameless(16)  # and nobody is left to name it
    Disks(tmp_path / "disks").sweep()
    assert [path.name for path in (tmp_path / "disks").iterdir()] == ["blank-16.img"]


KILLED = """
import asyncio, os, pathlib, signal, sys
from roost.isolation import images
from roost.isolation.disks import Disks
make = images.make_file_system
async def killed(path, size_mb):
    await make(path, size_mb)
    os.kill(os.getpid(), signal.SIGKILL)
images.make_file_system = killed
asyncio.run(Disks(pathlib.Path(sys.argv[1])).nameless(16))
"""


def test_a_blank_image_that_a_killed_server_had_begun_is_swept(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    Disks(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


async def test_clones_show_one_file_system(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    with await disks.scratch(16) as disk:
        other = disk.clone()
        try:
            _write(disk.mount_fd, "file", b"x")
            assert Path(f"/proc/self/fd/{other}/file").read_text() == "x"
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
    torn = tmp_path / "torn"
    with await disks.attach(image) as disk:
        _write(disk.mount_fd, "file", b"kept")
        torn.write_bytes(image.read_bytes())  # as a power failure would leave it
    assert _state(torn) == 0
    with await disks.attach(torn) as disk:
        assert (_directory(disk) / "file").read_text() == "kept"
    assert await disks.released(torn)
    assert _state(torn) == 1


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


async def test_an_image_below_rooms_is_read_only_shared_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.isolation.disks._MOST_SHARED", 1)
    disks = Disks(tmp_path / "disks")
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        await disks.create(path, 16)
        with await disks.attach(path) as disk:
            _write(disk.mount_fd, "file", path.name.encode())
        assert await disks.released(path)
    mounts = [await disks.lower(path) for path in (*paths, paths[0])]
    try:
        found = [Path(f"/proc/self/fd/{mount}/file").read_text() for mount in mounts]
        assert found == ["one", "two", "one"]
        with pytest.raises(OSError, match="Read-only file system"):
            _write(mounts[0], "new", b"x")
        assert not await disks.released(paths[0], timeout_s=0)
    finally:
        for mount in mounts:
            os.close(mount)
    assert await disks.released(paths[1])  # only the last one used is kept
    assert not await disks.released(paths[0], timeout_s=0.05)
    disks.forget(paths[0])
    disks.forget(tmp_path / "missing")
    assert await disks.released(paths[0])
    disks.close()


async def test_what_is_no_image_cannot_lie_below_a_room(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    with pytest.raises(Unavailable, match="could not be mounted"):
        await disks.lower(tmp_path / "image")
    with pytest.raises(Unavailable, match="No such file"):
        await disks.lower(tmp_path / "missing")


async def test_a_full_host_disk_is_storage_full(tmp_path: Path) -> None:
    """The images lie on a disk of their own here, which is too small for them."""
    disks = Disks(tmp_path / "disks")
    with await disks.scratch(4) as small:
        directory = _directory(small)
        with pytest.raises(OSError, match="No space left"):
            for number in range(64):
                _write(small.mount_fd, f"fill-{number}", bytes(1 << 17))
        with pytest.raises(StorageFull, match="is full"):
            await disks.create(directory / "image", 16)
        assert not (directory / "image").exists()


async def test_a_copy_does_not_wait_for_what_others_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A room stands still for it."""
    slow = threading.Event()
    monkeypatch.setattr(drafts, "_sync", lambda opened: (slow.wait(30), wire.close_all(opened)))
    made = drafts.Drafts()
    source = tmp_path / "source"
    source.write_bytes(bytes(1 << 20))
    with source.open("rb") as opened:
        async with asyncio.timeout(5):
            copies = [await made.copy(opened.fileno(), None, tmp_path / str(number)) for number in range(4)]
    lasting = [one.name() for one in copies]
    await asyncio.sleep(0)
    assert not any(one.done() for one in lasting)
    slow.set()
    await asyncio.gather(*lasting)
    made.close()
