"""Users of a room whose root keeps power over the room's own files and processes, as sandboxes have them.

Root of the room is nobody outside, and a process that became another user is that for good. The positive control is a
room without user namespace, no_new_privs and nosuid, whose root is the host's: there the same attempt succeeds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost.isolation.bundle import Bundle
from roost.isolation.driver import ROOT_CAPABILITIES, Mount
from roost.isolation.linux import CAPABILITIES
from roost.isolation.namespaces.room import NamespacesRoom
from roost.isolation.templates import host
from roost.model.errors import InvalidArgument
from roost.model.function import GVISOR, NAMESPACES
from tests.support.rooms import WEAK, World, probe_bundle, world

pytestmark = pytest.mark.asyncio(loop_scope="module")
Pair = list[tuple[World, NamespacesRoom]]

#: Runs `attempt` (defined by what follows) as uid 1000, in a child; its answer is `result`.
AS_USER = """
import json, os
def as_user(attempt):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([1000])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            answer = attempt()
        except OSError as error:
            answer = type(error).__name__
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        return json.load(pipe)
def tried(call, *arguments):
    try:
        return call(*arguments) or "done"
    except OSError as error:
        return type(error).__name__
"""
SETS = """
def sets(text):
    fields = dict(line.split(":\\t", 1) for line in text.splitlines() if ":\\t" in line)
    return [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")]
def own():
    return sets(open("/proc/self/status").read())
def executed():
    import subprocess
    return sets(subprocess.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True).stdout)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the host that both rooms have at /host, as it is, and at /volume, with the room's own ids."""
    made = tmp_path_factory.mktemp("host")
    made.chmod(0o755)
    (made / "secret").write_text("secret")
    (made / "secret").chmod(0o600)
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(bundle: Bundle, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A room as sandboxes have it, and a weak one."""
    base: Path = tmp_path_factory.mktemp("rooms")
    strong_world, weak_world = (world(bundle, base / n, p, alone=False) for n, p in (("strong", None), ("weak", WEAK)))
    async with strong_world as strong, weak_world as weak:
        yield [(one, await _sandbox(one, folder)) for one in (strong, weak)]


async def _sandbox(made: World, folder: Path) -> NamespacesRoom:
    mounts = (Mount(source=folder, target="/host", idmap=False), Mount(source=folder, target="/volume"))
    made.template = host.prepare(made.directory / "host", boot_id="users")
    return await made.room("sandbox", mounts=mounts, capabilities=ROOT_CAPABILITIES)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[NAMESPACES, GVISOR])
async def either(
    request: pytest.FixtureRequest, pair: Pair, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    """The same with a room of each driver: what both keep in their own way."""
    if request.param == NAMESPACES:
        yield pair
        return
    base: Path = tmp_path_factory.mktemp("inner")
    async with world(probe_bundle(tmp_path_factory), base, alone=False, isolation=GVISOR) as inner:
        yield [(inner, await _sandbox(inner, folder)), pair[1]]


async def both(pair: Pair, source: str) -> list[object]:
    return [await made.ask(room, source) for made, room in pair]


async def test_root_and_its_programs_keep_what_was_asked_for_and_nothing_else(pair: Pair) -> None:
    made, room = pair[0]
    wanted = sum(1 << CAPABILITIES[name] for name in ROOT_CAPABILITIES)
    answers = await made.ask(room, SETS + "result = [own(), executed()]")
    assert answers == [[0, wanted, wanted, wanted, 0, 1]] * 2
    fewer = await made.room("fewer", capabilities=frozenset({"CHOWN", "SETUID"}))
    assert (await made.ask(fewer, SETS + "result = own()"))[1:4] == [1 << 0 | 1 << 7] * 3


async def test_another_user_has_nothing_and_gains_nothing_by_executing(pair: Pair) -> None:
    strong, weak = await both(pair, AS_USER + SETS + "result = [as_user(own), as_user(executed)]")
    assert isinstance(strong, list) and isinstance(weak, list)
    for inherited, permitted, effective, _, ambient, no_new_privileges in strong:
        assert [inherited, permitted, effective, ambient, no_new_privileges] == [0, 0, 0, 0, 1]
    assert weak[0][1] != 0


@pytest.mark.parametrize(
    "attempt",
    [
        "os.setuid(0)",
        "os.seteuid(0)",
        "os.setreuid(0, 0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.chown('/home/user', 0, 0)",
        "open('/root/secret', 'w').close()",
        "os.kill(1, 0)",
        "open('/proc/1/mem', 'rb').close()",
    ],
)
async def test_another_user_is_no_root(either: Pair, attempt: str) -> None:
    strong, weak = await both(either, AS_USER + f"result = as_user(lambda: tried(lambda: {attempt}))")
    assert strong == "PermissionError"
    assert weak != "PermissionError"


async def test_another_user_does_not_see_what_root_has_open(pair: Pair) -> None:
    """gVisor's kernel lets it see the names."""
    strong, weak = await both(pair, AS_USER + "result = as_user(lambda: tried(os.listdir, '/proc/1/fd'))")
    assert strong == "PermissionError"
    assert weak != "PermissionError"


@pytest.mark.parametrize("place", ["/tmp", "/usr/bin", "/run", "/dev/shm", "/volume"])
async def test_setuid_bits_are_void_everywhere(either: Pair, place: str) -> None:
    path = f"{place}/roost-id"
    source = f"""
def attempt():
    import subprocess
    return subprocess.run([{path!r}, "-u"], capture_output=True, text=True).stdout.strip()
import shutil
shutil.copy("/usr/bin/id", {path!r})
os.chown({path!r}, 0, 0)
os.chmod({path!r}, 0o6755)
result = [os.stat({path!r}).st_mode & 0o7777, as_user(attempt)]
os.unlink({path!r})
"""
    strong, weak = await both(either, AS_USER + source)
    assert strong == [0o6755, "1000"]
    if place not in ("/run", "/dev/shm"):  # mounts that no policy weakens
        assert weak == [0o6755, "0"]


async def test_root_of_the_room_has_no_power_over_files_of_the_host(pair: Pair, folder: Path) -> None:
    source = """
    result = [tried(lambda: open("/host/secret").read()), tried(os.chown, "/host/secret", 1000, 1000),
              tried(os.chmod, "/host/secret", 0o666), tried(lambda: open("/host/new", "w").close()),
              tried(lambda: open("/proc/sys/vm/swappiness", "w").close())]
    """.replace("\n    ", "\n")
    strong, weak = await both(pair, AS_USER + source)
    assert strong == ["PermissionError"] * 4 + ["OSError"]
    assert weak == ["secret", "done", "done", "done", "done"]
    (folder / "new").unlink()


async def test_owners_in_a_volume_are_the_rooms_own(pair: Pair, folder: Path) -> None:
    """On the host's disk they are plain ids, whatever range the room has; no id beyond 65535 can be given."""
    made, room = pair[0]
    source = """
os.mkdir("/volume/mine")
os.chown("/volume/mine", 1000, 1000)
as_user(lambda: open("/volume/mine/file", "w").close())
result = [tried(os.chown, "/volume/mine", 65536, 0), tried(os.chown, "/volume/mine", 0, 0x10000000)]
"""
    assert await made.ask(room, AS_USER + source) == ["OSError", "OSError"]
    assert (folder / "mine/file").stat().st_uid == 1000
    layer = made.directory / "owned.img"
    await made.driver.disks.create(layer, 16)
    await made.room("owned", layer=layer, capabilities=ROOT_CAPABILITIES)
    about = layer.stat()
    assert about.st_uid == 0 and stat.S_IMODE(about.st_mode) == 0o600


async def test_no_device_can_be_made(pair: Pair) -> None:
    source = """
        import os, stat
        result = []
        for place in ("/tmp", "/root", "/dev", "/run", "/volume"):
            for kind in (stat.S_IFCHR, stat.S_IFBLK):
                try:
                    os.mknod(place + "/device", kind | 0o666, os.makedev(1, 3))
                    result.append("made")
                    os.unlink(place + "/device")
                except OSError as error:
                    result.append(type(error).__name__)
        """
    strong, weak = await both(pair, source)
    assert strong == ["PermissionError"] * 10
    assert weak == ["made"] * 10


async def test_root_signals_its_own_users_and_nobody_else(either: Pair) -> None:
    source = f"""
import signal, time
child = os.fork()
if child == 0:
    os.setresuid(1000, 1000, 1000)
    time.sleep(60)
time.sleep(0.05)
result = [tried(os.kill, child, signal.SIGKILL), os.waitpid(child, 0)[1], tried(os.kill, {os.getpid()}, 0)]
"""
    made, room = either[0]
    assert await made.ask(room, AS_USER + source) == ["done", 9, "ProcessLookupError"]


async def test_another_user_has_a_terminal(pair: Pair) -> None:
    """One that it opened, and one that root opened and gave it, as a daemon does for a shell."""
    source = """
import fcntl, pty, stat, termios
def session(slave):
    child = os.fork()
    if child == 0:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        name = os.ttyname(slave)
        again, controlling = os.open(name, os.O_RDWR), os.open("/dev/tty", os.O_RDWR)
        os.write(controlling, b"tty")
        os.write(again, b"name")
        os._exit(0)
    return os.waitpid(child, 0)[1]
def written(master):
    found = b""
    while len(found) < len(b"ttyname"):  # it arrives in parts
        found += os.read(master, 16)
    return found.decode()
def attempt():
    master, slave = pty.openpty()
    about = os.fstat(slave)
    ended = session(slave)
    return [ended, written(master) if not ended else "", about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)]
master, slave = pty.openpty()
os.fchown(slave, 1000, 5)
result = [as_user(attempt), as_user(lambda: session(slave)), written(master)]
"""
    made, room = pair[0]
    assert await made.ask(room, AS_USER + source) == [[0, "ttyname", 1000, 5, 0o620], 0, "ttyname"]


async def test_places_of_users_are_as_programs_expect_them(either: Pair) -> None:
    source = """
import socket
server = socket.socket(socket.AF_UNIX)
server.bind("/run/service.sock")
os.chmod("/run/service.sock", 0o666)
server.listen()
def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/service.sock")
open("/tmp/of-root", "w").close()
os.mkdir("/run/user")
os.chown("/run/user", 1000, 1000)
def own(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
result = {
    "home": [os.stat("/home/user").st_uid, as_user(lambda: tried(lambda: open("/home/user/file", "w").close()))],
    "run": [as_user(lambda: tried(connect)), as_user(lambda: tried(own, "/run/mine.sock")),
            as_user(lambda: tried(own, "/run/user/mine.sock"))],
    "tmp": [os.stat("/tmp").st_mode & 0o7777, as_user(lambda: tried(own, "/tmp/mine.sock")),
            as_user(lambda: tried(os.unlink, "/tmp/of-root"))],
    "shm": os.stat("/dev/shm").st_mode & 0o7777,
    "null": as_user(lambda: tried(lambda: open("/dev/null", "w").close())),
}
"""
    made, room = either[0]
    assert await made.ask(room, AS_USER + source) == {
        "home": [1000, "done"],
        "run": ["done", "PermissionError", "done"],
        "tmp": [0o1777, "done", "PermissionError"],
        "shm": 0o1777,
        "null": "done",
    }


@pytest.mark.parametrize("name", ["SYS_ADMIN", "SETPCAP", "MKNOD", "chown", "NET_ADMIN"])
async def test_no_other_capability_can_be_asked_for(either: Pair, name: str) -> None:
    made, _ = either[0]
    with pytest.raises(InvalidArgument, match=f"can't have the capability {name}"):
        await made.room("refused", capabilities=frozenset({name, "CHOWN"}))
