"""A sandbox with 10,000 small files, forked into 8: one snapshot and 8 rooms that stand on it, the time for each.

"fork, each" is all of it divided by 8: freezing the room, its snapshot, then 8 writable layers and rooms at once, until
their guests run. Beside it what copies the data: `cp -a` of the same 10,000 files, once, to a fresh disk. Needs root.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench import _harness
from roost.isolation.bundle import build_bundle
from roost.isolation.driver import RoomSpec, Template
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.room import NamespacesRoom
from roost.isolation.templates import host
from roost.model.function import Limits

FILES = 10_000
FILE_BYTES = 300
FORKS = 8
EACH_MS = 30.0
LIMITS = Limits()
PAUSE_S = 0.1


class Bench:
    """One room with the files, in a layer that was written before it was made."""

    def __init__(self, directory: Path, driver: NamespacesDriver, template: Template) -> None:
        self._directory = directory
        self._driver = driver
        self._template = template
        self._numbers = itertools.count()
        self.series: dict[str, list[float]] = {"fork, each": [], "snapshot": [], "8 rooms, each": [], "cp -a": []}

    async def _room(self, layer: Path, *lower: Path) -> NamespacesRoom:
        run_dir = self._directory / f"run-{next(self._numbers)}"
        run_dir.mkdir()
        spec = RoomSpec(
            id=run_dir.name, template=self._template, limits=LIMITS, run_dir=run_dir, layer=layer, lower=lower
        )
        return await self._driver.create(spec)

    async def origin(self, files: Path) -> NamespacesRoom:
        layer = self._directory / "origin.img"
        await self._driver.disks.create(layer, LIMITS.disk_mb)
        with await self._driver.disks.attach(layer) as disk:
            upper = f"/proc/self/fd/{disk.mount_fd}/root/upper/root"
            os.makedirs(upper)
            subprocess.run(["cp", "-a", files, upper], check=True, pass_fds=[disk.mount_fd])
        room = await self._room(layer)
        # A room that nobody controls ends itself after a minute.
        _, self._control = await asyncio.open_unix_connection(str(self._directory / room.id / "guest.sock"))
        self._control.write(b"control\n")
        return room

    async def fork(self, origin: NamespacesRoom) -> None:
        snapshot = self._directory / f"snapshot-{next(self._numbers)}.img"
        started = time.perf_counter()
        await origin.snapshot(snapshot)
        taken = time.perf_counter()
        forks = await asyncio.gather(*(self._fork(snapshot, number) for number in range(FORKS)))
        ended = time.perf_counter()
        self.series["snapshot"].append((taken - started) * 1000)
        self.series["8 rooms, each"].append((ended - taken) * 1000 / FORKS)
        self.series["fork, each"].append((ended - started) * 1000 / FORKS)
        for room, layer in forks:
            await room.destroy()
            layer.unlink()
        self._driver.disks.forget(snapshot)
        snapshot.unlink()

    async def _fork(self, snapshot: Path, number: int) -> tuple[NamespacesRoom, Path]:
        layer = snapshot.with_suffix(f".{number}")
        await self._driver.disks.create(layer, LIMITS.disk_mb)
        return await self._room(layer, snapshot), layer

    def close(self) -> None:
        self._control.close()

    async def copy(self, files: Path) -> None:
        with await self._driver.disks.scratch(LIMITS.disk_mb) as disk:
            started = time.perf_counter()
            command = ["cp", "-a", str(files), f"/proc/self/fd/{disk.mount_fd}/copied"]
            subprocess.run(command, check=True, pass_fds=[disk.mount_fd])
            self.series["cp -a"].append((time.perf_counter() - started) * 1000)


def write(files: Path) -> None:
    for number in range(FILES):
        folder = files / f"{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.json").write_text(json.dumps({"number": number, "text": "x" * (FILE_BYTES - 30)}))


async def measure(runs: int, directory: Path) -> dict[str, list[float]]:
    data_dir = directory / "data"
    data_dir.mkdir()
    template = host.prepare(directory / "template", boot_id="benchmark")
    driver = NamespacesDriver(data_dir, build_bundle(data_dir))
    await driver.start()
    bench = Bench(directory, driver, template)
    files = directory / "files"
    write(files)
    try:
        origin = await bench.origin(files)
        try:
            await bench.fork(origin)
            for values in bench.series.values():
                values.clear()
            for done in range(runs):
                await bench.fork(origin)
                await bench.copy(files)
                await asyncio.sleep(PAUSE_S)
                _harness.progress(f"round {done + 1} of {runs}")
            _harness.progress("")
        finally:
            bench.close()
            await origin.destroy()
        return bench.series
    finally:
        await driver.close()


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin(f"{FILES} files, forked into {FORKS}", options)
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as directory:
        series = asyncio.run(measure(options.runs, Path(directory)))
    _harness.table("A fork's share", "ms", series, reference="fork, each")
    promises = _harness.Promises()
    median = _harness.stats(series["fork, each"]).median
    promises.at_most("a fork of a sandbox with 10,000 files, median", median, EACH_MS, "ms")
    _harness.end(promises, options)


if __name__ == "__main__":
    main()
