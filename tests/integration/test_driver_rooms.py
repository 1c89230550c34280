"""Rooms of each driver: made, limited, frozen, ended, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.isolation.bundle import Bundle
from roost.isolation.cgroups import HELD
from roost.isolation.driver import Mount
from roost.isolation.gvisor import runsc
from roost.isolation.namespaces.zygotes import AGE_S
from roost.model.errors import InvalidArgument, Unavailable
from roost.model.function import GVISOR, NAMESPACES, Limits
from tests.support.rooms import Remains, World, occupied, probe_bundle, world


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest.fixture(params=[NAMESPACES, GVISOR])
async def rooms(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> AsyncIterator[World]:
    async with world(bundle, tmp_path, isolation=request.param) as made:
        yield made


@pytest.fixture
async def forked(bundle: Bundle, tmp_path: Path) -> AsyncIterator[World]:
    """Rooms that are forks: what is about zygotes is the same for all drivers."""
    async with world(bundle, tmp_path) as made:
        yield made


async def test_a_room_has_its_own_root_names_and_processes(rooms: World) -> None:
    room = await rooms.room("first")
    seen = await rooms.ask(
        room,
        """
        import os, socket
        result = {"pid1": open("/proc/1/comm").read().strip(), "uid": os.getuid(), "host": socket.gethostname(),
                  "pids": sorted(int(p) for p in os.listdir("/proc") if p.isdigit())[:1],
                  "cgroup": open("/proc/self/cgroup").read().splitlines()[-1:], "env": dict(os.environ)}
        """,
    )
    inner = rooms.isolation == GVISOR  # its kernel knows no control groups, or those of its own alone
    assert seen.pop("pid1") == ("python3" if inner else "roost-init")
    assert seen.pop("cgroup") in (([], ["1:cpu:/"]) if inner else (["0::/"],))
    assert seen == {"uid": 0, "host": "first", "pids": [1], "env": {}}


async def test_twenty_rooms_at_once_leave_nothing(rooms: World) -> None:
    data_dir = rooms.directory / "data"
    await (await rooms.room("warm")).destroy()
    made = await asyncio.gather(*(rooms.room(f"room-{number}") for number in range(20)))
    answers = await asyncio.gather(*(rooms.ask(room, "import os; result = os.uname().nodename") for room in made))
    assert answers == [room.id for room in made]
    assert len(Remains.of(data_dir).processes) >= 20
    await asyncio.gather(*(room.destroy() for room in made))
    left = Remains.of(data_dir)
    assert occupied(left) == []
    groups = {Path(path).name for path in left.cgroups if not Path(path).name.startswith("roost-")}
    assert len(groups - {HELD}) <= 1


async def test_too_much_memory_is_an_oom_kill_that_is_counted(rooms: World) -> None:
    room = await rooms.room("memory", limits=Limits(memory_mb=64, disk_mb=64))
    with pytest.raises(AssertionError, match="without an answer"):
        await rooms.ask(room, "x = bytearray(256 << 20); result = len(x)")
    assert room.usage().oom_kills >= 1
    assert room.usage().memory_peak_bytes <= 64 << 20


FORK = """
import os, time
children = []
try:
    for _ in range({most}):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        children.append(pid)
except BlockingIOError:
    pass
for pid in children:
    os.kill(pid, 9)
result = len(children)
"""


async def test_processes_are_limited(forked: World) -> None:
    room = await forked.room("pids", limits=Limits(pids=16, disk_mb=64))
    assert 10 <= await forked.ask(room, FORK.format(most=100)) < 16


async def test_a_gvisor_room_has_its_processes_and_ends_with_many_more(bundle: Bundle, tmp_path: Path) -> None:
    """The host's limit counts the kernel's threads too, and without a thread this kernel ends."""
    async with world(bundle, tmp_path, isolation=GVISOR) as rooms:
        room = await rooms.room("pids", limits=Limits(pids=16, disk_mb=64))
        other = await rooms.room("other", limits=Limits(pids=48, disk_mb=64))
        assert await rooms.ask(room, FORK.format(most=16)) == 16
        with pytest.raises(AssertionError, match="without an answer"):
            await rooms.ask(room, FORK.format(most=1000))
        await asyncio.wait_for(room.wait(), 10)
        assert await rooms.ask(other, FORK.format(most=48)) == 48


async def test_cpu_time_is_limited_to_the_quota(rooms: World) -> None:
    room = await rooms.room("cpu", limits=Limits(cpu=0.2, disk_mb=64))
    before = room.usage().cpu_us
    await rooms.ask(room, "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nresult = 0")
    assert room.usage().cpu_us - before < 500_000


async def test_a_full_disk_is_no_space_left(rooms: World) -> None:
    room = await rooms.room("disk", limits=Limits(disk_mb=16))
    for directory in ("/", "/usr", "/tmp"):
        source = f"""
            import errno, os
            try:
                with open({directory!r} + "/fill", "wb") as file:
                    for _ in range(64):
                        file.write(bytes(1 << 20))
                        file.flush()
                result = None
            except OSError as error:
                result = errno.errorcode[error.errno]
            os.unlink({directory!r} + "/fill")
            """
        assert await rooms.ask(room, source) == "ENOSPC"


async def test_open_files_are_limited(rooms: World) -> None:
    room = await rooms.room("files", limits=Limits(open_files=64, disk_mb=64))
    source = """
        import errno, os
        opened = []
        try:
            for _ in range(200):
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            result = [errno.errorcode[error.errno], len(opened) < 64]
        """
    assert await rooms.ask(room, source) == ["EMFILE", True]


async def test_a_frozen_room_uses_no_cpu_and_goes_on_afterwards(rooms: World) -> None:
    room = await rooms.room("freeze")
    source = "import os\nif os.fork() == 0:\n    while True: pass\nresult = 1"
    await rooms.ask(room, source)
    await room.freeze()
    before = room.usage().cpu_us
    await asyncio.sleep(0.2)
    assert room.usage().cpu_us == before
    await room.thaw()
    assert await rooms.ask(room, "result = 2") == 2
    assert room.usage().cpu_us > before


async def test_a_frozen_room_can_be_destroyed(rooms: World) -> None:
    room = await rooms.room("frozen")
    await room.freeze()
    await room.destroy()
    await room.destroy()
    await asyncio.wait_for(room.wait(), 1)


async def test_the_end_of_the_init_ends_the_room(rooms: World) -> None:
    room = await rooms.room("ends")
    await rooms.ask(room, "import os, signal, time\nif os.fork() == 0: time.sleep(600)\nresult = 1")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(room.wait(), 0.1)
    os.kill(room.pid, signal.SIGKILL)
    await asyncio.wait_for(room.wait(), 5)
    async with asyncio.timeout(5):
        while room.usage().pids:
            await asyncio.sleep(0.01)


async def test_a_kept_layer_is_taken_over_by_a_room_with_other_host_ids(rooms: World) -> None:
    layer = rooms.directory / "kept.img"
    await rooms.driver.disks.create(layer, 64)
    first = await rooms.room("before", layer=layer)
    write = """
        import os
        os.makedirs("/root/work")
        open("/root/work/file", "w").write("kept")
        open("/usr/bin/new-tool", "w").write("tool")
        os.rename("/usr/games", "/usr/renamed-games")
        os.unlink("/etc/passwd")
        result = os.stat("/root/work/file").st_uid
        """
    assert await rooms.ask(first, write) == 0
    await first.destroy()
    second = await rooms.room("after", layer=layer)
    assert Path(f"/proc/{second.pid}").stat().st_uid != 0
    read = """
        import os
        stat = os.stat("/root/work/file")
        result = [open("/root/work/file").read(), stat.st_uid, open("/usr/bin/new-tool").read(),
                  os.path.exists("/usr/games"), os.path.isdir("/usr/renamed-games"), os.path.exists("/etc/passwd")]
        """
    assert await rooms.ask(second, read) == ["kept", 0, "tool", False, True, False]
    assert first.handle["cgroup"].rpartition(".")[2] != second.handle["cgroup"].rpartition(".")[2]


async def test_a_layer_that_is_not_there_is_made_here_or_on_another_file_system(rooms: World) -> None:
    with await rooms.driver.disks.scratch(64) as elsewhere:
        for number, directory in enumerate((rooms.directory, Path(f"/proc/self/fd/{elsewhere.mount_fd}"))):
            layer = directory / "new.img"
            room = await rooms.room(f"new-{number}", layer=layer)
            assert await rooms.ask(room, "open('/root/file', 'w').write('kept'); result = 1") == 1
            await room.destroy()
            assert await rooms.driver.disks.released(layer)
            again = await rooms.room(f"again-{number}", layer=layer)
            assert await rooms.ask(again, "result = open('/root/file').read()") == "kept"
            await again.destroy()
            assert await rooms.driver.disks.released(layer)


async def test_a_layer_in_use_is_not_attached_twice(rooms: World) -> None:
    layer = rooms.directory / "kept.img"
    await rooms.driver.disks.create(layer, 64)
    await rooms.room("holder", layer=layer)
    with pytest.raises(Unavailable, match="still in use"):
        await rooms.driver.disks.attach(layer, timeout_s=0.05)


async def test_mounts_are_read_only_or_writable_and_owned_by_the_room(rooms: World) -> None:
    code, volume = rooms.directory / "code", rooms.directory / "volume"
    for directory in (code, volume):
        directory.mkdir()
        (directory / "file").write_text(directory.name)
    (code / "data/deep").mkdir(parents=True)
    inner, outer = Mount(source=volume, target="/code/data/deep"), Mount(source=code, target="/code", read_only=True)
    room = await rooms.room("mounts", mounts=(inner, outer))
    source = """
        import errno, os
        def attempt(path):
            try:
                open(path, "w").write("new")
                return "written"
            except OSError as error:
                return errno.errorcode[error.errno]
        result = [open("/code/file").read(), attempt("/code/other"), attempt("/code/data/deep/other"),
                  os.stat("/code/data/deep/file").st_uid]
        """
    assert await rooms.ask(room, source) == ["code", "EROFS", "written", 0]
    assert (volume / "other").stat().st_uid == 0


async def test_a_volume_on_a_disk_image_is_shared_and_has_its_quota(rooms: World) -> None:
    image = rooms.directory / "volume.img"
    await rooms.driver.disks.create(image, 8)
    volume = (Mount(source=image, target="/volume"),)
    first, second = await asyncio.gather(*(rooms.room(name, mounts=volume) for name in ("one", "two")))
    await rooms.ask(first, "open('/volume/file', 'w').write('shared'); result = 1")
    assert await rooms.ask(second, "result = open('/volume/file').read()") == "shared"
    fill = """
        import errno
        try:
            with open("/volume/fill", "wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
        except OSError as error:
            result = errno.errorcode[error.errno]
        """
    assert await rooms.ask(second, fill) == "ENOSPC"
    await first.destroy()
    await second.destroy()
    assert await rooms.driver.disks.released(image)


async def test_without_runsc_a_gvisor_room_is_refused_and_nothing_less_is_made(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(bundle, tmp_path, isolation=GVISOR) as rooms:
        monkeypatch.setattr(runsc, "_PATH", "/nonexistent")
        with pytest.raises(Unavailable, match="runsc is not installed: apt-get install runsc"):
            await rooms.room("refused")
        assert list((rooms.directory / "run" / "refused").iterdir()) == []
        assert Remains.of(rooms.directory / "data").processes == ()


@pytest.mark.parametrize("target", ["relative", "/", "/a/../b", "/a/./b"])
async def test_a_bad_target_is_refused(rooms: World, target: str) -> None:
    with pytest.raises(InvalidArgument, match="mount target"):
        await rooms.room("bad", mounts=(Mount(source=rooms.directory, target=target),))


async def test_a_room_that_cannot_be_made_says_why_and_leaves_nothing(rooms: World) -> None:
    await (await rooms.room("warm")).destroy()
    data_dir = rooms.directory / "data"
    run_dir = rooms.directory / "run" / "broken"
    with pytest.raises(Unavailable, match=r"mounts: /bin/inside: bin is a link or a file"):
        await rooms.room("broken", mounts=(Mount(source=rooms.directory, target="/bin/inside"),))
    with pytest.raises(Unavailable, match=r"/nowhere cannot be mounted: .*No such file"):
        await rooms.room("broken", mounts=(Mount(source=Path("/nonexistent"), target="/nowhere"),))
    assert list(run_dir.iterdir()) == []
    left = Remains.of(data_dir)
    assert occupied(left) == []
    groups = {Path(path).name for path in left.cgroups if not Path(path).name.startswith("roost-")}
    assert len(groups - {HELD}) <= 1
    assert await rooms.ask(await rooms.room("broken"), "result = 3") == 3


async def test_the_egress_directory_is_at_run_roost(rooms: World) -> None:
    egress = rooms.directory / "egress"
    egress.mkdir()
    accepted = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()
        accepted.set()

    directory = os.open(egress, os.O_PATH)
    server = await asyncio.start_unix_server(accept, f"/proc/self/fd/{directory}/index.sock")
    os.close(directory)
    room = await rooms.room("egress", egress_dir=egress)
    source = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/roost/index.sock')\nresult = 1"
    assert await rooms.ask(room, source) == 1
    await asyncio.wait_for(accepted.wait(), 5)
    server.close()
    await server.wait_closed()


async def test_a_zygote_that_was_killed_is_replaced(forked: World) -> None:
    first = await forked.room("first")
    (zygote,) = _zygotes()
    os.kill(zygote, signal.SIGKILL)
    async with asyncio.timeout(10):
        while zygote in _zygotes():
            await asyncio.sleep(0.01)
    second = await forked.room("second")
    assert [await forked.ask(room, "result = 1") for room in (first, second)] == [1, 1]


async def test_a_guest_that_does_not_import_is_told(bundle: Bundle, tmp_path: Path) -> None:
    async with world(bundle, tmp_path) as made:
        made.driver.guest = "no_such_guest"
        with pytest.raises(Unavailable, match="No module named 'no_such_guest'"):
            await made.room("guest")


async def test_who_comes_while_it_is_made_finds_the_network_of_the_room(forked: World) -> None:
    """And not the zygote's, in which its first process was forked."""
    for number in range(8):
        limits = Limits(disk_mb=64, memory_mb=256 + number)  # so there is none that waits
        room = await forked.drivers.create(forked.spec(f"begun-{number}", limits=limits))
        try:
            (await forked.driver.open_door(room)).close()
        finally:
            await room.destroy()


async def test_destroying_while_being_made_is_clean(rooms: World) -> None:
    await (await rooms.room("warm")).destroy()
    data_dir = rooms.directory / "data"
    for number in range(6):
        task = asyncio.create_task(rooms.drivers.create(rooms.spec(f"cancelled-{number}")))
        await asyncio.sleep(0.001 * number)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(done, BaseException):
            await done.destroy()
    deadline = asyncio.get_running_loop().time() + 10
    while Remains.of(data_dir).processes and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    left = Remains.of(data_dir)
    assert occupied(left) == []
    groups = {Path(path).name for path in left.cgroups if not Path(path).name.startswith("roost-")}
    assert len(groups - {HELD}) <= 1


@pytest.mark.parametrize("why", ["many", "old"])
async def test_a_zygote_that_made_many_rooms_or_is_old_has_a_successor(forked: World, why: str) -> None:
    zygotes = forked.driver._zygotes
    if why == "many":
        zygotes._rooms_each = 2
    first = await forked.room("first")
    (before,) = _zygotes()
    if why == "old":
        zygotes._clock = lambda: time.monotonic() + AGE_S
    second = await forked.room("second")
    async with asyncio.timeout(10):
        while before in _zygotes():
            await asyncio.sleep(0.01)
    third = await forked.room("third")
    assert [await forked.ask(room, "result = 1") for room in (first, second, third)] == [1, 1, 1]
    assert len(_zygotes()) == 1


async def test_templates_that_are_not_used_are_not_kept_warm(forked: World) -> None:
    forked.driver._zygotes._most = 2
    for number in range(4):
        await forked.driver.warm(dataclasses.replace(forked.template, name=f"template-{number}"))
    assert len(_zygotes()) == 2


def _zygotes() -> set[int]:
    """Process ids of this process' zygotes."""
    found = set()
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text() == "roost-zygote\n":
                found.add(int(pid))
    return found
