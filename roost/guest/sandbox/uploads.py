"""One file that is being written by a request."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from types import TracebackType

from roost.guest.sandbox.entries import read_metadata, readable, write_metadata
from roost.guest.sandbox.identities import User
from roost.guest.sandbox.replies import Refused
from roost.guest.sandbox.trees import make_directories

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes after which others get their turn.
TURN = 1 << 20


class Upload:
    """Replaces the contents of `path`, whose missing parents are made. Raises Refused, here and in `write`.

    An upload that is cut off leaves what had come, as envd does.
    """

    def __init__(self, path: str, user: User, metadata: dict[str, str]) -> None:
        self.path = path
        self._metadata = metadata
        self._written = 0
        self._fd = _open(path, user)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise _refused("error writing file", error) from None
        self._written += len(data)
        if self._written >= TURN:
            self._written = 0
            await asyncio.sleep(0)

    def finish(self) -> dict[str, object]:
        """What the client is told about the file."""
        try:
            write_metadata(self._fd, self._metadata)
        except OSError as error:
            raise _refused("error writing file metadata", error) from None
        entry: dict[str, object] = {
            "path": readable(self.path),
            "name": readable(posixpath.basename(self.path)),
            "type": "file",
        }
        if self._metadata and (metadata := read_metadata(self.path)):
            entry["metadata"] = metadata
        return entry

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def told(what: str, error: OSError) -> str:
    return f"{what}: {(error.strerror or str(error)).lower()}"


def _open(path: str, user: User) -> int:
    try:
        make_directories(posixpath.dirname(path) or "/", user)
    except OSError as error:
        raise _refused(f"error ensuring directories: {error.filename}", error) from None
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise _refused("error getting file info", error) from None
    if stat.S_ISDIR(mode):
        raise Refused(400, f"path is a directory: {path}")
    # A FIFO or a device could keep the daemon waiting.
    if not stat.S_ISREG(mode):
        raise Refused(400, f"path is not a regular file: {path}")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise _refused("error opening file", error) from None
    try:
        os.fchown(fd, user.uid, user.gid)
    except OSError as error:
        os.close(fd)
        raise _refused("error changing file ownership", error) from None
    return fd


def _refused(what: str, error: OSError) -> Refused:
    if error.errno in _FULL:
        return Refused(507, "not enough disk space available")
    return Refused(500, told(what, error))
