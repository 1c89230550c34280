"""What a sandbox used over the last hour, a few bytes a sample. Pure: time is an argument."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

EVERY_S = 5.0
KEPT = 720

_FORMAT = struct.Struct("dfQQ")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """`cpu_pct` is of all the CPUs that it may use."""

    at: float
    cpu_pct: float
    memory_bytes: int
    disk_bytes: int


class Samples:
    """A ring of them. CPU is counted between two samples of one room."""

    def __init__(self) -> None:
        self._ring: deque[bytes] = deque(maxlen=KEPT)
        self._last: tuple[float, int] | None = None

    def new_room(self) -> None:
        """CPU is counted from nothing again."""
        self._last = None

    def add(self, now: float, *, cpu_us: int, cpus: float, memory_bytes: int, disk_bytes: int) -> None:
        share = 0.0
        if self._last is not None and now > self._last[0]:
            share = max(0, cpu_us - self._last[1]) / 1e6 / (now - self._last[0]) / cpus
        self._last = (now, cpu_us)
        self._ring.append(_FORMAT.pack(now, min(share, 1.0) * 100, memory_bytes, disk_bytes))

    def between(self, start: float, end: float) -> list[Sample]:
        """Oldest first."""
        found = (_FORMAT.unpack(packed) for packed in self._ring)
        return [
            Sample(at=at, cpu_pct=round(cpu, 2), memory_bytes=memory, disk_bytes=disk)
            for at, cpu, memory, disk in found
            if start <= at <= end
        ]
