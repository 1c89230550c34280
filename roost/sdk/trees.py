"""Directories as tar streams. What comes out of a sandbox is hostile: nothing is written outside of the directory.

Of an archive only plain files, directories, hard links and such links are taken that lead to a place inside. Names are
checked part by part; no part of a way may be a link, so that a link of an earlier copy leads nobody out either.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any, Protocol, Self

from roost.sdk.errors import Failed

BLOCK = 256 << 10
#: Of a name and of what describes a member: in an archive these have no bound of their own.
_MOST_PARTS = 200
_MOST_HEADER = 1 << 20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Sink(Protocol):
    def write(self, data: bytes) -> int: ...


class Source(Protocol):
    def read(self, size: int) -> bytes: ...


def pack(directory: Path, sink: Sink) -> None:
    """Write what is in `directory` as a tar stream, owned by nobody in particular. Raises OSError."""
    with tarfile.open(mode="w|", fileobj=_as_file(sink), bufsize=BLOCK, format=tarfile.PAX_FORMAT) as archive:
        for entry in sorted(directory.iterdir()):
            archive.add(entry, arcname=entry.name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Sockets, devices and queues are not for another machine."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


class _Member(tarfile.TarInfo):
    """One of an archive that may be hostile: what is read into memory as a whole is bounded."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > _MOST_HEADER:
            raise tarfile.ReadError("a header is too large")
        return member


class Unpacker:
    """Writes an archive below `top`, which is made if it is missing. `skipped` has what was not taken."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self.skipped: list[str] = []

    def unpack(self, source: Source) -> None:
        """Raises Failed for a broken archive, OSError where a file can't be written."""
        self._top.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(mode="r|", fileobj=_as_file(source), bufsize=BLOCK, tarinfo=_Member) as archive:
                for member in archive:
                    if not self._take(archive, member):
                        self.skipped.append(member.name[:200])
        except (tarfile.TarError, EOFError) as error:
            raise Failed(f"The archive that the sandbox sent is broken: {error}.") from error

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        parts = parts_of(member.name)
        if parts is None:
            return False
        if not parts:
            return member.isdir()
        path = self._way(parts)
        if path is None:
            return False
        if member.isdir():
            if not path.is_symlink():
                path.mkdir(exist_ok=True)
                return True
            return False
        if member.issym():
            return self._link(path, member.linkname)
        if member.islnk():
            return self._copy(path, member.linkname)
        # One with holes may say that it is larger than any disk.
        content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
        if content is None:
            return False
        with content, _create(path, member.mode) as file:
            shutil.copyfileobj(content, file, BLOCK)
        return True

    def _way(self, parts: list[str]) -> Path | None:
        """The path, whose directories are there and are directories; None where one is something else."""
        path = self._top
        for part in parts[:-1]:
            path = path / part
            if path.is_symlink():
                return None
            path.mkdir(exist_ok=True)
        return path / parts[-1]

    def _link(self, path: Path, target: str) -> bool:
        if not leads_inside(path.relative_to(self._top).parts, target):
            return False
        _clear(path)
        path.symlink_to(target)
        return True

    def _copy(self, path: Path, target: str) -> bool:
        """A second name of a file that came before."""
        parts = parts_of(target)
        source = self._way(parts) if parts else None
        if source is None or source == path or source.is_symlink() or not source.is_file():
            return False
        with source.open("rb") as content, _create(path, source.stat().st_mode) as file:
            shutil.copyfileobj(content, file, BLOCK)
        return True


def parts_of(name: str) -> list[str] | None:
    """The parts of a name in an archive, none for the directory itself; None for a name that can't be taken."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or len(parts) > _MOST_PARTS:
        return None
    return parts


def leads_inside(path: tuple[str, ...], target: str) -> bool:
    """Whether a link at `path` stays below the directory, whatever else is there.

    Only the first parts may lead upwards: from where the link really is. What is behind them goes downwards, perhaps
    through another link, of which the same is true.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return ".." not in parts[up:] and up <= len(path) - 1


def _create(path: Path, mode: int) -> IO[bytes]:
    """A new file, never the one that a link names, with no bit but those of reading, writing and running."""
    _clear(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    file = os.fdopen(fd, "wb")
    os.fchmod(fd, mode & 0o755 | 0o600)
    return file


def _clear(path: Path) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()


def _as_file(stream: Sink | Source) -> Any:
    """tarfile's streams use `read` or `write` alone, and say that they want a whole file."""
    return stream
