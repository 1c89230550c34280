"""GET /metrics of envd: what the room uses, as far as it can be seen from inside."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Metrics:
    """`memory` is the room's limit in bytes, 0 when it has none. CPU use is since the last reading, or the start."""

    def __init__(self, memory: int, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._memory = memory
        self._proc = proc
        self._cgroup = cgroup
        self._last = (time.monotonic(), 0.0)

    def read(self) -> dict[str, int | float]:
        disk = os.statvfs("/")
        used, cached = self._memory_used()
        total = self._memory_total()
        return {
            "ts": int(time.time()),
            "cpu_count": self._cpu_count(),
            "cpu_used_pct": self._cpu_percent(),
            "mem_total_mib": total >> 20,
            "mem_used_mib": used >> 20,
            "mem_total": total,
            "mem_used": used,
            "mem_cache": cached,
            "disk_used": (disk.f_blocks - disk.f_bavail) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _cpu_percent(self) -> float:
        before, used_before = self._last
        self._last = now, used = time.monotonic(), self._cpu_seconds()
        # Processes that have ended since take their time with them where no cgroup keeps it.
        share = max(0.0, used - used_before) / max(now - before, 0.001) / self._cpu_count()
        return round(min(share, 1.0) * 100, 2)

    def _cpu_count(self) -> int:
        quota = self._read("cpu.max").split()
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
            return max(1, round(int(quota[0]) / int(quota[1])))
        return len(os.sched_getaffinity(0))

    def _cpu_seconds(self) -> float:
        for line in self._read("cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec" and value.isdigit():
                return int(value) / 1e6
        ticks = 0
        for fields in self._processes("stat"):
            # After the name, which may hold anything: utime, stime and those of children that were waited for.
            ticks += sum(int(field) for field in fields.rpartition(")")[2].split()[11:15])
        return ticks / _TICKS

    def _memory_used(self) -> tuple[int, int]:
        """(used, of it cache) in bytes."""
        current = self._read("memory.current").strip()
        if current.isdigit():
            cached = 0
            for line in self._read("memory.stat").splitlines():
                name, _, value = line.partition(" ")
                cached = int(value) if name == "file" and value.isdigit() else cached
            return max(0, int(current) - cached), cached
        pages = 0
        for fields in self._processes("statm"):
            _, resident, shared, *_ = fields.split()
            pages += int(resident) - int(shared)
        return pages * _PAGE, 0

    def _memory_total(self) -> int:
        if self._memory:
            return self._memory
        return os.sysconf("SC_PHYS_PAGES") * _PAGE

    def _processes(self, name: str) -> list[str]:
        found = []
        for entry in os.listdir(self._proc):
            if entry.isdigit():
                try:
                    found.append((self._proc / entry / name).read_text(errors="replace"))
                except OSError:  # it has ended
                    continue
        return [text for text in found if text]

    def _read(self, name: str) -> str:
        try:
            return (self._cgroup / name).read_text()
        except OSError:
            return ""
