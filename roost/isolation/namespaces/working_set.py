"""The pages that every room of a zygote writes to on its way: found out by looking at some, copied ahead in the next.

A fork shares its memory until it writes to it. Each page that it does costs a fault, and a room takes a thousand of
them until it has answered its first request. They are nearly the same ones each time, so a room that nobody waits for
yet can have them. (What REAP does with snapshots of virtual machines: Ustiugov et al., ASPLOS 2021.)
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
LOOKS = 3  # rooms of a kind that are looked at; what all of them have written to is the set
USED_S = 1.0  # for which a room is somebody's before it is looked at
MOST_PAGES = 2048  # more are not copied ahead
_LATEST = 8  # rooms among which one to look at is sought
_ENTERED = b"roost-init\n"  # what the first process of a room is called once it is somebody's
_POPULATE_WRITE = 23  # Linux 5.14
#: Of an entry in /proc/<pid>/pagemap.
_PRESENT, _FILE, _ITS_OWN = 1 << 63, 1 << 61, 1 << 56

Range = tuple[int, int]  # address, size


def own_pages(entries: Iterable[int], first: int) -> Iterator[int]:
    """Numbers of the pages that nobody else has, of entries of pagemap from the page `first` on. Pure."""
    for number, entry in enumerate(entries, first):
        if entry & _PRESENT and entry & _ITS_OWN and not entry & _FILE:
            yield number


def ranges(pages: Iterable[int]) -> list[Range]:
    """Pages as they lie one behind the other. Pure."""
    found: list[Range] = []
    for page in sorted(pages):
        begin, size = found[-1] if found else (-PAGE, 0)
        if begin + size == page * PAGE:
            found[-1] = begin, size + PAGE
        else:
            found.append((page * PAGE, PAGE))
    return found


def read_own_pages(pid: int) -> set[int]:
    """Those of a fork of this process, where this one has memory that it writes to. Raises OSError."""
    found: set[int] = set()
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as entries:
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            if rights != "rw-p":
                continue
            begin, end = (int(address, 16) // PAGE for address in place.split("-"))
            found.update(own_pages(array.array("Q", os.pread(entries.fileno(), 8 * (end - begin), 8 * begin)), begin))
    return found


def is_entered(pid: int) -> bool:
    """Whether it is called so. Its name may be any bytes: it is a room's."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes() == _ENTERED
    except OSError:
        return False


def copy_ahead(wanted: Iterable[Range]) -> None:
    """Have this process its own copies of these pages. Where the kernel can't, it has them when it writes to them."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int
    for address, size in wanted:
        if madvise(address, size, _POPULATE_WRITE):
            return


@dataclass
class _Kind:
    """Rooms that do the same at first."""

    looks: int = 0
    pages: set[int] = field(default_factory=set)
    ranges: list[Range] = field(default_factory=list)


class WorkingSets:
    """Of one zygote. `read` and `entered` are as above."""

    def __init__(
        self,
        *,
        read: Callable[[int], set[int]] = read_own_pages,
        entered: Callable[[int], bool] = is_entered,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._entered = entered
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}
        self._rooms: dict[int, Hashable] = {}  # that may be looked at, by their first processes
        self._since: dict[int, float] = {}  # when they were first seen to be somebody's

    def of(self, kind: Hashable) -> list[Range]:
        """What is to be copied ahead, as far as it is known."""
        return self._kinds[kind].ranges if kind in self._kinds else []

    def began(self, pid: int, kind: Hashable) -> None:
        """A fork, whose number is its own until it `ended`."""
        if self._kinds.setdefault(kind, _Kind()).looks < LOOKS:
            self._rooms[pid] = kind

    def ended(self, pid: int) -> None:
        self._rooms.pop(pid, None)
        self._since.pop(pid, None)

    def learn(self) -> None:
        """Look at one room more, if there is one to be looked at. It takes some milliseconds, three times."""
        for pid in list(self._rooms)[-_LATEST:]:
            if self._kinds[self._rooms[pid]].looks >= LOOKS:
                self.ended(pid)
            elif pid not in self._since:
                if self._entered(pid):
                    self._since[pid] = self._clock()
            elif self._clock() - self._since[pid] >= USED_S:
                self._look(pid, self._kinds[self._rooms[pid]])
                self.ended(pid)
                return

    def _look(self, pid: int, kind: _Kind) -> None:
        with contextlib.suppress(OSError):
            found = self._read(pid)
            kind.pages = kind.pages & found if kind.looks else found
            kind.looks += 1
            if kind.looks == LOOKS and len(kind.pages) <= MOST_PAGES:
                kind.ranges = ranges(kind.pages)
