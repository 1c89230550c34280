"""Paused sandboxes, rung by rung: a room that stands still takes its memory all the while, so after some time that of
its contexts goes to disk and the room ends. To resume is to make a room of it, over the same files.

Only where that loses nothing: a room with other programs, threads, connections or files in memory stands still for as
long as it is paused.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from roost.instances.instance import Instance
from roost.isolation.driver import Branch
from roost.model.errors import RoostError, Unavailable
from roost.model.instance import StopReason
from roost.model.sandbox import PauseMode, SandboxState
from roost.sandboxes.entry import Entry, HeldMemory
from roost.sandboxes.lives import Lives
from roost.telemetry.rounds import going_on

log = logging.getLogger(__name__)

_EVERY_S = 5.0
_LOOKED_AT = 50  # each time


class PauseLadder:
    """`spills` and `disk_bytes` are those of checkpoints, with which it shares them; `after_s`: how long a sandbox
    stands still, 0 for as long as it is paused."""

    def __init__(self, lives: Lives, *, spills: Path, disk_bytes: int, after_s: float) -> None:
        self._lives = lives
        self._spills = spills
        self._disk_bytes = disk_bytes
        self._after_s = after_s

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        while self._after_s and self._disk_bytes:
            await asyncio.sleep(min(_EVERY_S, self._after_s))
            for entry in list(self._lives.entries.values()):
                if self._is_due(entry):
                    with going_on(f"sandbox {entry.sandbox.id} can't go to disk"):
                        await self._lives.do(self._descend(entry))
            for entry in self._unseen():
                with going_on(f"sandbox {entry.sandbox.id} can't be looked at"):
                    await self._lives.do(self._look(entry))

    def _is_due(self, entry: Entry) -> bool:
        return (
            entry.sandbox.state is SandboxState.PAUSED
            and entry.sandbox.pause_mode is PauseMode.FULL
            and entry.instance is not None
            and not entry.ending
            and not self._lives.closing
            and self._is_time(entry)
        )

    def _is_time(self, entry: Entry) -> bool:
        return self._lives.now() - entry.still_since >= self._after_s

    async def _descend(self, entry: Entry) -> None:
        async with entry.lock:
            instance = entry.instance
            if instance is None or not self._is_due(entry):
                return
            try:
                entry.kept = await self._moved(instance)
            except Exception as error:
                self._stays(entry, error)
                return
            await self._lives.take_down(entry, StopReason.PAUSED)
            await self._lives.change(entry, pause_mode=PauseMode.DISK)

    def _unseen(self) -> list[Entry]:
        """Those that have no room and were not looked at for longest: each is a question to who holds it."""
        known = [
            (entry.kept.looked, id, entry)
            for id, entry in self._lives.entries.items()
            if entry.kept is not None and not entry.lock.locked()  # else its resume would be waited for
        ]
        return [entry for _, _, entry in sorted(known, key=lambda one: one[:2])[:_LOOKED_AT]]

    async def _look(self, entry: Entry) -> None:
        async with entry.lock:
            if entry.kept is not None and not entry.ending:
                entry.kept.looked = self._lives.now()
                await self._lives.miss(entry)
                await self._back_to_disk(entry)

    async def _back_to_disk(self, entry: Entry) -> None:
        """Locked. What came back for a room that could not be made."""
        kept = entry.kept
        if kept is None or kept.disk_bytes or not self._is_time(entry):
            return
        try:
            kept.disk_bytes = await self._spilled(kept.branch)
        except Exception as error:
            self._stays(entry, error)
        kept.bytes = await kept.branch.measure()

    def _stays(self, entry: Entry, error: Exception) -> None:
        """If it can't be now, perhaps after as long again. Raises what is no RoostError."""
        entry.still_since = self._lives.now()
        if not isinstance(error, RoostError):
            raise error
        log.info("sandbox %s stays in memory: %s", entry.sandbox.id, error.message)

    async def _moved(self, instance: Instance) -> HeldMemory:
        """The memory of its contexts, on disk; its room is to end. If it raises anything, it stands still as before, or
        has ended."""
        room = instance.room
        if room is None:
            raise Unavailable("it has no room")
        if why := await room.tied():  # before it runs, if only for a moment
            raise Unavailable(why)
        await instance.let_go()  # nobody gets a lease, as its record says that it is paused
        try:
            branch = await room.leave()
            try:
                return HeldMemory(branch=branch, used=self._lives.now(), disk_bytes=await self._spilled(branch))
            except BaseException:
                await branch.close()
                raise
        except Exception:
            await instance.hold()
            raise

    async def _spilled(self, branch: Branch) -> int:
        left = self._disk_bytes - sum(entry.disk_bytes for entry in self._lives.entries.values())
        return await branch.spill(self._spills, max(0, left))
