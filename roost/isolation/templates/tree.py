"""Entries from an archive stream or a directory into a root file system."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path
from typing import IO, cast

from roost.isolation.templates.rootfs import Attributes, Readable, RootWriter
from roost.model.errors import InvalidArgument

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
#: No header of a tar file, nor a chunk of a member, is larger; a pax header is read into memory at once.
_MAX_READ = 8 << 20


class ForwardReader:
    """A stream as `tarfile` wants it: seeks forward by reading, and refuses a read that would fill the memory.

    `limit` bounds all that is read, headers and skipped members included.
    """

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream = stream
        self._left = limit
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < self._position:
            raise tarfile.ReadError("the archive can only be read forward")
        while self._position < position:
            if not self.read(min(_MAX_READ, position - self._position)):
                break
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise InvalidArgument(f"The archive has a header of {size} bytes.")
        parts = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
            self._left -= len(part)
            if self._left < 0:
                raise InvalidArgument("The archive unpacks to more than the limit.")
        return b"".join(parts)


def extract_tar(stream: Readable, root: RootWriter, *, limit: int, whiteouts: bool = False) -> None:
    """Write the members of an uncompressed tar stream. With `whiteouts`, OCI's marks remove what earlier layers wrote.

    Raises InvalidArgument naming the member that is not acceptable, or saying that the archive is damaged.
    """
    reader = ForwardReader(stream, limit)
    try:
        with tarfile.open(
            fileobj=cast(IO[bytes], reader), mode="r:", errorlevel=1, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while (member := archive.next()) is not None:
                # The list of members would grow with the archive.
                vars(archive)["members"].clear()
                if not (whiteouts and _apply_whiteout(member, root)):
                    _extract_member(archive, member, root)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"The archive is damaged: {error}.") from error
    # What follows the end mark belongs to the stream; a producer must not block on it.
    while reader.read(1 << 16):
        pass


def _apply_whiteout(member: tarfile.TarInfo, root: RootWriter) -> bool:
    folder, _, last = member.name.rpartition("/")
    if not last.startswith(_WHITEOUT):
        return False
    hidden = last.removeprefix(_WHITEOUT)
    if last == _OPAQUE:
        root.opaque(folder)
    elif hidden in ("", ".", ".."):
        raise InvalidArgument(f"{member.name[:200]!r}: a mark that removes nothing.")
    elif not hidden.startswith(_WHITEOUT):
        root.whiteout(f"{folder}/{hidden}" if folder else hidden)
    return True


def _extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: RootWriter) -> None:
    attributes = Attributes(mode=member.mode, uid=member.uid, gid=member.gid, mtime=member.mtime)
    if member.isdir():
        root.directory(member.name, attributes)
    elif member.issym():
        root.symlink(member.name, member.linkname, attributes)
    elif member.islnk():
        root.hardlink(member.name, member.linkname)
    elif member.isreg():
        content = archive.extractfile(member)
        if content is None:
            raise InvalidArgument(f"{member.name[:200]!r}: has no content.")
        root.file(member.name, attributes, content)
    else:
        root.skip(member.name)


def copy_directory(source: Path, root: RootWriter) -> None:
    """Write what is below a directory, with its owners, modes, links and hard links; other file systems are left out.

    Nothing outside of it is read, whatever is changed in it meanwhile. Raises InvalidArgument naming the entry.
    """
    try:
        top = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"{source} can't be read as a directory: {error.strerror}.") from error
    try:
        device = os.fstat(top).st_dev
        linked: dict[int, str] = {}
        for folder, folders, names, fd in os.fwalk(".", onerror=_raise, dir_fd=top, follow_symlinks=False):
            status = os.fstat(fd)
            path = folder.removeprefix("./").removeprefix(".")
            root.directory(path, _attributes(status))
            for name in sorted([*names, *folders]):
                entry = os.lstat(name, dir_fd=fd)
                if entry.st_dev != device:
                    if name in folders:
                        folders.remove(name)
                        root.directory(_join(path, name), _attributes(entry))
                elif not stat.S_ISDIR(entry.st_mode):
                    _copy_entry(root, fd, _join(path, name), entry=entry, linked=linked)
    except OSError as error:
        raise InvalidArgument(f"{source} changed or can't be read: {error}.") from error
    finally:
        os.close(top)


def _copy_entry(root: RootWriter, directory: int, path: str, *, entry: os.stat_result, linked: dict[int, str]) -> None:
    name = path.rpartition("/")[2]
    if stat.S_ISLNK(entry.st_mode):
        root.symlink(path, os.readlink(name, dir_fd=directory), _attributes(entry))
    elif not stat.S_ISREG(entry.st_mode):
        root.skip(path)
    elif entry.st_ino in linked:
        root.hardlink(path, linked[entry.st_ino])
    else:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(fd, "rb", buffering=0) as content:
            opened = os.fstat(fd)
            if not stat.S_ISREG(opened.st_mode):
                raise InvalidArgument(f"{path} changed while it was read.")
            root.file(path, _attributes(opened), content)
        if entry.st_nlink > 1:
            linked[entry.st_ino] = path


def _attributes(status: os.stat_result) -> Attributes:
    return Attributes(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime=status.st_mtime)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _raise(error: OSError) -> None:
    raise error
