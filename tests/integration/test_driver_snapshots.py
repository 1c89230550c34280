"""Snapshots of rooms' files, and rooms that stand on them: what the driver's capability SNAPSHOT promises."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.isolation import drafts, images
from roost.isolation.bundle import Bundle
from roost.isolation.driver import MOST_LOWER, ROOT_CAPABILITIES, Capability
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.room import NamespacesRoom
from roost.model.errors import InvalidArgument, StorageFull, Unavailable
from roost.model.function import GVISOR, NAMESPACES
from tests.support.rooms import World, probe_bundle, world

WRITE = """
import os
os.makedirs("/root/work/deep", exist_ok=True)
open("/root/work/file", "w").write("{text}")
open("/usr/bin/{text}", "w").write("tool")
result = 1
"""
READ = "result = open('/root/work/file').read()"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest.fixture
async def rooms(bundle: Bundle, tmp_path: Path) -> AsyncIterator[World]:
    async with world(bundle, tmp_path) as made:
        yield made


@pytest.fixture(params=[NAMESPACES, GVISOR])
async def either(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> AsyncIterator[World]:
    """Of each driver: what a room's own kernel may hold back, or see otherwise. All else is the host's alone."""
    async with world(bundle, tmp_path, isolation=request.param) as made:
        yield made


async def _room(rooms: World, name: str, *lower: Path) -> NamespacesRoom:
    """A room with a layer of its own over these."""
    layer = rooms.directory / "data" / f"{name}.img"
    await rooms.driver.disks.create(layer, 64)
    return await rooms.room(name, layer=layer, lower=lower)


async def test_the_drivers_say_that_they_can(rooms: World) -> None:
    assert Capability.SNAPSHOT in rooms.drivers.capabilities


async def test_a_room_on_a_snapshot_has_its_files_and_changes_none_of_it(either: World) -> None:
    first = await _room(either, "first")
    await either.ask(first, WRITE.format(text="one"))
    snapshot = either.directory / "data" / "snapshot.img"
    await first.snapshot(snapshot)
    await either.ask(first, WRITE.format(text="two"))
    content = snapshot.read_bytes()
    forks = await asyncio.gather(*(_room(either, f"fork-{number}", snapshot) for number in range(3)))
    for number, fork in enumerate(forks):
        assert await either.ask(fork, READ) == "one"
        look = "import os\nresult = [os.path.exists('/usr/bin/' + name) for name in ('one', 'two', 'env')]"
        assert await either.ask(fork, look) == [True, False, True]
        await either.ask(fork, WRITE.format(text=f"fork-{number}"))
    assert [await either.ask(room, READ) for room in (first, *forks)] == ["two", "fork-0", "fork-1", "fork-2"]
    for room in forks:
        await room.destroy()
    assert snapshot.read_bytes() == content


async def test_what_was_removed_renamed_and_replaced_is_so_above_the_snapshot(rooms: World) -> None:
    """Whiteouts, opaque directories and redirects, over the root and over a bind of the template."""
    first = await _room(rooms, "first")
    change = """
        import os, shutil
        os.unlink("/etc/passwd")
        os.unlink("/usr/bin/env")
        os.rename("/usr/games", "/usr/renamed-games")
        shutil.rmtree("/usr/include")
        os.mkdir("/usr/include")
        open("/usr/include/mine.h", "w").write("mine")
        os.symlink("mine.h", "/usr/include/link.h")
        os.link("/usr/include/mine.h", "/usr/include/hard.h")
        os.setxattr("/usr/include/mine.h", "user.note", b"kept")
        os.mkfifo("/root/fifo", 0o640)
        os.chmod("/usr/share", 0o711)
        result = 1
        """
    await rooms.ask(first, change)
    look = """
        import os, stat
        result = [os.path.exists("/etc/passwd"), os.path.exists("/usr/bin/env"), os.path.exists("/usr/games"),
                  os.path.isdir("/usr/renamed-games"), sorted(os.listdir("/usr/include")),
                  os.readlink("/usr/include/link.h"), os.stat("/usr/include/hard.h").st_nlink,
                  os.getxattr("/usr/include/mine.h", "user.note").decode(), stat.S_IMODE(os.stat("/root/fifo").st_mode),
                  stat.S_IMODE(os.stat("/usr/share").st_mode), os.path.isdir("/usr/share/doc"),
                  "roost-init" not in os.listdir("/usr/renamed-games")]
        """
    expected = await rooms.ask(first, look)
    assert expected[:5] == [False, False, False, True, ["hard.h", "link.h", "mine.h"]]
    snapshots = [rooms.directory / "data" / f"{number}.img" for number in (1, 2)]
    await first.snapshot(snapshots[0])
    second = await _room(rooms, "second", snapshots[0])
    assert await rooms.ask(second, look) == expected
    again = """
        import os
        open("/usr/bin/env", "w").write("back")
        os.rename("/usr/renamed-games", "/usr/games-again")
        os.unlink("/usr/include/link.h")
        result = 1
        """
    await rooms.ask(second, again)
    await second.snapshot(snapshots[1])
    third = await _room(rooms, "third", snapshots[1], snapshots[0])
    seen = """
        import os
        result = [open("/usr/bin/env").read(), sorted(name for name in os.listdir("/usr") if "games" in name),
                  sorted(os.listdir("/usr/include")), os.path.exists("/etc/passwd")]
        """
    assert await rooms.ask(third, seen) == ["back", ["games-again"], ["hard.h", "mine.h"], False]


CHANGES = """
import os, random, shutil
chance = random.Random({seed})
roots = ["/srv", "/opt", "/root"]
def folders():
    return [f for root in roots if os.path.isdir(root) for f, _, _ in os.walk(root)]
def entries():
    return [os.path.join(f, n) for root in roots for f, d, files in os.walk(root) for n in (*d, *files)]
for number in range(60):
    folder, name = chance.choice(folders()), "n%d" % chance.randrange(8)
    path, other = os.path.join(folder, name), chance.choice(entries())
    try:
        match chance.randrange(9):
            case 0 | 1: open(path, "w").write(str(chance.random()))
            case 2: os.mkdir(path)
            case 3: os.rename(other, path)
            case 4: shutil.rmtree(other) if os.path.isdir(other) and not os.path.islink(other) else os.unlink(other)
            case 5: os.symlink(other, path)
            case 6: os.link(other, path)
            case 7: os.chmod(other, chance.choice([0o700, 0o755])); os.chown(other, 1000, chance.randrange(9))
            case 8: open(other, "a").write("more")
    except OSError:
        pass
result = 1
"""
TREE = """
import os, stat
result = []
for root in ("/srv", "/opt", "/root"):
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = os.path.join(folder, name)
            about = os.lstat(path)
            text = os.readlink(path) if stat.S_ISLNK(about.st_mode) else ""
            if stat.S_ISREG(about.st_mode):
                text = open(path).read()
            result.append([path, about.st_mode, about.st_uid, about.st_gid, text])
"""


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_was_done_to_files_a_fork_sees_it(rooms: World, seed: int) -> None:
    """Links, renamed and replaced folders, some of the template's and of its binds, over several generations."""
    bound = rooms.directory / "bound"
    for root in (bound, rooms.template.root / "srv"):
        for number in range(27):
            file = root / f"n{number % 3}" / f"n{number // 3 % 3}" / f"f{number}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(number))
    rooms.template = dataclasses.replace(rooms.template, binds=(*rooms.template.binds, (bound, "/opt")))
    chain: tuple[Path, ...] = ()
    expected = None
    for generation in range(8):
        layer = rooms.directory / "data" / f"room-{generation}.img"
        await rooms.driver.disks.create(layer, 64)
        name = f"room-{generation}"
        room = await rooms.room(name, layer=layer, lower=chain, capabilities=ROOT_CAPABILITIES)
        seen = await rooms.ask(room, TREE)
        assert expected is None or seen == expected
        await rooms.ask(room, CHANGES.format(seed=seed * 100 + generation))
        expected = await rooms.ask(room, TREE)
        assert expected != seen
        chain = (rooms.directory / "data" / f"snapshot-{generation}.img", *chain)
        await room.snapshot(chain[0])
        await room.destroy()


async def test_owners_stay_whatever_host_range_a_room_has(either: World) -> None:
    layer = either.directory / "data" / "first.img"
    await either.driver.disks.create(layer, 64)
    first = await either.room("first", layer=layer, capabilities=frozenset({"CHOWN"}))
    await either.ask(first, "import os\nos.makedirs('/home/u')\nos.chown('/home/u', 1000, 7)\nresult = 1")
    snapshot = either.directory / "data" / "snapshot.img"
    await first.snapshot(snapshot)
    second = await _room(either, "second", snapshot)
    assert await either.ask(second, "import os\ns = os.stat('/home/u')\nresult = [s.st_uid, s.st_gid]") == [1000, 7]
    assert Path(f"/proc/{first.pid}").stat().st_uid != Path(f"/proc/{second.pid}").stat().st_uid


async def test_a_snapshot_is_of_one_moment_while_the_room_writes(either: World) -> None:
    """Two files are written in turn, one after the other: the copy never has the second without the first."""
    room = await _room(either, "writer")
    start = """
        import os
        if os.fork() == 0:
            number = 0
            while True:
                number += 1
                for name in ("/root/a", "/root/b"):
                    with open(name + ".new", "w") as file:
                        file.write(str(number) * 2000)
                    os.rename(name + ".new", name)
        result = 1
        """
    await either.ask(room, start)
    compare = """
        def number(name):
            text = open(name).read()
            whole = text[: len(text) // 2000]
            assert text == whole * 2000, "a torn file"
            return int(whole)
        result = number("/root/a") - number("/root/b")
        """
    for number in range(4):
        await asyncio.sleep(0.1)
        snapshot = either.directory / "data" / f"{number}.img"
        await room.snapshot(snapshot)
        assert await either.ask(await _room(either, f"reader-{number}", snapshot), compare) in (0, 1)
    before = room.usage().cpu_us
    await asyncio.sleep(0.1)
    assert room.usage().cpu_us > before


async def test_a_frozen_room_stays_frozen(rooms: World) -> None:
    room = await _room(rooms, "frozen")
    await rooms.ask(room, "import os\nif os.fork() == 0:\n    while True: pass\nresult = 1")
    await room.freeze()
    await room.snapshot(rooms.directory / "data" / "snapshot.img")
    before = room.usage().cpu_us
    await asyncio.sleep(0.1)
    assert room.usage().cpu_us == before
    await room.thaw()
    assert await rooms.ask(room, "result = 2") == 2


async def test_a_snapshot_after_the_room_has_gone_is_of_its_layer(rooms: World) -> None:
    room = await _room(rooms, "first")
    await rooms.ask(room, WRITE.format(text="kept"))
    await room.destroy()
    snapshot = rooms.directory / "data" / "snapshot.img"
    await rooms.driver.disks.snapshot(rooms.directory / "data" / "first.img", snapshot)
    assert await rooms.ask(await _room(rooms, "second", snapshot), READ) == "kept"


async def test_an_image_below_rooms_is_attached_once(rooms: World) -> None:
    first = await _room(rooms, "first")
    await rooms.ask(first, WRITE.format(text="one"))
    snapshot = rooms.directory / "data" / "snapshot.img"
    await first.snapshot(snapshot)
    await asyncio.gather(*(_room(rooms, f"fork-{number}", snapshot) for number in range(4)))
    assert _loops(snapshot) == 1
    await rooms.driver.disks.snapshot(snapshot, rooms.directory / "data" / "copy.img")
    with pytest.raises(Unavailable, match="in use"):
        await rooms.driver.disks.attach(snapshot, timeout_s=0)


async def test_a_snapshot_that_is_removed_stays_with_the_rooms_that_stand_on_it(rooms: World) -> None:
    first = await _room(rooms, "first")
    await rooms.ask(first, WRITE.format(text="one"))
    snapshot = rooms.directory / "data" / "snapshot.img"
    await first.snapshot(snapshot)
    fork = await _room(rooms, "fork", snapshot)
    rooms.driver.disks.forget(snapshot)
    snapshot.unlink()
    assert await rooms.ask(fork, READ) == "one"
    with pytest.raises(Unavailable, match="No such file"):
        await _room(rooms, "late", snapshot)
    await fork.destroy()
    async with asyncio.timeout(10):
        while _loops(snapshot):
            await asyncio.sleep(0.01)


async def test_as_many_layers_as_are_allowed_and_not_one_more(rooms: World) -> None:
    lower: tuple[Path, ...] = ()
    for number in range(MOST_LOWER):
        room = await _room(rooms, f"room-{number}", *lower)
        write = "open('/root/{0}', 'w').close()\nopen('/usr/bin/x', 'w').write('{0}')\nresult = 1"
        await rooms.ask(room, write.format(number))
        lower = (rooms.directory / "data" / f"snapshot-{number}.img", *lower)
        await room.snapshot(lower[0])
        await room.destroy()
    top = await _room(rooms, "top", *lower)
    look = "import os\nresult = [len(os.listdir('/root')), open('/usr/bin/x').read(), os.path.exists('/usr/bin/env')]"
    assert await rooms.ask(top, look) == [MOST_LOWER, str(MOST_LOWER - 1), True]
    with pytest.raises(InvalidArgument, match=f"at most {MOST_LOWER} snapshots"):
        await _room(rooms, "over", lower[0], *lower)


async def test_forks_of_forks_have_no_end(rooms: World) -> None:
    chain: tuple[Path, ...] = ()
    for number in range(MOST_LOWER + 4):
        layer = rooms.directory / "data" / f"room-{number}.img"
        lower = await rooms.driver.disks.layer_over(chain, layer, 64)
        room = await rooms.room(f"room-{number}", layer=layer, lower=lower)
        change = "import os\nos.makedirs('/root/d/{0}')\nopen('/usr/bin/x', 'w').write('{0}')\nresult = 1"
        await rooms.ask(room, change.format(number))
        if number:
            await rooms.ask(room, f"import os\nos.rmdir('/root/d/{number - 1}')\nresult = 1")
        chain = (rooms.directory / "data" / f"snapshot-{number}.img", *lower)
        await room.snapshot(chain[0])
        await room.destroy()
    assert len(chain) == MOST_LOWER + 1
    layer = rooms.directory / "data" / "top.img"
    lower = await rooms.driver.disks.layer_over(chain, layer, 64)
    top = await rooms.room("top", layer=layer, lower=lower)
    look = "import os\nresult = [os.listdir('/root/d'), open('/usr/bin/x').read(), os.path.exists('/usr/bin/env')]"
    assert await rooms.ask(top, look) == [[str(MOST_LOWER + 3)], str(MOST_LOWER + 3), True]
    # Many at once begin with a copy of the same one, which others read meanwhile.
    layers = [rooms.directory / "data" / f"many-{number}.img" for number in range(8)]
    made = asyncio.gather(*(rooms.driver.disks.layer_over(chain, layer, 64) for layer in layers))
    readers = await asyncio.gather(*(rooms.driver.disks.lower(chain[0]) for _ in range(4)))
    for reader in readers:
        os.close(reader)
    assert await made == [lower] * 8


async def test_a_room_without_a_layer_of_its_own_has_no_snapshot(rooms: World) -> None:
    room = await rooms.room("scratch")
    with pytest.raises(InvalidArgument, match="no layer of its own"):
        await room.snapshot(rooms.directory / "data" / "snapshot.img")


async def test_a_snapshot_replaces_nothing_and_leaves_nothing(rooms: World) -> None:
    room = await _room(rooms, "first")
    directory = rooms.directory / "snapshots"
    directory.mkdir()
    (directory / "taken").write_text("mine")
    with pytest.raises(FileExistsError):
        await room.snapshot(directory / "taken")
    assert (directory / "taken").read_text() == "mine"
    with pytest.raises(Unavailable, match="No such file"):
        await room.snapshot(rooms.directory / "missing" / "snapshot")
    assert os.listdir(directory) == ["taken"]
    assert await rooms.ask(room, "result = 1") == 1


async def test_a_full_disk_is_storage_full_and_the_room_goes_on(rooms: World) -> None:
    room = await _room(rooms, "first")
    await rooms.ask(room, "import os\nopen('/root/data', 'wb').write(os.urandom(8 << 20))\nresult = 1")
    with await rooms.driver.disks.scratch(4) as small:
        target = Path(f"/proc/self/fd/{small.mount_fd}/snapshot")
        with pytest.raises(StorageFull, match="is full"):
            await room.snapshot(target)
        assert not target.exists() and os.listdir(target.parent) == ["lost+found"]
    assert await rooms.ask(room, "result = 1") == 1


@pytest.mark.parametrize("ends", ["is killed", "is destroyed"])
async def test_a_room_that_ends_meanwhile_gives_no_snapshot(
    rooms: World, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """However long the copy would take: what ends a room does not wait for it."""
    copying = threading.Event()

    def copy(_source: int, _target: int, stop: threading.Event) -> None:
        copying.set()
        assert stop.wait(60)
        raise images.Stopped

    room = await _room(rooms, "first")
    monkeypatch.setattr(images, "copy", copy)
    target = rooms.directory / "data" / "snapshot.img"
    taking = asyncio.create_task(room.snapshot(target))
    assert await asyncio.to_thread(copying.wait, 60)
    if ends == "is killed":
        os.kill(room.pid, signal.SIGKILL)
    else:
        await room.destroy()
    with pytest.raises(Unavailable, match="ended while a snapshot"):
        await taking
    assert not target.exists()


async def test_a_snapshot_that_is_cancelled_leaves_nothing_and_thaws(rooms: World) -> None:
    room = await _room(rooms, "first")
    await rooms.ask(room, "import os\nopen('/root/data', 'wb').write(os.urandom(32 << 20))\nresult = 1")
    target = rooms.directory / "data" / "snapshot.img"
    for number in range(8):
        taking = asyncio.create_task(room.snapshot(target))
        await asyncio.sleep(0.003 * number)
        taking.cancel()
        done = (await asyncio.gather(taking, return_exceptions=True))[0]
        assert target.exists() == (done is None)
        target.unlink(missing_ok=True)
    assert await rooms.ask(room, "result = 1") == 1


async def test_what_is_cancelled_before_a_thread_has_time_for_it_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x")
    made, busy = drafts.Drafts(), threading.Event()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(drafts._AT_ONCE):
        made._syncs.submit(busy.wait)
    with (tmp_path / "image").open("rb") as image:
        draft = await made.copy(image.fileno(), None, tmp_path / "copy")
    publishing = asyncio.create_task(draft.publish())
    await asyncio.sleep(0.01)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    busy.set()
    made.close()
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer, where another test's are collected meanwhile
    assert not (tmp_path / "copy").exists()


async def test_a_copy_that_takes_too_long_is_given_up(rooms: World) -> None:
    room = await _room(rooms, "first")
    rooms.driver.disks._drafts._timeout_s = 0.0
    with pytest.raises(Unavailable, match="was not copied in"):
        await room.snapshot(rooms.directory / "data" / "snapshot.img")
    assert await rooms.ask(room, "result = 1") == 1


KILLED = """
import asyncio, os, sys
from pathlib import Path
from roost.isolation import drafts
from roost.isolation.bundle import Bundle
from roost.isolation.driver import RoomSpec
from roost.model.function import Limits
from tests.integration.test_driver_recovery import start
from tests.support.rooms import host_template

def stop(*_):
    print("copying", flush=True)
    os.kill(os.getpid(), 9)

async def main(data_dir, bundle):
    driver = await start(data_dir, Bundle(bundle))
    template = host_template(data_dir.parent / "template")
    await driver.disks.create(data_dir / "layer.img", 64)
    (data_dir / "run").mkdir()
    room = await driver.create(RoomSpec(id="room", template=template, limits=Limits(), run_dir=data_dir / "run",
                                        layer=data_dir / "layer.img"))
    await room.settled()
    print(dict(room.handle), flush=True)
    drafts.images.copy = stop
    await room.snapshot(data_dir / "snapshot.img")

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


async def test_a_server_killed_in_the_middle_leaves_a_room_that_goes_on_and_no_file(
    bundle: Bundle, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, data_dir, bundle.root], stdout=subprocess.PIPE, cwd=root, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL and killed.stdout.endswith("copying\n")
    handle = eval(killed.stdout.splitlines()[0])
    driver = NamespacesDriver(data_dir, bundle)
    await driver.start()
    room = await driver.recover(handle)
    assert room is not None
    assert not (data_dir / "snapshot.img").exists()
    await room.thaw()
    await room.snapshot(data_dir / "snapshot.img")
    assert (data_dir / "snapshot.img").exists()
    await room.destroy()
    await driver.close()


def _loops(image: Path) -> int:
    found = 0
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += file.read_text().rstrip("\n").removesuffix(" (deleted)") == str(image.resolve())
        except OSError:
            continue
    return found


async def test_a_copy_that_is_named_at_once_and_can_not_last_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk turns out to be full when it is written."""
    (tmp_path / "image").write_bytes(b"x")
    made, before = drafts.Drafts(), len(os.listdir("/proc/self/fd"))
    with (tmp_path / "image").open("rb") as image:
        lasts = (await made.copy(image.fileno(), None, tmp_path / "lasts")).name()
        assert (tmp_path / "lasts").read_bytes() == b"x"
        await lasts
        draft = await made.copy(image.fileno(), None, tmp_path / "full")
        taken = await made.copy(image.fileno(), None, tmp_path / "lasts")
    with pytest.raises(FileExistsError):
        taken.name()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        await draft.name()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "lasts"]
    made.close()
    assert len(os.listdir("/proc/self/fd")) <= before
