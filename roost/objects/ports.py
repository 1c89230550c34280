"""What every object store does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from roost.model.objects import ObjectInfo

#: Objects in one page of a listing.
PAGE = 1000
#: Bytes of an object in one piece.
CHUNK = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """Where something may have changed: at these keys, or anywhere."""

    keys: Collection[str] = ()
    anywhere: bool = False


class Watch(Protocol):
    """Sees changes of a bucket from the moment it was made."""

    async def next(self, timeout_s: float) -> Hint:
        """Wait for changes, or for so long; nothing that happened meanwhile is missing from what it returns."""
        ...


class ObjectStore(Protocol):
    """Methods raise NotFound (no such bucket or object), InvalidArgument (a name that can't be one), Conflict,
    StorageFull and Unavailable.

    `exact`: what a listing shows is whole, and what it does not show is gone; else `heads` must be asked again.
    """

    exact: bool

    async def prepare(self) -> None:
        """Before all else, by the one server that owns the store."""
        ...

    async def buckets(self) -> list[str]:
        """By name."""
        ...

    async def put(self, bucket: str, key: str, pieces: AsyncIterable[bytes]) -> ObjectInfo:
        """Store an object; nobody sees it before it is whole. What `pieces` raises leaves all as it was."""
        ...

    async def get(self, bucket: str, key: str) -> tuple[ObjectInfo, AsyncIterator[bytes]]:
        """An object and its bytes. They must be read to their end, or the iterator closed."""
        ...

    async def remove(self, bucket: str, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def list(self, bucket: str, prefix: str = "", after: str = "") -> AsyncGenerator[Sequence[ObjectInfo]]:
        """Objects whose key begins with `prefix` and comes behind `after`: pages, in the order of the keys' bytes."""
        ...

    async def heads(self, bucket: str, keys: Collection[str]) -> Mapping[str, ObjectInfo]:
        """What is known of some objects now, `writing` too; without those that do not exist."""
        ...

    def watch(self, bucket: str, prefix: str, interval_s: float) -> AbstractAsyncContextManager[Watch]:
        """See changes under `prefix`. A store that can't tell what changes says `anywhere` after each interval."""
        ...
