"""What a room may read and write of its disk in a second. Only that it never is more is a matter of time here."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.isolation.bundle import Bundle
from roost.isolation.cgroups import BLOCK, IO, Cgroups, parse_mounts
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.model.errors import Unavailable
from tests.support.rooms import PROBE, Remains, World, host_template, open_probe_bundle, settled

MB_PER_S, MB = 4, 12
WRITE = f"""
import os, time
began = time.monotonic()
fd = os.open("/root/written", os.O_WRONLY | os.O_CREAT)
for _ in range({MB}):
    os.write(fd, os.urandom(1 << 20))
    os.fsync(fd)
result = time.monotonic() - began
"""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_probe_bundle()


def has_controller() -> bool:
    found = parse_mounts(Path("/proc/self/mounts").read_text(), disks=True)
    return BLOCK in found.v1 or IO in (found.unified / "cgroup.controllers").read_text().split()


@pytest.mark.parametrize("kept", [False, True], ids=["made ahead", "over a layer of before"])
async def test_a_room_writes_no_faster_than_it_may_and_others_are_not_held(
    bundle: Bundle, tmp_path: Path, kept: bool
) -> None:
    if not has_controller():
        with pytest.raises(Unavailable, match="can't limit disks"):
            Cgroups.detect("test", disks=True)
        return
    data = tmp_path / "data"
    data.mkdir()
    before = Remains.of(data, descriptors=True)
    took = {}
    for limit in (0, MB_PER_S):
        driver = NamespacesDriver(data, bundle, guest=PROBE, io_mb_per_s=limit)
        await driver.start()
        directory = tmp_path / str(limit)
        directory.mkdir()
        world = World(driver, host_template(directory / "template"), directory)
        try:
            layer = directory / "kept.img" if kept else None
            if layer is not None:
                await driver.disks.create(layer, 64)
            room = await world.room("room", layer=layer)
            took[limit] = await world.ask(room, WRITE)
        finally:
            for made in world.rooms:
                await made.destroy()
            await driver.close()
    await settled(data, before)
    assert took[MB_PER_S] >= 0.8 * MB / MB_PER_S
    assert took[0] < took[MB_PER_S]


async def test_a_room_of_a_server_with_other_settings_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """The next server has no limit of disks, and takes the room over that has one."""
    if not has_controller():
        return
    data = tmp_path / "data"
    data.mkdir()
    before = Remains.of(data, descriptors=True)
    first = NamespacesDriver(data, bundle, guest=PROBE, io_mb_per_s=MB_PER_S)
    await first.start()
    world = World(first, host_template(tmp_path / "template"), tmp_path)
    room = await world.room("room")
    handle = dict(room.handle)
    second = NamespacesDriver(data, bundle, guest=PROBE)
    await second.start()
    taken = await second.recover(handle)
    assert taken is not None
    await taken.destroy()
    await room.destroy()
    await first.close()
    await second.close()
    await settled(data, before)
