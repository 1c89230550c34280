"""Watches of directories, recursive or not, on one inotify instance of the room.

The machine gives all rooms together a small number of instances, so that one is opened for the first watch and closed
with the last.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
from collections.abc import Callable

from roost.guest.sandbox import inotify
from roost.guest.sandbox.changes import Watch, WatchFailed
from roost.guest.sandbox.entries import Entry
from roost.guest.sandbox.inotify import Event, Inotify

MAX_WATCHES = 512
MAX_DIRECTORIES = 16_384  # of all watches together
MAX_ANNOUNCED = 65_536
_READ = 16 << 10
MOVE_S = 0.1  # between the two ends of a move, which the kernel tells one after the other
_COME = inotify.CREATE | inotify.MOVED_TO
_GONE = inotify.DELETE | inotify.MOVED_FROM
_ITSELF = inotify.DELETE_SELF | inotify.MOVE_SELF


def _written(entry: os.DirEntry[str]) -> int:
    """Of a file that was found with something in it, the write has been missed too."""
    return inotify.MODIFY if entry.is_file(follow_symlinks=False) and entry.stat().st_size else 0


class Watches:
    """All watches of the room. A directory's number may stand in several of them."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._open: set[Watch] = set()
        self._directories: dict[int, dict[Watch, str]] = {}
        #: What was told as created when a new directory was searched; inotify may tell it once more.
        self._announced: set[tuple[int, str]] = set()
        #: Directories that are on the move: the end of it is the next event.
        self._moving: dict[Watch, str] = {}
        self._cookie = 0

    def is_on_network(self, path: str) -> bool:
        """Raises OSError."""
        return inotify.is_network(path)

    def open(self, top: str, *, recursive: bool, entry: Callable[[str], Entry | None] | None) -> Watch:
        """Raises OSError and WatchFailed."""
        if len(self._open) >= MAX_WATCHES:
            raise WatchFailed(f"there are {MAX_WATCHES} watchers already", "resource_exhausted")
        top = posixpath.normpath(top)
        watch = Watch(top, recursive=recursive, entry=entry, close=self.close)
        if self._inotify is None:
            self._inotify = Inotify()
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)
        self._open.add(watch)
        try:
            self._add(watch, top, announce=False)
        except BaseException:
            self.close(watch)
            raise
        return watch

    def close(self, watch: Watch) -> None:
        """Once or more often."""
        if watch not in self._open or self._inotify is None:
            return
        self._open.discard(watch)
        self._moving.pop(watch, None)
        for number, watchers in list(self._directories.items()):
            if watchers.pop(watch, None) is not None and not watchers:
                del self._directories[number]
                self._inotify.remove(number)
        if not self._open:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
            self._directories.clear()
            self._announced.clear()

    def _add(self, watch: Watch, top: str, *, announce: bool) -> None:
        """Watch `top`, and for a recursive watch all below it. `announce`: tell what is in it already."""
        assert self._inotify is not None
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            try:
                number = self._inotify.add(directory)
            except (FileNotFoundError, NotADirectoryError):
                if directory == watch.top:
                    raise
                continue  # gone since, which its parent tells
            if number not in self._directories and len(self._directories) >= MAX_DIRECTORIES:
                self._inotify.remove(number)
                raise WatchFailed(f"more than {MAX_DIRECTORIES} directories to watch", "resource_exhausted")
            self._directories.setdefault(number, {})[watch] = directory
            if watch.recursive:
                waiting += self._search(watch, number, directory, announce=announce)

    def _search(self, watch: Watch, number: int, directory: str, *, announce: bool) -> list[str]:
        """The directories in `directory`."""
        found = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if announce and len(self._announced) < MAX_ANNOUNCED:
                        self._announced.add((number, entry.name))
                        watch.tell(directory, entry.name, inotify.CREATE | _written(entry))
                    if entry.is_dir(follow_symlinks=False):
                        found.append(entry.path)
        except OSError:  # gone since
            return []
        return found

    def _read(self) -> None:
        if self._inotify is None:
            return
        for event in self._inotify.read(_READ):
            if event.mask & inotify.OVERFLOW:
                for watch in self._open:
                    watch.fail(WatchFailed("watcher error: queue or buffer overflow"))
            elif event.mask & inotify.IGNORED:
                self._directories.pop(event.watch, None)
            else:
                self._tell(event)

    def _tell(self, event: Event) -> None:
        self._settle_move(event)
        if (event.watch, event.name) in self._announced and event.mask & (_COME | _GONE):
            self._announced.discard((event.watch, event.name))
            if event.mask & _COME:
                return
        for watch, directory in list(self._directories.get(event.watch, {}).items()):
            # A directory below the top is told by its parent already.
            if event.mask & _ITSELF and directory != watch.top:
                continue
            watch.tell(directory, event.name, event.mask)
            if watch.recursive and event.mask & inotify.IS_DIR and event.name:
                self._on_directory(watch, posixpath.join(directory, event.name), event)

    def _on_directory(self, watch: Watch, path: str, event: Event) -> None:
        if event.mask & inotify.MOVED_FROM:
            self._moving[watch] = path
            self._cookie = event.cookie
            asyncio.get_running_loop().call_later(MOVE_S, self._settle_move, None)
        elif event.mask & inotify.MOVED_TO and watch in self._moving:
            self._rename(watch, self._moving.pop(watch), path)
        elif event.mask & _COME:
            self._follow(watch, path, announce=bool(event.mask & inotify.CREATE))

    def _settle_move(self, event: Event | None) -> None:
        """A directory whose move does not end here at once has left what is watched."""
        if self._moving and (event is None or event.cookie != self._cookie):
            moving, self._moving = self._moving, {}
            for watch, path in moving.items():
                self._leave(watch, path)

    def _rename(self, watch: Watch, old: str, new: str) -> None:
        for watchers in self._directories.values():
            directory = watchers.get(watch, "")
            if directory == old or directory.startswith(old + "/"):
                watchers[watch] = new + directory[len(old) :]

    def _follow(self, watch: Watch, path: str, *, announce: bool) -> None:
        try:
            self._add(watch, path, announce=announce)
        except WatchFailed as error:
            watch.fail(error)
        except OSError as error:
            watch.fail(WatchFailed(f"watcher error: {path}: {error.strerror}"))

    def _leave(self, watch: Watch, path: str) -> None:
        if self._inotify is None:
            return
        for number, watchers in list(self._directories.items()):
            directory = watchers.get(watch, "")
            if directory == path or directory.startswith(path + "/"):
                del watchers[watch]
                if not watchers:
                    del self._directories[number]
                    self._inotify.remove(number)
