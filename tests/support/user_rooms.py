"""Rooms of a user without root for tests: a driver in a process of his, which is asked, and rooms that are asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.isolation.bundle import Bundle
from tests.support import users
from tests.support.rooms import PROBE, ask, host_template, open_probe_bundle


@dataclass(frozen=True)
class UserRoom:
    """What is known of one outside."""

    id: str
    handle: Mapping[str, Any]

    @property
    def pid(self) -> int:
        return int(self.handle["pid"])


class Refused(Exception):
    """What the driver raised."""


class UserWorld:
    """A driver, of a directory that is the user's. `start` again after `kill` for a server that comes back."""

    def __init__(self, directory: Path, bundle: Bundle) -> None:
        self.directory = directory
        self.bundle = bundle
        self.data = directory / "data"
        self.template = directory / "template"
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        places = (self.data, self.directory / "run", self.template, self.bundle.root, PROBE)
        self._process = await asyncio.to_thread(
            users.start,
            "tests.support.user_driver",
            [str(place) for place in places],
            self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert await self._answer() == "ready"

    async def do(self, what: str, **more: Any) -> Any:
        """Raises Refused."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self._process.stdin.flush()
        return await self._answer()

    async def _answer(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), 60)
        assert line, "the driver's process has ended"
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    async def room(self, name: str, **more: Any) -> UserRoom:
        asked = {"limits": {}, "mounts": [], **more}
        return UserRoom(name, await self.do("create", name=name, **asked))

    async def ask(self, room: UserRoom, source: str) -> Any:
        return await ask(self.directory / "run" / room.id, source)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._end()

    async def close(self) -> None:
        await self.do("close")
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.asynccontextmanager
async def user_world() -> AsyncIterator[UserWorld]:
    """A driver that is closed at the end, with every room; what then is left of it fails the test."""
    with users.place_of() as directory:
        host_template(directory / "template")
        (directory / "data").mkdir()
        for part in ("template", "data"):
            users.give(directory / part)
        world = UserWorld(directory, open_probe_bundle())
        await world.start()
        try:
            yield world
        except BaseException:
            world.kill()
            raise
        await world.close()
        left = [*(world.data / "rooms").iterdir(), *(world.data / "layers/.trash").iterdir()]
        assert not left
        deadline = asyncio.get_running_loop().time() + 10
        while remaining := users.processes(containing=str(directory)):
            assert asyncio.get_running_loop().time() < deadline, remaining
            await asyncio.sleep(0.02)
