"""The gVisor driver: rooms of namespaces whose guest runs on a kernel of its own. See ARCHITECTURE.md."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from roost.isolation.driver import Capability, RoomSpec, Template
from roost.isolation.gvisor.checkpoints import Checkpoint, Checkpoints
from roost.isolation.gvisor.runsc import MISSING, Runsc, look, program
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.room import COPIES, NamespacesRoom
from roost.isolation.namespaces.vacant import Inner
from roost.model.errors import Unavailable
from roost.model.function import Limits

#: The host counts the kernel's threads too: some forty for itself, and for each process of the guest's up to six.
_OWN_PIDS, _PIDS_EACH = 128, 6


class GvisorDriver:
    """Rooms within those of `rooms`: the same walls, limits, disks and ids; it starts and closes with that driver."""

    name = "gvisor"
    capabilities = frozenset({Capability.FREEZE, Capability.HARD_LIMITS, Capability.SNAPSHOT})

    def __init__(self, rooms: NamespacesDriver, runsc: Path | None = None) -> None:
        """`runsc`: the program; None: the one that is installed."""
        self._rooms = rooms
        self._program = runsc
        self._runsc: Runsc | None = None
        self._looking = asyncio.Lock()

    def lack(self) -> str:
        return "" if program(self._program) is not None else MISSING

    async def start(self) -> None:
        """Does nothing: runsc is looked for when the first room is wanted."""

    async def close(self) -> None:
        """Does nothing: what it uses belongs to the other driver."""

    async def warm(self, template: Template) -> None:
        await self._rooms.warm(template)

    async def create(self, spec: RoomSpec) -> NamespacesRoom:
        runsc = await self._found()
        command = self._rooms.bundle.command("roost.guest.passed", self._rooms.guest)
        inner = Inner(driver=self.name, program=runsc.program, flags=runsc.flags, command=tuple(command))
        spec = replace(spec, limits=_limits(spec.limits))
        whole = spec.branch.whole if spec.branch is not None else None
        if whole is None:
            room = await self._rooms.create(spec, inner)
        else:
            assert isinstance(whole.held, Checkpoint)
            image = whole.held.mount()
            try:
                room = await self._rooms.create(spec, inner, image)
            finally:
                os.close(image)
        return self._with_copies(room, runsc.lack_of_copies)

    def _with_copies(self, room: NamespacesRoom, lack: str) -> NamespacesRoom:
        address = Path(room.handle["run_dir"]) / COPIES
        room.whole = Checkpoints(address, self._rooms.disks, self._rooms.data_dir, lack=lack)
        return room

    async def _found(self) -> Runsc:
        """Looked for once; again when it has gone since. Raises Unavailable."""
        async with self._looking:
            if self._runsc is None or not self._runsc.program.exists():
                self._runsc = None
                self._runsc = await look(self._program)
            return self._runsc

    async def recover(self, handle: Mapping[str, Any]) -> NamespacesRoom | None:
        room = await self._rooms.recover(handle)
        if room is None:
            return None
        try:
            lack = (await self._found()).lack_of_copies
        except Unavailable as error:  # it lives on all the same
            lack = error.message
        return self._with_copies(room, lack)

    async def sweep(self, keep: frozenset[str]) -> int:
        return await self._rooms.sweep(keep)


def _limits(limits: Limits) -> Limits:
    return replace(limits, pids=_OWN_PIDS + _PIDS_EACH * limits.pids)
