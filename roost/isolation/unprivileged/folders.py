"""Writable layers and volumes as plain directories: who isn't root can't attach disk images.

It has the same verbs as `isolation.disks`. A size is not held: the directories are bounded by the file system they are
on, and by nothing else. What rooms left in them may have any mode, so a root over them removes them, in the realm.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from roost.isolation.driver import MOST_LOWER
from roost.isolation.images import storage
from roost.model.errors import Unavailable

NO_SNAPSHOTS = "Snapshots of files take root: run the server with sudo."
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FRESH, _TRASH = ".fresh", ".trash"

#: Trees that are removed by one process.
_AT_ONCE = 64

Remove = Callable[[Sequence[str]], Awaitable[None]]


class Folders:
    """`directory` has those that are nobody's yet, and those that are to be removed; `remove` deletes whole trees."""

    def __init__(self, directory: Path, remove: Remove) -> None:
        self._fresh = directory / _FRESH
        self._trash = directory / _TRASH
        self._remove = remove
        self._emptying: asyncio.Task[None] | None = None

    def sweep(self) -> None:
        """Have a folder, without what a killed server had made ahead. Nothing of this object may be in use."""
        with storage(self._fresh):
            for place in (self._fresh, self._trash):
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
            for leftover in list(self._fresh.iterdir()):
                self.discard(leftover)
        self._empty()

    async def close(self) -> None:
        """Wait until what was discarded is gone."""
        if self._emptying is not None:
            await asyncio.gather(self._emptying, return_exceptions=True)

    def fresh(self) -> Path:
        """An empty one that is nobody's yet. Raises StorageFull, Unavailable."""
        path = self._fresh / secrets.token_hex(8)
        make_folder(path)
        return path

    async def create(self, path: Path, size_mb: int) -> None:
        """Make an empty one at `path`, which must not exist. Raises FileExistsError, StorageFull, Unavailable."""
        make_folder(path)

    async def mount(self, path: Path) -> int:
        """A descriptor of it, the caller's to close. Raises Unavailable."""
        return open_folder(path)

    def discard(self, path: Path) -> None:
        """It is wanted no more, and no room uses it: its name is free at once, its blocks soon. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._trash / secrets.token_hex(16))
            self._empty()

    def _empty(self) -> None:
        if self._emptying is None or self._emptying.done():
            with contextlib.suppress(RuntimeError):  # without a loop: the next start does it
                self._emptying = asyncio.get_running_loop().create_task(self._empty_trash())

    async def _empty_trash(self) -> None:
        tried: set[Path] = set()
        while left := list(set(self._trash.iterdir()) - tried)[:_AT_ONCE]:
            await self._remove([str(path) for path in left])
            tried.update(left)

    def forget(self, path: Path) -> None:
        """Nothing is kept of it."""

    async def layer_over(self, snapshots: Sequence[Path], layer: Path, size_mb: int) -> tuple[Path, ...]:
        """Make the writable layer of a room that stands on nothing but its template. Raises Unavailable for others."""
        if snapshots or len(snapshots) > MOST_LOWER:
            raise Unavailable(NO_SNAPSHOTS)
        await self.create(layer, size_mb)
        return ()

    async def snapshot(self, layer: Path, target: Path) -> None:
        """Raises Unavailable."""
        raise Unavailable(NO_SNAPSHOTS)


def make_folder(path: Path) -> None:
    """Raises FileExistsError, StorageFull, Unavailable."""
    with storage(path):
        path.mkdir(mode=0o700)


def open_folder(path: Path) -> int:
    """A descriptor of a directory, or of what a descriptor's path refers to. Raises Unavailable."""
    try:
        return os.open(path, _OPEN & ~os.O_NOFOLLOW if path.is_relative_to("/proc/self/fd") else _OPEN)
    except OSError as error:
        raise Unavailable(f"{path} can't be used: {error.strerror}.") from error
