"""Rooms that are put together before it is known whose they are going to be.

What most rooms have in common is their shape: template, limits, rights, and a fresh layer or none. A room's first
process is forked and has entered all of that, as root of the host and before any code of the room's own, and waits for
the rest: name, sockets and mounts. So who asks for a room waits for the last third of its making. Rooms that stand on
layers, or have a layer already, are bare until then: their root is put together by the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost.isolation import linux
from roost.isolation.cgroups import Cgroup
from roost.isolation.disks import Disk, Nameless
from roost.isolation.driver import RoomSpec, Template
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.request import ENTERED
from roost.model.errors import Unavailable
from roost.model.function import STRICT, Limits

_READY_TIMEOUT_S = 30.0
_STATUS_LIMIT = 4096


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A kernel of a room's own, that its guest runs on: which driver's, and how it is started (see `gvisor.oci`)."""

    driver: str
    program: Path
    flags: tuple[str, ...]
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What rooms have in common that could be each other. `kept`: the layer outlives the room. `bare`: what its root
    stands on is not there yet, and is told when it is known whose room it is."""

    template: Template
    limits: Limits
    capabilities: frozenset[str]
    strict: bool
    kept: bool
    bare: bool
    live: bool
    inner: Inner | None

    @classmethod
    def of(cls, spec: RoomSpec, inner: Inner | None, *, bare: bool) -> Shape:
        return cls(
            template=spec.template,
            limits=spec.limits,
            capabilities=spec.capabilities,
            strict=spec.isolation == STRICT,
            kept=spec.layer is not None,
            bare=bare,
            live=spec.live and inner is None and spec.isolation != STRICT,
            inner=inner,
        )


@dataclass(kw_only=True)
class WaitingProcess:
    """The first process of a room that waits for its order; `status` and `order` are closed when it is let go."""

    pid: int
    pidfd: int
    order: socket.socket
    status: int
    entered: asyncio.Event = field(default_factory=asyncio.Event)  # its guest runs

    @property
    def alive(self) -> bool:
        return not linux.has_ended(self.pidfd)

    async def occupy(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        """Return when its guest runs. Raises Unavailable with what went wrong; it is to be discarded then."""
        self.give(message, fds)
        await self.up()

    def give(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        """Tell it whose it is; what becomes of it then, `up` tells. Raises OSError."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended, and said why
            wire.send(self.order, message, fds)

    async def up(self) -> None:
        """As `occupy`, after `give`. What its making alone needed is let go, whatever comes of it."""
        try:
            await self._await_entered()
            self.entered.set()
            await asyncio.sleep(0)  # first, who waits for that
        finally:
            self.let_go()

    async def _await_entered(self) -> None:
        """Wait until the room's guest runs, or its process has ended."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        said = b""
        loop.add_reader(self.status, readable.set)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                while True:
                    await readable.wait()
                    readable.clear()
                    with contextlib.suppress(BlockingIOError):
                        while part := os.read(self.status, _STATUS_LIMIT):
                            said = (said + part)[-_STATUS_LIMIT:]
                        break
        except TimeoutError as error:
            raise Unavailable(f"The room did not come up in {_READY_TIMEOUT_S:.0f} s.") from error
        finally:
            loop.remove_reader(self.status)
        if said != ENTERED:
            why = said.decode(errors="replace") or "its process was ended"
            raise Unavailable(f"The room could not be made: {why}.")

    def let_go(self) -> None:
        """Of what only its making needs. Idempotent."""
        self.order.close()
        status, self.status = self.status, -1
        if status >= 0:
            os.close(status)


@dataclass(kw_only=True)
class VacantRoom(WaitingProcess):
    """One that waits. It is occupied or discarded, once."""

    index: int  # of its id range
    cgroup: Cgroup
    disk: Disk | Nameless | None  # None: it is bare
    give_back: Callable[[int], None]
    base: int  # host id of the room's id 0
    capabilities: int  # of the room's root, as a mask

    def claim(self, layer: Path | None) -> None:
        """Its disk is at `layer` from now on, if it is one without a name. Raises StorageFull, Unavailable."""
        if isinstance(self.disk, Nameless) and layer is not None:
            self.disk = self.disk.name(layer)

    def let_go(self) -> None:
        super().let_go()
        if isinstance(self.disk, Disk):
            self.disk.close()
        elif self.disk is not None:
            self.disk.discard()

    async def discard(self) -> None:
        """It is not wanted, or could not be occupied. Nothing is left of it. Raises Unavailable."""
        self.let_go()
        os.close(self.pidfd)
        await self.cgroup.remove()
        self.give_back(self.index)
