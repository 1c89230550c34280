"""Changes in a bucket's directory as the kernel tells them (inotify).

What it tells is a hint where to look, nothing more: events may be lost when too many come at once, and a bucket may
have more folders than the kernel watches. Then all is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from asyncinotify import Event, Inotify, Mask

from roost.isolation.threads import on_thread
from roost.model.errors import NotFound
from roost.model.objects import is_key
from roost.objects.ports import Hint

log = logging.getLogger(__name__)

#: Keys in one hint; beyond it all is looked at.
MOST_KEYS = 5000
#: Let what belongs together come together: a file that is written and then renamed was never there by its first name.
_GATHER_S = 0.02
_EVENTS_AT_ONCE = 500

_FILES = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE
_WATCHED = _FILES | Mask.CREATE | Mask.ONLYDIR | Mask.DONT_FOLLOW
_ROOT = _WATCHED | Mask.DELETE_SELF | Mask.MOVE_SELF
#: The kernel has no more watches, or no more instances, for this user.
_USED_UP = frozenset({errno.ENOSPC, errno.EMFILE, errno.ENFILE})


class LocalWatch:
    """Implements `Watch`; a context manager."""

    def __init__(self, root: Path, prefix: str, interval_s: float) -> None:
        self._root = root
        self._prefix = prefix
        self._interval_s = interval_s
        self._inotify: Inotify | None = None  # None: there is none to be had
        self._partial = False
        self._stirred = asyncio.Event()
        self._looked = 0.0

    async def __aenter__(self) -> LocalWatch:
        try:
            await self._rebuild()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    async def next(self, timeout_s: float) -> Hint:
        loop = asyncio.get_running_loop()
        if self._inotify is None or self._partial:
            timeout_s = min(timeout_s, max(0.0, self._looked + self._interval_s - loop.time()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._stirred.wait()
                await asyncio.sleep(_GATHER_S)
        if (self._inotify is None or self._partial) and loop.time() >= self._looked + self._interval_s:
            await self._rebuild()
            return Hint(anywhere=True)
        return Hint() if self._inotify is None else await self._drain()

    async def _drain(self) -> Hint:
        keys: set[str] = set()
        folders: list[str] = []
        for event in self._events():
            where = self._where(event)
            if Mask.Q_OVERFLOW in event.mask or (Mask.ISDIR in event.mask and Mask.MOVED_FROM in event.mask):
                # The watches below a folder that was moved go on telling its old name.
                await self._rebuild()
                return Hint(anywhere=True)
            if event.mask & (Mask.DELETE_SELF | Mask.MOVE_SELF):
                raise NotFound(f"The bucket {self._root.name} was removed.", code="NoSuchBucket")
            if where is None:
                continue
            if Mask.ISDIR not in event.mask:
                if event.mask & _FILES and is_key(where) and where.startswith(self._prefix):
                    keys.add(where)
            elif event.mask & (Mask.CREATE | Mask.MOVED_TO):
                folders.append(where)
        for folder in folders:
            keys |= await on_thread(self._add, folder)
            if len(keys) > MOST_KEYS:
                return Hint(anywhere=True)
        return Hint(keys=keys)

    def _events(self) -> Iterator[Event]:
        """Those that are there, up to a number; what is left stirs again."""
        assert self._inotify is not None
        self._stirred.clear()
        for _ in range(MOST_KEYS):
            try:
                event = self._inotify.sync_get()
            except BlockingIOError:
                return
            if event is not None:
                yield event
        self._stirred.set()

    def _where(self, event: Event) -> str | None:
        """The place that an event names, from the bucket on."""
        if event.watch is None or event.name is None:
            return None
        folder = str(event.watch.path)[len(str(self._root)) :].lstrip("/")
        return f"{folder}/{event.name}" if folder else str(event.name)

    async def _rebuild(self) -> None:
        self._close()
        loop = asyncio.get_running_loop()
        self._partial = False
        self._stirred.clear()
        self._looked = loop.time()
        try:
            self._inotify = Inotify(cache_size=_EVENTS_AT_ONCE)
        except OSError as error:
            if error.errno not in _USED_UP:
                raise
            log.warning("bucket %s can't be watched (%s), it is listed instead", self._root.name, error.strerror)
            return
        os.set_blocking(self._inotify.fd, False)  # the library leaves that to its flags
        loop.add_reader(self._inotify.fd, self._stirred.set)
        await on_thread(self._add, "")

    def _add(self, folder: str) -> set[str]:
        """Watch a folder and all below; keys of the files that are there already, for nothing told of them."""
        assert self._inotify is not None
        keys: set[str] = set()
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            below = f"{here}/" if here else ""
            if not (below.startswith(self._prefix) or self._prefix.startswith(below)):
                continue
            path = self._root / here
            try:
                self._inotify.add_watch(path, _WATCHED if here else _ROOT)
                with os.scandir(path) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(below + entry.name)
                        elif len(keys) <= MOST_KEYS and is_key(below + entry.name):
                            keys.add(below + entry.name)
            except OSError as error:
                if error.errno in _USED_UP:
                    if not self._partial:
                        log.warning("bucket %s has too many folders to watch, it is listed, too", self._root.name)
                    self._partial = True
                elif error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # it went meanwhile
                    raise
        return {key for key in keys if key.startswith(self._prefix)}

    def _close(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
