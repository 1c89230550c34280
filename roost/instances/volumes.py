"""Named volumes: directories under the data directory, opened without ever following a link.

A volume of sessions is laid out as `<user>/<session>/<task>`. What is in a volume was written by rooms and is hostile.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import itertools
import os
import re
import secrets
import struct
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from roost.model.errors import InvalidArgument, StorageFull, Unavailable

_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
#: Where an account's images are, and what sets folders apart from an image there. No room sees any of it.
_DISKS = ".disks"
_SUBFOLDER = "d-"
#: Folders that instances have mounted before it is known which task they are for.
_PENDING = ".pending"
#: What a task's former try has left is moved to its next one, up to so many files and folders.
_MAX_MOVED = 100_000
_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(directory: int, name: str, flags: int) -> int:
    """openat2(2) which never leaves `directory` and follows no link. Raises OSError."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    fd: int = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name), how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return fd


class RemoveTree(Protocol):
    """Deletes a folder that a room has filled. `keep_open` is a descriptor that `path` goes through."""

    async def __call__(self, path: str, *, keep_open: int | None = None) -> None: ...


async def remove_tree(path: str, *, keep_open: int | None = None) -> None:
    """Delete a folder that a room has filled: rm(1) does it, for it may be deeper than any recursion of ours.

    `keep_open` is a descriptor that `path` goes through.
    """
    process = await asyncio.create_subprocess_exec(
        "rm", "-rf", "--one-file-system", "--", path,
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=() if keep_open is None else (keep_open,),
    )  # fmt: skip
    await process.wait()


class Volumes:
    """The volumes of one server. What rooms wrote in them is hostile: names are checked, links are never followed."""

    def __init__(self, root: Path, remove_tree: RemoveTree = remove_tree) -> None:
        """`remove_tree`: how a folder that rooms have filled is deleted."""
        self.remove_tree = remove_tree
        self._root = root
        self._trash = root / ".trash"
        self._trash.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pending = root / _PENDING
        self._pending.mkdir(exist_ok=True, mode=0o700)
        root.chmod(0o700)

    def open(self, account: str, volume: str, path: str) -> int:
        """A descriptor (O_PATH) of the folder `path` of a volume, made if absent. The caller closes it.

        A descriptor and not a path: a room that has a parent folder mounted could swap a path for a link in between.
        Raises InvalidArgument for a name that is not one or a path that leads out of the volume, StorageFull,
        Unavailable.
        """
        parts = [account, volume, *PurePosixPath("/" + path).parts[1:]]
        _check(volume, parts, path)
        try:
            return self._descend(parts, make=True)
        except OSError as error:
            raise self._explain(error, volume, path) from error

    def _descend(self, parts: Sequence[str], *, make: bool) -> int:
        fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return descend(fd, parts, make=make)

    def image(self, account: str, volume: str, path: str, *, make: bool = True) -> Path:
        """The disk image that is mounted for the folder `path` of a volume when the folder has a quota.

        It need not exist yet; `make`: the folders on the way to it are made. Raises as `open`.
        """
        parts = PurePosixPath("/" + path).parts[1:]
        _check(volume, parts, path)
        folder = self._root.joinpath(account, _DISKS, volume, *(_SUBFOLDER + part for part in parts))
        if make:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise self._explain(error, volume, path) from error
        return folder / "disk.img"

    def open_pending(self, name: str) -> int:
        """A descriptor of a new folder that `settle` will give its place. Raises as `open`."""
        try:
            return descend(os.open(self._pending, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), (name,), make=True)
        except OSError as error:
            raise self._explain(error, _PENDING, name) from error

    def settle(self, name: str, account: str, volume: str, path: str) -> None:
        """Make the pending folder `name` the folder `path` of a volume, with what was there before. Raises as `open`.

        Whoever has it mounted keeps it.
        """
        *parents, last = PurePosixPath("/" + path).parts[1:]
        _check(volume, [account, volume, *parents, last], path)
        try:
            parent = self._descend([account, volume, *parents], make=True)
            try:
                _take_over(self._pending / name, parent, last)
                os.rename(self._pending / name, last, dst_dir_fd=parent)
            finally:
                os.close(parent)
        except OSError as error:
            raise self._explain(error, volume, path) from error

    def forget_pending(self, alive: Container[str]) -> None:
        """Remove the folders of instances that ended without a task; names are `<instance>.<number>`."""
        for leftover in list(self._pending.iterdir()):
            if leftover.name.partition(".")[0] not in alive:
                leftover.rename(self._trash / secrets.token_hex(16))

    async def remove(self, account: str, volume: str, path: str) -> None:
        """Delete the folder `path` of a volume and all below it, images too, if it is there.

        It is gone when this returns or is cancelled; its blocks are freed soon after, or by the next server's `sweep`.
        """
        parts = PurePosixPath("/" + path).parts[1:]
        _check(volume, parts, path)
        images = [_DISKS, volume, *(_SUBFOLDER + part for part in parts)]
        for *parents, last in ([volume, *parts], images):
            try:
                parent = self._descend([account, *parents], make=False)
                try:
                    os.rename(last, self._trash / secrets.token_hex(16), src_dir_fd=parent)
                finally:
                    os.close(parent)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._explain(error, volume, path) from error
        await self.sweep()

    async def sweep(self) -> None:
        """Free what was deleted."""
        for leftover in list(self._trash.iterdir()):
            await self.remove_tree(str(leftover))

    @staticmethod
    def _explain(error: OSError, volume: str, path: str) -> InvalidArgument | StorageFull | Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(f"No space is left for the volume '{volume}'.")
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV):
            return InvalidArgument(f"'{path}' is not a folder inside the volume '{volume}'.")
        return Unavailable(f"The volume '{volume}' can't be opened: {error.strerror}.")


def descend(fd: int, parts: Sequence[str], *, make: bool) -> int:
    """The folder below `fd` (which is closed), a step at a time and through no link; `make`: folders that are absent.

    Raises OSError.
    """
    for part in parts:
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
            child = open_beneath(fd, part, os.O_PATH | os.O_DIRECTORY)
        finally:
            os.close(fd)
        fd = child
    return fd


def _take_over(target: Path, parent: int, last: str) -> None:
    """Move what is in the folder `last` of `parent` into `target`, and remove it; nothing if it isn't there."""
    try:
        former = open_beneath(parent, last, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        with os.scandir(former) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_MOVED + 1)]
        if len(names) > _MAX_MOVED:
            raise InvalidArgument(f"The folder '{last}' has more than {_MAX_MOVED} entries: another try can't have it.")
        for name in names:
            os.rename(name, target / name, src_dir_fd=former)
    finally:
        os.close(former)
    os.rmdir(last, dir_fd=parent)


def _check(volume: str, parts: Sequence[str], path: str) -> None:
    if not _NAME.fullmatch(volume):
        raise InvalidArgument(f"'{volume}' is not a volume name: letters, digits, '_', '-', '.', at most 128.")
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise InvalidArgument(f"'{path}' is not a path inside the volume '{volume}'.")
