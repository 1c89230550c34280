"""Buckets as directories, objects as files in them: any program of this machine can read and write them.

Nothing leads out of a bucket: every step to a file is taken beneath the one before, through no symbolic link. What is
no regular file, or has a name that no key can have, is no object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from io import FileIO
from itertools import islice
from pathlib import Path

from roost.instances.volumes import descend, open_beneath
from roost.isolation.threads import on_thread
from roost.model.errors import Conflict, InvalidArgument, NotFound, RoostError, StorageFull, Unavailable
from roost.model.objects import BUCKET, ObjectInfo, check_bucket, check_key
from roost.objects.local_files import info_of, is_written_to, walk
from roost.objects.local_watch import LocalWatch
from roost.objects.ports import CHUNK, PAGE, Watch

#: Uploads on their way; on the same file system as the buckets, and no bucket by its name.
_PARTS = ".parts"


class LocalStore:
    """Implements `ObjectStore` in a directory that only its owner may enter."""

    exact = False  # others write into files and rename them while they are listed

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / _PARTS

    async def prepare(self) -> None:
        """Make the directory; remove uploads that a server before this one left half done."""

        def work() -> None:
            self._parts.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._root.chmod(0o700)
            for left in self._parts.iterdir():
                left.unlink()

        with _explained("", ""):
            await on_thread(work)

    async def buckets(self) -> list[str]:
        def names() -> list[str]:
            with _explained("", ""), os.scandir(self._root) as entries:
                return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and BUCKET.fullmatch(e.name))

        return await on_thread(names)

    async def put(self, bucket: str, key: str, pieces: AsyncIterable[bytes]) -> ObjectInfo:
        """A bucket is made with its first object."""
        parts = check_key(key)
        await on_thread(self.make, bucket)
        passing = self._parts / secrets.token_hex(16)
        with _explained(bucket, key):
            fd = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            async for piece in pieces:
                await on_thread(_write, fd, piece)
            return await on_thread(self._place, fd, passing, bucket, parts)
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                passing.unlink()

    async def get(self, bucket: str, key: str) -> tuple[ObjectInfo, AsyncIterator[bytes]]:
        file = await on_thread(self._open, bucket, key)
        info = info_of(key, os.fstat(file.fileno()))
        return info, _pieces(file, info.size)

    async def remove(self, bucket: str, key: str) -> None:
        await on_thread(self._remove, bucket, key)

    async def list(self, bucket: str, prefix: str = "", after: str = "") -> AsyncGenerator[Sequence[ObjectInfo]]:
        found = walk(lambda: self._bucket(bucket), prefix, after)
        try:
            with _explained(bucket, prefix):
                while page := await on_thread(lambda: list(islice(found, PAGE))):
                    yield page
        finally:
            found.close()

    async def heads(self, bucket: str, keys: Collection[str]) -> Mapping[str, ObjectInfo]:
        return await on_thread(self._heads, bucket, keys)

    def watch(self, bucket: str, prefix: str, interval_s: float) -> AbstractAsyncContextManager[Watch]:
        """A bucket that is not there yet is made, so that the first object in it is seen."""
        self.make(bucket)
        return LocalWatch(self._root / bucket, prefix, interval_s)

    # --- on a thread -------------------------------------------------------------------------------------------

    def make(self, bucket: str) -> None:
        check_bucket(bucket)
        with _explained(bucket, ""), contextlib.suppress(FileExistsError):
            os.mkdir(self._root / bucket, 0o755)  # noqa: PTH102

    def _bucket(self, bucket: str) -> int:
        """A descriptor of its directory; the caller closes it. Raises NotFound."""
        check_bucket(bucket)
        with _explained(bucket, ""):
            return os.open(self._root / bucket, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _open(self, bucket: str, key: str) -> FileIO:
        parts = check_key(key)
        folder = self._bucket(bucket)
        with _explained(bucket, key):
            fd = _open_file(folder, parts)
        if fd < 0:
            raise NotFound(f"Bucket {bucket} has no object {key[:200]!r}.", code="NoSuchKey")
        return FileIO(fd)  # closes itself, also where nobody reads it

    def _place(self, fd: int, passing: Path, bucket: str, parts: tuple[str, ...]) -> ObjectInfo:
        """The upload is whole and on the disk; it gets its name."""
        key = "/".join(parts)
        with _explained(bucket, key):
            os.fsync(fd)
            info = info_of(key, os.fstat(fd))
            folder = descend(self._bucket(bucket), parts[:-1], make=True)
            try:
                os.rename(passing, parts[-1], dst_dir_fd=folder)
            finally:
                os.close(folder)
            return info

    def _remove(self, bucket: str, key: str) -> None:
        """With the folders that are empty then: a key has none of its own."""
        parts = check_key(key)
        folder = self._bucket(bucket)
        try:
            with _explained(bucket, key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _unlink(folder, parts)
                for depth in range(len(parts) - 1, 0, -1):
                    parent = descend(os.dup(folder), parts[: depth - 1], make=False)
                    try:
                        os.rmdir(parts[depth - 1], dir_fd=parent)
                    except OSError as error:
                        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                            raise
                        break
                    finally:
                        os.close(parent)
        finally:
            os.close(folder)

    def _heads(self, bucket: str, keys: Collection[str]) -> dict[str, ObjectInfo]:
        found = {}
        folder = self._bucket(bucket)
        try:
            for key in keys:
                with _explained(bucket, key):
                    fd = _open_file(os.dup(folder), check_key(key))
                if fd < 0:
                    continue
                try:
                    writing = is_written_to(fd)  # asked first: what is seen after a "no" is whole
                    found[key] = info_of(key, os.fstat(fd), writing=writing)
                finally:
                    os.close(fd)
        finally:
            os.close(folder)
        return found


def _open_file(folder: int, parts: tuple[str, ...]) -> int:
    """The regular file below `folder` (which is closed), to be read; -1 when there is none. Raises OSError."""
    try:
        folder = descend(folder, parts[:-1], make=False)
        try:
            fd = open_beneath(folder, parts[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            return -1
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return -1
    return fd


def _unlink(folder: int, parts: tuple[str, ...]) -> None:
    parent = descend(os.dup(folder), parts[:-1], make=False)
    try:
        if stat.S_ISREG(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(parts[-1], dir_fd=parent)
    finally:
        os.close(parent)


def _write(fd: int, data: bytes) -> None:
    with _explained("", ""):
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]


async def _pieces(file: FileIO, size: int) -> AsyncIterator[bytes]:
    """At most `size` bytes: the file may grow or shrink meanwhile."""
    try:
        while size > 0 and (piece := await on_thread(file.read, min(CHUNK, size))):
            size -= len(piece)
            yield piece
        if size > 0:
            raise Unavailable("The object became shorter while it was read.")
    finally:
        file.close()


@contextlib.contextmanager
def _explained(bucket: str, key: str) -> Iterator[None]:
    """What the file system says, as an error of Roost."""
    try:
        yield
    except OSError as error:
        raise _error(error, bucket, key) from error


def _error(error: OSError, bucket: str, key: str) -> RoostError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("No room left on the disk of the object store.")
    if error.errno == errno.ENOENT and not key:
        return NotFound(f"There is no bucket {bucket}.", code="NoSuchBucket")
    if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}:
        return Conflict(
            f"{key[:200]!r} can't be stored in {bucket}: an object has the name of a folder on the way, "
            "or a folder has its own."
        )
    if error.errno in {errno.ELOOP, errno.EXDEV}:
        return Conflict(f"{key[:200]!r} in {bucket} leads through a symbolic link or another file system.")
    if error.errno == errno.ENAMETOOLONG:
        return InvalidArgument(f"key: {key[:80]!r} is too long for this file system.")
    return Unavailable(f"The object store failed at {bucket}/{key[:200]}: {error.strerror}.")
