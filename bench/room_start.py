"""Rooms alone, without gateway and function: from `create` until the guest's first instruction, beside its parts.

Each candidate runs with a pause after it, in which the driver refills what it keeps ready. "disk", "cgroups" and
"interpreter" are what a room would wait for if it were made from nothing. Needs root.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import _harness
from roost.isolation.bundle import build_bundle
from roost.isolation.cgroups import Cgroups
from roost.isolation.disks import Disks
from roost.isolation.driver import RoomSpec, Template
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.templates import host
from roost.model.function import Limits

PAUSE_S = 0.1
AT_ONCE = 20
LIMITS = Limits()


class Bench:
    """One started driver; each method is a candidate, and gives what it measured in milliseconds."""

    def __init__(self, directory: Path, driver: NamespacesDriver, template: Template) -> None:
        self._directory = directory
        self._driver = driver
        self._template = template
        self._numbers = itertools.count()
        self._disks = Disks(directory / "bench-disks")
        self._cgroups = Cgroups.detect("bench")
        self._cgroups.prepare()
        self.destroyed: list[float] = []
        self.memory: list[float] = []

    def _spec(self) -> RoomSpec:
        name = f"bench-{next(self._numbers)}"
        run_dir = self._directory / name
        run_dir.mkdir()
        return RoomSpec(id=name, template=self._template, limits=LIMITS, run_dir=run_dir)

    async def room(self) -> float:
        spec = self._spec()
        before = time.perf_counter()
        room = await self._driver.create(spec)
        took = time.perf_counter() - before
        await asyncio.sleep(PAUSE_S)
        self.memory.append(room.usage().memory_bytes / 2**20)
        before = time.perf_counter()
        await room.destroy()
        self.destroyed.append((time.perf_counter() - before) * 1000)
        return took * 1000

    async def burst(self) -> float:
        """Of rooms that are made at once, the time for each."""
        specs = [self._spec() for _ in range(AT_ONCE)]
        before = time.perf_counter()
        rooms = await asyncio.gather(*(self._driver.create(spec) for spec in specs))
        took = time.perf_counter() - before
        await asyncio.gather(*(room.destroy() for room in rooms))
        return took * 1000 / AT_ONCE

    async def disk(self) -> float:
        before = time.perf_counter()
        disk = await self._disks.scratch(LIMITS.disk_mb)
        took = time.perf_counter() - before
        disk.close()
        return took * 1000

    async def cgroups(self) -> float:
        before = time.perf_counter()
        cgroup = self._cgroups.create(f"bench-{next(self._numbers)}", LIMITS)
        took = time.perf_counter() - before
        await cgroup.remove()
        return took * 1000

    async def interpreter(self) -> float:
        before = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        return (time.perf_counter() - before) * 1000

    def close(self) -> None:
        self._cgroups.remove_parents()


async def measure(runs: int, directory: Path) -> tuple[dict[str, list[float]], Bench]:
    data_dir = directory / "data"
    data_dir.mkdir()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    template = host.prepare(directory / "template", boot_id=boot_id)
    driver = NamespacesDriver(data_dir, build_bundle(data_dir))
    await driver.start()
    bench = Bench(directory, driver, template)
    candidates: dict[str, Callable[[], Awaitable[float]]] = {
        "room": bench.room,
        f"room, {AT_ONCE} at once": bench.burst,
        "disk": bench.disk,
        "cgroups": bench.cgroups,
        "interpreter": bench.interpreter,
    }
    try:
        await driver.warm(template)
        for candidate in candidates.values():
            await candidate()
        bench.destroyed.clear()
        bench.memory.clear()
        results: dict[str, list[float]] = {name: [] for name in candidates}
        for done in range(runs):
            for name, candidate in candidates.items():
                results[name].append(await candidate())
                await asyncio.sleep(PAUSE_S)
            _harness.progress(f"round {done + 1} of {runs}")
        _harness.progress("")
        return results, bench
    finally:
        bench.close()
        await driver.close()


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin("Start of a room", options)
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as directory:
        results, bench = asyncio.run(measure(options.runs, Path(directory)))
    _harness.table("Until the guest runs", "ms", results, reference="room")
    _harness.table("End of a room", "ms", {"destroy": bench.destroyed}, reference="destroy")
    _harness.table("Memory of an idle room, guest included", "MB", {"memory": bench.memory}, reference="memory")


if __name__ == "__main__":
    main()
