"""The mappings of a process: read, and judged before it is copied. Pure."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import NamedTuple

MOST_MAPPINGS = 20_000
MOST_SHARED = 64  # mappings
MOST_SHARED_BYTES = 64 << 20


class Unfit(Exception):
    """The memory can't be copied; the text says why."""


class Mapping(NamedTuple):
    """One part. A process has many hundreds, so they are looked at as the kernel writes them."""

    first: str  # addresses
    last: str
    rights: str  # rwx, and p for private, s for shared
    name: str

    @property
    def begin(self) -> int:
        return int(self.first, 16)

    @property
    def end(self) -> int:
        return int(self.last, 16)

    @property
    def size(self) -> int:
        return self.end - self.begin

    @property
    def protection(self) -> int:
        """As mmap takes it."""
        return sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in self.rights)


_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ([-r][-w][-x][ps]) \S+ \S+ \S+ *(.*)$", re.MULTILINE)


def parse_maps(text: str) -> list[Mapping]:
    """From /proc/<pid>/maps. Raises Unfit if there are too many, or a line is none of the kernel's."""
    count = text.count("\n")
    if count > MOST_MAPPINGS:
        raise Unfit(f"its memory has more than {MOST_MAPPINGS} parts")
    found = [Mapping._make(parts) for parts in _LINE.findall(text)]
    if not found or len(found) != count:
        raise Unfit("the parts of its memory can't be told")
    return found


def check_code(mappings: Sequence[Mapping], address: int) -> None:
    """Raises Unfit unless what is executed at `address` is nobody else's to change."""
    index = bisect.bisect_right(mappings, address, key=lambda mapping: mapping.begin) - 1
    at = mappings[index] if index >= 0 and address < mappings[index].end else None
    if at is None or at.rights[3] == "s" or "x" not in at.rights or "w" in at.rights:
        raise Unfit("its code is not what it was")


def shared(mappings: Sequence[Mapping]) -> list[Mapping]:
    """What the copy must be given copies of, so that it shares nothing. Raises Unfit if that is too much."""
    found = [mapping for mapping in mappings if mapping.rights[3] == "s"]
    total = sum(mapping.size for mapping in found)
    if len(found) > MOST_SHARED or total > MOST_SHARED_BYTES:
        raise Unfit(f"it shares {total >> 20} MB of memory with others, and a copy can have {MOST_SHARED_BYTES >> 20}")
    return found
