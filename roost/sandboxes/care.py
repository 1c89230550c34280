"""What becomes of sandboxes when the server's own life begins and ends, and what each uses meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from roost.isolation.driver import Room
from roost.model.instance import StopReason
from roost.model.sandbox import PauseMode, SandboxState
from roost.sandboxes.entry import Entry
from roost.sandboxes.lives import Lives
from roost.sandboxes.samples import EVERY_S
from roost.telemetry.rounds import going_on

log = logging.getLogger(__name__)

_CLOSE_S = 30.0  # a room that is killed ends in a moment, unless a process of it is stuck in the kernel


class SandboxCare:
    """`load`, `adopt` for each room that lived on, `reconcile`; `sample` while the server runs; `close` at its end."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives

    async def load(self) -> None:
        """Before `adopt`: what is stored."""
        await self._lives.book.load()
        for sandbox in self._lives.book.list():
            self._lives.entries[sandbox.id] = Entry(sandbox)

    def adopt(self, about: Mapping[str, Any], room: Room) -> bool:
        """Take over a room that outlived an earlier server. False: it can't be owned."""
        entry = self._lives.entries.get(str(about.get("id")))
        if entry is None or entry.instance is not None:
            return False
        sandbox = entry.sandbox
        if sandbox.pause_mode in (PauseMode.FILESYSTEM, PauseMode.DISK) or not self._lives.assembly.has_files(
            sandbox.place
        ):
            return False
        if about.get("place", sandbox.id) != sandbox.place:  # a rollback had left it, or not come to it yet
            return False
        instance = self._lives.new_instance(entry)
        if sandbox.state is SandboxState.PAUSED:
            instance.hold_once_up()
            entry.still_since = self._lives.now()
        self._lives.background.spawn(instance.run(adopt=room))
        self._lives.set_timer(entry)
        return True

    async def reconcile(self) -> None:
        """After all rooms were adopted, or swept: a sandbox without its room is paused, one without files is gone."""
        for entry in list(self._lives.entries.values()):
            sandbox = entry.sandbox
            if entry.instance is not None:
                continue
            if not self._lives.assembly.has_files(sandbox.place):
                del self._lives.entries[sandbox.id]
                await self._lives.book.end(sandbox, StopReason.LOST)
            elif sandbox.pause_mode is not PauseMode.FILESYSTEM:
                await self._lives.change(
                    entry, state=SandboxState.PAUSED, pause_mode=PauseMode.FILESYSTEM, reason=StopReason.LOST
                )
        known = frozenset(entry.sandbox.place for entry in self._lives.entries.values())
        for place in self._lives.assembly.strays(known):
            self._lives.assembly.discard(place)
        self._lives.release(self._lives.assembly.images.names())

    async def sample(self) -> None:
        """Now and then, note what each sandbox uses. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            with going_on("sandboxes can't be counted"):
                self._count()
            for number, entry in enumerate(list(self._lives.entries.values())):
                if entry.sandbox.state is SandboxState.RUNNING:
                    with going_on(f"what sandbox {entry.sandbox.id} uses can't be noted"):
                        self._sample(entry)
                if number % 50 == 49:
                    await asyncio.sleep(0)

    def _count(self) -> None:
        entries = self._lives.entries.values()
        running = (entry.sandbox.account for entry in entries if entry.sandbox.state is SandboxState.RUNNING)
        self._lives.census.take(self._lives.now(), Counter(running))

    def _sample(self, entry: Entry) -> None:
        room = entry.instance.room if entry.instance is not None else None
        if room is None:
            return
        try:
            used = room.usage()
        except OSError:
            return
        entry.samples.add(
            self._lives.now(),
            cpu_us=used.cpu_us,
            cpus=entry.sandbox.limits.cpu,
            memory_bytes=used.memory_bytes,
            disk_bytes=self._lives.assembly.used_bytes(entry.sandbox.place),
        )

    async def close(self) -> None:
        """Take down every room; what ran is paused, with its files. Returns also when it is clear that one does not
        end, or can't be recorded: the next server finds it."""
        self._lives.closing = True
        leaving = (self._lives.put_away(entry) for entry in list(self._lives.entries.values()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                for error in await asyncio.gather(*leaving, return_exceptions=True):
                    if error is not None:
                        log.warning("a sandbox was not put away: %s", error)
                await self._lives.leaving.drained()
        for entry in self._lives.entries.values():
            await entry.drop_memory()
        await self._lives.leaving.close()
        await self._lives.background.close()
