"""A sandbox that exists: its record, its room while it has one, and who uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from roost.instances.instance import Instance
from roost.isolation.driver import Branch
from roost.model.errors import InstanceExited
from roost.model.instance import State
from roost.model.sandbox import Sandbox, SandboxState
from roost.sandboxes.lines import Lines
from roost.sandboxes.samples import Samples

#: How long one whose connection broke waits to learn of the room's end.
_WHY_S = 1.0


@dataclass(kw_only=True)
class HeldMemory:
    """What a checkpoint has in memory, or on disk. `used`: when it was last made, or gone back to."""

    branch: Branch
    used: float
    bytes: int = 0  # of memory, when it was last looked at; before that, at most
    disk_bytes: int = 0  # of its files, while it is on disk, where that of a whole room always is
    users: int = 0  # who make rooms with it
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)  # with which it goes to disk, or comes from there
    looked: float = 0.0
    grows: bool = False  # what is made from it takes much memory of its own at once
    given_up: bool = False  # it goes with the last of its users

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[Branch]:
        """Whatever becomes of its checkpoint, it stays while the block lasts."""
        self.users += 1
        try:
            yield self.branch
        finally:
            self.users -= 1
            if self.given_up and not self.users:
                await self.branch.close()

    async def give_up(self) -> None:
        """Nobody begins to use it any more."""
        self.given_up = True
        if not self.users:
            await self.branch.close()


class Ahead(Protocol):
    """A room made for a sandbox before it was asked for, as it was at a checkpoint. It is dropped once."""

    checkpoint: str

    def end(self) -> None: ...

    async def drop(self) -> None:
        """End it, and wait for that, up to a bound."""
        ...


class Entry:
    """Changed by the fleet alone, with `lock` held, or without it: `ahead`, `held`, `leaving`, `latest`, `places`,
    `wanted`. Read by everyone."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.instance: Instance | None = None
        self.places: set[str] = set()  # of its rooms: that which it has, those to take its place, those that leave
        self.lock = asyncio.Lock()
        self.ending = ""  # why it is about to end, a StopReason: nothing is started any more
        self.leases: set[SandboxLease] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.waking: asyncio.Task[None] | None = None  # by traffic, once for all who come
        self.lines = Lines()
        self.samples = Samples()
        self.held: dict[str, HeldMemory] = {}  # by checkpoint
        self.kept: HeldMemory | None = None  # what it is resumed with, as its room is gone
        self.still_since = 0.0  # it stands still, paused, since then
        self.restored = False  # it was resumed with its files alone
        self.leaving: set[asyncio.Task[None]] = set()  # rooms that are laid down, whether they were its own or not
        self.wanted = asyncio.Event()  # somebody waits for those to be gone
        self.ahead: Ahead | None = None  # the room for its next rollback
        self.latest = sandbox.rollbacks  # the highest number of a room that took the place of another, or was to

    def at_once(self) -> Instance | None:
        """Its instance, if that takes a request now."""
        instance = self.instance
        if instance is None or self.sandbox.state is not SandboxState.RUNNING or instance.state is not State.READY:
            return None
        return instance if instance.free_slots > 0 else None

    def revoke(self, why: str = "") -> None:
        """Break off every request that it serves: it is paused or ended, and whoever waits should know now. `why`: a
        StopReason, if the sandbox itself goes on."""
        for lease in list(self.leases):
            lease.why = why
            lease.revoke()

    @property
    def memory_bytes(self) -> int:
        """Of what is held beside its room, when it was last looked at."""
        return sum(held.bytes for held in self._all_held)

    @property
    def disk_bytes(self) -> int:
        """Of memory that is on disk."""
        return sum(held.disk_bytes for held in self._all_held)

    @property
    def _all_held(self) -> list[HeldMemory]:
        return [*self.held.values(), *([self.kept] if self.kept else [])]

    async def drop_memory(self) -> None:
        """Of all its checkpoints, and its own."""
        held, self.held = self.held, {}
        for memory in held.values():
            await memory.give_up()
        await self.drop_kept()

    def leaves(self, going: asyncio.Task[None]) -> None:
        """A room is laid down, until this has ended."""
        self.leaving.add(going)
        going.add_done_callback(self.leaving.discard)

    async def drop_ahead(self) -> None:
        """The room for its next rollback."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            await ahead.drop()

    async def drop_kept(self) -> None:
        """Its own, that is on disk."""
        kept, self.kept = self.kept, None
        if kept is not None:
            await kept.give_up()


class SandboxLease:
    """One request's place in a sandbox. `on_revoked` is called, once, when it must let go: the sandbox is paused."""

    __slots__ = (
        "_entry", "_released", "app_socket", "guest_socket", "instance", "on_revoked", "restored", "sandbox", "why",
    )  # fmt: skip

    def __init__(self, entry: Entry, instance: Instance, *, restored: bool = False) -> None:
        self.sandbox = entry.sandbox
        self.app_socket = instance.app_socket
        self.guest_socket = instance.app_socket.removesuffix("app.sock") + "guest.sock"
        self.why = ""  # it was revoked, though the sandbox goes on
        self.restored = restored  # it was started over its files for this request: what ran before is gone
        self.on_revoked: Callable[[], None] | None = None
        self._entry = entry
        self.instance = instance
        self._released = False
        instance.take()
        entry.leases.add(self)

    @property
    def held(self) -> bool:
        """It was neither given back nor revoked."""
        return not self._released

    def release(self) -> None:
        """Give it back. Idempotent; must be called in `finally`."""
        if not self._released:
            self._released = True
            self.on_revoked = None
            self._entry.leases.discard(self)
            self.instance.give_back()

    def revoke(self) -> None:
        on_revoked, self.on_revoked = self.on_revoked, None
        if on_revoked is not None:
            on_revoked()
        self.release()

    async def ended(self, *, wait: bool) -> bool:
        """After the connection broke: whether the room is gone. `wait`: a moment, as that may be heard of later."""
        error = await self.instance.why(_WHY_S if wait else 0)
        return isinstance(error, InstanceExited) or self._entry.instance is not self.instance
