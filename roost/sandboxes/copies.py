"""Copies of a sandbox as it is at one moment, for others to be made from: its files, and its contexts' memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from roost.isolation.driver import Branch
from roost.model.errors import RoostError, Unavailable
from roost.model.sandbox import Foundation
from roost.sandboxes.entry import Entry
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.image_shelf import below
from roost.sandboxes.lives import Lives

#: How memory comes along: the contexts' own, each by itself; all processes, as the room's kernel wrote them down; not.
CONTEXTS, ROOM, NOTHING = "contexts", "room", "none"
_CONNECTIONS = ("socket:", "pipe:", "anon_inode:")


@dataclass(frozen=True, kw_only=True)
class Copied:
    """`left_behind`: what the sandbox has, and the copy has not; `lost`: why it has not all of the memory; `memory`: in
    what way it came along."""

    foundation: Foundation
    left_behind: tuple[str, ...]
    lost: tuple[str, ...] = ()
    memory: str = NOTHING
    branch: Branch = field(default_factory=Branch)


class Copies:
    """Makes them."""

    def __init__(self, lives: Lives, fleet: SandboxFleet) -> None:
        self._lives = lives
        self._images = lives.assembly.images
        self._fleet = fleet

    @contextlib.contextmanager
    def new_image(self) -> Iterator[str]:
        """The name of an image to be made. After the block it stays if something stands on it."""
        image = ""
        try:
            with self._images.making() as image:
                yield image
        finally:
            self._lives.release((image,))

    async def copy(
        self, entry: Entry, image: str, *, memory: bool = False, keep: bool = False, now: bool = False
    ) -> Copied:
        """Locked. The sandbox's files as they are now: what stands on the image has them. With `memory`, whoever gets
        the copy closes its branch; `keep` and `now` as in `Room.branch`."""
        branch = Branch()
        self._fleet.check_exists(entry)
        sandbox, instance = entry.sandbox, entry.instance
        self._images.reserve(image, self._lives.assembly.used_bytes(sandbox.place))
        if instance is None:
            await self._lives.assembly.copy(sandbox.place, self._images.path(image))
        else:
            try:
                await instance.up()
            except RoostError as error:
                raise Unavailable(f"The room of sandbox {sandbox.id} has ended.", retry_after=1) from error
            if instance.room is None:
                raise Unavailable(f"The room of sandbox {sandbox.id} has ended.", retry_after=1)
            live = self._lives.assembly.live if instance.room.lets_go else sandbox.foundation.interpreter
            if memory and live:
                branch = await instance.branch(self._images.path(image), keep=keep, now=now)
            else:
                await instance.room.snapshot(self._images.path(image))
        # After the copy: what it has was labelled before it came.
        labels = tuple(sorted(self._lives.assembly.labels(sandbox)))
        taint = self._lives.assembly.spec(sandbox).egress.taint
        layers = (image, *below(sandbox.foundation.layers))
        foundation = replace(sandbox.foundation, layers=layers, labels=labels, taint=taint)
        left = left_behind(branch) if instance is not None or entry.kept is not None else ()
        return Copied(
            foundation=foundation, left_behind=left, lost=branch.lost, memory=memory_of(branch), branch=branch
        )


def memory_of(branch: Branch) -> str:
    """How memory came along, if it did. Pure."""
    if branch.whole is not None:
        return ROOM
    return CONTEXTS if branch.copies else NOTHING


def left_behind(branch: Branch) -> tuple[str, ...]:
    """What a copy of a sandbox that has a room lacks, of closed names. Pure."""
    if branch.whole is not None:
        return ("connections",)
    found = ["memory"] if branch.lost or not branch.copies else []
    found.append("processes")
    if any(copy.left.threads for copy in branch.copies):
        found.append("threads")
    if any(name.startswith(_CONNECTIONS) for copy in branch.copies for name in copy.left.files):
        found.append("connections")
    return tuple(found)
