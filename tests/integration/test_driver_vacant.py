"""Rooms that are put together ahead: taken by who asks next, replaced, and gone with what made them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.isolation.bundle import Bundle
from roost.isolation.namespaces.memory_file import MALLOC
from roost.model.errors import Unavailable
from roost.model.function import Limits
from tests.support.rooms import Remains, World, occupied, probe_bundle, world

WHOSE = "import os; result = [os.uname().nodename, open('/etc/hostname').read().strip(), os.getcwd()]"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest.fixture
async def rooms(bundle: Bundle, tmp_path: Path) -> AsyncIterator[World]:
    async with world(bundle, tmp_path) as made:
        yield made


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def waiting(rooms: World) -> list[int]:
    """Processes that wait to be somebody's room."""
    found = []
    for pid in Remains.of(rooms.directory / "data").processes:
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "roost-vacant\n":
                found.append(pid)
        except OSError:
            continue
    return found


def _kept(rooms: World) -> int:
    """How many the driver has ready, dead ones too."""
    return sum(len(pool._ready) for pool in rooms.driver._vacant._pools.values())


async def ready(rooms: World, count: int = 1) -> list[int]:
    async with asyncio.timeout(10):
        while len(found := waiting(rooms)) != count or _kept(rooms) != count:
            await asyncio.sleep(0.02)
    return found


async def test_the_next_room_is_the_one_that_waits(rooms: World) -> None:
    await rooms.room("first")
    [vacant] = await ready(rooms)
    second = await rooms.room("second", mounts=())
    assert second.pid == vacant
    assert await rooms.ask(second, WHOSE) == ["second", "second", "/"]
    assert await ready(rooms) != [vacant]


async def test_one_of_another_shape_is_not_taken(rooms: World) -> None:
    await rooms.room("first")
    [vacant] = await ready(rooms)
    other = await rooms.room("other", limits=Limits(disk_mb=64, memory_mb=96))
    strict = await rooms.room("strict", isolation="strict")
    root = await rooms.room("root", capabilities=frozenset({"CHOWN"}))
    assert vacant not in (other.pid, strict.pid, root.pid)
    limit = "import resource, os; result = os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize >> 20"
    assert await rooms.ask(other, limit) == 48
    assert len(await ready(rooms, 4)) == 4
    await rooms.room("fifth", limits=Limits(disk_mb=64, memory_mb=80))  # the shape unused longest gives place
    assert vacant not in await ready(rooms, 4)


async def test_one_that_was_killed_is_replaced(rooms: World) -> None:
    await rooms.room("first")
    [vacant] = await ready(rooms)
    os.kill(vacant, signal.SIGKILL)
    async with asyncio.timeout(10):
        while waiting(rooms):
            await asyncio.sleep(0.02)
    second = await rooms.room("second")
    assert await rooms.ask(second, WHOSE) == ["second", "second", "/"]


async def test_what_can_not_be_occupied_leaves_nothing(rooms: World) -> None:
    await rooms.room("first")
    [vacant] = await ready(rooms)
    os.kill(vacant, signal.SIGSTOP)  # it takes no order
    making = asyncio.create_task(rooms.room("second"))
    await asyncio.sleep(0.2)
    os.kill(vacant, signal.SIGKILL)
    with pytest.raises(Unavailable, match="its process was ended"):
        await making
    assert len(occupied(Remains.of(rooms.directory / "data"))) == 1
    assert await rooms.ask(await rooms.room("third"), WHOSE) == ["third", "third", "/"]


async def test_a_layer_is_of_who_occupies_it(rooms: World) -> None:
    layer = rooms.directory / "data" / "disks" / "kept.img"
    other = rooms.directory / "data" / "disks" / "other.img"
    await rooms.room("first", layer=other)
    [vacant] = await ready(rooms)
    second = await rooms.room("second", layer=layer)
    assert second.pid == vacant
    await rooms.ask(second, "open('/kept', 'w').write('x'); import os; os.sync(); result = 1")
    await second.destroy()
    kept = await ready(rooms)
    again = await rooms.room("again", layer=layer)  # its files are there already, so the one that waits is not for it
    assert again.pid not in kept
    assert await rooms.ask(again, "result = open('/kept').read()") == "x"


async def test_one_that_waits_bare_is_for_whatever_there_is_already(rooms: World) -> None:
    disks = rooms.directory / "data" / "disks"
    first = await rooms.room("first", layer=disks / "first.img")
    await rooms.ask(first, "open('/kept', 'w').write('x'); result = 1")
    await first.snapshot(disks / "snapshot.img")
    second = await rooms.room("second", layer=disks / "second.img", lower=(disks / "snapshot.img",))
    fresh, bare = sorted(await ready(rooms, 2))
    third = await rooms.room("third", layer=disks / "third.img", lower=(disks / "snapshot.img",))
    assert third.pid in (fresh, bare)
    for room in (second, third):
        assert await rooms.ask(room, "result = open('/kept').read()") == "x"
    await rooms.ask(third, "open('/kept', 'w').write('y'); result = 1")
    await third.destroy()
    waits = await ready(rooms, 2)
    again = await rooms.room("again", layer=disks / "third.img", lower=(disks / "snapshot.img",))
    assert again.pid in waits
    assert await rooms.ask(again, "result = open('/kept').read()") == "y"
    await ready(rooms, 2)


async def test_a_bare_one_that_can_not_have_its_layers_is_gone(rooms: World) -> None:
    disks = rooms.directory / "data" / "disks"
    before = occupied(Remains.of(rooms.directory / "data"))
    with pytest.raises(Unavailable):
        await rooms.room("without", layer=disks / "without.img", lower=(disks / "none.img",))
    assert occupied(Remains.of(rooms.directory / "data")) == before
    assert not (disks / "without.img").exists()


async def test_the_end_of_a_zygote_is_seen_while_a_room_waits(rooms: World) -> None:
    """The room that waits was forked from it, and must not keep its connection open."""
    first = await rooms.room("first")
    [vacant] = await ready(rooms)
    os.kill(_parent(first.pid), signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert Path(f"/proc/{vacant}").exists()
    made = [await rooms.room("second"), await rooms.room("third")]
    assert made[0].pid == vacant
    assert [await rooms.ask(room, "import os; result = os.uname().nodename") for room in made] == ["second", "third"]


async def test_one_that_waits_has_nothing_of_the_server_s(rooms: World) -> None:
    await rooms.room("first")
    [vacant] = await ready(rooms)
    first = {os.readlink(entry) for entry in Path(f"/proc/{_parent(rooms.rooms[0].pid)}/fd").iterdir()}
    own = {os.readlink(entry) for entry in Path(f"/proc/{vacant}/fd").iterdir()}
    assert len([one for one in own if one.startswith("socket:")]) == 1  # where its order comes from
    assert own & first <= {"/dev/null"}  # and nothing of the zygote's
    [(name, value)] = MALLOC.items()  # what a zygote is told is the same everywhere; its loader takes it to pieces
    environment = Path(f"/proc/{vacant}/environ").read_bytes().rstrip(b"\0").replace(b"\0", b":")
    assert environment == f"{name}={value}".encode()
