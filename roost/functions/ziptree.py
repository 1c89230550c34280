"""What a zip archive would put where: read from its directory and judged before anything is written. Pure.

The names and links of an archive are hostile input. This module turns them into a plan of entries that all stay inside
one folder, or refuses; `packages` writes the plan and counts what really comes out.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import BinaryIO

from roost.model.errors import InvalidArgument, PayloadTooLarge

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_LINK_HOPS = 40
_MAX_LINK = 4096
_MAX_NAME = 255
_MAX_PATH = 4096
_MAX_DEPTH = 100
#: Steps over all links of an archive together; real ones need a few each.
_LINK_STEPS = 1_000_000


class Kind(Enum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to write. `path` is relative and clean: no empty, `.` or `..` part."""

    path: tuple[str, ...]
    kind: Kind
    info: zipfile.ZipInfo = field(compare=False)
    executable: bool = False
    target: str = ""

    @property
    def name(self) -> str:
        return "/".join(self.path)


def count_entries(stream: BinaryIO, limit: int) -> int:
    """Walk the archive's directory without keeping it, so that a huge one costs no memory.

    Raises InvalidArgument when it is no zip archive, PayloadTooLarge beyond `limit` entries.
    """
    start, end = _directory(stream)
    stream.seek(start)
    count = 0
    while stream.tell() + _ENTRY.size <= end:
        head = _ENTRY.unpack(stream.read(_ENTRY.size))
        if head[0] != b"PK\x01\x02":
            raise InvalidArgument("The package is not a valid zip archive: its directory is damaged.")
        # Fields 12 to 14: lengths of the name, the extra fields and the comment that follow.
        stream.seek(head[12] + head[13] + head[14], 1)
        count += 1
        if count > limit:
            raise PayloadTooLarge(f"The package has more than {limit} entries.")
    return count


def _directory(stream: BinaryIO) -> tuple[int, int]:
    size = stream.seek(0, 2)
    tail_size = min(size, _END.size + 0xFFFF)
    stream.seek(size - tail_size)
    tail = stream.read(tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise InvalidArgument("The package is not a zip archive.")
    end = size - tail_size + at
    length = _END.unpack(tail[at : at + _END.size])[5]
    locator_at = end - _END64_LOCATOR.size
    if locator_at >= _END64.size:
        stream.seek(locator_at)
        if stream.read(4) == b"PK\x06\x07":
            end = locator_at - _END64.size
            stream.seek(end)
            record = _END64.unpack(stream.read(_END64.size))
            if record[0] != b"PK\x06\x06":
                raise InvalidArgument("The package is not a valid zip archive: its end record is damaged.")
            length = record[8]
    if length > end:
        raise InvalidArgument("The package is not a valid zip archive: it is cut short.")
    return end - length, end


def judge(info: zipfile.ZipInfo) -> Entry:
    """The entry's clean path and kind. Raises InvalidArgument for all that has no place in a package."""
    path = _clean(info)
    shown = "/".join(path)
    if info.flag_bits & 0x1:
        raise InvalidArgument(f"The package is encrypted ({shown!r}); Roost has no password for it.")
    if info.compress_type not in _METHODS:
        raise InvalidArgument(f"{shown!r} is packed with a method other than deflate; pack it with plain zip.")
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = _kind(mode, info, shown)
    if not path and kind is not Kind.FOLDER:
        raise InvalidArgument("The package has an entry without a name.")
    # An archive made on Windows knows no modes; `bootstrap` is the one file that has to be a program.
    executable = bool(mode & 0o111) if mode else path == ("bootstrap",)
    return Entry(path=path, kind=kind, info=info, executable=executable)


def _kind(mode: int, info: zipfile.ZipInfo, shown: str) -> Kind:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        if info.file_size > _MAX_LINK:
            raise InvalidArgument(f"The link {shown!r} is longer than {_MAX_LINK} bytes.")
        return Kind.LINK
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise InvalidArgument(f"{shown!r} is a device, pipe or socket; a package holds files, folders and links.")
    return Kind.FOLDER if kind == stat.S_IFDIR or info.filename.endswith("/") else Kind.FILE


def _clean(info: zipfile.ZipInfo) -> tuple[str, ...]:
    raw = info.orig_filename
    if not info.flag_bits & 0x800:
        # zipfile read the bytes as cp437; most archivers write UTF-8 without saying so.
        try:
            raw = raw.encode("cp437").decode()
        except UnicodeError:
            raise InvalidArgument(f"The name {raw!r} in the package is not UTF-8.") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in raw):
        raise InvalidArgument(f"The name {raw!r} in the package has control characters.")
    if "\\" in raw or raw[1:2] == ":":
        raise InvalidArgument(f"The name {raw!r} is a Windows path; names in a package are separated by '/'.")
    if raw.startswith("/"):
        raise InvalidArgument(f"The name {raw!r} in the package is absolute.")
    parts = tuple(part for part in raw.split("/") if part not in {"", "."})
    if ".." in parts:
        raise InvalidArgument(f"The name {raw!r} leads out of the package.")
    if len(raw.encode()) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in parts):
        raise InvalidArgument(f"The name {raw[:80]!r}... in the package is too long.")
    if len(parts) > _MAX_DEPTH:
        raise InvalidArgument(f"The name {raw[:80]!r}... in the package is more than {_MAX_DEPTH} folders deep.")
    return parts


@dataclass
class Tree:
    """The entries by path, each at most once, none below a file or link, at most `limit` with all folders counted."""

    limit: int
    entries: dict[tuple[str, ...], Entry] = field(default_factory=dict)
    _folders: set[tuple[str, ...]] = field(default_factory=lambda: {()})

    def add(self, entry: Entry) -> None:
        """Raises InvalidArgument for a duplicate, or for a file where another entry needs a folder."""
        path = entry.path
        for depth in range(1, len(path)):
            above = path[:depth]
            if above in self.entries and self.entries[above].kind is not Kind.FOLDER:
                raise InvalidArgument(f"{entry.name!r} lies below {'/'.join(above)!r}, which is not a folder.")
            self._folders.add(above)
        if path in self.entries or (entry.kind is not Kind.FOLDER and path in self._folders):
            raise InvalidArgument(f"The package has {entry.name!r} twice.")
        if entry.kind is Kind.FOLDER:
            self._folders.add(path)
        if path:
            self.entries[path] = entry
        if len(self._folders) + len(self.entries) > 2 * self.limit:
            raise PayloadTooLarge(f"The package has more than {self.limit} entries, folders counted.")

    def aim(self, entry: Entry, target: str) -> None:
        """Set where a link leads."""
        if not target or target.startswith("/") or "\0" in target:
            raise InvalidArgument(f"The link {entry.name!r} leads out of the package (to {target!r}).")
        self.entries[entry.path] = replace(entry, target=target)

    def check_links(self) -> None:
        """Raises InvalidArgument when following any link, through others, would leave the package."""
        links = {path: entry.target for path, entry in self.entries.items() if entry.kind is Kind.LINK}
        steps = 0
        for path in links:
            steps += _follow(path, links)
            if steps > _LINK_STEPS:
                raise InvalidArgument("The package's links lead through each other too often.")


def _follow(start: tuple[str, ...], links: Mapping[tuple[str, ...], str]) -> int:
    shown = "/".join(start)
    here: tuple[str, ...] = ()
    left = list(reversed(start))
    hops = steps = 0
    while left:
        part = left.pop()
        steps += 1
        if part in {"", "."}:
            continue
        if part == "..":
            if not here:
                raise InvalidArgument(f"The link {shown!r} leads out of the package (to {links[start]!r}).")
            here = here[:-1]
            continue
        here = (*here, part)
        if here in links:
            hops += 1
            if hops > _LINK_HOPS:
                raise InvalidArgument(f"The link {shown!r} leads round in a circle.")
            left.extend(reversed(links[here].split("/")))
            here = here[:-1]
    return steps
