"""Disk images as files: made, copied and checked, while no loop device is in play."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from roost.model.errors import StorageFull, Unavailable

_TOOL_TIMEOUT_S = 120.0
_EXT4_STATE_OFFSET = 1024 + 0x3A
_EXT4_CLEAN = 1
_FICLONE = 0x40049409
_COPY_CHUNK = 8 << 20
#: What a file system answers that does not share blocks between files.
_NO_CLONES = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS)


class Stopped(Exception):
    """A copy was told to stop."""


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Errors of the host's own disk, in Roost's terms."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk that holds {path} is full.") from error
        if isinstance(error, FileExistsError):
            raise
        raise Unavailable(f"The disk image {path} cannot be used: {error.strerror}.") from error


def copy(source: int, target: int, stop: threading.Event | None = None) -> None:
    """Make the empty file `target` the same as `source`: sharing its blocks if the file system can, else by a copy of
    the parts that hold data. Raises OSError, or Stopped soon after `stop` is set.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONES:
            raise
        copy_sparse(source, target, stop)


def copy_sparse(source: int, target: int, stop: threading.Event | None = None) -> None:
    """Copy the parts of a file that hold data; the rest stays a hole."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        while start < end:
            if stop is not None and stop.is_set():
                raise Stopped
            copied = _copy_part(source, target, start, min(_COPY_CHUNK, end - start))
            if not copied:
                raise OSError(errno.EIO, "the image became shorter")
            start += copied


def _copy_part(source: int, target: int, start: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, start, start)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the files are on two file systems
            raise
    return os.pwrite(target, os.pread(source, count, start), start)


def is_clean(fd: int) -> bool:
    """Whether the file system was unmounted properly (`s_state` of the ext4 superblock)."""
    state = os.pread(fd, 2, _EXT4_STATE_OFFSET)
    return len(state) == 2 and struct.unpack("<H", state)[0] == _EXT4_CLEAN


async def check(path: Path) -> None:
    """Mend what a power failure or a crash left. Raises Unavailable if it can't be mended."""
    # 1: errors were corrected.
    await _run("e2fsck", "-p", str(path), good=(0, 1))


async def make_file_system(path: Path, size_mb: int) -> None:
    """An empty ext4 in a new sparse file. Raises OSError, StorageFull, or Unavailable if mkfs.ext4 is missing or fails.

    One inode per 8 KiB, for the many small files of packages; nothing that a short life makes no use of.
    """
    with path.open("wb") as image:
        image.truncate(size_mb << 20)
    features = "^has_journal,^resize_inode,^huge_file,metadata_csum,extent,flex_bg,sparse_super2"
    options = ["-q", "-F", "-b", "4096", "-i", "8192", "-m", "0", "-O", features, "-E", "lazy_itable_init=1,nodiscard"]
    await _run("mkfs.ext4", *options, str(path), good=(0,))


async def _run(*command: str, good: tuple[int, ...]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is missing: apt install e2fsprogs.") from None
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TOOL_TIMEOUT_S)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{command[0]} did not end within {_TOOL_TIMEOUT_S:.0f} s.") from error
        raise
    if process.returncode not in good:
        text = output.decode(errors="replace").strip()[-500:]
        if "No space left" in text:
            raise StorageFull(f"The disk is full: {text}")
        raise Unavailable(f"{command[0]} failed: {text}")
