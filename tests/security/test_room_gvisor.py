"""What differs where a room's programs run on gVisor's kernel: it answers, and nothing of it reaches the host.

It says "done" to some of what it then does not do, so the host is what is looked at.
"""

from __future__ import annotations

import glob
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost.isolation.driver import ROOT_CAPABILITIES, Mount
from roost.isolation.namespaces.room import NamespacesRoom
from roost.model.function import GVISOR
from tests.support.rooms import World, probe_bundle, world

pytestmark = pytest.mark.asyncio(loop_scope="module")
Made = tuple[World, NamespacesRoom, Path]

TRIED = """
import os
def tried(call, *arguments):
    try:
        return call(*arguments) or "done"
    except OSError as error:
        return error.errno
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Made]:
    bundle = probe_bundle(tmp_path_factory)
    folder: Path = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o600)
    mounts = (Mount(source=folder, target="/host", idmap=False), Mount(source=folder, target="/volume"))
    async with world(bundle, tmp_path_factory.mktemp("rooms"), alone=False, isolation=GVISOR) as inner:
        yield inner, await inner.room("inner", mounts=mounts, capabilities=ROOT_CAPABILITIES), folder


async def test_another_kernel_answers(made: Made) -> None:
    inner, room, _ = made
    source = "result = [os.uname().release, open('/proc/version').read(), open('/proc/cmdline').read()]"
    release, version, line = await inner.ask(room, "import os\n" + source)
    assert release != os.uname().release and os.uname().release not in version
    assert line != Path("/proc/cmdline").read_text()


async def test_every_process_of_it_is_nobody_on_the_host(made: Made) -> None:
    """The kernel, what opens files for it, and all that they started have ids of the room's own range."""
    inner, room, _ = made
    await inner.ask(room, "import os, time\nif os.fork() == 0: time.sleep(600)\nresult = 1")
    base = Path(f"/proc/{room.pid}").stat().st_uid
    [group, *_] = glob.glob(f"/sys/fs/cgroup/**/{room.handle['cgroup']}/in/cgroup.procs", recursive=True)
    pids = Path(group).read_text().split()
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    assert len(pids) >= 5  # the first one, runsc, the kernel, what opens files for it, a program
    for status in statuses:
        real, *others = (int(word) for word in status.partition("Uid:")[2].split()[:4])
        assert base <= real < base + 65536 and set(others) == {real}
        assert "NoNewPrivs:\t1" in status


async def test_files_of_the_host_are_what_they_were(made: Made) -> None:
    inner, room, folder = made
    source = """
result = [tried(lambda: open("/host/secret").read()), tried(lambda: open("/host/secret", "w").close()),
          tried(lambda: open("/host/new", "w").close()), tried(os.unlink, "/host/secret")]
for call in (lambda: os.chown("/host/secret", 1000, 1000), lambda: os.chmod("/host/secret", 0o666),
             lambda: os.chown("/volume", 65536, 0), lambda: os.chown("/volume", 0, 0x10000000)):
    tried(call)
"""
    assert await inner.ask(room, TRIED + source) == [13, 13, 13, 13]
    about = (folder / "secret").stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (0, 0, 0o600)
    assert (folder / "secret").read_text() == "secret" and (folder.stat().st_uid, folder.stat().st_gid) == (0, 0)
    assert os.listdir(folder) == ["secret"]


async def test_devices_are_the_kernel_s_own(made: Made) -> None:
    """In its memory it lets nodes be made, of devices that it has; on disks of the host none is."""
    inner, room, folder = made
    source = """
import stat
result = []
for place in ("/tmp", "/root", "/volume", "/dev", "/run"):
    for kind, number in ((stat.S_IFBLK, os.makedev(7, 0)), (stat.S_IFCHR, os.makedev(1, 1))):
        path = place + "/roost-device"
        answer = tried(os.mknod, path, kind | 0o666, number)
        result.append(answer if answer != "done" else tried(os.open, path, os.O_RDWR))
        tried(os.unlink, path)
"""
    assert await inner.ask(room, TRIED + source) == [1] * 6 + [6] * 4
    assert not (folder / "roost-device").exists()


async def test_it_has_no_way_out(made: Made) -> None:
    inner, room, _ = made
    source = """
import socket
result = [tried(socket.socket, family, kind).__class__.__name__ for family, kind in
          ((socket.AF_PACKET, socket.SOCK_RAW), (40, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_RAW))]
result.append([line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]])
"""
    assert await inner.ask(room, TRIED + source) == ["int", "int", "int", ["lo"]]


async def test_a_room_that_takes_no_connections_keeps_none_from_others(made: Made) -> None:
    """They wait in its own sockets' backlogs; what it writes to where they come from is read by nobody."""
    inner, _, _ = made
    stuck, other = await inner.room("stuck"), await inner.room("other")
    source = """
import os, signal
os.kill(1, signal.SIGSTOP)
for fd in os.listdir("/proc/1/fd"):
    tried(lambda: os.write(os.open(f"/proc/1/fd/{fd}", os.O_WRONLY), bytes(1 << 16)))
result = 1
"""
    assert await inner.ask(stuck, TRIED + source) == 1
    assert await inner.ask(other, "result = 2") == 2
    await stuck.destroy()
