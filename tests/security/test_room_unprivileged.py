"""Rooms that a user makes who isn't root: what holds other rooms holds these. The controls are where the attacks are
from: rooms that are weakened on purpose, where they succeed."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pyseccomp
import pytest
import pytest_asyncio

from roost.isolation.driver import ROOT_CAPABILITIES
from roost.isolation.linux import CAPABILITIES
from tests.security.test_room_syscalls import CALLS, FAMILIES, FOREIGN, FOREIGN_CALL, MAKE_CALL
from tests.security.test_room_view import OPEN, READ
from tests.support import users
from tests.support.user_rooms import Refused, UserRoom, UserWorld, user_world

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[UserWorld]:
    async with user_world() as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(made: UserWorld) -> UserRoom:
    return await made.room("strong")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooted(made: UserWorld) -> UserRoom:
    """Its root keeps all that a room's root can."""
    return await made.room("rooted", capabilities=sorted(ROOT_CAPABILITIES))


async def test_every_call_that_other_rooms_are_refused_is_refused(
    made: UserWorld, room: UserRoom, rooted: UserRoom
) -> None:
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for _, name, _ in CALLS}
    refused = {"clone3": ("ENOSYS",), "mknod": ("EPERM", "EACCES")}
    for title, name, arguments in CALLS:
        source = MAKE_CALL.format(arguments=arguments, number=numbers[name], clone=numbers["clone"])
        for one in (room, rooted):
            answer = errno.errorcode.get(await made.ask(one, source), "success")
            assert answer in refused.get(name, ("EPERM",)), title
    for family, arguments in FAMILIES.items():
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "socket")
        source = MAKE_CALL.format(arguments=(*arguments, 0), number=number, clone=-1)
        assert await made.ask(room, source) == errno.EAFNOSUPPORT, family


@pytest.mark.parametrize("kind", FOREIGN)
async def test_calls_of_another_architecture_kill(made: UserWorld, room: UserRoom, kind: str) -> None:
    assert await made.ask(room, FOREIGN_CALL.format(code=FOREIGN[kind])) == -signal.SIGSYS


async def test_privileges_are_gone_but_for_those_asked_for(made: UserWorld, room: UserRoom, rooted: UserRoom) -> None:
    source = """
        fields = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
        result = [int(fields[name], 16) for name in names]
        """
    kept = sum(1 << CAPABILITIES[name] for name in ROOT_CAPABILITIES)
    assert await made.ask(room, source) == [0, 0, 0, 0, 0, 1, 2]
    assert await made.ask(rooted, source) == [0, kept, kept, kept, 0, 1, 2]


async def test_a_strict_room_is_a_process_of_its_own_behind_the_same_walls(made: UserWorld, room: UserRoom) -> None:
    strict = await made.room("strict", isolation="strict")
    source = """
        text = open("/proc/self/status").read()
        walls = {line.split(":\t")[0]: line.split(":\t")[1] for line in text.splitlines() if ":\t" in line}
        result = [id(__import__("json")), walls["CapBnd"], walls["NoNewPrivs"], walls["Seccomp"]]
        """
    ours, theirs = await made.ask(strict, source), await made.ask(room, source)
    assert ours[1:] == theirs[1:] == ["0" * 16, "1", "2"] and ours[0] != theirs[0]


async def test_on_the_host_it_is_the_user_and_nobody_else(made: UserWorld, room: UserRoom, rooted: UserRoom) -> None:
    for one in (room, rooted):
        about = users.fields(Path(f"/proc/{one.pid}/status"))
        assert about["Uid"].split() == about["Gid"].split() == [str(users.SOMEBODY)] * 4
        assert about["Groups"].split() == []


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward"],
)
async def test_the_kernel_cannot_be_set(made: UserWorld, rooted: UserRoom, path: str) -> None:
    assert await made.ask(rooted, OPEN.format(path=path, mode="O_WRONLY")) in ("OSError", "PermissionError")


async def test_the_kernel_is_neither_read_nor_told_about(made: UserWorld, room: UserRoom) -> None:
    for path in ("/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/sysrq-trigger", "/dev/mem", "/dev/kmsg"):
        assert await made.ask(room, OPEN.format(path=path, mode="O_RDONLY")) in ("PermissionError", "FileNotFoundError")
    for path in ("/proc/cmdline", "/proc/keys", "/proc/key-users", "/proc/kallsyms"):
        assert await made.ask(room, READ.format(path=path)) == ""
    look = "import os\nresult = [os.listdir('/proc/' + name) for name in ('bus', 'fs', 'irq', 'driver')]"
    assert await made.ask(room, look) == [[], [], [], []]
    boot_id = "/proc/sys/kernel/random/boot_id"
    assert await made.ask(room, READ.format(path=boot_id)) != Path(boot_id).read_text()


async def test_nothing_of_the_server_is_left_in_its_view(made: UserWorld, room: UserRoom) -> None:
    source = """
        import os
        mounts = [line.split() for line in open("/proc/self/mounts")]
        result = {
            "kinds": sorted({fields[2] for fields in mounts}),
            "setuid": [fields[1] for fields in mounts if "nosuid" not in fields[3].split(",")],
            "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[:1],
            "top": [name for name in os.listdir("/") if name in (".base", ".room")],
            "links": sorted({os.readlink("/proc/1/fd/" + fd).partition(":")[0] for fd in os.listdir("/proc/1/fd")}),
        }
        """
    seen = await made.ask(room, source)
    assert set(seen["kinds"]) <= {"overlay", "tmpfs", "proc", "devpts", "devtmpfs", "ext4", "xfs", "btrfs"}
    assert seen["setuid"] == [] and seen["pids"] == [1] and seen["top"] == []
    assert seen["links"] == ["/dev/null", "socket"]


async def test_writes_reach_neither_the_template_nor_other_rooms(made: UserWorld, room: UserRoom) -> None:
    write = """
        import os
        result = []
        for path in ("/etc/roost-test", "/tmp/roost-test", "/dev/shm/roost-test", "/.roost/x", "/usr/bin/roost-test"):
            try:
                open(path, "w").close()
                result.append("written")
            except OSError as error:
                result.append(error.errno)
        import ctypes
        result.append(ctypes.CDLL(None).shmget(77, 4096, 0o1666) >= 0)
        """
    # /usr is the host's: its owner is nobody's id here, so nothing can be put into its directories.
    assert await made.ask(room, write) == ["written"] * 3 + [errno.EROFS, errno.EACCES, True]
    later = await made.room("later")
    look = """
        import ctypes, os
        there = [path for path in ("/etc", "/tmp", "/dev/shm") if os.path.exists(path + "/roost-test")]
        result = [there, ctypes.CDLL(None).shmget(77, 4096, 0)]
        """
    assert await made.ask(later, look) == [[], -1]
    assert not list(made.template.rglob("roost-test"))


async def test_files_of_the_host_s_others_are_closed_to_its_root(made: UserWorld) -> None:
    """Its root has power over files of ids that it has: those of the user alone."""
    folder = made.data / "volume"
    folder.mkdir()
    for name, mode in (("closed", 0o600), ("open", 0o644)):
        (folder / name).write_text("root's")
        (folder / name).chmod(mode)
    (folder / "own").write_text("mine")
    os.chown(folder, users.SOMEBODY, users.SOMEBODY)
    os.chown(folder / "own", users.SOMEBODY, users.SOMEBODY)
    box = await made.room(
        "power", mounts=[{"source": str(folder), "target": "/mnt/v"}], capabilities=sorted(ROOT_CAPABILITIES)
    )
    source = """
        import os
        def tried(call, *arguments):
            try:
                return call(*arguments) or "done"
            except OSError as error:
                return type(error).__name__
        result = [
            tried(open, "/mnt/v/closed"), tried(os.chmod, "/mnt/v/open", 0o666), tried(os.chown, "/mnt/v/open", 0, 0),
            tried(os.chown, "/mnt/v/own", 1, 1), tried(os.chmod, "/mnt/v/own", 0o4755),
        ]
        """
    refused = "PermissionError"
    assert await made.ask(box, source) == [refused, refused, refused, "OSError", "done"]
    assert (folder / "open").stat().st_uid == 0 and (folder / "open").stat().st_mode & 0o777 == 0o644


async def test_set_user_id_programs_give_nothing(made: UserWorld, rooted: UserRoom) -> None:
    source = """
        import os, shutil, subprocess
        shutil.copy("/usr/bin/grep", "/tmp/grep")
        os.chmod("/tmp/grep", 0o6755)
        command = ["/tmp/grep", "-E", "NoNewPrivs|CapAmb|CapInh", "/proc/self/status"]
        result = subprocess.run(command, capture_output=True, text=True).stdout.split()
        """
    assert await made.ask(rooted, source) == ["CapInh:", "0" * 16, "CapAmb:", "0" * 16, "NoNewPrivs:", "1"]


async def test_the_network_is_a_loopback_of_its_own(made: UserWorld, room: UserRoom) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
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
                      attempt(socket.AF_UNIX, "\\0{name}"), attempt(socket.AF_INET, ("192.0.2.1", 80)),
                      attempt(socket.AF_INET6, ("2001:db8::1", 80)), open("/proc/net/dev").read().count(":")]
            with socket.create_server(("127.0.0.1", 80)) as own:
                result.append(attempt(socket.AF_INET, own.getsockname()))
            """
        refused = "ConnectionRefusedError"
        assert await made.ask(room, source) == [refused, refused, "unreachable", "unreachable", 1, "connected"]


@pytest.mark.parametrize("link", ["/proc/self/root", "/etc", "../../../../../../etc"])
async def test_a_hostile_layer_cannot_redirect_mounts(made: UserWorld, link: str) -> None:
    name = f"hostile-{len(link)}"
    layer, code = made.data / f"{name}.layer", made.data / f"{name}-code"
    upper = layer / "root/upper"
    upper.mkdir(parents=True)
    for place in ("code", "proc", "dev", "tmp", "run", ".roost", "etc"):
        (upper / place).symlink_to(link)
    code.mkdir()
    (code / "handler").write_text("mine")
    users.give(layer)
    before = sorted(os.listdir("/etc"))
    mounts = [{"source": str(code), "target": "/code", "read_only": True}]
    box = await made.room(name, layer=str(layer), mounts=mounts)
    source = """
        import os
        places = ("/code", "/proc", "/dev", "/tmp", "/run", "/.roost", "/etc")
        result = [open("/code/handler").read(), [path for path in places if os.path.islink(path)],
                  os.path.exists("/proc/self/status"), open("/etc/hostname").read().strip()]
        """
    assert await made.ask(box, source) == ["mine", [], True, name]
    assert sorted(os.listdir("/etc")) == before


async def test_nothing_outside_the_server_s_directories_is_mounted(made: UserWorld) -> None:
    with pytest.raises(Refused, match="not in the server's directories"):
        await made.room("outside", mounts=[{"source": "/etc", "target": "/mnt/etc"}])
    trap = made.data / "trap"
    trap.symlink_to("/etc")
    with pytest.raises(Refused, match="can't be used"):
        await made.room("linked", mounts=[{"source": str(trap), "target": "/mnt/etc"}])


async def test_processes_files_and_memory_of_a_process_have_an_end(made: UserWorld, room: UserRoom) -> None:
    small = await made.room("small", limits={"pids": 20, "memory_mb": 64, "disk_mb": 8})
    source = """
        import os, time
        count, error = 0, 0
        while not error and count < 100:
            try:
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
                count += 1
            except OSError as failed:
                error = failed.errno
        result = [count, error]
        """
    count, error = await made.ask(small, source)
    assert 10 <= count < 20 and error == errno.EAGAIN
    assert await made.ask(room, source.replace("count < 100", "count < 30").replace("sleep(30)", "sleep(0)")) == [30, 0]
    await made.do("destroy", name="small")
    small = await made.room("small", limits={"pids": 20, "memory_mb": 64, "disk_mb": 8})
    source = """
        import errno
        result = []
        try:
            kept = [bytes(16 << 20) for _ in range(64)]
        except MemoryError:
            result.append("memory")
        kept = None
        try:
            with open("/tmp/big", "wb", buffering=0) as file:
                for _ in range(64):
                    file.write(bytes(1 << 20))
        except OSError as error:
            result.append(errno.errorcode[error.errno])
        """
    assert await made.ask(small, source) == ["memory", "EFBIG"]


async def test_what_it_can_not_do_it_says(made: UserWorld, room: UserRoom) -> None:
    with pytest.raises(Refused, match="can't be frozen: that takes cgroups, and so root"):
        await made.do("freeze", name=room.id)
    with pytest.raises(Refused, match="Snapshots of files take root"):
        await made.do("create", name="above", limits={}, mounts=[], lower=["/nowhere.img"])


async def test_usage_is_that_of_all_its_processes(made: UserWorld) -> None:
    box = await made.room("busy")
    source = """
        import os, time
        for _ in range(2):
            if os.fork() == 0:
                end = time.process_time() + 0.2
                while time.process_time() < end:
                    pass
                time.sleep(60)
        kept = b"x" * (64 << 20)
        until = time.monotonic() + 20
        def ticks(pid):
            return sum(int(field) for field in open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[11:13])
        others = [name for name in os.listdir("/proc") if name.isdigit()]
        while sum(map(ticks, others)) < 38 and time.monotonic() < until:
            time.sleep(0.02)
        if os.fork():
            time.sleep(60)
        result = 1
        """
    await made.ask(box, source)
    used = await made.do("usage", name="busy")
    assert used["pids"] >= 4 and used["cpu_us"] >= 350_000 and used["memory_bytes"] >= 64 << 20


async def test_everything_that_was_started_ends_with_the_room(made: UserWorld) -> None:
    box = await made.room("daemons")
    name = f"roost-daemon-of-{os.getpid()}"
    source = f"""
        import os, signal, time
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.execv("/bin/sleep", ["{name}", "600"])
        result = 1
        """
    await made.ask(box, source)
    while len(users.processes(containing=name)) < 5:
        assert (await made.do("usage", name="daemons"))["pids"] >= 2
    await made.do("destroy", name="daemons")
    assert not users.processes(containing=name)


async def test_a_killed_server_s_rooms_are_taken_over_or_ended() -> None:
    async with user_world() as world:
        kept, stray = await world.room("kept", layer=str(world.data / "kept.layer")), await world.room("stray")
        note = "open('/tmp/note', 'w').write('here'); result = 1"
        await world.ask(kept, note)
        world.kill()
        await world.start()
        assert await world.do("recover", handle=dict(kept.handle))
        assert not await world.do("recover", handle={**stray.handle, "started": 1})
        await world.do("sweep", keep=["kept"])
        assert await world.ask(kept, READ.format(path="/tmp/note")) == "here"
        assert (
            not Path(f"/proc/{stray.pid}").exists()
            or users.fields(Path(f"/proc/{stray.pid}/status"))["State"][0] == "Z"
        )
        assert len(list((world.data / "rooms").iterdir())) == 1
        assert (await world.do("usage", name="kept"))["pids"] >= 1
        await world.do("destroy", name="kept")
        again = await world.room("again", layer=str(world.data / "kept.layer"))
        assert await world.ask(again, READ.format(path="/tmp/note")) == "here"
