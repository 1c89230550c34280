"""Files of a volume, from the host's side. What is there was written by rooms and is hostile: no link is followed, no
special file is opened, nothing is collected without a bound. Blocking: called on a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import islice

from roost.instances.volumes import descend, open_beneath
from roost.model.errors import Conflict, InvalidArgument, NotFound, RoostError, StorageFull, Unavailable

MOST_LISTED = 10_000
MOST_DEPTH = 64
_MODE = 0o7777
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One entry. Times are Unix seconds."""

    path: str
    kind: str  # "directory", "file", "symlink" or "unknown"
    size: int
    mode: int
    uid: int
    gid: int
    accessed: float
    modified: float
    changed: float
    target: str = ""  # of a symlink


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """What a new or changed entry gets; None: what it would have anyway, or has."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


def split(path: str) -> tuple[str, ...]:
    """The steps of a path from the volume's root. Raises InvalidArgument."""
    parts = tuple(part for part in path.split("/") if part)
    if len(path) > 4096 or "\0" in path or {".", ".."} & set(parts):
        raise InvalidArgument(f"path: {path[:80]!r} is not a path inside the volume.")
    return parts


class VolumeFiles:
    """Below `root`, a descriptor that stays the caller's. Paths are steps, as `split` gives them."""

    def __init__(self, root: int) -> None:
        self._root = root

    def info(self, parts: tuple[str, ...]) -> FileInfo:
        with self._parent(parts) as (parent, name):
            return _info(parent, name, parts)

    def list(self, parts: tuple[str, ...], depth: int) -> list[FileInfo]:
        """What is in a folder, and below it down to `depth` levels. Raises InvalidArgument for what is no folder."""
        found: list[FileInfo] = []
        waiting = [parts]
        with _explained(parts):
            while waiting:
                folder = waiting.pop(0)
                fd = descend(os.dup(self._root), folder, make=False)
                try:
                    for name in _names(fd):
                        with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                            entry = _info(fd, name, (*folder, name))
                            found.append(entry)
                            if entry.kind == "directory" and len(folder) - len(parts) + 1 < depth:
                                waiting.append((*folder, name))
                        if len(found) > MOST_LISTED:
                            raise InvalidArgument(f"path: there are more than {MOST_LISTED} entries.")
                finally:
                    os.close(fd)
        return found

    def make_dir(self, parts: tuple[str, ...], owner: Ownership, *, force: bool) -> FileInfo:
        """`force`: with those above it, and it may exist. Raises Conflict."""
        if force and len(parts) > 1:
            with _explained(parts):
                os.close(descend(os.dup(self._root), parts[:-1], make=True))
        with self._parent(parts) as (parent, name):
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError:
                if not force:
                    raise Conflict(f"path: /{'/'.join(parts)} exists already.") from None
            self._own(parent, name, owner)
            return _info(parent, name, parts)

    def change(self, parts: tuple[str, ...], owner: Ownership) -> FileInfo:
        with self._parent(parts) as (parent, name):
            self._own(parent, name, owner)
            return _info(parent, name, parts)

    def open(self, parts: tuple[str, ...]) -> tuple[FileIO, int]:
        """A file to read, and its size. Raises InvalidArgument for what is no file."""
        with self._parent(parts) as (parent, name):
            fd = open_beneath(parent, name, _OPEN)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                os.close(fd)
                raise InvalidArgument(f"path: /{'/'.join(parts)} is not a file.")
            return FileIO(fd), found.st_size

    def begin(self, parts: tuple[str, ...]) -> int:
        """A new file without a name, to be written and then put in place by `finish`; the caller's to close."""
        with self._parent(parts) as (parent, _):
            return os.open(f"/proc/self/fd/{parent}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, data: bytes) -> None:
        with _explained(()):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

    def finish(self, fd: int, parts: tuple[str, ...], owner: Ownership, *, force: bool) -> FileInfo:
        """The file is whole: it gets its name. `force`: in the place of another. Raises Conflict."""
        source = f"/proc/self/fd/{fd}"
        with self._parent(parts) as (parent, name):
            _set(fd, owner)
            if not force:
                try:
                    os.link(source, name, dst_dir_fd=parent, follow_symlinks=True)
                except FileExistsError:
                    raise Conflict(f"path: /{'/'.join(parts)} exists already; use force to replace it.") from None
                return _info(parent, name, parts)
            passing = f".roost-{secrets.token_hex(8)}"
            os.link(source, passing, dst_dir_fd=parent, follow_symlinks=True)
            try:
                os.rename(passing, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError:
                os.unlink(passing, dir_fd=parent)
                raise
            return _info(parent, name, parts)

    def set_aside(self, parts: tuple[str, ...]) -> str:
        """Take an entry away: a file is gone, a folder has a name at the root that is returned, to be emptied."""
        with self._parent(parts) as (parent, name):
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
                return ""
            aside = f".roost-{secrets.token_hex(8)}"
            os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=self._root)
            return aside

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """The folder above an entry, and its name in there; "." for the root itself."""
        with _explained(parts):
            fd = descend(os.dup(self._root), parts[:-1], make=False)
            try:
                yield fd, parts[-1] if parts else "."
            finally:
                os.close(fd)

    @staticmethod
    def _own(parent: int, name: str, owner: Ownership) -> None:
        fd = open_beneath(parent, name, _OPEN)
        try:
            _set(fd, owner)
        finally:
            os.close(fd)


def _names(folder: int) -> list[str]:
    """Sorted; one more than may be listed at most."""
    with os.scandir(f"/proc/self/fd/{folder}") as entries:
        return sorted(entry.name for entry in islice(entries, MOST_LISTED + 1))


def _set(fd: int, owner: Ownership) -> None:
    if owner.uid is not None or owner.gid is not None:
        os.fchown(fd, -1 if owner.uid is None else owner.uid, -1 if owner.gid is None else owner.gid)
    if owner.mode is not None:  # after the owner, whose change takes bits away
        os.fchmod(fd, owner.mode & _MODE)


def _info(parent: int, name: str, parts: tuple[str, ...]) -> FileInfo:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "unknown")
    return FileInfo(
        path="/" + "/".join(parts),
        kind=kind,
        size=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        accessed=found.st_atime,
        modified=found.st_mtime,
        changed=found.st_ctime,
        target=os.readlink(name, dir_fd=parent) if kind == "symlink" else "",
    )


@contextlib.contextmanager
def _explained(parts: tuple[str, ...]) -> Iterator[None]:
    """Errors of the file system, in Roost's terms."""
    path = "/" + "/".join(parts)
    try:
        yield
    except RoostError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"path: {path} not found") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("No space is left on the volume.") from error
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.ENXIO,
                           errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY):  # fmt: skip
            raise InvalidArgument(f"path: {path} can't be used so: {error.strerror}.") from error
        raise Unavailable(f"The volume can't be used: {error.strerror}.") from error
