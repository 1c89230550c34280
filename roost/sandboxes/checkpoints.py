"""Checkpoints of a sandbox: its files and its contexts' memory as they were at one moment, in a tree, to go back to.

Files are an image, as those of snapshots; what is known of a checkpoint is in its sandbox's record and goes with that.
Memory is held by the driver, and by this server alone: by the rules it goes to disk first, and is dropped when that is
full. What is dropped, by a rule or by the end of who held it, leaves a checkpoint of files.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from roost.isolation.driver import Branch, MemoryLost
from roost.model.errors import Conflict, NotFound, RoostError, StorageFull, Unavailable
from roost.model.sandbox import Checkpoint, Sandbox
from roost.sandboxes.ahead import RoomsAhead
from roost.sandboxes.copies import NOTHING, Copied, Copies
from roost.sandboxes.entry import Entry, HeldMemory
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.lives import Lives
from roost.sandboxes.pruning import Bounds, Share, ancestor, least_used, surplus, without
from roost.telemetry.rounds import going_on

HELD = "held"
ON_DISK = "on disk"
LOST = "what held it has ended, as with a restart of the server"
FULL = "the checkpoints of this server would take more memory than they may"
DISK_FULL = "the checkpoints of this server would take more disk than they may"
OVER_QUOTA = "the account has no more memory"
CROWDED = "the sandbox needs its memory"
BUSY = "A cell still runs. Wait for its end, or ask with when=now: it is interrupted then."
_EVERY_S = 5.0
_LOOKED_AT = 50  # each time
#: Of a sandbox's memory, copies that are held included, that may be in use before copies go.
_CROWDED = 0.9


class NoCheckpoint(NotFound):
    """The sandbox has none of that id."""

    code = "CheckpointNotFound"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One node of the tree. `memory`: HELD, ON_DISK, or why it is neither."""

    checkpoint: Checkpoint
    memory: str
    memory_bytes: int
    disk_bytes: int
    current: bool  # the sandbox's state comes from it


class Checkpoints:
    """The verbs of an account, and the rules by which checkpoints go.

    `over_quota` tells by how many bytes an account is above its memory; `spills` is a directory for memory that is on
    disk, which has no names there.
    """

    def __init__(
        self,
        *,
        lives: Lives,
        fleet: SandboxFleet,
        copies: Copies,
        bounds: Bounds,
        spills: Path,
        over_quota: Callable[[str], int] = lambda account: 0,
    ) -> None:
        self._lives = lives
        self._images = lives.assembly.images
        self._fleet = fleet
        self._copies = copies
        self._bounds = bounds
        self._over_quota = over_quota
        self._spills = spills
        self._ahead = RoomsAhead(lives, partial(self.using, from_disk=False))
        self._bounding = asyncio.Lock()  # else two would each give back what is too much
        spills.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def tree(self, account: str, id: str) -> list[Shown]:
        """The oldest first. Raises Gone."""
        entry = self._fleet.entry(account, id)
        await self._measure(entry)
        return [self._shown(entry, one) for one in entry.sandbox.checkpoints]

    def _shown(self, entry: Entry, checkpoint: Checkpoint) -> Shown:
        held = entry.held.get(checkpoint.id)
        if held is None:
            memory, held = f"dropped: {why_dropped(checkpoint)}", HeldMemory(branch=Branch(), used=0)
        else:
            memory = ON_DISK if held.disk_bytes else HELD
        return Shown(
            checkpoint=checkpoint,
            memory=memory,
            memory_bytes=held.bytes,
            disk_bytes=self._images.used_bytes(checkpoint.foundation.layers[0]) + held.disk_bytes,
            current=checkpoint.id == entry.sandbox.at,
        )

    # --- verbs ---------------------------------------------------------------------------------------------------

    async def take(self, account: str, id: str, label: str = "", *, now: bool = False) -> Shown:
        """Keep the sandbox as it is. A cell that runs is waited for, up to a bound; `now`: it is interrupted.

        Raises Gone, Conflict if a cell does not end, StorageFull, Unavailable; nothing is left behind then.
        """
        return await self._lives.do(self._take(self._fleet.entry(account, id), label, now=now))

    async def _take(self, entry: Entry, label: str, *, now: bool) -> Shown:
        with self._copies.new_image() as image:
            async with entry.lock:
                copied = await self._copies.copy(entry, image, memory=True, keep=True, now=now)
                try:
                    if copied.branch.busy:
                        raise Conflict(BUSY)
                    made = self._checkpoint(entry, label, copied)
                    await copied.branch.last()
                    self._fleet.check_exists(entry)
                    await self._lives.commit(
                        entry, lambda sandbox: replace(sandbox, checkpoints=(*sandbox.checkpoints, made), at=made.id)
                    )
                except BaseException:
                    await copied.branch.close()
                    raise
                if copied.memory != NOTHING:
                    branch, at = copied.branch, self._lives.now()
                    held = HeldMemory(branch=branch, used=at, bytes=branch.most, disk_bytes=branch.disk_bytes)
                    entry.held[made.id] = held
        await self._prune(entry)
        counting = self._lives.background.spawn(self._look(entry, made.id))
        if self._is_over(entry):
            await counting
            if self._is_over(entry):
                await self.bound_memory()
        return self._shown(entry, next((one for one in entry.sandbox.checkpoints if one.id == made.id), made))

    def _checkpoint(self, entry: Entry, label: str, copied: Copied) -> Checkpoint:
        return Checkpoint(
            id=f"c{secrets.token_hex(8)}",
            label=label,
            parent=entry.sandbox.at,
            created=round(self._lives.now(), 3),
            foundation=copied.foundation,
            memory=copied.memory,
            contexts=tuple(copy.id for copy in copied.branch.copies),
            left_behind=copied.left_behind,
            lost=copied.lost,
        )

    async def rollback(self, account: str, id: str, checkpoint: str, *, now: bool = False) -> tuple[Sandbox, Copied]:
        """Have the sandbox as it was: another room takes the place of its own, under the same id and tokens. What runs
        is ended; a cell is waited for first, up to a bound, unless it is to be `now`.

        Raises Gone, NoCheckpoint, Conflict if a cell does not end, Throttled, Unavailable; it is as it was then.
        """
        return await self._lives.do(self._rollback(self._fleet.entry(account, id), checkpoint, now=now))

    async def _rollback(self, entry: Entry, id: str, *, now: bool) -> tuple[Sandbox, Copied]:
        async with entry.lock:
            self._fleet.check_exists(entry)
            _find(entry.sandbox, id)
            room = entry.instance.room if entry.instance is not None else None
            if room is not None and not now and not await room.rest():
                raise Conflict(BUSY)
            await self._lives.make_way(entry)
            if (ready := await self._ahead.take(entry, id)) is not None:
                new, copied = ready
                sandbox = await self._lives.swap(entry, new)
                if (held := entry.held.get(id)) is not None:
                    held.used = self._lives.now()
            else:
                async with self.using(entry, id) as copied:
                    foundation = self._lives.assembly.gone_back(entry.sandbox, copied.foundation)
                    new = self._lives.successor(entry, copied.branch, foundation=foundation, at=id)
                    sandbox = await self._lives.swap(entry, new)
            self._ahead.expect(entry, id)
            return sandbox, copied

    @asynccontextmanager
    async def using(self, entry: Entry, id: str, *, from_disk: bool = True) -> AsyncIterator[Copied]:
        """A checkpoint as something to make rooms from; its files and its memory stay meanwhile. Raises NoCheckpoint,
        Unavailable if its memory can't be had now; without `from_disk` what is there, or on its way, can't."""
        found = _find(entry.sandbox, id)
        with self._lives.holding(found.foundation.layers):
            async with self._recalled(entry, id, from_disk=from_disk) as recalled:
                branch = recalled or Branch()
                if recalled is not None:
                    left, lost, memory = found.left_behind, found.lost, found.memory
                else:
                    found = _find(entry.sandbox, id)
                    memory = NOTHING
                    lost = (*found.lost, f"its memory was dropped: {why_dropped(found)}")
                    left = tuple(dict.fromkeys(("memory", *found.left_behind)))
                # Another object, for whoever makes rooms of it does not own it.
                shared = Branch(copies=branch.copies, whole=branch.whole)
                yield Copied(foundation=found.foundation, left_behind=left, lost=lost, memory=memory, branch=shared)

    @asynccontextmanager
    async def _recalled(self, entry: Entry, id: str, *, from_disk: bool) -> AsyncIterator[Branch | None]:
        """The memory of a checkpoint, where it stays meanwhile; None if it has been dropped. Raises Unavailable."""
        await self._miss(entry, id)
        held = entry.held.get(id)
        if held is not None:
            if not from_disk and (held.disk_bytes or held.moving.locked()):
                raise Unavailable("Its memory is on disk.")
            async with held.moving:
                await self._recall(entry, id, held)
        if held is None or entry.held.get(id) is not held:
            yield None
            return
        held.used = self._lives.now()
        async with held.in_use() as branch:
            yield branch

    async def _recall(self, entry: Entry, id: str, held: HeldMemory) -> None:
        """Moving. From disk, if it is there."""
        if not held.disk_bytes or not held.branch.spills:
            return
        try:
            await held.branch.recall()
        except MemoryLost as error:
            await self._drop_memory(entry, id, error.message)
        else:
            held.disk_bytes, held.bytes = 0, await held.branch.measure()

    async def remove(self, account: str, id: str, checkpoint: str) -> None:
        """Raises Gone, NoCheckpoint."""
        await self._lives.do(self._remove(self._fleet.entry(account, id), checkpoint))

    async def _remove(self, entry: Entry, id: str) -> None:
        async with entry.lock:
            self._fleet.check_exists(entry)
            _find(entry.sandbox, id)
            await self._forget(entry, [id])

    async def _forget(self, entry: Entry, ids: list[str]) -> None:
        """Locked."""

        def forgotten(sandbox: Sandbox) -> Sandbox:
            known = sandbox.checkpoints
            return replace(sandbox, checkpoints=without(known, ids), at=ancestor(known, sandbox.at, ids))

        layers = [layer for one in entry.sandbox.checkpoints if one.id in ids for layer in one.foundation.layers]
        await self._lives.commit(entry, forgotten)
        if entry.ahead is not None and entry.ahead.checkpoint in ids:
            await entry.drop_ahead()
        for id in ids:
            if (held := entry.held.pop(id, None)) is not None:
                await held.give_up()
        self._lives.release(layers)

    # --- rules ---------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Now and then, see to it that no rule is broken. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            for entry in list(self._lives.entries.values()):
                if entry.sandbox.checkpoints:
                    with going_on(f"checkpoints of sandbox {entry.sandbox.id} can't be removed"):
                        await self._prune(entry)
            with going_on("what checkpoints hold can't be measured"):
                await self._measure_some()
            with going_on("what checkpoints hold can't be bounded"):
                await self.bound_memory()

    async def _prune(self, entry: Entry) -> None:
        """By count and age."""
        if not surplus(entry.sandbox.checkpoints, self._bounds, self._lives.now()):
            return
        async with entry.lock:
            going = surplus(entry.sandbox.checkpoints, self._bounds, self._lives.now())
            if going and not entry.ending:
                try:
                    await self._forget(entry, going)
                except RoostError:
                    return  # it can't be stored now; later

    async def bound_memory(self) -> None:
        """By memory, as it was last measured: of the server, of each account, of each sandbox. Then by disk."""
        async with self._bounding:
            await self._bound_memory()
            await self._bound_disk()

    async def _bound_memory(self) -> None:
        for entries, excess, why in self._excesses(list(self._lives.entries.values())):
            while excess() > 0 and (uncounted := _uncounted(entries)):  # for which nothing goes
                for entry, id in uncounted:
                    await self._look(entry, id)
            await self._spill_least_used(entries, excess(), why)

    def _is_over(self, entry: Entry) -> bool:
        """Whether a bound is broken that has to do with it."""
        return self._disk_excess() > 0 or any(excess() > 0 for _, excess, _ in self._excesses([entry]))

    def _excesses(self, of: list[Entry]) -> Iterator[tuple[list[Entry], Callable[[], int], str]]:
        """Those who share a bound with one of these, and by how many bytes they are above it."""
        everybody = list(self._lives.entries.values())
        yield everybody, self._excess, FULL
        for account in {entry.sandbox.account for entry in of if entry.held}:
            mine = [entry for entry in everybody if entry.sandbox.account == account]
            yield mine, partial(self._over_quota, account), OVER_QUOTA
        for entry in of:
            if entry.held:
                yield [entry], partial(_crowding, entry), CROWDED

    def _excess(self) -> int:
        return sum(entry.memory_bytes for entry in self._lives.entries.values()) - self._bounds.memory_bytes

    async def _spill_least_used(self, entries: Iterable[Entry], excess: int, why: str) -> None:
        """Not what is in use, nor what is on disk already."""
        shares = {
            id: (entry, Share(id=id, used=held.used, bytes=held.bytes))
            for entry in entries
            for id, held in entry.held.items()
            if not held.users and not held.disk_bytes
        }
        for id in least_used((share for _, share in shares.values()), excess):
            await self._spill(shares[id][0], id, why)

    async def _bound_disk(self) -> None:
        shares = {
            id: (entry, Share(id=id, used=held.used, bytes=held.disk_bytes))
            for entry in self._lives.entries.values()
            for id, held in entry.held.items()
            if _is_at_rest(held)
        }
        for id in least_used((share for _, share in shares.values()), self._disk_excess()):
            entry = shares[id][0]
            if (held := entry.held.get(id)) is not None and _is_at_rest(held):  # nor was it wanted meanwhile
                await self._drop_memory(entry, id, DISK_FULL)

    def _disk_excess(self) -> int:
        return sum(entry.disk_bytes for entry in self._lives.entries.values()) - self._bounds.disk_bytes

    async def _spill(self, entry: Entry, id: str, why: str) -> None:
        """Have it on disk; what can't be there is dropped."""
        held = entry.held.get(id)
        if held is None:
            return
        async with held.moving:
            if entry.held.get(id) is not held or held.users or held.disk_bytes:
                return
            if self._bounds.disk_bytes and held.branch.spills:
                try:
                    held.disk_bytes = await held.branch.spill(self._spills, self._bounds.disk_bytes)
                except (StorageFull, Unavailable) as error:
                    why = f"{why}, and it can't be on disk: {error.message}"
                else:
                    held.bytes = 0
                    return
            await self._drop_memory(entry, id, why)

    async def _drop_memory(self, entry: Entry, id: str, why: str) -> None:
        """Its files stay. The one place where memory is given up while its checkpoint stays."""
        held = entry.held.pop(id, None)
        if held is None:
            return
        if entry.ahead is not None and entry.ahead.checkpoint == id:  # it has its own share
            entry.ahead.end()
        changed = tuple(replace(one, dropped=why) if one.id == id else one for one in entry.sandbox.checkpoints)
        await self._lives.change(entry, checkpoints=changed)
        await held.give_up()

    async def _measure(self, entry: Entry) -> None:
        """All that it holds."""
        for id in list(entry.held):
            await self._look(entry, id)

    async def _measure_some(self) -> None:
        """Those that were not looked at for longest: to count the pages of all may take more time than there is."""
        entries = list(self._lives.entries.values())
        known = [(held.looked, id, entry) for entry in entries for id, held in entry.held.items()]
        for _, id, entry in sorted(known, key=lambda one: one[:2])[:_LOOKED_AT]:
            await self._look(entry, id)

    async def _look(self, entry: Entry, id: str) -> None:
        await self._miss(entry, id)
        if (held := entry.held.get(id)) is not None:
            measured = await held.branch.measure()
            held.looked = self._lives.now()
            held.disk_bytes = held.branch.disk_bytes or held.disk_bytes
            if not held.disk_bytes:  # nor did it go there meanwhile
                held.bytes = measured

    async def _miss(self, entry: Entry, id: str) -> None:
        """What is gone, with the process that held it or by itself, is known to be."""
        held = entry.held.get(id)
        if held is not None and not await held.branch.alive() and entry.held.get(id) is held:
            await self._drop_memory(entry, id, LOST)

    def held_bytes(self, account: str) -> int:
        """Of all sandboxes of the account."""
        entries = self._lives.entries.values()
        return sum(entry.memory_bytes for entry in entries if entry.sandbox.account == account)


def why_dropped(checkpoint: Checkpoint) -> str:
    """Of a checkpoint whose memory is not held. Pure."""
    if checkpoint.dropped:
        return checkpoint.dropped
    if checkpoint.memory != NOTHING:
        return LOST
    return "; ".join(checkpoint.lost) or "no Python context ran"


def _uncounted(entries: Iterable[Entry]) -> list[tuple[Entry, str]]:
    return [(entry, id) for entry in entries for id, held in entry.held.items() if not held.looked]


def _crowding(entry: Entry) -> int:
    """By how many bytes a sandbox has more than it may, what is held of it included."""
    most = entry.sandbox.limits.memory_mb << 20
    excess = sum(held.bytes for held in entry.held.values()) - most
    room = entry.instance.room if entry.instance is not None else None
    return excess if room is None else max(excess, room.anonymous() - round(most * _CROWDED))


def _is_at_rest(held: HeldMemory) -> bool:
    """On disk, and nobody wants it."""
    return bool(held.disk_bytes) and not held.users and not held.moving.locked()


def _find(sandbox: Sandbox, id: str) -> Checkpoint:
    for one in sandbox.checkpoints:
        if one.id == id:
            return one
    raise NoCheckpoint(f"Sandbox {sandbox.id} has no checkpoint {id[:64]}")
