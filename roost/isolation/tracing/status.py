"""What a copy must be given of the process that it is a copy of, beside memory and registers."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

UNLIMITED = (1 << 64) - 1
_LIMITS_AT = 26  # the column after the names, which have spaces in them
_MOST_LISTED = 32
_MOST_READ = 1 << 16
_DELETED = " (deleted)"
_PAGE = 4096


class Unknown(Exception):
    """The process has ended, or does not say what it must."""


@dataclass(frozen=True)
class Status:
    """Ids are the host's."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    permitted: int  # capabilities
    bounding: int
    filters: int  # of system calls
    umask: int
    threads: int
    room_pid: int  # its id in its own pid namespace
    name: str


def parse_status(text: str) -> Status:
    """From /proc/<pid>/status. Raises Unknown."""
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in text.split("\n"))}
    try:
        return Status(
            uid=int(fields["Uid"][1]),
            gid=int(fields["Gid"][1]),
            groups=tuple(map(int, fields["Groups"])),
            permitted=int(fields["CapPrm"][0], 16),
            bounding=int(fields["CapBnd"][0], 16),
            filters=int(fields.get("Seccomp_filters", ["-1"])[0]),
            umask=int(fields["Umask"][0], 8),
            threads=int(fields["Threads"][0]),
            room_pid=int(fields["NSpid"][-1]),
            name=" ".join(fields.get("Name", [""]))[:15],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise Unknown(f"its state can't be read: {error!r}") from None


def read_status(pid: int) -> Status:
    """Raises Unknown."""
    try:
        return parse_status(_read(f"/proc/{pid}/status"))
    except OSError:
        raise Unknown("it has ended") from None


def _read(path: str) -> str:
    """Its text, at once: a room stands still meanwhile, and path objects take longer than the kernel. Raises
    OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _MOST_READ):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Size:
    """Of a process' memory, in bytes: all that is mapped, and what is there of it that is no file's."""

    mapped: int
    own: int


def size(pid: int) -> Size:
    """As the kernel counts, which takes it no time. Raises Unknown."""
    try:
        mapped, there, files = map(int, _read(f"/proc/{pid}/statm").split()[:3])
    except (OSError, ValueError):
        raise Unknown("it has ended") from None
    return Size(mapped * _PAGE, max(there - files, 0) * _PAGE)


def working_directory(pid: int) -> str:
    """Where it is, in its room; "/" if that is no place any more. Raises Unknown."""
    try:
        place = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - as `_read`
    except OSError:
        raise Unknown("it has ended") from None
    return place if place.startswith("/") and not place.endswith(_DELETED) else "/"


def parse_limits(text: str) -> tuple[tuple[int, int], ...]:
    """Soft and hard limits by number, from /proc/<pid>/limits. Raises Unknown."""
    try:
        rows = [line[_LIMITS_AT:].split()[:2] for line in text.splitlines()[1:]]
        return tuple((_limit(soft), _limit(hard)) for soft, hard in rows)
    except ValueError as error:
        raise Unknown(f"its limits can't be read: {error!r}") from None


def _limit(text: str) -> int:
    return UNLIMITED if text == "unlimited" else int(text)


def read_limits(pid: int) -> tuple[tuple[int, int], ...]:
    """Raises Unknown."""
    try:
        return parse_limits(_read(f"/proc/{pid}/limits"))
    except OSError:
        raise Unknown("it has ended") from None


def open_elsewhere(pid: int, keep: int) -> tuple[str, ...]:
    """What it has open at descriptors of `keep` and above, as the kernel names it; what comes after is left out."""
    found: list[str] = []
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for fd in sorted(map(int, os.listdir(directory))):  # noqa: PTH208 - as `_read`
            if fd >= keep and len(found) < _MOST_LISTED:
                found.append(os.readlink(f"{directory}/{fd}")[:200])  # noqa: PTH115
    return tuple(found)


def children_of(pid: int) -> int:
    """How many processes it has started that live."""
    try:
        return len(_read(f"/proc/{pid}/task/{pid}/children").split())
    except OSError:
        return 0
