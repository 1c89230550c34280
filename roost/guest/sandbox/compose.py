"""Several files joined to one, inside the kernel where that can be done."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import posixpath
import stat

from roost.guest.sandbox.identities import User
from roost.guest.sandbox.replies import Refused
from roost.guest.sandbox.trees import make_directories
from roost.guest.sandbox.uploads import told

_STEP = 8 << 20
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


async def compose(sources: list[str], target: str, user: User) -> None:
    """`target` becomes the sources one after the other, which are removed. Until then it stays what it was.

    Raises Refused.
    """
    for source in sources:
        if source == target:
            raise Refused(400, f'source path "{source}" cannot be the same as destination')
        try:
            mode = os.stat(source).st_mode
        except OSError:
            raise Refused(404, f"source file not found: {source}") from None
        if not stat.S_ISREG(mode):
            raise Refused(400, f"source path is not a regular file: {source}")
    temporary = f"{target}.e2b-compose.{os.urandom(8).hex()}.tmp"
    try:
        make_directories(posixpath.dirname(target) or "/", user)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchown(fd, user.uid, user.gid)
            for source in sources:
                await _append(fd, source)
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused(507, "not enough disk space available") from None
        raise Refused(500, told("error composing files", error)) from None
    for source in sources:
        with contextlib.suppress(OSError):
            os.unlink(source)


async def _append(fd: int, source: str) -> None:
    origin = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while _copy(origin, fd):
            await asyncio.sleep(0)
    finally:
        os.close(origin)


def _copy(origin: int, fd: int) -> int:
    try:
        return os.copy_file_range(origin, fd, _STEP)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    return os.sendfile(fd, origin, None, _STEP)
