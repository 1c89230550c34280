"""Rooms outlive a server that was killed: the next one adopts or sweeps them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.isolation.bundle import Bundle
from roost.isolation.driver import Mount, RoomSpec, Template
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.model.errors import InvalidArgument
from roost.model.function import Limits
from tests.support.rooms import PROBE, Remains, ask, probe_bundle, settled

SERVER = """
import asyncio, json, os, sys
from pathlib import Path
from roost.isolation.bundle import Bundle
from tests.integration.test_driver_recovery import start
from tests.support.rooms import host_template

async def main(data_dir, bundle, names):
    template = host_template(data_dir.parent / "template")
    driver = await start(data_dir, Bundle(bundle))
    made = [await driver.create(spec(name)) for name, spec in ((n, make(data_dir, template)) for n in names)]
    for room in made:
        await room.settled()
    print(json.dumps([dict(room.handle) for room in made]), flush=True)
    await asyncio.sleep(600)

def make(data_dir, template):
    from tests.integration.test_driver_recovery import spec
    return lambda name: spec(data_dir, template, name)

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest.fixture
async def data_dir(bundle: Bundle, tmp_path: Path) -> AsyncIterator[Path]:
    """Rooms that a failed test left alive end with it."""
    path = tmp_path / "data"
    yield path
    driver = await start(path, bundle)
    await driver.sweep(frozenset())
    await driver.close()


async def start(data_dir: Path, bundle: Bundle) -> NamespacesDriver:
    driver = NamespacesDriver(data_dir, bundle, guest=PROBE)
    await driver.start()
    return driver


def spec(data_dir: Path, template: Template, name: str) -> RoomSpec:
    run_dir = data_dir / "run" / name
    run_dir.mkdir(parents=True)
    volume = data_dir / "volume"
    volume.mkdir(exist_ok=True)
    mounts = (Mount(source=volume, target="/volume"),)
    return RoomSpec(id=name, template=template, limits=Limits(disk_mb=64), run_dir=run_dir, mounts=mounts)


def killed_server(data_dir: Path, bundle: Bundle, *names: str) -> list[dict[str, Any]]:
    """Handles of the rooms of a server that was killed in the middle of its work."""
    data_dir.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, data_dir, bundle.root, *names],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    handles: list[dict[str, Any]] = json.loads(line)
    return handles


async def test_a_room_is_adopted_and_others_are_swept(bundle: Bundle, data_dir: Path) -> None:
    before = Remains.of(data_dir)
    adopted, *others = killed_server(data_dir, bundle, "adopted", "left-1", "left-2")
    assert len(Remains.of(data_dir).processes) == 3
    driver = await start(data_dir, bundle)
    room = await driver.recover(adopted)
    assert room is not None and room.id == "adopted" and dict(room.handle) == adopted
    assert await driver.sweep(frozenset({"adopted"})) == 2
    assert [await driver.recover(handle) for handle in others] == [None, None]
    run_dir = data_dir / "run" / "adopted"
    assert await ask(run_dir, "open('/volume/file', 'w').write('alive'); result = 1") == 1
    assert room.usage().cpu_us > 0
    # Its id range is taken: a new room has another one.
    template = Template(name="host", root=data_dir.parent / "template", binds=((Path("/usr"), "/usr"),))
    new = await driver.create(spec(data_dir, template, "new"))
    await new.settled()
    ranges = {str(handle["cgroup"]).rpartition(".")[2] for handle in (room.handle, new.handle)}
    assert len(ranges) == 2
    for one in (room, new):
        await one.destroy()
        await asyncio.wait_for(one.wait(), 5)
    await driver.close()
    await settled(data_dir, before)


async def test_a_handle_of_a_dead_room_or_of_another_process_is_none(bundle: Bundle, data_dir: Path) -> None:
    (handle,) = killed_server(data_dir, bundle, "dead")
    driver = await start(data_dir, bundle)
    assert await driver.recover({**handle, "pid": os.getpid()}) is None
    assert await driver.recover({**handle, "started": handle["started"] + 1}) is None
    assert await driver.recover({**handle, "cgroup": "dead.99"}) is None
    with pytest.raises(InvalidArgument, match="no handle"):
        await driver.recover({"id": "dead"})
    assert await driver.sweep(frozenset()) == 1
    assert await driver.recover(handle) is None
    assert await driver.sweep(frozenset()) == 0
    await driver.close()
    assert Remains.of(data_dir).processes == ()
