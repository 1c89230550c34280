"""Named volumes: directories under the data directory, opened without ever following a link.

A volume of sessions is laid out as `<user>/<session>/<task>`. What is in a volume was written by rooms and is hostile.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from roost.model.errors import InvalidArgument, StorageFull, Unavailable

_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(directory: int, name: str, flags: int) -> int:
    """openat2(2) which never leaves `directory` and follows no link. Raises OSError."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    fd: int = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name), how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return fd


class Volumes:
    """The volumes of one server. What rooms wrote in them is hostile: names are checked, links are never followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trash = root / ".trash"
        self._trash.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)

    def open(self, account: str, volume: str, path: str) -> int:
        """A descriptor (O_PATH) of the folder `path` of a volume, made if absent. The caller closes it.

        A descriptor and not a path: a room that has a parent folder mounted could swap a path for a link in between.
        Raises InvalidArgument for a name that is not one or a path that leads out of the volume, StorageFull,
        Unavailable.
        """
        parts = [account, volume, *PurePosixPath("/" + path).parts[1:]]
        _check(volume, parts, path)
        fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                fd = _step(fd, part)
        except OSError as error:
            os.close(fd)
            raise self._explain(error, volume, path) from error
        return fd

    def image(self, account: str, volume: str, path: str) -> Path:
        """The disk image that is mounted for the folder `path` of a volume when the folder has a quota.

        Named by a digest of the path, in the account's `.disks`. It need not exist yet. Raises as `open`.
        """
        directory = self._root / account / ".disks"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check(volume, PurePosixPath(path).parts, path)
        name = "/".join((volume, *PurePosixPath("/" + path).parts[1:]))
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return directory / f"{volume[:64]}-{digest}.img"

    async def remove(self, account: str, volume: str, path: str) -> None:
        """Delete the folder `path` of a volume and all below it, if it is there.

        It is gone when this returns or is cancelled; its blocks are freed soon after, or by the next server's `sweep`.
        """
        *parents, last = PurePosixPath("/" + path).parts[1:]
        try:
            parent = self.open(account, volume, "/".join(parents))
            try:
                os.rename(last, self._trash / secrets.token_hex(16), src_dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._explain(error, volume, path) from error
        await self.sweep()

    async def sweep(self) -> None:
        """Free what was deleted. What a room left may be deeper than any recursion of ours: rm(1) does it."""
        for leftover in list(self._trash.iterdir()):
            process = await asyncio.create_subprocess_exec(
                "rm", "-rf", "--one-file-system", "--", str(leftover), stdin=asyncio.subprocess.DEVNULL
            )
            await process.wait()

    @staticmethod
    def _explain(error: OSError, volume: str, path: str) -> InvalidArgument | StorageFull | Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(f"No space is left for the volume '{volume}'.")
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV):
            return InvalidArgument(f"'{path}' is not a folder inside the volume '{volume}'.")
        return Unavailable(f"The volume '{volume}' can't be opened: {error.strerror}.")


def _step(fd: int, part: str) -> int:
    """Descend, making the folder if it is absent; `fd` is closed only when that succeeded."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, 0o755, dir_fd=fd)
    child = open_beneath(fd, part, os.O_PATH | os.O_DIRECTORY)
    os.close(fd)
    return child


def _check(volume: str, parts: Sequence[str], path: str) -> None:
    if not _NAME.fullmatch(volume):
        raise InvalidArgument(f"'{volume}' is not a volume name: letters, digits, '_', '-', '.', at most 128.")
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise InvalidArgument(f"'{path}' is not a path inside the volume '{volume}'.")
