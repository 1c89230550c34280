"""Rooms made ahead of rollbacks: who goes back to a checkpoint soon does so again, to try the next thing.

Such a room is all that the next rollback to the same checkpoint would make, and stands still. It is made when the
sandbox's owner has had a moment with the rollback before. It goes when nobody takes it within seconds, and with the
sandbox's own room; it is not taken when the sandbox has changed so that another one would be made by now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace

from roost.model.errors import RoostError
from roost.model.function import GVISOR
from roost.model.instance import State, StopReason
from roost.model.sandbox import SandboxState
from roost.sandboxes.copies import Copied
from roost.sandboxes.entry import Entry
from roost.sandboxes.lives import GONE_S, SOON_S, Lives, Successor

KEPT_S = 10.0
_MADE_S = 1.0  # for which a rollback waits until one is made: then it makes another
_MOST = 16  # on the server
_MOST_BYTES = 64 << 20  # of memory, of each: what a copy's hooks have made of it before it stood still


class RoomAhead:
    """One, from the wish for it to its end, which is that of `life`, or until it was taken."""

    def __init__(self, entry: Entry, checkpoint: str) -> None:
        self.entry = entry
        self.checkpoint = checkpoint
        self.new: Successor | None = None  # once its making has begun
        self.copied: Copied | None = None  # once it is made, as long as it can be taken
        self.settled = asyncio.Event()  # it is made, or will not be
        self.taken = False
        self.life: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    @property
    def wanted(self) -> bool:
        return not self._over.is_set()

    def end(self) -> None:
        """It goes, however far its making is, unless it was taken."""
        self._over.set()
        if self.taken:
            return
        if self.new is not None:
            self.new.instance.stop(StopReason.ROLLED_BACK, grace=0, abrupt=True)
        if self.life is not None and not self.life.done():
            self.entry.leaves(self.life)

    async def drop(self) -> None:
        """End it. Waits until it is gone, up to a bound: what holds it up is no concern of the sandbox's."""
        self.end()
        if self.life is not None:
            await asyncio.wait([self.life], timeout=GONE_S)

    async def over(self, seconds: float) -> bool:
        """Whether it ends within so many seconds, for which this waits."""
        ended = [asyncio.ensure_future(self._over.wait())]
        if self.new is not None:
            ended.append(asyncio.ensure_future(self.new.instance.stopped.wait()))
        try:
            done, _ = await asyncio.wait(ended, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in ended:
                waiting.cancel()
        return bool(done)

    async def made(self) -> tuple[Successor, Copied] | None:
        """What can be taken, if it comes within a bound."""
        try:
            await asyncio.wait_for(self.settled.wait(), _MADE_S)
        except TimeoutError:
            return None
        return None if self.new is None or self.copied is None else (self.new, self.copied)


class RoomsAhead:
    """Those of one server. `using` gives a checkpoint to make rooms from, as `Checkpoints.using`."""

    def __init__(self, lives: Lives, using: Callable[[Entry, str], AbstractAsyncContextManager[Copied]]) -> None:
        self._lives = lives
        self._using = using
        self._all: set[RoomAhead] = set()

    def expect(self, entry: Entry, checkpoint: str) -> None:
        """Locked, and it has none. Another rollback to this may come soon."""
        if len(self._all) < _MOST:
            ahead = entry.ahead = RoomAhead(entry, checkpoint)
            self._all.add(ahead)
            ahead.life = self._lives.background.spawn(self._live(ahead))

    async def take(self, entry: Entry, checkpoint: str) -> tuple[Successor, Copied] | None:
        """Locked. What was made for this, if something was; it runs now, and is the caller's to lay down. What was made
        for anything else goes."""
        ahead, entry.ahead = next((one for one in self._all if one is entry.ahead), None), None
        if ahead is None:
            return None
        try:
            if ahead.checkpoint != checkpoint or ahead.new is None:
                return None
            made = await ahead.made()
            if made is None or not self._fits(entry, *made):
                return None
            ahead.taken = True  # before it goes on: its time may be over just now
        finally:
            ahead.end()
        self._all.discard(ahead)
        return made if await self._goes_on(entry, made[0]) else None

    async def _goes_on(self, entry: Entry, new: Successor) -> bool:
        """Whether it runs; else it is laid down."""
        try:
            await new.instance.let_go()
        except BaseException as error:
            self._lives.lay_down(entry, new)
            if not isinstance(error, RoostError):  # as where it has ended
                raise
            return False
        return True

    def _fits(self, entry: Entry, new: Successor, copied: Copied) -> bool:
        """Whether it is what would be made now."""
        foundation = self._lives.assembly.gone_back(entry.sandbox, copied.foundation)
        made, now = new.sandbox, replace(entry.sandbox, foundation=foundation)
        return (
            not self._lives.closing
            and new.instance.state is State.FROZEN
            and new.instance.usable
            and new.instance.spec == self._lives.assembly.spec(now)
            and (made.foundation, made.volumes) == (now.foundation, now.volumes)
            and self._brings_nothing(entry, copied)
        )

    def _brings_nothing(self, entry: Entry, copied: Copied) -> bool:
        """Whether the checkpoint has no labels that the sandbox has not: who makes a room of it gives it those."""
        return self._lives.assembly.labels(entry.sandbox).issuperset(copied.foundation.labels)

    async def _live(self, ahead: RoomAhead) -> None:
        try:
            if not await ahead.over(SOON_S) and self._is_worth_it(ahead):
                await self._keep(ahead)
        finally:
            self._all.discard(ahead)
            if ahead.entry.ahead is ahead:
                ahead.entry.ahead = None

    def _is_worth_it(self, ahead: RoomAhead) -> bool:
        entry, held = ahead.entry, ahead.entry.held.get(ahead.checkpoint)
        if entry.ending or entry.sandbox.state is not SandboxState.RUNNING:
            return False
        if entry.instance is None or not entry.instance.freezes or self._lives.assembly.isolation == GVISOR:
            return False  # a kernel of its own takes long to start, and much memory
        if held is not None and held.grows:
            return False
        if entry.sandbox.foundation.start_command:
            return False  # a program may do anything, and may not be wanted
        try:
            self._lives.check_room(entry.sandbox)
        except RoostError:
            return False
        return True

    async def _keep(self, ahead: RoomAhead) -> None:
        """Make it, and see to it that it goes if it is not taken."""
        entry = ahead.entry
        with ExitStack() as images:
            try:
                async with self._using(entry, ahead.checkpoint) as copied:
                    if not ahead.wanted or not self._brings_nothing(entry, copied):
                        return
                    images.enter_context(self._lives.holding(copied.foundation.layers))
                    foundation = self._lives.assembly.gone_back(entry.sandbox, copied.foundation)
                    ahead.new = self._lives.successor(entry, copied.branch, foundation=foundation, at=ahead.checkpoint)
                    await ahead.new.instance.hold()
                if ahead.new.instance.memory_bytes() <= _MOST_BYTES:
                    ahead.copied = copied
                    ahead.settled.set()
                    await ahead.over(KEPT_S)
                elif (held := entry.held.get(ahead.checkpoint)) is not None:
                    held.grows = True
            finally:
                ahead.settled.set()
                if ahead.new is not None and not ahead.taken:
                    ahead.copied = None
                    await asyncio.shield(self._lives.lay_down(entry, ahead.new))
