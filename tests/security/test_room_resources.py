"""What a room may use up is its own: memory of every kind, descriptors, and what the kernel counts by user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost.isolation.bundle import Bundle
from roost.model.function import Limits
from tests.support.rooms import WEAK, World, probe_bundle, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: `used_up(make)`: how many could be made, and what the next one said. What was made is held while the room lives.
USED_UP = """
import ctypes, errno, os, time
libc = ctypes.CDLL(None, use_errno=True)
def used_up(make, most=3000):
    held = 0
    while held < most:
        if make(held) < 0:
            break
        held += 1
    said = errno.errorcode.get(ctypes.get_errno(), "")
    if os.fork() == 0:
        time.sleep(600)
    return [held, said]
"""
MQ = "ctypes.CDLL('librt.so.1', use_errno=True)"
COUNTED = {
    "inotify instances": "used_up(lambda n: libc.inotify_init1(0))",
    "message queues": f"used_up(lambda n, rt={MQ}: rt.mq_open(b'/q%d' % n, os.O_CREAT | os.O_RDWR, 0o600, None))",
    "locked memory": "used_up(lambda n: libc.mlock(ctypes.create_string_buffer(1 << 20), 1 << 20) if n < 7 else -1)",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooms(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(bundle, tmp_path_factory.mktemp("rooms"), alone=False) as made:
        yield made


@pytest.mark.parametrize("kind", COUNTED)
async def test_what_the_kernel_counts_by_user_is_a_room_s_own(rooms: World, kind: str) -> None:
    name = kind.replace(" ", "-")
    one, other = await rooms.room(f"{name}-1"), await rooms.room(f"{name}-2")
    source = f"{USED_UP}\nresult = {COUNTED[kind]}"
    first = await rooms.ask(one, source)
    assert 0 < first[0] < 3000
    assert await rooms.ask(other, source) == first  # as many as if the other had none
    await one.destroy()
    await other.destroy()


async def test_without_users_of_their_own_they_would_share(bundle: Bundle, tmp_path: Path) -> None:
    """The positive control. Message queues: nothing else on the machine needs those."""
    async with world(bundle, tmp_path, WEAK, alone=False) as weak:
        source = f"{USED_UP}\nresult = {COUNTED['message queues']}"
        first = await weak.ask(await weak.room("one"), source)
        second = await weak.ask(await weak.room("two"), source)
        assert second[0] < first[0]


TOUCH = "for at in range(0, 160 << 20, 4096): held[at] = 1"
MEMORY = {
    "of its own": "held = bytearray(os.urandom(1 << 20)) * 160",
    "of a file without a name": f"""
import mmap
fd = os.memfd_create("x")
os.ftruncate(fd, 160 << 20)
held = mmap.mmap(fd, 160 << 20)
{TOUCH}
""",
    "shared": f"import mmap\nheld = mmap.mmap(-1, 160 << 20)\n{TOUCH}",
    "of pipes": """
import fcntl
held = []
for _ in range(160):
    ends = os.pipe()
    fcntl.fcntl(ends[1], 1031, 1 << 20)
    held.append((ends, os.write(ends[1], bytes(1 << 20))))
""",
}


@pytest.mark.parametrize("kind", MEMORY)
async def test_memory_of_every_kind_counts(rooms: World, kind: str) -> None:
    """160 MB in a room of 96 end somebody there, or are refused; in one of 512 they are had, but for what is refused
    to all."""
    name = kind.replace(" ", "-")
    source = f"""
    import os, signal
    child = os.fork()
    if child == 0:
        try:
            exec({MEMORY[kind]!r})
        except OSError:
            os._exit(3)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    result = code
    """
    small = await rooms.room(f"small-{name}", limits=Limits(memory_mb=96, disk_mb=64))
    ended = await rooms.ask(small, source)
    assert ended in {-9, 3}
    assert (ended == 3) or small.usage().oom_kills > 0
    assert await rooms.ask(small, "result = 1") == 1  # the room goes on
    await small.destroy()
    if ended == -9:
        large = await rooms.room(f"large-{name}", limits=Limits(memory_mb=512, disk_mb=64))
        assert await rooms.ask(large, source) == 0
        await large.destroy()


async def test_a_file_system_in_memory_ends_before_the_room_does(rooms: World) -> None:
    room = await rooms.room("shm", limits=Limits(memory_mb=128, disk_mb=64))
    source = """
    import os
    written = 0
    with open("/dev/shm/x", "wb", 0) as file:
        try:
            while written < 512:
                file.write(bytes(1 << 20))
                written += 1
        except OSError as error:
            result = [written, error.errno]
    os.unlink("/dev/shm/x")
    """
    written, why = await rooms.ask(room, source)
    assert written <= 64
    assert why == 28
    await room.destroy()


async def test_a_file_of_a_terabyte_takes_no_more_than_the_disk(rooms: World) -> None:
    room = await rooms.room("sparse")
    source = """
    import errno, mmap, os
    said = []
    with open("/tmp/x", "wb+") as file:
        try:
            os.ftruncate(file.fileno(), 1 << 40)
            for at in range(0, 1 << 40, 1 << 30):
                os.pwrite(file.fileno(), bytes(1 << 20), at)
        except OSError as error:
            said.append(errno.errorcode[error.errno])
    os.unlink("/tmp/x")
    with open("/tmp/y", "w") as file:
        said.append(file.write("there is room again"))
    result = said
    """
    said = await rooms.ask(room, source)
    assert said[0] in {"EFBIG", "ENOSPC"}
    assert said[1] == 19
    await room.destroy()


async def test_descriptors_on_their_way_are_limited(rooms: World) -> None:
    """Sent and never received, they are in no table of any process."""
    room, other = await rooms.room("rights"), await rooms.room("beside")
    source = """
    import array, errno, os, socket
    null = os.open("/dev/null", os.O_RDONLY)
    sent, said, held = 0, "", []
    try:
        while sent < 200_000:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            held.append(ends)
            for end in ends:
                end.setblocking(False)
            try:
                while sent < 200_000:
                    rights = array.array("i", [null] * 200)
                    ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                    sent += 200
            except BlockingIOError:
                continue
    except OSError as error:
        said = errno.errorcode[error.errno]
    result = [sent, said]
    """
    sent, said = await rooms.ask(room, source)
    assert said in {"ETOOMANYREFS", "EMFILE"}
    assert sent < 200_000
    few = source.replace("200_000", "600")
    assert await rooms.ask(other, few) == [600, ""]
    await room.destroy()
    await other.destroy()
