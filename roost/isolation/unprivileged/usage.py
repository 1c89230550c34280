"""What a room without cgroups uses, from /proc: of its first process and all that descend from it."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_READ_LIMIT = 1 << 16
#: Which fields of /proc/<pid>/stat, behind the name: user, system, and those of children that were waited for.
_TIMES = slice(11, 15)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """`memory_bytes` is what the processes have resident of their own; `cpu_us` of those that live, and of those that
    they waited for."""

    cpu_us: int
    memory_bytes: int
    processes: int


def look(pid: int, most: int) -> Seen:
    """At the processes of a room, at most that many; what ends meanwhile is not seen."""
    ticks = pages = 0
    found = {pid}
    waiting = deque(found)
    while waiting:
        one = waiting.popleft()
        ticks += ticks_of(_read(f"/proc/{one}/stat"))
        pages += own_pages(_read(f"/proc/{one}/statm"))
        for child in _children(one):
            if child not in found and len(found) < most:
                found.add(child)
                waiting.append(child)
    return Seen(cpu_us=ticks * 1_000_000 // _TICKS_PER_S, memory_bytes=pages * _PAGE, processes=len(found))


def ticks_of(stat: str) -> int:
    """Pure. The name in parentheses may hold anything."""
    return sum(int(field) for field in stat.rpartition(")")[2].split()[_TIMES])


def own_pages(statm: str) -> int:
    """Resident pages without those of files. Pure."""
    fields = statm.split()
    return max(0, int(fields[1]) - int(fields[2])) if len(fields) > 2 else 0


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - asked for numbers, on the way of requests
    except OSError:
        return []
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _READ_LIMIT).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
