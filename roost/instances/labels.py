"""The labels of all rooms, and of what outlives them: they go where data can go.

A room has the labels of everything that it holds, and gives those that it gets to all of it that it can write to; from
there they reach every other room that holds it too, at once. They are in memory before a room learns what they are for,
and in the store before it can do anything with that, also after the server was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from roost.model.taint import NONE, Holder, Holdings, Labels

_SHARED = "a volume that another room writes to"


class LabelStore(Protocol):
    """Where they are durable, by the holders' names. Methods raise RoostError, and have no effect then."""

    async def put(self, labels: Mapping[str, Labels]) -> None: ...

    async def delete(self, holders: Iterable[str]) -> None: ...

    async def list_all(self) -> dict[str, Labels]: ...


@dataclass(eq=False, kw_only=True)
class RoomLabels:
    """Those of one room, changed by the book alone. `on_grown` is told of new ones, and why they came."""

    holdings: Holdings
    on_grown: Callable[[Labels, str], None]
    labels: Labels = NONE

    def written(self) -> list[str]:
        """The names of what it can write to."""
        return [holder.name for holder in self.holdings.holders if holder.writable]

    def holds(self, names: Iterable[str]) -> bool:
        return any(holder.touches(name) for name in names for holder in self.holdings.holders)


class LabelBook:
    """`load` before the first use. One event loop; between two awaits everything that is said here is true."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._kept: dict[str, Labels] = {}
        self._unsaved: set[str] = set()
        self._saving = asyncio.Lock()
        self._rooms: set[RoomLabels] = set()

    async def load(self) -> None:
        self._kept = await self._store.list_all()

    def of(self, holders: Collection[Holder]) -> Labels:
        """What these have, with what lies within them and what they lie within."""
        found = (labels for name, labels in self._kept.items() if any(holder.touches(name) for holder in holders))
        return NONE.union(*found)

    def listed(self, account: str) -> dict[str, Labels]:
        """Every holder of an account that has any, without the account's name."""
        begin = f"{account}/"
        return {name.removeprefix(begin): self._kept[name] for name in sorted(self._kept) if name.startswith(begin)}

    # --- rooms ---------------------------------------------------------------------------------------------------

    async def enter(self, holdings: Holdings, on_grown: Callable[[Labels, str], None]) -> RoomLabels:
        """A room begins. `leave` when it is gone. Raises RoostError when its labels can't be kept."""
        room = RoomLabels(holdings=holdings, on_grown=on_grown)
        self._rooms.add(room)
        try:
            known = holdings.start | holdings.brought | self.of(holdings.holders)
            await self.grow(room, known, "what it begins with")
        except BaseException:
            self._rooms.discard(room)
            raise
        return room

    def leave(self, room: RoomLabels) -> None:
        """Idempotent."""
        self._rooms.discard(room)

    async def grow(self, room: RoomLabels, labels: Labels, why: str) -> None:
        """The room has these too: at once, and durably when it returns. Raises RoostError."""
        if not labels <= room.labels:
            self._spread(room, labels, why)
        if not self._unsaved.isdisjoint(room.written()):
            await self._save()

    def _spread(self, first: RoomLabels, labels: Labels, why: str) -> None:
        waiting, grown = [(first, labels, why)], []
        while waiting:
            room, labels, why = waiting.pop()
            if not (new := labels - room.labels):
                continue
            room.labels |= new
            grown.append((room, new, why))
            written = room.written()
            for name in written:
                self._note(name, new)
            waiting += [(other, new, _SHARED) for other in self._rooms if other is not room and other.holds(written)]
        for room, new, why in grown:
            room.on_grown(new, why)

    def _note(self, name: str, labels: Labels) -> None:
        before = self._kept.get(name, NONE)
        if not labels <= before:
            self._kept[name] = before | labels
            self._unsaved.add(name)

    async def _save(self) -> None:
        async with self._saving:
            rows = {name: self._kept[name] for name in self._unsaved}
            if rows:
                await self._store.put(rows)
                self._unsaved -= {name for name, labels in rows.items() if self._kept.get(name) == labels}

    # --- what takes them away ------------------------------------------------------------------------------------

    async def clear(self, name: str) -> Labels:
        """What lies there has none any more, and neither has a room that has them from there alone. Returns those that
        there were. Raises RoostError, and nothing is changed then."""
        async with self._saving:
            gone = {kept: labels for kept, labels in self._kept.items() if f"{kept}/".startswith(f"{name}/")}
            for kept in gone:
                del self._kept[kept]
                self._unsaved.discard(kept)
            try:
                await self._store.delete(gone)
            except BaseException:
                for kept, labels in gone.items():
                    self._note(kept, labels)
                raise
        for room in self._rooms:
            if room.holds(gone):
                room.labels = room.holdings.start | self.of(room.holdings.holders)
        return NONE.union(*gone.values())

    async def keep_only(self, kind: str, ids: Collection[str]) -> None:
        """Forget those of this kind that are no more: a killed server did not."""
        for name in list(self._kept):
            _, there, *path = name.split("/")
            if there == kind and path and path[0] not in ids:
                await self.clear(name)
