"""Files of a volume from the host's side: what rooms may have left there leads nowhere and hurts nobody."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.isolation.disks import Disks
from roost.model.errors import Conflict, InvalidArgument, NotFound, StorageFull
from roost.sandboxes import volume_files
from roost.sandboxes.volume_files import Ownership, VolumeFiles, split

NOBODY = Ownership()


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[int]:
    disks = Disks(tmp_path / "disks")
    await disks.create(tmp_path / "image", 16)
    root = await disks.mount(tmp_path / "image")
    os.rmdir("lost+found", dir_fd=root)
    yield root
    os.close(root)
    assert await disks.released(tmp_path / "image")


def write(files: VolumeFiles, path: str, data: bytes, *, force: bool = False) -> None:
    fd = files.begin(split(path))
    try:
        files.write(fd, data)
        files.finish(fd, split(path), NOBODY, force=force)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["..", "/..", "/a/../b", "a/..", "/./a", "a\0b", "/" + "x" * 5000])
def test_paths_that_lead_out(path: str) -> None:
    with pytest.raises(InvalidArgument):
        split(path)


def test_other_paths_are_steps() -> None:
    assert split("/") == split("") == ()
    assert split("//a///b/") == split("a/b") == ("a", "b")
    assert split("/...") == ("...",)


async def test_no_link_is_followed(root: int, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    os.symlink(outside, "folder", dir_fd=root)
    os.symlink(outside / "secret", "file", dir_fd=root)
    os.symlink("/proc/self/root", "magic", dir_fd=root)
    files = VolumeFiles(root)
    for path in ("/folder/secret", "/file", f"/magic{outside}/secret"):
        with pytest.raises(InvalidArgument):
            files.open(split(path))
        with pytest.raises(InvalidArgument):
            files.change(split(path), Ownership(mode=0o777))
    for path in ("/folder/new", "/magic/tmp/new"):
        with pytest.raises(InvalidArgument):
            files.begin(split(path))
        with pytest.raises(InvalidArgument):
            files.make_dir(split(path), NOBODY, force=True)
    with pytest.raises(InvalidArgument):
        files.list(split("/folder"), 1)
    assert [(entry.name, entry.kind) for entry in map(_named, files.list((), 5))] == [
        ("file", "symlink"),
        ("folder", "symlink"),
        ("magic", "symlink"),
    ]
    # Writing over a link replaces the link; removing it leaves what it points at.
    write(files, "/file", b"mine", force=True)
    assert files.set_aside(split("/folder")) == ""
    assert (outside / "secret").read_text() == "secret"


class _named:
    def __init__(self, entry: volume_files.FileInfo) -> None:
        self.name = entry.path.rpartition("/")[2]
        self.kind = entry.kind


async def test_what_is_no_file_is_not_opened(root: int) -> None:
    os.mkfifo("pipe", dir_fd=root)
    os.mkdir("folder", dir_fd=root)
    files = VolumeFiles(root)
    for path in ("/pipe", "/folder", "/"):
        with pytest.raises(InvalidArgument):
            files.open(split(path))
    with pytest.raises(InvalidArgument):
        write(files, "/folder", b"x", force=True)
    with pytest.raises(Conflict):
        write(files, "/folder", b"x")
    with pytest.raises(InvalidArgument):
        files.begin(split("/pipe/x"))
    assert files.info(split("/pipe")).kind == "unknown"


async def test_an_upload_that_breaks_off_leaves_nothing(root: int) -> None:
    files = VolumeFiles(root)
    fd = files.begin(split("/file"))
    files.write(fd, b"half")
    os.close(fd)
    assert files.list((), 1) == []
    write(files, "/file", b"whole")
    fd = files.begin(split("/file"))
    files.write(fd, b"half")
    os.close(fd)
    file, size = files.open(split("/file"))
    with file:
        assert (file.read(), size) == (b"whole", 5)


async def test_a_full_volume_says_so(root: int) -> None:
    files = VolumeFiles(root)
    fd = files.begin(split("/file"))
    with pytest.raises(StorageFull):
        for _ in range(20):
            files.write(fd, bytes(1 << 20))
    os.close(fd)
    write(files, "/small", b"fits again")


async def test_listings_are_bounded(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_files, "MOST_LISTED", 5)
    files = VolumeFiles(root)
    for number in range(5):
        write(files, f"/{number}", b"")
    assert len(files.list((), 1)) == 5
    write(files, "/6", b"")
    with pytest.raises(InvalidArgument, match="more than"):
        files.list((), 1)


async def test_missing_ones(root: int) -> None:
    files = VolumeFiles(root)
    for ask in (files.info, files.open, files.set_aside, lambda parts: files.list(parts, 1)):
        with pytest.raises(NotFound):
            ask(split("/none"))
    with pytest.raises(NotFound):
        files.begin(split("/none/file"))
    with pytest.raises(NotFound):
        files.make_dir(split("/none/dir"), NOBODY, force=False)
