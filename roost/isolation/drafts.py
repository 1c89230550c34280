"""Copies of disk images in use: taken while their writers stand still, and named when they are complete.

A copy is a file without a name until then, so that nothing of it is left after a SIGKILL. What is copied is not frozen
with FIFREEZE: a server killed in between would leave a file system that nobody can write, unmount or kill a writer of.
The writers' own cgroup is frozen instead, which a following server undoes, and what they wrote is synchronised.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from roost.isolation import images, linux
from roost.isolation.futures import seen
from roost.isolation.images import storage
from roost.model.errors import Unavailable

_AT_ONCE = 2
_TIMEOUT_S = 60.0


class Draft:
    """A complete copy without a name. What it holds begins to be written to the disk at once."""

    def __init__(self, fd: int, target: Path, pool: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._target = target
        self._pool = pool
        self._content = self._synced(os.dup(fd))
        self._content.add_done_callback(seen)

    async def publish(self) -> None:
        """Give it its name, to last also over a power failure, in which it exists complete or not at all. Raises
        FileExistsError, StorageFull, Unavailable."""
        try:
            with storage(self._target):
                await asyncio.shield(self._content)
        except BaseException:
            self.discard()
            raise
        lasting = self.name()
        try:
            await lasting
        except BaseException:  # also before that has begun
            self._target.unlink(missing_ok=True)
            raise

    def name(self) -> asyncio.Future[None]:
        """Give it its name at once. What is returned is done when it lasts also over a power failure; it fails with
        StorageFull, Unavailable, and its name is gone then. Raises FileExistsError, StorageFull, Unavailable.
        """
        fd, self._fd = self._fd, -1
        try:
            with storage(self._target):
                directory = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    # With a directory named, Python follows the link; without, it does not, whatever it is told.
                    os.link(f"/proc/self/fd/{fd}", self._target.name, dst_dir_fd=directory, follow_symlinks=True)
                except BaseException:
                    os.close(directory)
                    raise
        except BaseException:
            os.close(fd)
            raise
        return asyncio.ensure_future(self._lasts(self._synced(fd, directory)))

    async def _lasts(self, named: asyncio.Future[None]) -> None:
        named.add_done_callback(seen)
        try:
            with storage(self._target):
                await asyncio.shield(self._content)  # what goes wrong with it is told once, to who comes first
                await asyncio.shield(named)
        except BaseException:
            self._target.unlink(missing_ok=True)
            raise

    def _synced(self, *opened: int) -> asyncio.Future[None]:
        """The descriptors are closed, also by what nobody waits for any more before its turn comes."""
        return asyncio.get_running_loop().run_in_executor(self._pool, _sync, opened)

    def discard(self) -> None:
        """Give it up, unless it has a name."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Drafts:
    """Makes them in threads of its own: a large copy keeps no other work of the server waiting."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="roost-draft")
        # Else a room that stands still to be copied would wait for another's disk.
        self._syncs = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="roost-sync")
        self._stops: set[threading.Event] = set()

    async def copy(self, source: int, mount: int | None, target: Path) -> Draft:
        """Copy the image `source`, whose file system is `mount` if it is mounted, to be named `target` later.

        Raises StorageFull, or Unavailable, also when it takes too long.
        """
        stop = threading.Event()
        self._stops.add(stop)
        given = (os.dup(source), None if mount is None else os.dup(mount))
        made = asyncio.get_running_loop().run_in_executor(self._pool, _copy, *given, target, stop)
        try:
            async with asyncio.timeout(self._timeout_s):
                copied = await asyncio.shield(made)
            with storage(target):
                return Draft(copied, target, self._syncs)
        except BaseException as error:
            stop.set()
            made.add_done_callback(_close_unwanted)
            if isinstance(error, TimeoutError):
                raise Unavailable(f"{target} was not copied in {self._timeout_s:.0f} s.") from error
            raise
        finally:
            self._stops.discard(stop)

    def close(self) -> None:
        """Give up what is being copied."""
        for stop in self._stops:
            stop.set()
        self._pool.shutdown()
        self._syncs.shutdown()


def _copy(source: int, mount: int | None, target: Path, stop: threading.Event) -> int:
    """The copy's descriptor; those given are closed."""
    try:
        if stop.is_set():
            raise images.Stopped
        with storage(target):
            if mount is not None:
                _sync_file_system(mount)
            fd = os.open(target.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o400)
            try:
                images.copy(source, fd, stop)
            except BaseException:
                os.close(fd)
                raise
            return fd
    finally:
        os.close(source)
        if mount is not None:
            os.close(mount)


def _sync_file_system(mount: int) -> None:
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        linux.sync_file_system(root)
    finally:
        os.close(root)


def _sync(opened: Sequence[int]) -> None:
    try:
        for fd in opened:
            os.fsync(fd)
    finally:
        for fd in opened:
            os.close(fd)


def _close_unwanted(made: asyncio.Future[int]) -> None:
    if not made.cancelled() and made.exception() is None:
        os.close(made.result())
