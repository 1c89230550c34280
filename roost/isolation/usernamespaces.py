"""Identities of rooms: each a user namespace with a host id range of its own, and a network namespace."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from roost.model.errors import Unavailable

IDS = 65536  # in each user namespace
RANGES = 4095  # of 65536 ids, within one of the blocks below
_BLOCK = 0x10000000
_BLOCKS = 6


def first_id(data_dir: Path) -> int:
    """Where a data directory's host ids start: servers on one machine seldom share a block.

    The blocks lie in 0x10000000..0x6FFF0000, above the ids of users, below those that systemd reserves.
    """
    digest = hashlib.sha256(os.fsencode(data_dir)).digest()
    return _BLOCK * (1 + digest[0] % _BLOCKS)


class Ranges:
    """Which id ranges are in use. A range that became free is reused as late as possible."""

    def __init__(self, count: int = RANGES) -> None:
        self._free = deque(range(count))
        self._count = count

    def take(self) -> int:
        """The index of a free range. Raises Unavailable if there is none."""
        if not self._free:
            raise Unavailable(f"All {self._count} id ranges for rooms are in use.")
        return self._free.popleft()

    def reserve(self, index: int) -> None:
        """Take this range, of a room that was there before. Taking it twice changes nothing."""
        if index in self._free:
            self._free.remove(index)

    def give_back(self, index: int) -> None:
        if not 0 <= index < self._count or index in self._free:
            raise ValueError(f"the id range {index} was not in use")
        self._free.append(index)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Descriptors of namespaces that are made and empty, and the host range of their ids."""

    index: int
    base: int
    userns: int
    netns: int

    def close(self) -> None:
        os.close(self.userns)
        os.close(self.netns)
