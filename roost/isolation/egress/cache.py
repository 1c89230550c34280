"""Fetched files on the host's disk, named by the digest of their content and verified before anyone gets them.

    <folder>/<algorithm>/<first two digits>/<digest>
    <folder>/partial/                                  downloads in progress; emptied when a server starts

No room sees this folder. A file's name says what it must contain, so what a room asked for earlier can't change what
another room gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from roost.isolation.egress.pages import Digest
from roost.model.errors import PayloadTooLarge, StorageFull, Unavailable

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_CHECK_SPACE_EVERY = 64 << 20


@dataclass(frozen=True, kw_only=True)
class CacheLimits:
    """Sizes in bytes. `min_free` is what downloads leave free on the disk."""

    total: int = 2 << 30
    file: int = 4 << 30
    min_free: int = 512 << 20
    downloads: int = 8  # at once


class Partial:
    """A download in progress, in a file that has no name in the cache.

    Its methods may run in threads which go on after the request that started them has ended: hence the lock.
    """

    def __init__(self, folder: Path, limits: CacheLimits, algorithm: str) -> None:
        self._folder = folder
        self._limits = limits
        self._hash = hashlib.new(algorithm)
        self._fd, name = tempfile.mkstemp(dir=folder)
        self._path = Path(name)
        self._unchecked = _CHECK_SPACE_EVERY
        self._size = 0
        self._lock = threading.Lock()
        self._closed = False

    def write(self, chunk: bytes) -> None:
        """Append. Raises PayloadTooLarge or StorageFull."""
        with self._open():
            self._check_space(len(chunk))
            self._hash.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def commit(self, digest: Digest, target: Path) -> int:
        """Give the file its name if it has the content that the name says. Returns a descriptor of it for reading."""
        with self._open():
            actual = self._hash.hexdigest()
            if actual != digest.value:
                raise Unavailable(f"The index sent a file whose {digest.algorithm} is {actual}, not {digest.value}.")
            os.fchmod(self._fd, 0o400)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | os.O_NOATIME)
            _mark_used(self._fd)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path.replace(target)
            return os.dup(self._fd)

    def keep_unnamed(self) -> int:
        """A descriptor of the content, which goes with it."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Forget what was not committed."""
        with self._lock:
            self._closed = True
            self._path.unlink(missing_ok=True)
            os.close(self._fd)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Unavailable("The download was given up.")
            yield

    def _check_space(self, count: int) -> None:
        self._size += count
        self._unchecked += count
        if self._size > self._limits.file:
            raise PayloadTooLarge(f"The file is larger than {self._limits.file >> 20} MiB.")
        if self._unchecked >= _CHECK_SPACE_EVERY:
            self._unchecked = 0
            if shutil.disk_usage(self._folder).free < self._limits.min_free:
                raise StorageFull("The disk of the package cache is nearly full.")


Download = Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]


class _Flight:
    """One download that any number of requests wait for. It ends when the last one has gone."""

    def __init__(self, task: asyncio.Task[int]) -> None:
        self.task = task
        self.waiting = 0


class ContentCache:
    """The files of one folder, which belongs to one server. All methods are for one event loop."""

    def __init__(self, folder: Path, limits: CacheLimits) -> None:
        self._folder = folder
        self._limits = limits
        self._partial = folder / "partial"
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True, mode=0o700)
        self._flights: dict[Digest, _Flight] = {}
        self._slots = asyncio.Semaphore(limits.downloads)
        self._evicting = threading.Lock()
        self._verified: dict[Path, tuple[int, int, int]] = {}

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest | None, download: Download) -> AsyncIterator[int]:
        """A descriptor of the file, to be read with `os.pread`: from the cache, else by `download`, given a writer.

        Requests for the same digest share one download. Without a digest the file is fetched for this one request.
        Raises Unavailable if the content is not what the digest says, StorageFull, PayloadTooLarge, and what
        `download` raises; nothing is kept then.
        """
        fd = await self._obtain(digest, download)
        try:
            yield fd
        finally:
            os.close(fd)

    async def _obtain(self, digest: Digest | None, download: Download) -> int:
        if digest is None:
            return await self._fetch(None, download)
        present = await _descriptor_in_thread(lambda: self._open_verified(digest))
        return await self._share(digest, download) if present is None else present

    async def _share(self, digest: Digest, download: Download) -> int:
        flight = self._flights.get(digest)
        if flight is None:
            flight = self._flights[digest] = _Flight(asyncio.create_task(self._fetch(digest, download)))
        flight.waiting += 1
        try:
            return os.dup(await asyncio.shield(flight.task))
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._flights.pop(digest, None)
                _end(flight.task)

    async def _fetch(self, digest: Digest | None, download: Download) -> int:
        async with self._slots:
            try:
                partial = Partial(self._partial, self._limits, digest.algorithm if digest else "sha256")
                try:
                    await download(lambda chunk: asyncio.to_thread(partial.write, chunk))
                    if digest is None:
                        return partial.keep_unnamed()
                    target = self._path(digest)
                    fd = await _descriptor_in_thread(lambda: partial.commit(digest, target))
                    self._verified[target] = _identity(os.fstat(fd))
                finally:
                    partial.close()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageFull("The disk of the package cache is full.") from error
                raise Unavailable(f"The package cache can't be written: {error.strerror}.") from error
        try:
            await asyncio.to_thread(self._evict)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _path(self, digest: Digest) -> Path:
        return self._folder / digest.algorithm / digest.value[:2] / digest.value

    def _open_verified(self, digest: Digest) -> int | None:
        """A descriptor of a cached file. Its content is compared once, and again whenever the file was touched."""
        path = self._path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if self._verified.get(path) != _identity(status):
                if _digest_of(fd, digest.algorithm) != digest.value:
                    log.error("a file of the package cache was changed and is removed: %s", path)
                    path.unlink(missing_ok=True)
                    os.close(fd)
                    return None
                self._verified[path] = _identity(status)
            _mark_used(fd)
        except OSError as error:
            log.warning("a file of the package cache can't be read: %s", error)
            os.close(fd)
            return None
        return fd

    def _evict(self) -> None:
        """Remove what was not used for longest until the limit holds with some room to spare."""
        with self._evicting:
            files = sorted(self._stored(), key=lambda entry: entry[1].st_atime_ns)
            total = sum(status.st_size for _, status in files)
            if total <= self._limits.total:
                return
            for path, status in files:
                if total <= self._limits.total * 9 // 10:
                    break
                path.unlink(missing_ok=True)
                self._verified.pop(path, None)
                total -= status.st_size

    def _stored(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.glob("*/??/*"):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()


FD = TypeVar("FD", bound=int | None)


async def _descriptor_in_thread(work: Callable[[], FD]) -> FD:
    """Run in a thread what opens a descriptor; if the request ends meanwhile, the descriptor is closed."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_result)
        raise


def _end(task: asyncio.Task[int]) -> None:
    """Nobody waits any more: stop the download, or close what it left."""
    task.cancel()
    task.add_done_callback(_close_result)


def _close_result(done: asyncio.Future[FD]) -> None:
    if not done.cancelled() and done.exception() is None:
        fd = done.result()
        if fd is not None:
            os.close(fd)


def _mark_used(fd: int) -> None:
    """Set the time of last use, for eviction. Descriptors have O_NOATIME: the kernel would set it to its coarse clock,
    in which uses within milliseconds are one and the same, or not at all, as the mount says."""
    os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest_of(fd: int, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    offset = 0
    while chunk := os.pread(fd, _CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()
