"""Files of a bucket: listed in the order of their keys, and told apart from those that are still being written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Generator

from roost.instances.volumes import open_beneath
from roost.model.objects import ObjectInfo, is_key

#: Where the file system can't say who writes: a file that was not written to for so long is whole.
_STILL_S = 2.0
_DEEPEST = 256


def info_of(key: str, status: os.stat_result, *, writing: bool = False) -> ObjectInfo:
    """A file as an object. `birth`: a rename changes ctime, so does a file's way out of the bucket and back."""
    stamp = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return ObjectInfo(
        key=key,
        size=status.st_size,
        etag=stamp.upper(),
        modified=status.st_mtime,
        appeared=status.st_ctime,
        stamp=stamp,
        birth=f"{status.st_ctime_ns:x}",
        writing=writing,
    )


def is_written_to(fd: int) -> bool:
    """Whether some program has the file open for writing: the kernel grants a read lease only where none has.

    The lease is given back at once. Should a writer come just then, he waits for that, and the signal that tells us of
    him is one that nobody hears (the default one, SIGIO, would end this process).
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        return time.time() - os.fstat(fd).st_mtime < _STILL_S  # no leases here, as on network file systems
    return False


def walk(enter: Callable[[], int], prefix: str, after: str) -> Generator[ObjectInfo]:
    """Files below the folder that `enter` opens as objects, in the order of their keys' bytes.

    Memory: the names of one directory for each level. Raises OSError, and what `enter` does.
    """
    yield from _walk(enter(), "", prefix, after.encode(), 0)


def _walk(folder: int, base: str, prefix: str, after: bytes, depth: int) -> Generator[ObjectInfo]:
    try:
        for name, is_folder in _entries(folder):
            key = base + name + ("/" if is_folder else "")
            if not is_folder:
                if key.startswith(prefix) and key.encode() > after:
                    with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                        yield info_of(key, os.stat(name, dir_fd=folder, follow_symlinks=False))
            elif depth < _DEEPEST and _leads_on(key, prefix, after):
                try:
                    below = open_beneath(folder, name, os.O_RDONLY | os.O_DIRECTORY)
                except OSError as error:
                    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # it went, or is another thing now
                        continue
                    raise
                yield from _walk(below, key, prefix, after, depth + 1)
    finally:
        os.close(folder)


def _leads_on(folder: str, prefix: str, after: bytes) -> bool:
    """Whether keys below a folder (with its slash) may be wanted."""
    begin = folder.encode()
    return (folder.startswith(prefix) or prefix.startswith(folder)) and (begin > after or after.startswith(begin))


def _entries(folder: int) -> list[tuple[str, bool]]:
    """Names of files and of folders, in the order of the keys that they lead to."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_key(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                found.append((entry.name, True))
            elif entry.is_file(follow_symlinks=False):
                found.append((entry.name, False))
    found.sort(key=lambda one: one[0].encode() + (b"/" if one[1] else b""))
    return found
