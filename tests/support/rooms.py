"""Real rooms for tests: a driver over a data directory of its own, and a count of what it has on the machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from roost.isolation.bundle import Bundle, build_bundle
from roost.isolation.driver import RoomSpec, Template
from roost.isolation.drivers import Drivers
from roost.isolation.gvisor.driver import GvisorDriver
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.room import NamespacesRoom
from roost.model.function import GVISOR, NAMESPACES, Limits
from tests.support.gvisor import need_runsc

PROBE = "room_probe"


def _own_capabilities() -> frozenset[int]:
    text = Path("/proc/self/status").read_text()
    permitted = int(text.partition("CapPrm:")[2].split()[0], 16)
    return frozenset(number for number in range(64) if permitted >> number & 1)


#: The positive control of security tests: a room where what they check is not protected.
WEAK = RoomPolicy(
    seccomp=b"",
    masked=(),
    proc_read_only=False,
    hide_boot_id=False,
    no_new_privileges=False,
    no_setuid=False,
    user_namespace=False,
    landlock=False,
    capabilities=_own_capabilities(),
)


def probe_bundle(factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose rooms can run `room_probe`; made once for the test processes of a run, for it takes seconds."""
    return _with_probe(factory.getbasetemp().parent / "roost-probe-bundle")


def open_probe_bundle() -> Bundle:
    """The same where every user can read it; pytest's directories are root's alone. It stays, for the next run."""
    return _with_probe(Path(tempfile.gettempdir()) / "roost-test-probe-bundle")


def _with_probe(directory: Path) -> Bundle:
    bundle = build_bundle(directory)
    for package in bundle.root.glob("**/roost/__init__.py"):
        site = package.parents[1]  # a distribution may call it dist-packages
        copying = site / f"{PROBE}.{os.getpid()}"
        shutil.copy(Path(__file__).with_name(f"{PROBE}.py"), copying)
        copying.rename(site / f"{PROBE}.py")
    return bundle


def host_template(directory: Path) -> Template:
    """The host's /usr under a root with the usual links."""
    directory.mkdir()
    for name in ("usr", "etc", "var", "root", "tmp"):
        (directory / name).mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (directory / name).symlink_to(f"usr/{name}")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    return Template(name="host", root=directory, binds=((Path("/usr"), "/usr"),))


async def ask(run_dir: Path, source: str, timeout_s: float = 60.0) -> Any:
    """Run Python source in the room; the value of its variable `result`."""
    # A socket's path may have 107 bytes only, and a test's directory is long.
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/app.sock", limit=1 << 24)
    finally:
        os.close(directory)
    try:
        writer.write(json.dumps(textwrap.dedent(source)).encode() + b"\n")
        line = await asyncio.wait_for(reader.readline(), timeout_s)
    finally:
        writer.close()
        await writer.wait_closed()
    assert line, "the process that was asked ended without an answer"
    answer = json.loads(line)
    assert "error" not in answer, answer["error"]
    return answer["result"]


class World:
    """A started driver with one template."""

    def __init__(
        self, driver: NamespacesDriver, template: Template, directory: Path, isolation: str = NAMESPACES
    ) -> None:
        self.driver = driver
        self.drivers = Drivers(driver, {GVISOR: GvisorDriver(driver)})
        self.isolation = isolation  # of rooms that are made without one
        self.template = template
        self.directory = directory
        self.rooms: list[NamespacesRoom] = []

    def spec(self, name: str, *, limits: Limits | None = None, **more: Any) -> RoomSpec:
        run_dir = self.directory / "run" / name
        run_dir.mkdir(parents=True, exist_ok=True)
        limits = limits or Limits(disk_mb=64)
        more.setdefault("isolation", self.isolation)
        return RoomSpec(id=name, template=self.template, limits=limits, run_dir=run_dir, **more)

    async def room(self, name: str, **more: Any) -> NamespacesRoom:
        room = await self.drivers.create(self.spec(name, **more))
        try:
            await room.settled()
        except BaseException:
            await room.destroy()
            raise
        assert isinstance(room, NamespacesRoom)
        self.rooms.append(room)
        return room

    async def ask(self, room: NamespacesRoom, source: str, timeout_s: float = 60.0) -> Any:
        return await ask(self.directory / "run" / room.id, source, timeout_s)


@asynccontextmanager
async def world(
    bundle: Bundle,
    directory: Path,
    policy: RoomPolicy | None = None,
    *,
    alone: bool = True,
    isolation: str = NAMESPACES,
) -> AsyncIterator[World]:
    """A driver that is closed at the end, with every room; what then is left on the machine fails the test.

    `alone`: there is no other driver in this process, so that its descriptors can be counted too.
    """
    if isolation == GVISOR:
        need_runsc()
    data_dir = directory / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    before = Remains.of(data_dir, descriptors=alone)
    driver = NamespacesDriver(data_dir, bundle, guest=PROBE, policy=policy)
    await driver.start()
    made = World(driver, host_template(directory / "template"), directory, isolation)
    try:
        yield made
    finally:
        for room in made.rooms:
            await room.destroy()
        await driver.close()
    await settled(data_dir, before)


_AHEAD = ("roost-vacant", "roost-zygote", "")


@dataclass(frozen=True)
class Remains:
    """What a data directory's rooms have on this machine, and the descriptors of this process."""

    cgroups: tuple[str, ...]
    processes: tuple[int, ...]
    loops: tuple[str, ...]
    mounts: tuple[str, ...]
    descriptors: int

    @classmethod
    def of(cls, data_dir: Path, *, descriptors: bool = True) -> Remains:
        tag = f"roost-{hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]}"
        parents = [path for tree in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{tree}{tag}")]
        cgroups = [path for parent in parents for path in (parent, *_directories(parent))]
        groups = [path / name for path in cgroups for name in (".", "in")]
        processes = {int(pid) for path in groups for pid in _read(path / "cgroup.procs").split()}
        loops = [
            str(file.parents[1])
            for file in Path("/sys/block").glob("loop*/loop/backing_file")
            if str(data_dir.resolve()) in _read(file)
        ]
        mounts = [line for line in _read(Path("/proc/self/mountinfo")).splitlines() if str(data_dir.parent) in line]
        return cls(
            cgroups=tuple(sorted(map(str, cgroups))),
            processes=tuple(sorted(processes)),
            loops=tuple(sorted(loops)),
            mounts=tuple(mounts),
            descriptors=len(list(Path("/proc/self/fd").iterdir())) if descriptors else 0,
        )


def occupied(left: Remains) -> list[int]:
    """Processes of rooms that are somebody's; one that is made ahead is still the zygote's, or waits."""
    return [pid for pid in left.processes if _read(Path(f"/proc/{pid}/comm")).strip() not in _AHEAD]


async def settled(data_dir: Path, wanted: Remains, timeout_s: float = 10.0) -> None:
    """Wait until exactly `wanted` remains: the kernel unmounts and detaches a moment after the last process. Of
    descriptors there may be fewer, where another test's had not been collected yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        found = Remains.of(data_dir, descriptors=wanted.descriptors > 0)
        gone = replace(found, descriptors=max(found.descriptors, wanted.descriptors)) == wanted
        if gone or loop.time() > deadline:
            break
        await asyncio.sleep(0.02)
    assert gone, f"{found} is left, {wanted} was there before"


def _directories(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
