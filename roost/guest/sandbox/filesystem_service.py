"""filesystem.Filesystem of envd: directories and what is known of files, by remote call."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat

from roost.guest.http1 import Head
from roost.guest.sandbox.caller import keepalive_of, user_of
from roost.guest.sandbox.changes import Watch, WatchFailed
from roost.guest.sandbox.connect import Code, ConnectError, Stream, StreamMethod, UnaryMethod, envelope
from roost.guest.sandbox.entries import Entry, entry_of
from roost.guest.sandbox.identities import Identities, User
from roost.guest.sandbox.messages import Message
from roost.guest.sandbox.paths import BadPath, resolve
from roost.guest.sandbox.trees import make_directories, remove, walk
from roost.guest.sandbox.watches import Watches

MAX_LISTED = 100_000
MAX_DEPTH = 10_000
MAX_NAMED_WATCHERS = 256
_STARTED = envelope(b'{"start":{}}')
_KEEPALIVE = envelope(b'{"keepalive":{}}')


class FilesystemService:
    def __init__(self, identities: Identities, watches: Watches) -> None:
        self._identities = identities
        self._watches = watches
        self._watchers: dict[str, Watch] = {}
        self.unary: dict[str, UnaryMethod] = {
            "Stat": self.stat,
            "MakeDir": self.make_dir,
            "Move": self.move,
            "ListDir": self.list_dir,
            "Remove": self.remove,
            "CreateWatcher": self.create_watcher,
            "GetWatcherEvents": self.watcher_events,
            "RemoveWatcher": self.remove_watcher,
        }
        self.streams: dict[str, StreamMethod] = {"WatchDir": self.watch_dir}

    async def stat(self, request: Message, head: Head) -> bytes:
        _, path = self._path(request, head)
        return self._entry_reply(path)

    async def make_dir(self, request: Message, head: Head) -> bytes:
        user, path = self._path(request, head)
        try:
            found = os.stat(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise _internal("error getting file info", error) from None
        else:
            if stat.S_ISDIR(found.st_mode):
                raise ConnectError(Code.ALREADY_EXISTS, f"directory already exists: {path}")
            raise ConnectError(Code.INVALID_ARGUMENT, f"path already exists but it is not a directory: {path}")
        _make_directories(path, user)
        return self._entry_reply(path)

    async def move(self, request: Message, head: Head) -> bytes:
        user, source = self._path(request, head, "source")
        _, destination = self._path(request, head, "destination")
        _make_directories(posixpath.dirname(destination) or "/", user)
        try:
            os.rename(source, destination)
        except FileNotFoundError as error:
            raise ConnectError(Code.NOT_FOUND, f"source file not found: {_words(error)}") from None
        except OSError as error:
            raise _internal("error renaming", error) from None
        return self._entry_reply(destination)

    async def list_dir(self, request: Message, head: Head) -> bytes:
        _, path = self._path(request, head)
        depth = min(request.unsigned("depth") or 1, MAX_DEPTH)
        try:
            top = os.path.realpath(path, strict=True)
        except FileNotFoundError as error:
            raise ConnectError(Code.NOT_FOUND, f"path not found: {_words(error)}") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ConnectError(Code.FAILED_PRECONDITION, f'cyclic symlink at "{path}"') from None
            raise _internal("error resolving symlink", error) from None
        if not os.path.isdir(top):
            raise ConnectError(Code.INVALID_ARGUMENT, f"path is not a directory: {top}")
        return b'{"entries":[' + b",".join(await self._list(path, top, depth)) + b"]}"

    async def _list(self, path: str, top: str, depth: int) -> list[bytes]:
        entries: list[bytes] = []
        names = self._identities.names()
        try:
            async for found in walk(top, depth):
                if len(entries) >= MAX_LISTED:
                    raise ConnectError(
                        Code.RESOURCE_EXHAUSTED, f"{path} has more than {MAX_LISTED} entries: list fewer levels"
                    )
                try:
                    entry = entry_of(found, names)
                except FileNotFoundError:  # gone since
                    continue
                # Entries are told below the path that was asked for, also when it is a link to elsewhere.
                entry["path"] = posixpath.normpath(posixpath.join(path, str(entry["path"])[len(top) :].lstrip("/")))
                entries.append(json.dumps(entry).encode())
        except OSError as error:
            raise _internal(f"error reading directory {top}", error) from None
        return entries

    async def remove(self, request: Message, head: Head) -> bytes:
        _, path = self._path(request, head)
        try:
            await remove(path)
        except OSError as error:
            raise _internal("error removing file or directory", error) from None
        return b"{}"

    async def watch_dir(self, request: Message, stream: Stream) -> None:
        with self._open_watch(request, stream.head) as watch:
            await stream.send(_STARTED)
            patience_s = keepalive_of(stream.head)
            try:
                while True:
                    events = await watch.wait(patience_s)
                    told = [envelope(b'{"filesystem":%b}' % event) for event in events]
                    await stream.send(*told or (_KEEPALIVE,))
            except WatchFailed as error:
                raise ConnectError(Code(error.code), str(error)) from None

    async def create_watcher(self, request: Message, head: Head) -> bytes:
        if len(self._watchers) >= MAX_NAMED_WATCHERS:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, f"there are {MAX_NAMED_WATCHERS} watchers already")
        watch = self._open_watch(request, head)
        name = "w" + os.urandom(10).hex()
        self._watchers[name] = watch
        return json.dumps({"watcherId": name}).encode()

    async def watcher_events(self, request: Message, head: Head) -> bytes:
        _, watch = self._watcher(request)
        try:
            return b'{"events":[' + b",".join(watch.take()) + b"]}"
        except WatchFailed as error:
            raise ConnectError(Code(error.code), str(error)) from None

    async def remove_watcher(self, request: Message, head: Head) -> bytes:
        name, watch = self._watcher(request)
        del self._watchers[name]
        watch.close()
        return b"{}"

    def _watcher(self, request: Message) -> tuple[str, Watch]:
        name = request.text("watcherId")
        watch = self._watchers.get(name)
        if watch is None:
            raise ConnectError(Code.NOT_FOUND, f"watcher with id {name[:100]} not found")
        return name, watch

    def _open_watch(self, request: Message, head: Head) -> Watch:
        _, path = self._path(request, head)
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError as error:
            raise ConnectError(Code.NOT_FOUND, f"path {path} not found: {_words(error)}") from None
        except OSError as error:
            raise _internal(f"error statting path {path}", error) from None
        if not stat.S_ISDIR(mode):
            raise ConnectError(Code.INVALID_ARGUMENT, f"path {path} not a directory")
        entry = self._event_entry if request.flag("includeEntry") else None
        try:
            if not request.flag("allowNetworkMounts") and self._watches.is_on_network(path):
                raise ConnectError(Code.INVALID_ARGUMENT, f"cannot watch path on network filesystem: {path}")
            return self._watches.open(path, recursive=request.flag("recursive"), entry=entry)
        except WatchFailed as error:
            raise ConnectError(Code(error.code), str(error)) from None
        except OSError as error:
            raise _internal(f"error adding path {path} to watcher", error) from None

    def _event_entry(self, path: str) -> Entry | None:
        try:
            return entry_of(path, self._identities.names())
        except OSError:  # gone since
            return None

    def _entry_reply(self, path: str) -> bytes:
        try:
            entry = entry_of(path, self._identities.names())
        except FileNotFoundError as error:
            raise ConnectError(Code.NOT_FOUND, f"file not found: {_words(error)}") from None
        except OSError as error:
            raise _internal("error getting file info", error) from None
        return json.dumps({"entry": entry}).encode()

    def _path(self, request: Message, head: Head, field: str = "path") -> tuple[User, str]:
        user = user_of(head, self._identities)
        try:
            return user, resolve(request.text(field), user, self._identities.workdir)
        except BadPath as error:
            raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from None


def _make_directories(path: str, user: User) -> None:
    try:
        make_directories(path, user)
    except OSError as error:
        raise _internal("failed to create directory", error) from None


def _internal(what: str, error: OSError) -> ConnectError:
    return ConnectError(Code.INTERNAL, f"{what}: {_words(error)}")


def _words(error: OSError) -> str:
    return f"{error.filename}: {(error.strerror or str(error)).lower()}"
