"""What each layer of a room, and each driver, costs: at its start, in each system call that its code makes, and in each
request to it.

The same room, whole and without one layer at a time, and those of other drivers, beside a process without any. The
probe of the tests is the guest, so nothing of Roost's own work is in these numbers. Rooms are made on demand, none
ahead. Needs root; the driver of users without root runs in a process of such a user, asked over a pipe.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench import _harness
from roost.isolation import seccomp
from roost.isolation.bundle import Bundle, build_bundle
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.room import NamespacesRoom
from roost.model.function import GVISOR, NAMESPACES, STRICT, Limits
from tests.support import room_probe
from tests.support.rooms import PROBE, World, world
from tests.support.user_rooms import UserRoom, UserWorld, user_world

CALLS = 20_000
#: The time of one call, in microseconds: nothing but the way into the kernel and back, a path that is looked up, a
#: descriptor that comes and goes, a write.
SOURCE = f"""
import os, time
def of(call):
    began = time.perf_counter()
    for _ in range({CALLS}):
        call()
    return (time.perf_counter() - began) / {CALLS} * 1e6
null = os.open("/dev/null", os.O_WRONLY)
result = {{
    "getppid": of(os.getppid),
    "stat /usr/bin/env": of(lambda: os.stat("/usr/bin/env")),
    "open and close /dev/null": of(lambda: os.close(os.open("/dev/null", os.O_RDONLY))),
    "write of a byte": of(lambda: os.write(null, b"x")),
}}
"""
WHOLE = RoomPolicy(seccomp=seccomp.program())
LAYERS = {
    "a room": WHOLE,
    "without the list of system calls": replace(WHOLE, seccomp=b""),
    "without Landlock": replace(WHOLE, landlock=False),
    "without a user namespace": replace(WHOLE, user_namespace=False),
    "without covers over /proc": replace(WHOLE, masked=(), hide_boot_id=False),
}
ROOM, PROCESS = "a room", "a process, no room"
ISOLATIONS = {"a strict room": STRICT, "a room on gVisor": GVISOR}
R = TypeVar("R")
USERS = "a room of a user without root"
ONE = "result = 1"


class Rooms(abc.ABC, Generic[R]):
    """Rooms of one kind, each made and ended by itself; one of them stays, for requests."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._numbers = itertools.count()
        self._staying: R | None = None

    @abc.abstractmethod
    async def _make(self, number: int) -> R: ...

    @abc.abstractmethod
    async def _ask(self, room: R, source: str) -> Any: ...

    @abc.abstractmethod
    async def _end(self, room: R) -> None: ...

    def start(self) -> float:
        """Milliseconds until the room has answered."""
        return self._runner.run(self._start())

    async def _start(self) -> float:
        began = time.perf_counter()
        room = await self._make(next(self._numbers))
        await self._ask(room, ONE)
        milliseconds = (time.perf_counter() - began) * 1000
        await self._end(room)
        return milliseconds

    def calls(self) -> dict[str, float]:
        return self._runner.run(self._calls())

    async def _calls(self) -> dict[str, float]:
        room = await self._make(next(self._numbers))
        try:
            found: dict[str, float] = await self._ask(room, SOURCE)
            return found
        finally:
            await self._end(room)

    def answer(self) -> float:
        """Milliseconds until a room that runs has answered: a connection, a fork, a line of Python."""
        return self._runner.run(self._answer())

    async def _answer(self) -> float:
        if self._staying is None:
            self._staying = await self._make(next(self._numbers))
            await self._ask(self._staying, ONE)
        began = time.perf_counter()
        await self._ask(self._staying, ONE)
        return (time.perf_counter() - began) * 1000


class OfRoot(Rooms[NamespacesRoom]):
    """Of one policy and isolation."""

    def __init__(self, made: World, runner: asyncio.Runner, isolation: str) -> None:
        super().__init__(runner)
        self._world = made
        self._isolation = isolation

    async def _make(self, number: int) -> NamespacesRoom:
        # Another shape each time, so that none of them was made ahead.
        limits = Limits(disk_mb=64, memory_mb=256 + number, pids=64)
        return await self._world.room(f"r-{number}", limits=limits, isolation=self._isolation)

    async def _ask(self, room: NamespacesRoom, source: str) -> Any:
        return await self._world.ask(room, source)

    async def _end(self, room: NamespacesRoom) -> None:
        await room.destroy()


class OfUser(Rooms[UserRoom]):
    """Of a user without root; what it takes to ask its driver is in the numbers of starts."""

    def __init__(self, made: UserWorld, runner: asyncio.Runner) -> None:
        super().__init__(runner)
        self._world = made

    async def _make(self, number: int) -> UserRoom:
        return await self._world.room(f"r-{number}", limits={"memory_mb": 256 + number, "pids": 64})

    async def _ask(self, room: UserRoom, source: str) -> Any:
        return await self._world.ask(room, source)

    async def _end(self, room: UserRoom) -> None:
        await self._world.do("destroy", name=room.id)


def plain_start() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-E", "-c", "pass"], check=True)
    return (time.perf_counter() - began) * 1000


def plain_calls() -> dict[str, float]:
    names: dict[str, Any] = {}
    exec(SOURCE, names)
    return dict(names["result"])


def probe(directory: Path) -> Bundle:
    bundle = build_bundle(directory)
    for package in bundle.root.glob("**/roost/__init__.py"):
        shutil.copy(room_probe.__file__, package.parents[1] / f"{PROBE}.py")
    return bundle


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin("What each layer of a room costs", options)
    directory = Path(tempfile.mkdtemp(prefix="roost-bench-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bundle = probe(directory / "bundle")
        runner = stack.enter_context(asyncio.Runner())
        candidates: dict[str, Rooms[Any]] = {}
        for number, (name, policy) in enumerate({**LAYERS, **dict.fromkeys(ISOLATIONS, WHOLE)}.items()):
            entered = world(bundle, directory / str(number), policy, alone=False)
            made = runner.run(entered.__aenter__())
            candidates[name] = OfRoot(made, runner, isolation=ISOLATIONS.get(name, NAMESPACES))
            stack.callback(lambda entered=entered: runner.run(entered.__aexit__(None, None, None)))
        users = user_world()
        candidates[USERS] = OfUser(runner.run(users.__aenter__()), runner)
        stack.callback(lambda: runner.run(users.__aexit__(None, None, None)))
        starts: dict[str, Callable[[], float]] = {PROCESS: plain_start}
        calls: dict[str, Callable[[], dict[str, float]]] = {PROCESS: plain_calls}
        for name, rooms in candidates.items():
            rooms.start()  # the template's process is there then
            starts[name], calls[name] = rooms.start, rooms.calls
        series = _harness.interleave(starts, options.runs)
        seen = _harness.interleave(calls, options.runs)
        answers = _harness.interleave({name: rooms.answer for name, rooms in candidates.items()}, options.runs * 5)
    _harness.table("Until the first code has run", "ms", series, reference=ROOM)
    _harness.table("A request to a room that runs", "ms", answers, reference=ROOM)
    for call in next(iter(seen.values()))[0]:
        _harness.table(
            call, "µs", {name: [one[call] for one in runs] for name, runs in seen.items()}, reference=PROCESS
        )
    _harness.end(_harness.Promises(), options)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
