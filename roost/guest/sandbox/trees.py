"""Work on directory trees, in steps: the event loop serves others between them.

All of it is done with the rights of the daemon, as in E2B's envd: the user that a request names decides where a
relative path starts and to whom belongs what is made, not what may be touched. (Whoever may send a request may name
root.)
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator

from roost.guest.child import close_others
from roost.guest.reaping import expect, wait
from roost.guest.sandbox.identities import User
from roost.guest.sandbox.pipes import read_to_end

#: Entries, or system calls of their kind, between two pauses: well under a millisecond.
STEP = 64
_MAX_REPORT = 4096


async def walk(top: str, depth: int) -> AsyncIterator[str]:
    """All paths below `top`, a directory before what is in it, each by name. Links are not followed. Raises OSError."""
    stack = [_names(top)]
    steps = 0
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        steps += 1
        if steps % STEP == 0:
            await asyncio.sleep(0)
        yield entry.path
        if len(stack) < depth and entry.is_dir(follow_symlinks=False):
            stack.append(_names(entry.path))


def _names(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        return iter(sorted(found, key=lambda entry: os.fsencode(entry.name)))


def make_directories(path: str, user: User) -> None:
    """Make `path` and its missing parents, owned by `user`. Raises NotADirectoryError where a file is in the way."""
    missing = []
    current = path
    while True:
        try:
            found = os.stat(current)
        except FileNotFoundError:
            missing.append(current)
        else:
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "path is a file", current)
            break
        parent = os.path.dirname(current.rstrip("/"))
        if parent == current:
            break
        current = parent or "/"
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise
        os.chown(directory, user.uid, user.gid)


async def remove(path: str) -> None:
    """A file, or a directory with all that is in it; what isn't there is removed already. Raises OSError."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        await _in_a_fork(path)


async def _in_a_fork(path: str) -> None:
    """A tree may be large and deep: a child works through it with descriptors, so that no link leads it astray."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        _remove_and_exit(path, writer)
    expect(pid)
    try:
        os.close(writer)
        report = await read_to_end(reader, _MAX_REPORT)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        wait(pid)
    number, _, name = report.partition(b" ")
    if number.isdigit() and int(number):
        raise OSError(int(number), os.strerror(int(number)), os.fsdecode(name))
    if not number.isdigit():
        raise OSError(errno.EIO, "the removal was interrupted", path)


def _remove_and_exit(path: str, report: int) -> None:
    told = b"0"
    # Or what the daemon closes meanwhile would stay open to whoever waits for its end.
    close_others({2, report})
    try:
        sys.setrecursionlimit(1 << 20)  # one level of the tree takes one of Python's, and descriptors end before
        shutil.rmtree(path)
    except OSError as error:
        name = os.fsencode(error.filename if isinstance(error.filename, str) else path)
        told = f"{error.errno or errno.EIO} ".encode() + name
    except BaseException:
        told = f"{errno.EIO} ".encode()
    finally:
        os.write(report, told[:_MAX_REPORT])
        os._exit(0)
