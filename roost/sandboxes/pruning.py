"""Which checkpoints go, and which lose their memory. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from roost.model.sandbox import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """`most` and `age_s`: of one sandbox's checkpoints; `memory_bytes`: what all held memory of the server may take,
    `disk_bytes`: what may be on disk in its place, 0 for nothing."""

    most: int = 32
    age_s: float = 7 * 24 * 3600.0
    memory_bytes: int = 4096 << 20
    disk_bytes: int = 16384 << 20


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one checkpoint holds. `used`: when it was last of use."""

    id: str
    used: float
    bytes: int


def surplus(checkpoints: Sequence[Checkpoint], bounds: Bounds, now: float) -> list[str]:
    """Those that are too old, and the oldest of too many."""
    young = [one for one in checkpoints if one.created >= now - bounds.age_s]
    going = {one.id for one in checkpoints} - {one.id for one in young[max(0, len(young) - bounds.most) :]}
    return [one.id for one in checkpoints if one.id in going]


def least_used(shares: Iterable[Share], excess: int) -> list[str]:
    """Those that are to be dropped for so many bytes to be given back, the least recently used first."""
    found: list[str] = []
    for share in sorted(shares, key=lambda share: share.used):
        if excess <= 0:
            break
        found.append(share.id)
        excess -= share.bytes
    return found


def without(checkpoints: Sequence[Checkpoint], ids: Iterable[str]) -> tuple[Checkpoint, ...]:
    """The tree without these: what came from one of them comes from its parent."""
    going = set(ids)
    parents = {one.id: one.parent for one in checkpoints}

    def above(id: str) -> str:
        while id in going:
            id = parents.get(id, "")
        return id

    return tuple(replace(one, parent=above(one.parent)) for one in checkpoints if one.id not in going)


def ancestor(checkpoints: Sequence[Checkpoint], id: str, ids: Iterable[str]) -> str:
    """The nearest checkpoint above `id`, or itself, that is not among `ids`; "" for none."""
    going = set(ids)
    parents = {one.id: one.parent for one in checkpoints}
    while id in going:
        id = parents.get(id, "")
    return id
