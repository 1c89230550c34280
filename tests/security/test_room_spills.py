"""Checkpoints on disk: what was in memory is there again, in a copy that is a process of its room and no more."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from roost.isolation.driver import Branch, MemoryLost
from roost.isolation.namespaces import seeds
from roost.isolation.tracing import images
from roost.model.errors import StorageFull, Unavailable
from tests.security.test_room_branches import LIBRARY, Lab, _children, _state, _until
from tests.support.interpreter import lasting_data
from tests.support.interpreter_room import interpreter_driver
from tests.support.rooms import Remains, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST = 1 << 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    base: Path = tmp_path_factory.mktemp("spills")
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


async def kept(lab: Lab, name: str) -> tuple[Branch, Path]:
    image = lab._image(name)
    branch = await lab.rooms[name].branch(image, keep=True)
    assert branch.lost == (), branch.lost
    return branch, image


STATE = """
import ctypes, hashlib, mmap, os, sys, numpy as np
heap = np.random.default_rng().integers(0, 256, 50 << 20, dtype=np.uint8)
gone = np.ones(20 << 17); gone_at = gone.ctypes.data; del gone
small = {str(n): [n, n / 3, b"%d" % n] for n in range(50_000)}
import sqlite3, xml.dom.minidom
table = sqlite3.connect(":memory:"); table.execute("create table t (n)"); table.execute("insert into t values (40)")
shared = mmap.mmap(-1, 8192); shared[0] = 7
libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(100_000) for _ in range(200)]
def deep(n): return 0 if n == 0 else 1 + max((deep(n - 1),), key=lambda one: one)
sys.setrecursionlimit(100_000); deep(5000)
class Thing:
    def __init__(self): self.me = self
    def __call__(self): return self.me is self
thing = Thing(); lines = (n for n in range(10)); next(lines)
def seen():
    return (hashlib.sha256(heap).hexdigest(), hashlib.sha256(repr(sorted(small.items())).encode()).hexdigest(),
            table.execute("select n + 2 from t").fetchone(), shared[0], thing(), "gone" in globals())
seen()
"""
#: All that it goes on with: the allocators of C and of Python, a deeper stack, modules that were not there.
GOES_ON = """
for block in blocks: libc.free(block)
libc.malloc_trim(0)
blocks = [libc.malloc(n) for n in range(100, 200_000, 500)]
for block, n in zip(blocks, range(100, 200_000, 500)): ctypes.memset(block, 1, n)
grown = np.concatenate([heap, heap]); more = [bytes(n) for n in range(20_000)]
import decimal, difflib, statistics, pandas as pd
table.execute("insert into t values (2)")
frame = pd.DataFrame({"a": range(1000)})
child = os.fork()
if child == 0: os._exit(7)
total = table.execute("select sum(n) from t").fetchone()
(deep(20_000), next(lines), int(frame.a.sum()), str(decimal.Decimal(1) / 8), total,
 os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool((grown[: 50 << 20] == heap).all()))
"""
WENT_ON = "(20000, 1, 499500, '0.125', (42,), 7, True)"


def _descriptors(lab: Lab) -> list[str]:
    """Of images, and of others' memory."""
    found: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith((f"{lab.directory}/#", "/proc/"))]


def _held(branch: Branch) -> list[Any]:
    return [copy.drop.__self__ for copy in branch.copies]  # type: ignore[attr-defined]


async def test_what_was_in_memory_is_there_again(lab: Lab) -> None:
    await lab.room("spilled")
    before = await lab.cell("spilled", STATE)
    branch, image = await kept(lab, "spilled")
    assert (
        await lab.cell("spilled", "heap[:] = 0; table.execute('delete from t'); thing.me = None; small.clear(); 1")
        == "1"
    )
    for _ in range(2):
        (held,) = _held(branch)
        process = held._held.process
        groups = Path(f"/proc/{process}/cgroup").read_text()
        size = await branch.spill(lab.directory, MOST)
        assert 50 << 20 < size < 150 << 20
        assert (await branch.measure(), await branch.alive()) == (0, True)
        await _until(lambda process=process: not Path(f"/proc/{process}").exists())
        await branch.recall()
        assert await branch.measure() > 50 << 20
        assert Path(f"/proc/{held._held.process}/cgroup").read_text() == groups
    assert _descriptors(lab) == []
    for name in ("recalled", "again"):
        await lab.room(name, branch, (image,))
        assert await lab.cell(name, "seen()") == before
        original, copied = (_state(lab.context(name), lab.rooms[name].pid) for name in ("spilled", name))
        assert copied == original
        # What it shares with none is its own again, and what it is itself can be copied.
        assert await lab.cell(name, GOES_ON) == WENT_ON
        await lab.copy(name, f"copied-{name}")
        assert await lab.cell(f"copied-{name}", "heap[0] += 1; seen()") != before
        assert await lab.cell(name, "seen()[3:]") == "(7, True, False)"
        assert await lab.cell(name, LIBRARY + "(libc.unshare(0x10000000), ctypes.get_errno())") == "(-1, 1)"
        await lab.gone(f"copied-{name}")
        await lab.gone(name)
    await branch.close()
    await lab.gone("spilled")


async def test_a_copy_of_what_came_back_goes_to_disk_itself(lab: Lab) -> None:
    await lab.room("first")
    await lab.cell("first", "import numpy as np; heap = np.arange(1 << 20); x = 41")
    branch, image = await kept(lab, "first")
    await branch.spill(lab.directory, MOST)
    await branch.recall()
    await lab.room("second", branch, (image,))
    await branch.close()
    await lab.gone("first")
    await lab.cell("second", "x += 1; heap[5] = 0")
    branch, image = await kept(lab, "second")
    await lab.gone("second")  # it outlives its room there too
    await branch.spill(lab.directory, MOST)
    await branch.recall()
    await lab.room("third", branch, (image,))
    assert await lab.cell("third", "x, int(heap.sum())") == f"(42, {(1 << 20) * ((1 << 20) - 1) // 2 - 5})"
    await branch.close()
    await lab.gone("third")


async def test_the_seed_stays_as_long_as_there_are_copies_of_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.end_tracer()
    await lab.room("old")
    await lab.cell("old", "x = 41")
    first = min(_held_tasks())
    seed = lab.driver._seeds._seeds[lab.template].held
    assert seed is not None
    monkeypatch.setattr(seeds, "_CONTEXTS_EACH", 0)
    await lab.room("new")
    await lab.cell("new", "x = 1")
    monkeypatch.undo()
    assert lab.driver._seeds._seeds[lab.template].held is not seed
    branch, image = await kept(lab, "old")
    size = await branch.spill(lab.directory, MOST)
    assert size < 20 << 20
    await lab.gone("old")
    await branch.recall()
    await lab.room("back", branch, (image,))
    assert await lab.cell("back", "x + 1") == "42"
    await lab.gone("back")
    await branch.spill(lab.directory, MOST)
    assert first in _held_tasks()
    await branch.close()  # the last that is a copy of it
    await _until(lambda: first not in _held_tasks())
    await lab.gone("new")


@pytest.mark.parametrize("damage", ["truncated", "header", "layout", "table", "page", "empty"])
async def test_an_image_that_was_changed_is_refused_and_nothing_is_left_of_it(lab: Lab, damage: str) -> None:
    await lab.room(f"damaged-{damage}")
    await lab.cell(f"damaged-{damage}", "x = 41")
    tasks = await _held_at_rest()
    branch, _ = await kept(lab, f"damaged-{damage}")
    size = await branch.spill(lab.directory, MOST)
    (held,) = _held(branch)
    if damage == "truncated":
        os.ftruncate(held._image, size // 2)
    elif damage == "empty":
        os.ftruncate(held._image, 0)
    else:
        layout, _, _, table = struct.unpack_from("<QQIQ", os.pread(held._image, 64, 0), 12)
        at = {"header": 10, "layout": layout + 50, "table": table + 50, "page": 4096 + 100}[damage]
        (byte,) = os.pread(held._image, 1, at)
        os.pwrite(held._image, bytes([byte ^ 1]), at)
    for _ in range(2):
        with pytest.raises(MemoryLost, match="it is not complete"):
            await branch.recall()
        await _until(lambda: len(_held_tasks()) == tasks)
    assert await branch.alive()
    assert await lab.cell(f"damaged-{damage}", "x + 1") == "42"
    await branch.close()
    await _until(lambda: _descriptors(lab) == [])
    await lab.gone(f"damaged-{damage}")


async def test_what_can_not_be_written_stays_in_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.room("large")
    await lab.cell("large", "import os; heap = os.urandom(30 << 20); x = 41")
    branch, image = await kept(lab, "large")
    with pytest.raises(Unavailable, match=r"it takes 3\d MB, and may take 20"):
        await branch.spill(lab.directory, 20 << 20)
    write_all = images._write_all

    def full(target: int, data: bytes, offset: int) -> None:
        if offset > 10 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(target, data, offset)

    monkeypatch.setattr(images, "_write_all", full)
    with pytest.raises(StorageFull, match="is full"):
        await branch.spill(lab.directory, MOST)
    monkeypatch.undo()
    assert await branch.measure() > 0
    await branch.recall()  # as it is in memory, nothing
    await _until(lambda: _descriptors(lab) == [])
    await lab.room("was-large", branch, (image,))
    assert await lab.cell("was-large", "x + 1, len(heap)") == f"(42, {30 << 20})"
    await branch.close()
    await lab.gone("was-large")
    await lab.gone("large")


async def test_who_leaves_meanwhile_leaves_nothing(lab: Lab) -> None:
    await lab.room("left")
    await lab.cell("left", "import os; heap = os.urandom(60 << 20)")
    tasks = await _held_at_rest()
    for delay in (0.0, 0.02, 0.1, 0.2):
        for moved in ("spill", "recall"):
            for ended in ("cancelled", "dropped"):
                branch, _ = await kept(lab, "left")
                if moved == "recall":
                    await branch.spill(lab.directory, MOST)
                moving = asyncio.create_task(branch.spill(lab.directory, MOST) if moved == "spill" else branch.recall())  # type: ignore[arg-type]
                await asyncio.sleep(delay)
                if ended == "cancelled":
                    moving.cancel()
                await branch.close()
                await asyncio.gather(moving, return_exceptions=True)
                await branch.close()
    await _until(lambda: _descriptors(lab) == [] and len(_held_tasks()) == tasks)
    await lab.gone("left")


async def test_a_room_is_left_where_nothing_else_is_in_it(lab: Lab) -> None:
    await lab.room("quiet")
    await lab.cell("quiet", "import os, subprocess, threading, time, socket; x = 41; open('kept', 'w').write('kept')")
    here = await lab.cell("quiet", "os.getcwd()")
    for begin, why, end in TIES:
        await lab.cell("quiet", begin + "; 1")
        with pytest.raises(Unavailable, match=why):
            await lab.rooms["quiet"].leave()
        await lab.cell("quiet", end + "; 1")
    cell = asyncio.create_task(lab.cell("quiet", "time.sleep(1.5); 1"))
    await asyncio.sleep(0.5)
    with pytest.raises(Unavailable, match="a cell of it still runs"):
        await lab.rooms["quiet"].leave()
    assert await cell == "1"
    branch = await lab.rooms["quiet"].leave()
    await branch.spill(lab.directory, MOST)
    await lab.rooms.pop("quiet").destroy()
    await branch.recall()
    (lab.directory / "quiet").rename(lab.directory / "was-quiet")
    await lab.room("quiet", branch)
    assert await lab.cell("quiet", "x + 1, open('kept').read(), os.getcwd()") == f"(42, 'kept', '{here}')"
    await branch.close()
    await lab.gone("quiet")


TIES = [
    ("p = subprocess.Popen(['sleep', '600'])", "it runs other programs", "p.kill(); p.wait()"),
    ("p = os.fork() or time.sleep(600)", "it runs other programs", "os.kill(p, 9); os.wait()"),
    (
        "on = threading.Event(); t = threading.Thread(target=on.wait); t.start()",
        "a context has threads",
        "on.set(); t.join()",
    ),
    ("pair = socket.socketpair()", "a context has connections", "[one.close() for one in pair]"),
    ("open('/dev/shm/file', 'w').close()", "it has files in /dev/shm", "os.remove('/dev/shm/file')"),
]


@pytest.mark.parametrize("moved", ["spill", "recall"])
async def test_the_tracer_is_killed_meanwhile(lab: Lab, moved: str) -> None:
    await lab.room(f"killed-{moved}")
    await lab.cell(f"killed-{moved}", "import os; heap = os.urandom(60 << 20); x = 41")
    branch, _ = await kept(lab, f"killed-{moved}")
    if moved == "recall":
        await branch.spill(lab.directory, MOST)
    moving = asyncio.create_task(branch.spill(lab.directory, MOST) if moved == "spill" else branch.recall())  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    await lab.end_tracer()
    with pytest.raises(Unavailable):
        await moving
    assert not await branch.alive()
    await branch.close()
    assert await lab.cell(f"killed-{moved}", "x + 1") == "42"
    await lab.gone(f"killed-{moved}")
    assert _held_tasks() == []


async def _held_at_rest() -> int:
    """How many tasks the tracer holds when it has made what it makes ahead."""
    found, since = -1, 0.0
    loop = asyncio.get_running_loop()
    while found < 0 or loop.time() - since < 0.5:
        now = len(_held_tasks())
        if now != found:
            found, since = now, loop.time()
        await asyncio.sleep(0.02)
    return found


def _held_tasks() -> list[int]:
    """All that the tracer holds."""
    tracers = [pid for pid in _children(os.getpid()) if Path(f"/proc/{pid}/comm").read_text() == "roost-tracer\n"]
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "status").read_text()
                if int(status.partition("TracerPid:")[2].split()[0]) in tracers:
                    found.append(int(entry.name))
    return found
