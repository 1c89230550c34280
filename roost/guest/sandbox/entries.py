"""What envd tells about a file: type, mode, owner, times, and the metadata kept in its extended attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from roost.guest.sandbox.identities import Names

METADATA_PREFIX = "user.e2b."
MAX_METADATA_KEY = 255 - len(METADATA_PREFIX)
#: ext4 keeps all attributes of a file in one block.
MAX_METADATA = 4096

Entry = dict[str, object]
_TYPES = {stat.S_IFREG: "FILE_TYPE_FILE", stat.S_IFDIR: "FILE_TYPE_DIRECTORY", stat.S_IFLNK: "FILE_TYPE_SYMLINK"}
_UNKNOWN = "FILE_TYPE_UNSPECIFIED"


class BadMetadata(ValueError):
    """Metadata that no file can have; the text says why."""


def entry_of(path: str, names: Names) -> Entry:
    """An EntryInfo in its JSON form. A link is told by its target's type and mode. Raises OSError."""
    found = os.lstat(path)
    entry: Entry = {
        "name": readable(os.path.basename(path.rstrip("/")) or "/"),
        "type": _TYPES.get(stat.S_IFMT(found.st_mode), _UNKNOWN),
        "path": readable(path),
        "size": str(found.st_size),
        "mode": stat.S_IMODE(found.st_mode) & 0o777,
        "permissions": permissions(found.st_mode),
        "owner": names.user(found.st_uid),
        "group": names.group(found.st_gid),
        "modifiedTime": timestamp(found.st_mtime_ns),
    }
    if stat.S_ISLNK(found.st_mode):
        entry |= _link(path)
    metadata = read_metadata(path)
    if metadata:
        entry["metadata"] = metadata
    return entry


def _link(path: str) -> Entry:
    try:
        target = os.path.realpath(path, strict=True)
        mode = os.stat(target).st_mode
    except OSError:  # dangling, or a circle
        return {"symlinkTarget": readable(path), "type": _UNKNOWN, "mode": 0}
    return {
        "symlinkTarget": readable(target),
        "type": _TYPES.get(stat.S_IFMT(mode), _UNKNOWN),
        "mode": stat.S_IMODE(mode) & 0o777,
    }


def permissions(mode: int) -> str:
    """As Go's FileMode prints it: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`."""
    kind = stat.S_IFMT(mode)
    marks = (
        (kind == stat.S_IFDIR, "d"),
        (kind == stat.S_IFLNK, "L"),
        (kind in (stat.S_IFBLK, stat.S_IFCHR), "D"),
        (kind == stat.S_IFIFO, "p"),
        (kind == stat.S_IFSOCK, "S"),
        (mode & stat.S_ISUID, "u"),
        (mode & stat.S_ISGID, "g"),
        (kind == stat.S_IFCHR, "c"),
        (mode & stat.S_ISVTX, "t"),
    )
    bits = "".join(letter if mode >> (8 - i) & 1 else "-" for i, letter in enumerate("rwxrwxrwx"))
    return ("".join(mark for applies, mark in marks if applies) or "-") + bits


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC, with as many digits after the second as needed: none, three, six or nine."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digits = f"{fraction:09d}"
    if not fraction:
        return f"{whole}Z"
    return f"{whole}.{digits[:3] if digits[3:] == '000000' else digits[:6] if digits[6:] == '000' else digits}Z"


def readable(name: str) -> str:
    """A name that may be sent: what is not UTF-8 in it is replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_metadata(path: str) -> dict[str, str]:
    """Empty also where there are no extended attributes."""
    metadata: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if not name.startswith(METADATA_PREFIX):
                continue
            # Anybody in the room may set attributes of any bytes: what is not text is passed over.
            with contextlib.suppress(OSError, UnicodeError):
                name.encode()
                metadata[name.removeprefix(METADATA_PREFIX)] = os.getxattr(path, name).decode()
    return metadata


def check_metadata(metadata: dict[str, str]) -> None:
    """Raises BadMetadata."""
    total = 0
    for key, value in metadata.items():
        if not key or len(key) > MAX_METADATA_KEY:
            raise BadMetadata(f"metadata key {key[:80]!r} is empty or exceeds {MAX_METADATA_KEY} bytes")
        for text in (key, value):
            if not all(" " <= letter <= "~" for letter in text):
                raise BadMetadata(f"metadata of key {key!r} contains a non-printable-ASCII byte")
        total += len(METADATA_PREFIX) + len(key) + len(value)
    if total > MAX_METADATA:
        raise BadMetadata(f"total metadata size {total} exceeds {MAX_METADATA} bytes")


def write_metadata(fd: int, metadata: dict[str, str]) -> None:
    """Replace all of the file's metadata. Passes over a file system without attributes. Raises OSError."""
    try:
        for name in os.listxattr(fd):
            if name.startswith(METADATA_PREFIX) and name.removeprefix(METADATA_PREFIX) not in metadata:
                os.removexattr(fd, name)
        for key, value in metadata.items():
            os.setxattr(fd, METADATA_PREFIX + key, value.encode())
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
