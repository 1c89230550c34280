"""Live branches: a copy is a process of its room and no more, and hostile memory gets nothing of who copies it.

The code in a context knows all of it: each attack prepares its memory, then has the room copied. What is refused is
refused with a reason, and what was to be copied lives on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from roost.isolation.driver import Branch, RoomSpec, Template
from roost.isolation.namespaces import helper, live, within
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.room import NamespacesRoom
from roost.isolation.namespaces.working_set import LOOKS, USED_S
from roost.model.errors import Unavailable
from roost.model.function import Limits
from tests.support import mortal_tracer
from tests.support.interpreter import lasting_data
from tests.support.interpreter_room import interpreter_driver, request, run_code
from tests.support.rooms import Remains, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIBRARY = """
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
held = ctypes.PyDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
branching = sys.modules["roost.guest.sandbox.interpreter.python.branching"]
class Wanted(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]
def wait_elsewhere(fd, in_copy, said):  # by another `syscall` than that of poll()
    held.send(fd, said, len(said), 0)
    return held.syscall(7, ctypes.byref(Wanted(fd, 1, 0)), 1, -1) >= 0
poll = ctypes.cast(libc.poll, ctypes.c_void_p).value
code = ctypes.string_at(poll, 128)
calls = [poll + at for at in range(127) if code[at:at + 2] == b"\\x0f\\x05"]
page = poll & ~4095
"""


#: How many walls a process can still put up, asked in one that goes.
LAYERS = """
import struct
attribute = struct.pack("QQQ", 1 << 6, 0, 0)
r, w = os.pipe()
if os.fork() == 0:
    count = 0
    while count < 20:
        wall = libc.syscall(444, attribute, 24, 0)
        if wall < 0 or libc.syscall(446, wall, 0): break
        count += 1
    os.write(w, str(count).encode()); os._exit(0)
os.wait()
int(os.read(r, 10))
"""


@dataclass
class Lab:
    driver: NamespacesDriver
    template: Template
    directory: Path
    rooms: dict[str, NamespacesRoom] = field(default_factory=dict)

    async def room(self, name: str, branch: Branch | None = None, lower: tuple[Path, ...] = ()) -> str:
        run_dir = self.directory / name
        run_dir.mkdir()
        made = await self.driver.create(
            RoomSpec(
                id=name,
                template=self.template,
                limits=Limits(memory_mb=512, disk_mb=64),
                run_dir=run_dir,
                layer=self.directory / f"{name}.img",
                lower=lower,
                live=True,
                branch=branch,
            )
        )
        try:
            await made.settled()
        except BaseException:
            await made.destroy()
            raise
        self.rooms[name] = made
        return name

    async def cell(self, name: str, code: str) -> str:
        """Its value."""
        execution = await run_code(self.directory / name, code)
        assert execution.error is None, execution.error
        return execution.value

    async def branch(self, name: str) -> Branch:
        return await self.rooms[name].branch(self._image(name))

    def _image(self, name: str) -> Path:
        return self.directory / f"{name}-{len(list(self.directory.glob('*-*.img')))}.img"

    async def copy(self, name: str, copied: str) -> Branch:
        """`copied` is a copy of the room."""
        image = self._image(name)
        branch = await self.rooms[name].branch(image)
        try:
            assert branch.lost == (), branch.lost
            left = Branch(copies=branch.copies)
            await self.room(copied, branch, (image,))
            return left
        finally:
            await branch.close()

    async def refusal(self, name: str) -> str:
        """Why the room's context is not copied."""
        branch = await self.branch(name)
        assert branch.copies == ()
        (lost,) = branch.lost
        return lost.partition(": ")[2]

    def group(self, name: str) -> Path:
        return self.rooms[name]._cgroup.inside

    def context(self, name: str) -> int:
        """The host's number of the room's one context."""
        (found,) = self.residents(name)
        return found

    def residents(self, name: str) -> list[int]:
        init = self.rooms[name].pid
        return [pid for pid in _processes(self.group(name)) if pid != init]

    def shadows(self, name: str) -> list[int]:
        return _processes(self.group(name).parent)

    async def waiting(self) -> int:
        """The first process of the room that waits to be somebody's, who has no files yet."""
        async with asyncio.timeout(20):
            while True:
                pools = self.driver._vacant._pools.items()
                ready = [room for shape, pool in pools if not shape.bare for room in pool._ready]
                if len(ready) == 1 and Path(f"/proc/{ready[0].pid}/comm").read_text() == "roost-vacant\n":
                    return ready[0].pid
                await asyncio.sleep(0.02)

    async def end_tracer(self) -> None:
        for pid in _children(os.getpid()):
            if Path(f"/proc/{pid}/comm").read_text() == "roost-tracer\n":
                os.kill(pid, signal.SIGKILL)
                await _until(lambda pid=pid: pid not in _children(os.getpid()))

    async def gone(self, name: str) -> None:
        await self.rooms.pop(name).destroy()


def _processes(group: Path) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def _state(pid: int, init: int) -> dict[str, Any]:
    """All that makes a process one of its room's."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    names = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    own = os.stat(f"/proc/{init}/ns/user").st_ino
    base = Path(f"/proc/{init}").stat().st_uid
    found: dict[str, Any] = {name: status[name].split() for name in (*names, "Seccomp_filters", "Umask", "TracerPid")}
    for name in ("Uid", "Gid"):
        found[name] = [int(number) - base for number in found[name]]
    for kind in ("user", "mnt", "net", "uts", "ipc", "pid", "pid_for_children", "cgroup"):
        found[kind] = os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.stat(f"/proc/{init}/ns/{kind}").st_ino
    found["nested"] = own != os.stat("/proc/self/ns/user").st_ino
    found["cgroups"] = Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{init}/cgroup").read_text()
    found["root"] = os.stat(f"/proc/{pid}/root").st_ino == os.stat(f"/proc/{init}/root").st_ino
    found["place"] = os.readlink(f"/proc/{pid}/cwd")
    found["files"] = {fd: os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
    found["limits"] = Path(f"/proc/{pid}/limits").read_text()
    found["oom"] = Path(f"/proc/{pid}/oom_score_adj").read_text()
    found["signals"] = [status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt")]
    found["session"] = os.getsid(pid) == pid
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """All rooms of a driver; at the end nothing of them is left on the machine."""
    base: Path = tmp_path_factory.mktemp("branches")
    data_dir = base / "data"
    data_dir.mkdir()
    before = Remains.of(data_dir)
    async with interpreter_driver(data_dir, lasting_data()) as (driver, template):
        made = Lab(driver, template, base)
        try:
            yield made
        finally:
            for room in made.rooms.values():
                await room.destroy()
    await settled(data_dir, before)


async def test_a_copy_is_a_process_of_its_room_and_no_more(lab: Lab) -> None:
    await lab.room("plain")
    await lab.cell("plain", f"x = 41\n{LIBRARY}")
    await lab.copy("plain", "copied")
    assert await lab.cell("copied", "x + 1") == "42"
    original, copied = (_state(lab.context(name), lab.rooms[name].pid) for name in ("plain", "copied"))
    assert copied == original
    # And that is what a context is: nobody on the host, without any power, behind the filter.
    assert original["Uid"] == [1000] * 4 and original["CapPrm"] == original["CapEff"] == ["0000000000000000"]
    assert original["Seccomp"] == ["2"] and original["NoNewPrivs"] == ["1"] and original["TracerPid"] == ["0"]
    assert all(original[kind] for kind in ("user", "mnt", "net", "uts", "ipc", "pid", "cgroup", "cgroups", "root"))
    assert sorted(original["files"]) == ["0", "1", "2", "3"]
    for name in ("plain", "copied"):
        assert await lab.cell(name, "(libc.unshare(0x10000000), ctypes.get_errno())") == "(-1, 1)"
        assert await lab.cell(name, "(libc.mount(b'n', b'/tmp', b'tmpfs', 0, None), ctypes.get_errno())") == "(-1, 1)"
        assert await lab.cell(name, LAYERS) == "15"  # of Landlock's 16, one is the room's
    await lab.gone("copied")
    await lab.gone("plain")


async def test_the_shadow_is_not_in_the_room_and_ends_with_its_process(lab: Lab) -> None:
    await lab.room("seen")
    await lab.cell("seen", "1")
    context, (shadow,) = lab.context("seen"), lab.shadows("seen")
    status = Path(f"/proc/{shadow}/status").read_text()
    assert len(status.partition("NSpid:")[2].split("\n")[0].split()) == 1
    assert os.listdir(f"/proc/{shadow}/fd") == []  # and none of its own
    assert "t (tracing stop)" in status
    memory = [line for line in Path(f"/proc/{shadow}/cgroup").read_text().splitlines() if ":memory:" in line]
    assert memory == [line for line in Path(f"/proc/{context}/cgroup").read_text().splitlines() if ":memory:" in line]
    inside = await lab.cell("seen", "import os; sorted(int(n) for n in os.listdir('/proc') if n.isdigit())")
    assert inside == "[1, 3]"
    assert await lab.cell("seen", f"import os\ntry: os.kill({shadow}, 9)\nexcept OSError as e: r = e.errno\nr") == "3"
    branch = await lab.branch("seen")
    assert len(lab.shadows("seen")) == 2
    await branch.close()
    await _until(lambda: lab.shadows("seen") == [shadow])
    os.kill(context, signal.SIGKILL)
    await lab.driver._tracer.get()
    await _until(lambda: lab.shadows("seen") == [])
    await lab.gone("seen")
    await _until(lambda: not Path(f"/proc/{shadow}").exists())


async def _until(met: Any) -> None:
    for _ in range(500):
        if met():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to be")


ANOTHER = r"""
import os, select
os.write(3, b'D 10\n{"next":2}')
while True:
    data = os.read(3, 65536)
    if not data: os._exit(0)
    if data.startswith(b"X"): os.write(3, b'D 10\n{"next":2}')
    if data.startswith(b"H"): os.write(3, b"L" + data[1:])
    poll = select.poll(); poll.register(3, 1); poll.poll()
"""
EXECUTE = f"""
os.set_inheritable(3, True)
sys.stdout.flush()
os.execv(sys.executable, [sys.executable, "-c", {ANOTHER!r}])
"""
OTHER_PROGRAM = "it is another program now"
ENDS = "it did not stand still"
ATTACKS = {
    "a program that it has executed": (
        EXECUTE,
        OTHER_PROGRAM,
    ),
    "other code where the call was": (
        """
branching.wait_for_input = wait_elsewhere
libc.mprotect(ctypes.c_void_p(page), 8192, 7)
for at in calls: ctypes.memmove(at, b"\\x0f\\x0b", 2)
libc.mprotect(ctypes.c_void_p(page), 8192, 5)
""",
        "its code is not what it was",
    ),
    "code that it can still write to": (
        "branching.wait_for_input = wait_elsewhere\nlibc.mprotect(ctypes.c_void_p(page), 8192, 7)",
        "its code is not what it was",
    ),
    "code that others can write to": (
        """
branching.wait_for_input = wait_elsewhere
kept = ctypes.string_at(page, 8192)
fd = os.memfd_create("code"); os.write(fd, kept)
libc.mmap(page, 8192, 5, 0x11, fd, 0)
""",
        "its code is not what it was",
    ),
    "memory that is not copied": (
        "secret = mmap.mmap(-1, 4096, flags=0x22)\nsecret.madvise(10)",
        "it has memory that it asked the kernel not to copy",
    ),
    "much memory that it shares": (
        "much = mmap.mmap(-1, 80 << 20)",
        "it shares 80 MB of memory with others, and a copy can have 64",
    ),
    "a filter of its own": (
        """
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
allow = ctypes.create_string_buffer(b"\\x06\\0\\0\\0\\0\\0\\xff\\x7f", 8)
libc.prctl(22, 2, ctypes.byref(Filter(1, ctypes.addressof(allow))), 0, 0)
""",
        "it has a filter of system calls of its own",
    ),
    "a wait of another kind": (
        "branching.wait_for_input = lambda fd, _, said: os.write(fd, said)",
        "it does not wait where it is to be copied",
    ),
    "an end, just then": (
        "branching.wait_for_input = lambda *_: os._exit(3)",
        ENDS,
    ),
}


@pytest.mark.parametrize("attack", list(ATTACKS))
async def test_what_can_not_be_copied_is_refused_and_lives_on(lab: Lab, attack: str) -> None:
    prepared, reason = ATTACKS[attack]
    name = await lab.room(f"attacked-{list(ATTACKS).index(attack)}")
    await lab.cell(name, LIBRARY)
    before = await lab.branch(name)  # the positive control: without the attack, it is copied
    assert (len(before.copies), before.lost) == (1, ())
    await before.close()
    await run_code(lab.directory / name, prepared)
    assert await lab.refusal(name) == reason
    if reason == ENDS:  # a cell that counts on what is gone is told; the next one has a context
        assert (await run_code(lab.directory / name, "1")).error is not None
    if reason != OTHER_PROGRAM:
        assert await lab.cell(name, "40 + 2") == "42"
    # No partly made copy: one for each process. Where a context was begun anew, another process waits to be one.
    await _until(lambda: len(lab.shadows(name)) == len(lab.residents(name)) <= (2 if reason == ENDS else 1))
    await lab.gone(name)


async def test_what_it_shares_with_others_is_its_own_in_the_copy(lab: Lab) -> None:
    await lab.room("shares")
    await lab.cell("shares", "import mmap, os; m = mmap.mmap(-1, 8192); m[0] = 1")
    forked = "if os.fork() == 0: m[1] += 1; os._exit(0)\nos.wait(); m[1]"
    assert await lab.cell("shares", forked) == "1"  # the positive control: a fork of its own shares it
    await lab.copy("shares", "shares-not")
    assert await lab.cell("shares-not", "m[0] += 1; m[0], m[1]") == "(2, 1)"
    assert await lab.cell("shares", "m[0]") == "1"
    assert await lab.cell("shares-not", forked) == "1"  # not even with its own forks: it is plain memory there
    await lab.gone("shares-not")
    await lab.gone("shares")


#: On memory that all rooms of a template map from one file.
ON_THE_FILE = """
import hashlib
lines = [line.split() for line in open("/proc/self/maps") if "/memfd:roost-zygote" in line]
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
ends = [[int(end, 16) for end in line[0].split("-")] for line in lines if line[1] == "r--p"]
begin, end = max(ends, key=lambda pair: pair[1] - pair[0])
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
def digest():
    return hashlib.sha256(ctypes.string_at(begin, end - begin)).hexdigest()
def write():
    assert libc.mprotect(begin, 4096, 3) == 0
    ctypes.memset(begin, 120, 8)
    return digest()
def refused(attempt):
    try:
        attempt()
    except OSError as error:
        return error.errno
errors = [refused(lambda: os.open(f"/proc/self/map_files/{begin:x}-{end:x}", flags)) for flags in (0, os.O_RDWR)]
removed = libc.madvise(begin, end - begin, 9), ctypes.get_errno()  # MADV_REMOVE
"""


async def test_what_rooms_begin_with_is_one_files_and_none_of_them_changes_it(lab: Lab) -> None:
    for name in ("one", "another"):
        await lab.room(name)
        await lab.cell(name, f"{LIBRARY}{ON_THE_FILE}")
    before = [await lab.cell(name, "(begin, digest())") for name in ("one", "another")]
    assert before[0] == before[1]
    assert await lab.cell("one", "errors, removed") == "([1, 1], (-1, 13))"
    assert await lab.cell("one", "(begin, write())") != before[0]  # its own copy of the page
    assert await lab.cell("another", "(begin, digest())") == before[1]
    await lab.room("newest")
    await lab.cell("newest", f"{LIBRARY}{ON_THE_FILE}")
    assert await lab.cell("newest", "(begin, digest())") == before[1]
    for name in ("one", "another", "newest"):
        await lab.gone(name)


async def test_threads_processes_and_connections_stay_where_they_are(lab: Lab) -> None:
    await lab.room("busy")
    code = """
import ctypes, os, socket, subprocess, threading, time
libc = ctypes.CDLL(None)
counted = 0
def count():
    global counted
    while True: counted += 1; time.sleep(0.0001)
threading.Thread(target=count, daemon=True).start()
helper = subprocess.Popen(["sleep", "600"])
stack = ctypes.create_string_buffer(65536)
top = (ctypes.addressof(stack) + 65536) & ~15
# A process that shares its memory, and is none of Python's.
sharing = libc.clone(ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p(top), 0x100 | 17, ctypes.c_void_p(600))
one, other = socket.socketpair()
x = 41
"""
    await lab.cell("busy", code)
    left = await lab.copy("busy", "copied-busy")
    (copy,) = left.copies
    assert (copy.left.threads, copy.left.processes) == (1, 2)
    assert len([name for name in copy.left.files if name.startswith("socket:")]) == 2
    assert await lab.cell("copied-busy", "threading.active_count(), x + 1") == "(1, 42)"
    seen = "was = counted; time.sleep(0.05); counted > was"
    assert await lab.cell("copied-busy", seen) == "False"
    assert await lab.cell("busy", seen) == "True"
    assert await lab.cell("copied-busy", "sorted(n for n in os.listdir('/proc') if n.isdigit())") == "['1', '3']"
    error = (await run_code(lab.directory / "copied-busy", "one.send(b'x')")).error
    assert error is not None and error["name"] == "BrokenPipeError"
    assert await lab.cell("busy", "one.send(b'x'), other.recv(1), helper.poll()") == "(1, b'x', None)"
    await lab.gone("copied-busy")
    await lab.gone("busy")


async def test_a_thread_that_wants_the_interpreters_lock_holds_up_no_copy(lab: Lab) -> None:
    """It asks for it all the time, so that the lock is handed over as soon as Python goes on; in a copy, to nobody."""
    await lab.room("wanting")
    spin = "import threading\ndef spin():\n  while True: pass\n"
    await lab.cell("wanting", f"{spin}for _ in range(3): threading.Thread(target=spin, daemon=True).start()\nx = 41")
    for number in range(6):
        await lab.copy("wanting", f"wanted-{number}")
        assert await asyncio.wait_for(lab.cell(f"wanted-{number}", "x + 1"), 20) == "42"
        await lab.gone(f"wanted-{number}")
    await lab.gone("wanting")


@pytest.mark.parametrize("threads", [0, 1])
async def test_what_is_registered_for_a_fork_is_called_and_locks_are_free_in_a_copy(lab: Lab, threads: int) -> None:
    """Those of the libraries that make locks anew are left out where no other thread can hold one."""
    name = f"hooked-{threads}"
    await lab.room(name)
    code = f"""
import concurrent.futures, logging, os, random, threading, time
called = []
os.register_at_fork(before=lambda: called.append("before"), after_in_parent=lambda: called.append("parent"),
                    after_in_child=lambda: called.append("child"))
lock = threading.Lock()
def hold():
    with lock, threading._active_limbo_lock, logging.lastResort.lock: time.sleep(600)
for _ in range({threads}): threading.Thread(target=hold, daemon=True).start()
time.sleep(0.1 * {threads})
pool = concurrent.futures.ThreadPoolExecutor()
"""
    await lab.cell(name, code)
    await lab.copy(name, f"copied-{name}")
    assert await lab.cell(f"copied-{name}", "called") == "['before', 'child']"
    assert await lab.cell(name, "called") == "['before', 'parent']"
    seen = "logging.getLogger('new').warning('a'); list(pool.map(abs, [-1])), threading.active_count() > 1"
    assert await lab.cell(f"copied-{name}", seen) == "([1], True)"
    forked = "pid = os.fork()\nif pid == 0: logging.getLogger('of the fork').warning('a'); os._exit(len(called))"
    await lab.cell(f"copied-{name}", forked)
    assert await lab.cell(f"copied-{name}", "os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])") == "4"
    assert await lab.cell(f"copied-{name}", "random.random()") != await lab.cell(name, "random.random()")
    for one in (f"copied-{name}", name):
        await lab.gone(one)


async def test_what_was_copied_and_does_not_go_on_is_told(lab: Lab) -> None:
    """In place of an empty context that seems to be the copy."""
    await lab.room("stuck")
    await lab.cell("stuck", "import os\nx = 41\nos.register_at_fork(after_in_child=lambda: os._exit(3))")
    await lab.copy("stuck", "copied-stuck")
    error = (await run_code(lab.directory / "copied-stuck", "x")).error
    assert error is not None
    assert error["name"] == "ContextRestarting" and "what it is a copy of does not go on here" in error["value"]
    assert (await run_code(lab.directory / "copied-stuck", "1 + 1")).value == "2"
    assert await lab.cell("stuck", "x + 1") == "42"
    for name in ("stuck", "copied-stuck"):
        await lab.gone(name)


async def test_a_copy_in_its_room_that_ends_at_once_is_told_and_reaped(lab: Lab) -> None:
    """Before the daemon hears that there is one."""
    await lab.room("brief")
    place = lab.directory / "brief"
    await lab.cell("brief", "import os\nx = 41")
    _, body = await request(place, "GET", "/contexts")
    context = f"/contexts/{json.loads(body)[0]['id']}"
    kept = json.loads((await request(place, "POST", f"{context}/checkpoints", {}))[1])["id"]
    await lab.cell("brief", "os.register_at_fork(after_in_child=lambda: os._exit(3))")
    late = json.loads((await request(place, "POST", f"{context}/checkpoints", {}))[1])["id"]
    init = lab.rooms["brief"].pid
    before = len(os.listdir(f"/proc/{init}/fd"))
    for _ in range(5):
        status, body = await request(place, "POST", f"{context}/fork", {})
        made = json.loads(body)["id"] if status == 201 else ""
        if made:
            error = (await run_code(place, "x", context_id=made)).error
            assert error is not None and "does not go on here" in error["value"]
            assert (await request(place, "DELETE", f"/contexts/{made}"))[0] == 200
    assert await lab.cell("brief", "x + 1") == "42"
    await request(place, "POST", f"{context}/rollback", {"checkpoint": late})
    assert (await run_code(place, "x")).error is not None
    assert (await request(place, "POST", f"{context}/rollback", {"checkpoint": kept}))[0] == 200
    assert await lab.cell("brief", "x + 1") == "42"
    await _until(lambda: len(_children(init)) <= 2)  # one context, one ahead: nothing is left to be waited for
    assert len(os.listdir(f"/proc/{init}/fd")) < before + 8
    await lab.gone("brief")


async def test_a_room_that_stands_still_already_is_not_made_to_go_on_by_a_fork(lab: Lab) -> None:
    """As when it is paused while its daemon asks for one."""
    room = lab.rooms[await lab.room("paused")]
    await lab.cell("paused", "x = 41")
    contexts = room._contexts
    assert contexts is not None
    (pid,) = contexts._held
    async with contexts.standing_still():
        await room.freeze()
        with pytest.raises(Unavailable, match="stands still"):
            await contexts._fork(pid, {}, b"")
        assert room._cgroup.is_frozen() and list(contexts._held) == [pid]
        await room.thaw()
    assert await lab.cell("paused", "x + 1") == "42"
    await lab.gone("paused")


async def test_copies_that_take_long_to_come_are_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.room("slow")
    await lab.cell("slow", "x = 41")
    settle = live.Settling.settle

    async def slowly(self: live.Settling, *given: Any, **more: Any) -> Any:
        await asyncio.sleep(7)  # longer than a new context is waited for
        return await settle(self, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(live.Settling, "settle", slowly)
        await lab.copy("slow", "copied-slow")
    assert await lab.cell("copied-slow", "x + 1") == "42"

    async def broken(*_: Any, **options: Any) -> Any:
        raise KeyError("shadow")

    branch = await lab.branch("slow")
    with monkeypatch.context() as patched:
        patched.setattr(live.Settling, "settle", broken)
        with pytest.raises(KeyError):
            await lab.room("broken", branch)
    await branch.close()
    for name in ("slow", "copied-slow"):
        await lab.gone(name)


async def test_contexts_that_ended_take_no_places(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MOST_CONTEXTS", 4)  # the first, two more, and one that waits to be the next

    async def one_more() -> str:
        _, body = await request(lab.directory / "places", "POST", "/contexts", {})
        return str(json.loads(body)["id"])

    def settled_are(count: int) -> bool:
        return len(lab.shadows("places")) == len(lab.residents("places")) == count

    await lab.room("places")
    await lab.cell("places", "1")
    made = [await one_more()]
    for _ in range(5):
        made.append(await one_more())
        await _until(lambda: settled_are(4))
        await request(lab.directory / "places", "DELETE", f"/contexts/{made.pop(0)}")
        await _until(lambda: settled_are(3))
    branch = await lab.branch("places")
    assert ({copy.id for copy in branch.copies if not copy.default}, branch.lost) == (set(made), ())
    await branch.close()
    for _ in range(3):  # but never more than that at once: what comes then is a fork of the daemon's
        await one_more()
    branch = await lab.branch("places")
    assert (len(branch.copies), len(branch.lost)) == (4, 1)
    await branch.close()
    await lab.gone("places")


async def test_a_room_that_does_not_stand_still_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.room("restless")
    await lab.cell("restless", "x = 41")

    async def restless(**options: Any) -> None:
        raise Unavailable("The room did not freeze in time.")

    with monkeypatch.context() as patched:
        patched.setattr(lab.rooms["restless"]._cgroup, "freeze", restless)
        with pytest.raises(Unavailable, match="did not freeze"):
            await lab.branch("restless")
    assert await lab.cell("restless", "x + 1") == "42"
    assert len(lab.shadows("restless")) == 1
    await lab.gone("restless")


def _mortal(when: str, number: int) -> Any:
    """As `within.python`, with `mortal_tracer` in place of the tracer."""

    def python(module: str, fd: str) -> list[str]:
        if not module.endswith(".tracer"):
            return within.python(module, fd)
        return [sys.executable, "-P", str(Path(mortal_tracer.__file__)), fd, when, str(number)]

    return python


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_what_was_made_by_one_that_was_killed_does_not_hold_up_its_room(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    await lab.end_tracer()

    with monkeypatch.context() as patched:
        patched.setattr(helper, "python", _mortal("making", number))
        await lab.room(f"killed-{number}")
        assert await lab.cell(f"killed-{number}", "41 + 1") == "42"
        await asyncio.wait_for(lab.gone(f"killed-{number}"), 10)
    await lab.end_tracer()


async def test_a_shadow_that_is_killed_while_it_is_copied_takes_nobody_with_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent has taken note of its end too: its number is nobody's by then, or another's."""
    await lab.end_tracer()
    with monkeypatch.context() as patched:
        patched.setattr(helper, "python", _mortal("branching", 1))
        for name in ("bystander", "victim"):
            await lab.room(name)
            await lab.cell(name, "x = 41")
        assert await lab.refusal("victim") == "it has ended"
        await lab.gone("victim")
        await lab.copy("bystander", "copied-bystander")
        assert await lab.cell("copied-bystander", "x + 1") == "42"
        for name in ("copied-bystander", "bystander"):
            await lab.gone(name)
    await lab.end_tracer()


async def test_a_context_that_stops_when_the_time_is_up_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was to be read: it is nobody's task that was made and not told of."""
    await lab.end_tracer()
    with monkeypatch.context() as patched:
        patched.setattr(helper, "python", _mortal("reading", 1))
        await lab.room("late")
        await lab.cell("late", "x = 41")
        context = lab.context("late")
        assert await lab.refusal("late") == "it took too long"
        assert await lab.cell("late", "x + 1") == "42"
        assert lab.context("late") == context
        await lab.copy("late", "copied-late")
        assert await lab.cell("copied-late", "x + 1") == "42"
        for name in ("copied-late", "late"):
            await lab.gone(name)
    await lab.end_tracer()


async def test_nothing_is_made_in_a_room_that_stands_still(lab: Lab) -> None:
    """The tracer would wait for what is frozen half made, and all rooms for the tracer."""
    await lab.room("hurried")
    await lab.cell("hurried", "x = 1")
    tracer = await lab.driver._tracer.get()
    for number in range(8):
        _, body = await request(lab.directory / "hurried", "POST", "/contexts", {})  # and the next one is made ahead
        began = time.monotonic()
        if number % 2:
            await (await lab.branch("hurried")).close()
        else:
            await lab.rooms["hurried"].freeze()
            await tracer.request({"op": "alive", "shadows": []})
            await lab.rooms["hurried"].thaw()
        assert time.monotonic() - began < 4
        await request(lab.directory / "hurried", "DELETE", f"/contexts/{json.loads(body)['id']}")
    await lab.gone("hurried")


async def test_an_answer_that_nobody_waits_for_is_not_the_next_ones(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.room("mixed")
    place, ids = lab.directory / "mixed", []
    for name in ("a", "b"):
        _, body = await request(place, "POST", "/contexts", {})
        ids.append(json.loads(body)["id"])
        assert (await run_code(place, f"who = {name!r}", context_id=ids[-1])).error is None
    branch, reached = live.Contexts._branch, asyncio.Event()

    async def slow(self: Any, pid: int, *, keep: bool) -> int:
        made = await branch(self, pid, keep=keep)
        reached.set()
        await asyncio.sleep(1)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(live.Contexts, "_branch", slow)
        leaving = asyncio.ensure_future(request(place, "POST", f"/contexts/{ids[0]}/checkpoints", {}))
        await reached.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        _, body = await request(place, "POST", f"/contexts/{ids[1]}/checkpoints", {})
    assert (await run_code(place, "who = 'later'", context_id=ids[1])).error is None
    back = {"checkpoint": json.loads(body)["id"]}
    assert (await request(place, "POST", f"/contexts/{ids[1]}/rollback", back))[0] == 200
    assert (await run_code(place, "who", context_id=ids[1])).value == "b"
    held = lab.rooms["mixed"]._contexts
    assert held is not None
    await _until(lambda: len(held._branches) == 1)  # what nobody waited for was dropped
    await lab.gone("mixed")


async def test_a_fork_that_fails_leaves_no_copy_of_the_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.room("full")
    await lab.cell("full", "x = 41")
    held = lab.rooms["full"]._contexts
    assert held is not None
    _, body = await request(lab.directory / "full", "GET", "/contexts")
    forks = f"/contexts/{json.loads(body)[0]['id']}/fork"

    before = lab.shadows("full")

    with monkeypatch.context() as patched:
        patched.setattr(held, "place", dataclasses.replace(held.place, pid=os.getpid()))  # that is no room
        for _ in range(3):
            status, body = await request(lab.directory / "full", "POST", forks, {})
            assert (status, b"or no room" in body) == (409, True)
    await _until(lambda: lab.shadows("full") == before)
    assert await lab.cell("full", "x") == "41"  # it stands still no more
    assert (await request(lab.directory / "full", "POST", forks, {}))[0] in (200, 201)
    await lab.gone("full")


async def test_a_seed_that_has_ended_is_made_anew(lab: Lab) -> None:
    await lab.room("before")
    await lab.cell("before", "1")
    seed = next(one.held for one in lab.driver._seeds._seeds.values() if one.held is not None)
    await seed.drop()  # as when the machine's memory is at its end
    await lab.room("after")
    await lab.cell("after", "x = 41")
    await lab.copy("after", "copied-after")
    assert await lab.cell("copied-after", "x + 1") == "42"
    for name in ("copied-after", "after", "before"):
        await lab.gone(name)


async def test_without_the_tracer_rooms_live_on_and_later_ones_are_live_again(lab: Lab) -> None:
    await lab.room("orphan")
    await lab.cell("orphan", "x = 41")
    held = await lab.branch("orphan")
    await lab.end_tracer()
    await _until(lambda: lab.shadows("orphan") == [])  # what it held has ended with it
    assert await lab.cell("orphan", "x + 1") == "42"
    assert await lab.refusal("orphan") == "The tracer has ended."
    with pytest.raises(Unavailable, match="The tracer has ended"):
        await lab.room("stillborn", held, ())
    await held.close()
    await lab.room("later")
    await lab.cell("later", "x = 42")
    await lab.copy("later", "copied-later")
    assert await lab.cell("copied-later", "x") == "42"
    for name in ("copied-later", "later", "orphan"):
        await lab.gone(name)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_one_that_waits_has_copies_of_what_those_before_wrote_to(lab: Lab) -> None:
    """Of live rooms that were used for long enough to be looked at; the first one that waited has none."""
    names = [f"used-{number}" for number in range(2 * LOOKS + 2)]
    used, first = [], 0
    for name in names[:LOOKS]:
        await lab.room(name)
        assert await lab.cell(name, "1 + 1") == "2"
        used.append(lab.rooms[name].pid)
        first = first or _private_kb(await lab.waiting())
    await asyncio.sleep(USED_S + 0.5)
    for name in names[LOOKS:]:  # each has another made; they are looked at one by one
        await lab.waiting()
        await lab.room(name)
    vacant = await lab.waiting()
    ahead = _private_kb(vacant)
    assert ahead > 1.5 * first
    await lab.room("last")
    assert lab.rooms["last"].pid == vacant
    assert await lab.cell("last", "1 + 1") == "2"
    assert _private_kb(vacant) - ahead < (_private_kb(used[-1]) - first) / 2
    for name in (*names, "last"):
        await lab.gone(name)


def _private_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
