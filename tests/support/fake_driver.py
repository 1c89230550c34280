"""A driver without rooms: each guest is a coroutine in this process that answers on the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.instances.surroundings import Prepared
from roost.isolation.driver import Branch, Capability, RoomSpec, Template, Usage
from roost.model.errors import StorageFull, Unavailable
from roost.model.function import FunctionSpec, Limits
from roost.model.session import Session
from roost.model.usage import TransitionRecord

#: Why a room is not made that was begun.
UNMADE = "The room could not be made: mounts: No such file or directory."
#: Messages that are JSON, or look like it, and no answer.
LIES = (
    b'{"event":"ready","init_ms":1%s}' % (b"0" * 400),
    b'{"event":"ready","init_ms":NaN}',
    b'{"event":"pre_stopped"}',
    b'{"event":"log","stream":"stdout","text":"\\ud800"}',
    b'{"event":"log","stream":7,"text":{"a":1}}',
    b'{"event":["ready"]}',
    b"\xff\xfe\x00",
    b"[" * 50_000,
)


class FakeRoom:
    """A room's host side. `script` tells how its guest behaves, see `_started`."""

    lets_go = False  # a branch costs the connections of the host

    def __init__(self, spec: RoomSpec, script: str) -> None:
        self.id = spec.id
        self.pid = 0
        self.spec = spec
        self.script = script
        self.frozen = False
        self.destroyed = False
        self.oom_kills = 0
        self.stuck = 0  # so many times, `destroy` fails
        self.rigid = False  # it does not freeze
        self.busy = False  # a cell runs, and does not end
        self.anonymous_bytes = 0
        self.branches: list[Branch] = []  # what `branch` gives next
        self.ties = ""  # why its memory can't go elsewhere
        self.thaws = 0
        self.restarts = 0
        self.ended = asyncio.Event()
        self.writers: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None

    @property
    def handle(self) -> Mapping[str, Any]:
        return {"id": self.id}

    async def open(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, str(self.spec.run_dir / "guest.sock"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                if line == b"control\n":
                    continue
                message = json.loads(line)
                if message["op"] == "restart":
                    self.restarts += 1
                if message["op"] == "pre_stop":
                    self.say({"event": "pre_stopped"})
                else:
                    await self._started(writer)
        self.writers.discard(writer)
        writer.close()

    async def _started(self, writer: asyncio.StreamWriter) -> None:
        """Answer `start`, `attach` or `restart`."""
        match self.script:
            case "silent":
                return
            case "failed":
                self.say({"event": "failed", "error": {"errorType": "ImportError", "errorMessage": "no module"}})
                return
            case "exits":
                self.say({"event": "exited", "code": 3, "signal": None})
                return
            case "hangs up":
                writer.close()
                return
            case "dies" | "unmade":  # while it is made, which `made` tells
                self.die()
                return
            case "slow":
                await asyncio.sleep(0.05)
            case "garbage":
                writer.write(b"{" * 100_000 + b"\nnull\n[1]\n")
            case "liar":
                for lie in LIES:
                    writer.write(lie + b"\n")
            case "flood":
                writer.write(b'{"event":"log","stream":"stdout","text":"x"}\n' * 20_000)
        self.say({"event": "ready", "init_ms": "x" if self.script == "garbage" else 0.1})
        if self.script == "leaves":  # it was ready, and then is not heard of again
            writer.close()
        elif self.script == "crashes":
            self.die()
        elif self.script == "shouts":
            writer.write(b"x" * (3 << 20))

    def say(self, message: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write(json.dumps(message).encode() + b"\n")

    async def wait(self) -> None:
        await self.ended.wait()

    async def freeze(self) -> None:
        if self.rigid:
            raise Unavailable(f"The room {self.id} did not freeze in time.")
        self.frozen = True

    async def thaw(self) -> None:
        self.frozen = False
        self.thaws += 1

    async def snapshot(self, target: Path, beside: Mapping[Path, Path] | None = None) -> None:
        if self.ended.is_set():
            raise Unavailable(f"The room {self.id} ended while a snapshot of it was taken.")
        await asyncio.sleep(0)
        target.touch(exist_ok=False)

    async def tied(self) -> str:
        return self.ties

    async def leave(self) -> Branch:
        if not self.branches:
            raise Unavailable("a context has threads")
        return self.branches.pop(0)

    async def branch(
        self,
        target: Path,
        beside: Mapping[Path, Path] | None = None,
        *,
        keep: bool = False,
        now: bool = False,
    ) -> Branch:
        await self.snapshot(target)
        if self.lets_go:
            for writer in list(self.writers):
                writer.close()
        return self.branches.pop() if self.branches else Branch(lost=("there is no memory here",))

    async def made(self) -> None:
        if self.script == "unmade":
            raise Unavailable(UNMADE)

    async def settled(self) -> None:
        await self.made()

    async def rest(self) -> bool:
        return not self.busy

    def anonymous(self) -> int:
        return self.anonymous_bytes

    def usage(self) -> Usage:
        return Usage(cpu_us=0, memory_bytes=1, memory_peak_bytes=1, pids=1, oom_kills=self.oom_kills)

    async def destroy(self) -> None:
        if self.stuck:
            self.stuck -= 1
            raise Unavailable(f"The room {self.id} does not end.")
        self.destroyed = True
        self.ended.set()
        if self.server is not None:
            self.server.close()
        for writer in list(self.writers):
            writer.close()

    def die(self) -> None:
        self.ended.set()
        for writer in list(self.writers):
            writer.close()


class FakeDriver:
    """Makes FakeRooms. `script` is what the next guests do; `gate`, if set, holds every create until it is set."""

    name = "fake"
    capabilities = frozenset({Capability.FREEZE})

    def __init__(self) -> None:
        self.rooms: list[FakeRoom] = []
        self.script = "ready"
        self.stuck = 0  # of the next rooms
        self.fail_create = False
        self.full = False  # the disk
        self.gate: asyncio.Event | None = None
        self.swept: frozenset[str] | None = None

    def lack(self) -> str:
        return ""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def warm(self, template: Template) -> None: ...

    async def create(self, spec: RoomSpec) -> FakeRoom:
        if self.gate is not None:
            await self.gate.wait()
        if self.fail_create:
            raise Unavailable("no loop device")
        if spec.layer is not None and not spec.layer.exists():
            if self.full:
                raise StorageFull("full")
            spec.layer.touch()
        room = FakeRoom(spec, self.script)
        room.stuck = self.stuck
        await room.open()
        self.rooms.append(room)
        return room

    async def recover(self, handle: Mapping[str, Any]) -> FakeRoom | None:
        return next((r for r in self.rooms if r.id == handle["id"] and not r.ended.is_set()), None)

    async def sweep(self, keep: frozenset[str]) -> int:
        self.swept = keep
        return 0

    @property
    def alive(self) -> list[FakeRoom]:
        return [room for room in self.rooms if not room.destroyed]


class FakePreparer:
    """The least a room needs."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.held = 0
        self.sessions: list[Session | None] = []  # that rooms were made for

    async def prepare(self, spec: FunctionSpec, instance_id: str, session: Session | None) -> Prepared:
        run_dir = self.run / instance_id
        run_dir.mkdir(parents=True, exist_ok=True)
        self.held += 1
        self.sessions.append(session)

        def release() -> None:
            self.held -= 1

        room = RoomSpec(id=instance_id, template=Template(name="t", root=self.run), limits=Limits(), run_dir=run_dir)
        return Prepared(room=room, start={}, release=release)


class Recorder:
    """Keeps what instances report."""

    def __init__(self) -> None:
        self.transitions: list[TransitionRecord] = []
        self.lines: list[str] = []

    def transition(self, record: TransitionRecord) -> None:
        self.transitions.append(record)

    def output(self, spec: FunctionSpec, instance_id: str, stream: str, text: str) -> None:
        self.lines.append(text)


class MemorySessions:
    """A session store that forgets."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Session] = {}

    async def put(self, session: Session) -> None:
        await asyncio.sleep(0)
        self.rows[session.key] = session

    async def delete(self, account: str, function: str, id: str) -> None:
        self.rows.pop((account, function, id), None)

    async def list_all(self) -> list[Session]:
        return list(self.rows.values())
