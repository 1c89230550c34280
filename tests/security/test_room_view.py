"""What a room's processes can see and change: of the host, of the kernel, of other rooms and of later ones."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost.isolation.bundle import Bundle
from roost.isolation.driver import Mount
from roost.isolation.namespaces.room import NamespacesRoom
from roost.model.function import GVISOR, NAMESPACES
from tests.support.rooms import WEAK, World, probe_bundle, world
from tests.support.sources import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
Pair = list[tuple[World, NamespacesRoom]]

OPEN = """
import os
try:
    os.close(os.open({path!r}, os.{mode}))
    result = "opened"
except OSError as error:
    result = type(error).__name__
"""
READ = "result = open({path!r}, errors='replace').read()"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A room as it should be, and a weak one."""
    base: Path = tmp_path_factory.mktemp("rooms")
    strong_world, weak_world = (world(bundle, base / n, p, alone=False) for n, p in (("strong", None), ("weak", WEAK)))
    async with strong_world as strong, weak_world as weak:
        yield [(strong, await strong.room("strong")), (weak, await weak.room("weak"))]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[NAMESPACES, GVISOR])
async def either(
    request: pytest.FixtureRequest, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    """The same with a room of each driver: what both keep in their own way."""
    if request.param == NAMESPACES:
        yield pair
        return
    base: Path = tmp_path_factory.mktemp("inner")
    async with world(probe_bundle(tmp_path_factory), base, alone=False, isolation=GVISOR) as inner:
        yield [(inner, await inner.room("strong")), pair[1]]


async def both(pair: Pair, source: str) -> list[object]:
    return [await made.ask(room, source) for made, room in pair]


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/file-max",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/kernel/random/boot_id",
    ],
)
async def test_the_kernel_cannot_be_set(either: Pair, path: str) -> None:
    strong, weak = await both(either, OPEN.format(path=path, mode="O_WRONLY"))
    # gVisor's kernel has few of these settings.
    assert strong in (
        "OSError",
        "PermissionError",
        *(["FileNotFoundError"] if either[0][0].isolation == GVISOR else []),
    )
    if not path.endswith("boot_id"):
        assert weak == "opened"


@pytest.mark.parametrize(
    "path", ["/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/sysrq-trigger", "/dev/mem", "/dev/kmsg"]
)
async def test_the_kernel_cannot_be_read(either: Pair, path: str) -> None:
    strong, _ = await both(either, OPEN.format(path=path, mode="O_RDONLY"))
    assert strong in ("PermissionError", "FileNotFoundError")


@pytest.mark.parametrize("path", ["/proc/cmdline", "/proc/keys", "/proc/key-users", "/proc/kallsyms"])
async def test_the_kernel_is_not_told_about(pair: Pair, path: str) -> None:
    strong, weak = await both(pair, READ.format(path=path))
    assert strong == "" and weak != ""


async def test_directories_about_the_host_are_empty(pair: Pair) -> None:
    source = "import os\nresult = {name: os.listdir('/proc/' + name) for name in ('bus', 'fs', 'irq', 'driver')}"
    strong, weak = await both(pair, source)
    assert isinstance(strong, dict) and isinstance(weak, dict)
    assert not any(strong.values()) and all(weak[name] for name in ("fs", "irq"))


async def test_each_room_has_a_boot_id_of_its_own(pair: Pair) -> None:
    host = Path("/proc/sys/kernel/random/boot_id").read_text()
    strong, weak = await both(pair, READ.format(path="/proc/sys/kernel/random/boot_id"))
    assert strong != host and weak == host


async def test_only_own_processes_are_seen(either: Pair) -> None:
    made, room = either[0]
    source = "import os\nresult = sorted(int(p) for p in os.listdir('/proc') if p.isdigit())"
    pids = await made.ask(room, source)
    assert pids[0] == 1 and len(pids) == 2


async def test_no_cgroup_and_no_sysfs_is_there(pair: Pair) -> None:
    made, room = pair[0]
    mounts = await made.ask(room, READ.format(path="/proc/self/mounts"))
    kinds = {line.split()[2] for line in mounts.splitlines()}
    assert kinds <= {"overlay", "tmpfs", "proc", "devpts", "ext4", "xfs", "btrfs"}
    options = [line.split()[3].split(",") for line in mounts.splitlines()]
    assert all("nosuid" in option for option in options)


async def test_the_init_holds_its_two_sockets_and_nothing_else(pair: Pair) -> None:
    made, room = pair[0]
    source = "import os\nresult = {fd: os.readlink('/proc/1/fd/' + fd) for fd in os.listdir('/proc/1/fd')}"
    found = await made.ask(room, source)
    sockets = {fd for fd, target in found.items() if target.startswith("socket:")}
    assert {fd: found[fd] for fd in "012"} == dict.fromkeys("012", "/dev/null")
    assert {"3", "4"} <= sockets and set(found) - {"0", "1", "2"} - sockets == set()


async def test_on_the_host_the_room_is_nobody(either: Pair) -> None:
    ids = []
    for _, room in either:
        status = Path(f"/proc/{room.pid}/status").read_text()
        ids.append(int(status.partition("Uid:")[2].split()[0]))
    assert ids[0] >= 0x10000000 and ids[1] == 0


async def test_two_rooms_have_different_host_ids(either: Pair) -> None:
    made, room = either[0]
    other = await made.room("other")
    assert Path(f"/proc/{room.pid}").stat().st_uid // 65536 != Path(f"/proc/{other.pid}").stat().st_uid // 65536


@pytest.mark.parametrize("path", ["/.roost/bin/python3", "/proc/self/exe"])
async def test_the_runtime_cannot_be_overwritten(either: Pair, path: str) -> None:
    strong, _ = await both(either, OPEN.format(path=path, mode="O_WRONLY"))
    assert strong in ("OSError", "PermissionError")


async def test_caches_of_the_runtime_cannot_be_poisoned(either: Pair) -> None:
    made, room = either[0]
    source = """
        import os, roost
        result = []
        for path in ("/.roost/x", roost.__path__[0] + "/x.py"):
            try:
                open(path, "w")
                result.append("written")
            except OSError as error:
                result.append(error.errno)
        """
    assert await made.ask(room, source) == [30, 30]


async def test_writes_reach_neither_the_host_nor_the_template_nor_other_rooms(either: Pair) -> None:
    made, room = either[0]
    source = """
        import os
        for path in ("/usr/bin/roost-test", "/etc/roost-test", "/tmp/roost-test", "/dev/shm/roost-test"):
            open(path, "w").write("x")
        os.unlink("/usr/bin/env")
        import ctypes
        result = ctypes.CDLL(None).shmget(77, 4096, 0o1666)
        """
    assert await made.ask(room, source) >= 0
    assert not Path("/usr/bin/roost-test").exists() and Path("/usr/bin/env").exists()
    assert not list(made.template.root.rglob("roost-test"))
    later = await made.room("later")
    look = """
        import ctypes, os
        paths = ("/usr/bin/roost-test", "/etc/roost-test", "/tmp/roost-test", "/dev/shm/roost-test")
        segments = ctypes.CDLL(None).shmget(77, 4096, 0)
        there = [path for path in paths if os.path.exists(path)]
        result = [there, os.path.exists("/usr/bin/env"), segments, os.listdir("/tmp")]
        """
    assert await made.ask(later, look) == [[], True, -1, []]


async def test_the_network_is_a_loopback_of_its_own(either: Pair) -> None:
    made, room = either[0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        abstract = socket.socket(socket.AF_UNIX)
        name = f"roost-test-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        source = f"""
            import socket
            def attempt(family, address):
                try:
                    with socket.socket(family) as sock:
                        sock.settimeout(3)
                        sock.connect(address)
                    return "connected"
                except OSError as error:
                    return type(error).__name__ if error.errno not in (101, 113) else "unreachable"
            result = [attempt(socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})),
                      attempt(socket.AF_UNIX, "\\0{name}"),
                      attempt(socket.AF_INET, ("192.0.2.1", 80)), attempt(socket.AF_INET, ("169.254.169.254", 80)),
                      attempt(socket.AF_INET6, ("2001:db8::1", 80)),
                      open("/proc/net/dev").read().count(":")]
            with socket.create_server(("127.0.0.1", 80)) as own:
                result.append(attempt(socket.AF_INET, own.getsockname()))
            """
        answers = await made.ask(room, source)
        abstract.close()
    refused = "ConnectionRefusedError"
    assert answers == [refused, refused, "unreachable", "unreachable", "unreachable", 1, "connected"]


@pytest.mark.parametrize("link", ["/proc", "/proc/self/root", "/etc", "../../../../../../etc"])
async def test_a_hostile_layer_cannot_redirect_mounts(either: Pair, link: str) -> None:
    """Links planted where the host mounts or writes next are replaced in the layer, and followed by nobody."""
    made, _ = either[0]
    name = "hostile-" + str(abs(hash(link)) % 10000)
    layer = made.directory / f"{name}.img"
    victim = made.directory / f"{name}-victim"
    victim.write_text("untouched")
    await made.driver.disks.create(layer, 16)
    with await made.driver.disks.attach(layer) as disk:
        for directory in ("root", "root/upper"):
            os.mkdir(directory, dir_fd=disk.mount_fd)
        for place in ("code", "proc", "dev", "tmp", "run", ".roost", "etc"):
            os.symlink(link, f"root/upper/{place}", dir_fd=disk.mount_fd)
    code = made.directory / f"{name}-code"
    code.mkdir()
    (code / "handler").write_text("mine")
    before = sorted(os.listdir("/etc"))
    room = await made.room(name, layer=layer, mounts=(Mount(source=code, target="/code", read_only=True),))
    source = """
        import os
        places = ("/code", "/proc", "/dev", "/tmp", "/run", "/.roost", "/etc")
        links = [path for path in places if os.path.islink(path)]
        result = [open("/code/handler").read(), links, os.path.exists("/proc/self/status"),
                  open("/etc/hostname").read().strip()]
        """
    assert await made.ask(room, source) == ["mine", [], True, name]
    assert sorted(os.listdir("/etc")) == before and victim.read_text() == "untouched"


async def test_links_in_a_snapshot_cannot_redirect_mounts(either: Pair) -> None:
    """The same from below: what a room planted is what rooms on its snapshot are made over."""
    made, _ = either[0]
    layer, snapshot = made.directory / "planting.img", made.directory / "planted.img"
    await made.driver.disks.create(layer, 16)
    first = await made.room("planting", layer=layer)
    plant = """
        import os, shutil
        for place in ("/code", "/usr/x", "/etc/hosts", "/etc/hostname"):
            if os.path.lexists(place):
                os.unlink(place)
            os.symlink("/proc/self/root/etc/passwd" if place.startswith("/etc") else "/etc", place)
        os.rename("/etc", "/moved")
        os.symlink("/moved", "/etc")
        result = 1
        """
    await made.ask(first, plant)
    await first.snapshot(snapshot)
    before = Path("/etc/passwd").read_bytes()
    code = made.directory / "planted-code"
    code.mkdir()
    (code / "handler").write_text("mine")
    mounts = tuple(Mount(source=code, target=target, read_only=True) for target in ("/code", "/usr/x"))
    layer = made.directory / "standing.img"
    await made.driver.disks.create(layer, 16)
    room = await made.room("standing", layer=layer, lower=(snapshot,), mounts=mounts)
    source = """
        import os
        result = [open("/code/handler").read(), open("/usr/x/handler").read(), os.path.islink("/etc"),
                  open("/etc/hostname").read().strip(), os.path.islink("/etc/hosts"), os.listdir("/moved") != []]
        """
    assert await made.ask(room, source) == ["mine", "mine", False, "standing", False, True]
    assert Path("/etc/passwd").read_bytes() == before and not Path("/etc/handler").exists()


async def test_files_that_the_host_writes_next_are_not_followed(either: Pair) -> None:
    made, _ = either[0]
    layer = made.directory / "hosts.img"
    victim = made.directory / "victim"
    victim.write_text("untouched")
    await made.driver.disks.create(layer, 16)
    with await made.driver.disks.attach(layer) as disk:
        for directory in ("root", "root/upper", "root/upper/etc"):
            os.mkdir(directory, dir_fd=disk.mount_fd)
        for place in ("hosts", "resolv.conf", "hostname"):
            os.symlink(str(victim), f"root/upper/etc/{place}", dir_fd=disk.mount_fd)
    room = await made.room("hosts", layer=layer)
    assert "localhost" in await made.ask(room, READ.format(path="/etc/hosts"))
    assert victim.read_text() == "untouched"


async def test_set_user_id_programs_give_nothing(either: Pair) -> None:
    made, room = either[0]
    source = """
        import os, shutil, subprocess
        shutil.copy("/usr/bin/grep", "/tmp/grep")
        os.chmod("/tmp/grep", 0o6755)
        command = ["/tmp/grep", "-E", "CapEff|CapPrm", "/proc/self/status"]
        result = subprocess.run(command, capture_output=True, text=True).stdout.split()
        """
    assert await made.ask(room, source) == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16]


async def test_everything_that_was_started_ends_with_the_room(either: Pair) -> None:
    made, _ = either[0]
    room = await made.room("daemons")
    source = """
        import os, signal, time
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(0)
        result = 1
        """
    await made.ask(room, source)
    assert room.usage().pids >= 6
    group = room.handle["cgroup"]
    await until(lambda: len(_processes_of(group)) >= 2)  # One listing misses those that are only now being forked.
    await room.destroy()
    assert not _processes_of(group)


def _processes_of(group: str) -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit() and _group_of(name) == group]


def _group_of(pid: str) -> str:
    """The cgroup of a room that the process is in."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().rstrip().removesuffix("/in").rpartition("/")[2]
    except OSError:
        return ""


TELLING = """
import os, stat
def said(path):
    try:
        return open(path, errors="replace").read()
    except OSError as error:
        return ""
sockets = []
for folder, names, files in os.walk("/"):
    names[:] = [name for name in names if f"{folder.rstrip('/')}/{name}" not in ("/proc", "/sys")]
    for name in files:
        path = f"{folder.rstrip('/')}/{name}"
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                sockets.append(path)
        except OSError:
            pass
result = [said("/proc/timer_list")[:100], said("/proc/sched_debug")[:100],
          os.listdir("/proc/sys/fs/binfmt_misc") if os.path.exists("/proc/sys/fs/binfmt_misc") else [],
          [line.split()[3] for line in said("/proc/self/mountinfo").splitlines()], sockets]
"""


async def test_no_socket_and_no_place_of_the_host_is_seen(pair: Pair) -> None:
    (made, room), (weak_made, weak_room) = pair
    timers, scheduling, handlers, roots, sockets = await made.ask(room, TELLING)
    assert (timers, scheduling, handlers, sockets) == ("", "", [], [])
    assert roots and not any(str(made.directory) in root for root in roots)
    weak = await weak_made.ask(weak_room, TELLING)
    assert weak[0] != ""
