"""The second wall: what it keeps from a room where every other defence has failed, and what it lets a good one do."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from roost.isolation import landlock, seccomp
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.room import NamespacesRoom
from tests.support.rooms import WEAK, World, probe_bundle, world

pytestmark = pytest.mark.asyncio(loop_scope="module")
Rooms = dict[str, tuple[World, NamespacesRoom]]

CALL = """
import ctypes, os, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
def tried(work):
    try:
        work()
    except OSError as error:
        return error.errno
    return 0
def mount():
    os.makedirs("/root/mounted", exist_ok=True)
    if libc.mount(b"none", b"/root/mounted", b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    libc.umount2(b"/root/mounted", 2)
def node(kind):
    def make():
        os.mknod("/dev/shm/node", kind | 0o600, os.makedev(0, 0))
        os.unlink("/dev/shm/node")
    return make
result = tried({work})
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooms(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rooms]:
    """`strong` is the product's; `bare` has that wall alone; `weak` has nothing, `open` all but that wall."""
    bundle = probe_bundle(tmp_path_factory)
    base: Path = tmp_path_factory.mktemp("rooms")
    product = RoomPolicy(seccomp=seccomp.program())
    policies = {
        "strong": product,
        "open": replace(product, landlock=False),
        "bare": replace(WEAK, landlock=True),
        "weak": WEAK,
    }
    async with (
        world(bundle, base / "strong", policies["strong"], alone=False) as strong,
        world(bundle, base / "open", policies["open"], alone=False) as unwalled,
        world(bundle, base / "bare", policies["bare"], alone=False) as bare,
        world(bundle, base / "weak", policies["weak"], alone=False) as weak,
    ):
        worlds = {"strong": strong, "open": unwalled, "bare": bare, "weak": weak}
        yield {name: (made, await made.room(name)) for name, made in worlds.items()}


async def ask(rooms: Rooms, name: str, source: str) -> object:
    made, room = rooms[name]
    return await made.ask(room, source)


async def test_this_kernel_has_it() -> None:
    assert landlock.abi() >= landlock.OLDEST


@pytest.mark.parametrize(
    ("work", "refused"),
    [
        ("mount", errno.EPERM),
        ("node(stat.S_IFCHR)", errno.EACCES),
        ("node(stat.S_IFBLK)", errno.EACCES),
    ],
)
async def test_it_holds_where_nothing_else_does(rooms: Rooms, work: str, refused: int) -> None:
    assert await ask(rooms, "bare", CALL.format(work=work)) == refused
    assert await ask(rooms, "weak", CALL.format(work=work)) == 0


async def test_the_product_s_rooms_are_behind_it(rooms: Rooms) -> None:
    """A character device 0:0 is one that anybody may make otherwise, on a tmpfs at least."""
    assert await ask(rooms, "strong", CALL.format(work="node(stat.S_IFCHR)")) == errno.EACCES
    assert await ask(rooms, "open", CALL.format(work="node(stat.S_IFCHR)")) == 0


OUTSIDE = """
import ctypes, os, signal, socket, struct, time
def restricted():
    # A domain of its own, as a process outside the room's would have another.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    attributes = struct.pack("QQQ", 0, 0, 3)
    ruleset = libc.syscall(444, attributes, 24, 0)
    return libc.syscall(446, ruleset, 0)
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.bind("\\0roost-outside")
server.listen()
read, write = os.pipe()
parent = os.getpid()
child = os.fork()
if child == 0:
    found = [restricted()]
    for work in (
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect("\\0roost-outside"),
        lambda: os.kill(parent, 0),
    ):
        try:
            work()
            found.append(0)
        except OSError as error:
            found.append(error.errno)
    os.write(write, repr(found).encode())
    os._exit(0)
os.waitpid(child, 0)
result = eval(os.read(read, 100))
"""


async def test_a_room_s_own_programs_can_build_walls_too(rooms: Rooms) -> None:
    assert await ask(rooms, "strong", OUTSIDE) == [0, errno.EPERM, errno.EPERM]


ORDINARY = """
import fcntl, os, pty, signal, socket, struct, termios
os.makedirs("/root/a", exist_ok=True)
os.makedirs("/root/b", exist_ok=True)
open("/root/a/file", "w").write("moved")
os.rename("/root/a/file", "/root/b/file")
os.rename("/root/b", "/root/a/b")
os.link("/root/a/b/file", "/tmp/linked") if os.stat("/tmp").st_dev == os.stat("/root").st_dev else None
os.mkfifo("/root/fifo")
os.symlink("file", "/root/a/b/symlink")
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
size = fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8))
null = os.open("/dev/null", os.O_RDWR)
try:
    termios.tcgetattr(null)
except termios.error as error:
    no_terminal = error.args[0]
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.bind("\\0own")
server.listen()
socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect("\\0own")
child = os.fork()
if child == 0:
    signal.pause()
os.kill(child, signal.SIGTERM)
result = [open("/root/a/b/symlink").read(), struct.unpack("HHHH", size)[:2], no_terminal, os.waitpid(child, 0)[1]]
"""


async def test_ordinary_work_goes_on_as_ever(rooms: Rooms) -> None:
    expected = ["moved", [24, 80], errno.ENOTTY, 15]
    assert await ask(rooms, "strong", ORDINARY) == expected
    assert await ask(rooms, "open", ORDINARY) == expected
