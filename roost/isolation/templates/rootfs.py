"""Writing a root file system from entries that nobody vouches for: archive members, or a foreign directory.

Every path is resolved by the kernel with the new root as its end (openat2 RESOLVE_IN_ROOT), so neither `..` nor a link
leads out of it, whatever the order of entries. Size and number are bounded while writing, not by what headers say.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from roost.isolation import linux
from roost.model.errors import InvalidArgument, StorageFull

_RESOLVE_IN_ROOT = 0x10
_CHUNK = 1 << 20
_MAX_DEPTH = 256
_MAX_ID = 65535
_FOLDER_MODE = 0o755
#: Where a room mounts things: each must be a directory in every root.
MOUNT_POINTS = (".roost", "code", "dev", "opt", "proc", "root", "run", "sys", "tmp")


@dataclass(frozen=True, kw_only=True)
class BuildLimits:
    """How large a template may become."""

    bytes: int = 32 << 30
    entries: int = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What an entry keeps. Extended attributes are not kept: they could carry capabilities or overlay marks."""

    mode: int
    uid: int
    gid: int
    mtime: float


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass
class Progress:
    """What has been written so far; `report` is called after about every 16 MiB or 1000 entries."""

    report: Callable[[str], None]
    bytes: int = 0
    entries: int = 0
    skipped: int = 0  # device nodes, pipes and sockets
    _told: tuple[int, int] = field(default=(0, 0))

    def tell(self) -> None:
        if self.bytes - self._told[0] >= 16 << 20 or self.entries - self._told[1] >= 1000:
            self._told = (self.bytes, self.entries)
            self.report(f"{self.entries} entries, {self.bytes / (1 << 20):.0f} MiB")


class RootWriter:
    """Writes entries below one directory. Names are relative to the root; the errors name the entry.

    Every method raises InvalidArgument for an entry that is not acceptable, StorageFull when the disk is full.
    """

    def __init__(self, root: Path, limits: BuildLimits, progress: Progress) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._limits = limits
        self._progress = progress
        self._parent: tuple[tuple[str, ...], int] | None = None
        self._layer: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._forget_parent()
        os.close(self._root)

    def begin_layer(self) -> None:
        """What follows is of a new layer: a whiteout removes only what earlier layers wrote."""
        self._layer.clear()

    def directory(self, name: str, attributes: Attributes) -> None:
        """Make a directory, or give an existing one these attributes."""
        parts = self._count(name)
        if not parts:
            os.fchmod(self._root, stat.S_IMODE(attributes.mode))
            return
        parent, last = self._place(name, parts)
        existing = _lstat(last, parent)
        if existing is None or not stat.S_ISDIR(existing.st_mode):
            self._remove(parent, last, existing)
            os.mkdir(last, 0o700, dir_fd=parent)
        self._finish(name, parent, last, attributes)

    def file(self, name: str, attributes: Attributes, content: Readable) -> None:
        """Write a regular file from a stream, to its end."""
        parent, last = self._clear(name)
        fd = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb", buffering=0):
            while chunk := content.read(_CHUNK):
                self._progress.bytes += len(chunk)
                if self._progress.bytes > self._limits.bytes:
                    limit = self._limits.bytes >> 20
                    raise InvalidArgument(f"{_show(name)}: the template would be larger than {limit} MiB.")
                _write_all(fd, chunk, name)
                self._progress.tell()
        self._finish(name, parent, last, attributes)

    def symlink(self, name: str, target: str, attributes: Attributes) -> None:
        """Make a symbolic link. Its target is kept as it is: it is only ever followed inside a room."""
        parent, last = self._clear(name)
        if not target or "\0" in target or len(os.fsencode(target)) > 4095:
            raise InvalidArgument(f"{_show(name)}: the link's target is not a path.")
        os.symlink(target, last, dir_fd=parent)
        self._finish(name, parent, last, attributes)

    def hardlink(self, name: str, target: str) -> None:
        """Make another name of a regular file that was written before."""
        try:
            parts = _parts(target)
        except InvalidArgument as error:
            raise InvalidArgument(f"{_show(name)}: links to {error.message}") from error
        if not parts:
            raise InvalidArgument(f"{_show(name)}: links to {_show(target)}, which is no file.")
        try:
            source = self._open(parts[:-1])
        except OSError as error:
            raise InvalidArgument(f"{_show(name)}: links to {_show(target)}, which does not exist.") from error
        try:
            existing = _lstat(parts[-1], source)
            if existing is None or not (stat.S_ISREG(existing.st_mode) or stat.S_ISLNK(existing.st_mode)):
                raise InvalidArgument(f"{_show(name)}: links to {_show(target)}, which is no file written before it.")
            own = self._count(name)
            parent, last = self._place(name, own)
            present = _lstat(last, parent)
            if present is not None and present.st_ino == existing.st_ino:
                return
            self._remove(parent, last, present)
            os.link(parts[-1], last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            self._layer.add(existing.st_ino)
        finally:
            os.close(source)

    def skip(self, name: str) -> None:
        """Count an entry that has no place in a template: a device node, a pipe or a socket."""
        self._count(name)
        self._progress.skipped += 1

    def whiteout(self, name: str) -> None:
        """Remove what an earlier layer wrote under this name."""
        parts = self._count(name)
        try:
            parent = self._open(parts[:-1])
        except OSError:
            return
        try:
            existing = _lstat(parts[-1], parent)
            if existing is not None and existing.st_ino not in self._layer:
                self._remove(parent, parts[-1], existing)
        finally:
            os.close(parent)

    def opaque(self, name: str) -> None:
        """Remove everything that earlier layers wrote below this directory."""
        try:
            directory = self._open(self._count(name))
        except OSError:
            return
        try:
            self._remove_earlier(directory, 0)
        finally:
            os.close(directory)

    def complete(self) -> None:
        """Make the directories that every room mounts something on."""
        for name in MOUNT_POINTS:
            existing = _lstat(name, self._root)
            if existing is None:
                os.mkdir(name, 0o700, dir_fd=self._root)
                os.chmod(name, {"tmp": 0o1777, "root": 0o700}.get(name, _FOLDER_MODE), dir_fd=self._root)
            elif name == ".roost" and not stat.S_ISDIR(existing.st_mode):
                raise InvalidArgument(".roost: this name is reserved for the guest.")

    def _count(self, name: str) -> list[str]:
        self._progress.entries += 1
        if self._progress.entries > self._limits.entries:
            raise InvalidArgument(f"{_show(name)}: the template would have more than {self._limits.entries} entries.")
        self._progress.tell()
        return _parts(name)

    def _clear(self, name: str) -> tuple[int, str]:
        """The place of an entry, after removing what is there."""
        parent, last = self._place(name, self._count(name))
        self._remove(parent, last, _lstat(last, parent))
        return parent, last

    def _place(self, name: str, parts: list[str]) -> tuple[int, str]:
        if not parts:
            raise InvalidArgument(f"{_show(name)}: only a directory can be the root.")
        folder = tuple(parts[:-1])
        if self._parent is None or self._parent[0] != folder:
            self._forget_parent()
            try:
                self._parent = (folder, self._make(folder))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _full(name) from error
                raise InvalidArgument(f"{_show(name)}: its folder is no directory: {error.strerror}.") from error
        return self._parent[1], parts[-1]

    def _make(self, folder: tuple[str, ...]) -> int:
        """Open a folder, making what is missing of it."""
        try:
            return self._open(folder)
        except FileNotFoundError:
            pass
        current = os.dup(self._root)
        for depth in range(len(folder)):
            try:
                following = self._open(folder[: depth + 1])
            except FileNotFoundError:
                try:
                    os.mkdir(folder[depth], _FOLDER_MODE, dir_fd=current)
                    os.chmod(folder[depth], _FOLDER_MODE, dir_fd=current)
                    following = self._open(folder[: depth + 1])
                except OSError:
                    os.close(current)
                    raise
            except OSError:
                os.close(current)
                raise
            os.close(current)
            current = following
        return current

    def _open(self, folder: Iterable[str]) -> int:
        path = "/".join(folder) or "."
        flags = os.O_RDONLY | os.O_DIRECTORY
        return linux.open_beneath(self._root, path, flags, _RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS)

    def _finish(self, name: str, parent: int, last: str, attributes: Attributes) -> None:
        if not (0 <= attributes.uid <= _MAX_ID and 0 <= attributes.gid <= _MAX_ID):
            owner = f"{attributes.uid}:{attributes.gid}"
            raise InvalidArgument(f"{_show(name)}: its owner {owner} is outside 0..{_MAX_ID}, the ids that a room has.")
        if os.geteuid() == 0:  # else everything is the one id's that there is in rooms of this user
            os.chown(last, attributes.uid, attributes.gid, dir_fd=parent, follow_symlinks=False)
        status = os.lstat(last, dir_fd=parent)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(last, stat.S_IMODE(attributes.mode), dir_fd=parent)
        moment = min(max(int(attributes.mtime), 0), 1 << 33)
        os.utime(last, (moment, moment), dir_fd=parent, follow_symlinks=False)
        self._layer.add(status.st_ino)

    def _remove(self, parent: int, name: str, existing: os.stat_result | None) -> None:
        if existing is None:
            return
        if stat.S_ISDIR(existing.st_mode):
            self._forget_removed(parent)
            shutil.rmtree(name, dir_fd=parent)
        else:
            if stat.S_ISLNK(existing.st_mode):
                self._forget_removed(parent)
            os.unlink(name, dir_fd=parent)
        self._layer.discard(existing.st_ino)

    def _remove_earlier(self, directory: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise InvalidArgument(f"A folder is more than {_MAX_DEPTH} levels deep.")
        for name in os.listdir(directory):
            existing = os.lstat(name, dir_fd=directory)
            if existing.st_ino not in self._layer:
                self._remove(directory, name, existing)
            elif stat.S_ISDIR(existing.st_mode):
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    self._remove_earlier(child, depth + 1)
                finally:
                    os.close(child)

    def _forget_removed(self, parent: int) -> None:
        """A remembered folder may lie in what is being removed, unless it is what holds it."""
        if self._parent is not None and self._parent[1] != parent:
            self._forget_parent()

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None


def _parts(name: str) -> list[str]:
    """The components of an entry's name. Raises InvalidArgument for a name that a template can't have."""
    if name.startswith("/"):
        raise InvalidArgument(f"{_show(name)}: an absolute name.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"{_show(name)}: a name with `..`.")
    if "\0" in name or any(len(os.fsencode(part)) > 255 for part in parts) or len(parts) > _MAX_DEPTH:
        raise InvalidArgument(f"{_show(name)}: not a name that a file can have, or too deep.")
    return parts


def _lstat(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def _write_all(fd: int, chunk: bytes, name: str) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(name) from error
        raise


def _full(name: str) -> StorageFull:
    return StorageFull(f"{_show(name)}: the disk is full.")


def _show(name: str) -> str:
    """A foreign name as it may be printed: no control characters, bounded."""
    shown = "".join(character if character.isprintable() else "?" for character in name[:200])
    return shown or "(no name)"
