"""Things made ahead, so that making a room does not wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from roost.model.errors import RoostError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Release = Callable[[T], Awaitable[None] | None]
#: Longer than a room takes from its making until its guest has answered.
_SETTLE_S = 0.05


class Quiet:
    """Whether rooms are being made, or have just been. Refilling waits until none is: it would take their time."""

    def __init__(self) -> None:
        self._busy = 0
        self._free = asyncio.Event()
        self._free.set()
        self._since = float("-inf")

    def __enter__(self) -> None:
        self._busy += 1
        self._free.clear()

    def __exit__(self, *_: object) -> None:
        self._busy -= 1
        if not self._busy:
            self._since = time.monotonic()
            self._free.set()

    async def wait(self) -> None:
        while True:
            await self._free.wait()
            left = self._since + _SETTLE_S - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)


class Pool(Generic[T]):
    """Keeps `ahead` things ready. An empty pool makes one on demand."""

    def __init__(self, make: Callable[[], Awaitable[T]], release: Release[T], *, ahead: int, quiet: Quiet) -> None:
        self._make = make
        self._release = release
        self._ahead = ahead
        self._quiet = quiet
        self._ready: deque[T] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._making: asyncio.Task[None] | None = None

    async def take(self) -> T:
        """One of them, the caller's from now on. Raises what making one raises."""
        thing = self._ready.popleft() if self._ready else await self._make()
        self.refill()
        return thing

    def refill(self) -> None:
        """Fill up in the background."""
        if len(self._ready) < self._ahead and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.create_task(self._refill())

    async def _refill(self) -> None:
        # A failure is told to the next one who finds the pool empty.
        with contextlib.suppress(RoostError):
            while len(self._ready) < self._ahead:
                await self._quiet.wait()
                self._making = asyncio.create_task(self._add())
                await asyncio.shield(self._making)

    async def _add(self) -> None:
        self._ready.append(await self._make())

    async def close(self) -> None:
        """Release what is ready, and what is just being made."""
        self._ahead = 0
        if self._refilling is not None:
            self._refilling.cancel()
            begun = (task for task in (self._refilling, self._making) if task is not None)
            await asyncio.gather(*begun, return_exceptions=True)
        while self._ready:
            # What can't be released does not keep the rest.
            with contextlib.suppress(RoostError):
                released = self._release(self._ready.popleft())
                if released is not None:
                    await released


class Pools(Generic[K, T]):
    """A pool for each of the kinds that were asked for last."""

    def __init__(
        self, make: Callable[[K], Awaitable[T]], release: Release[T], *, ahead: int, most: int, quiet: Quiet
    ) -> None:
        """`most` kinds have a pool."""
        self._make = make
        self._release = release
        self._ahead = ahead
        self._most = most
        self._quiet = quiet
        self._pools: dict[K, Pool[T]] = {}

    async def take(self, kind: K) -> T:
        """As `Pool.take`."""
        pool = self._pools.pop(kind, None)
        if pool is None:
            pool = Pool(partial(self._make, kind), self._release, ahead=self._ahead, quiet=self._quiet)
        self._pools[kind] = pool  # the last one
        while len(self._pools) > self._most:
            await self._pools.pop(next(iter(self._pools))).close()
        return await pool.take()

    async def close(self) -> None:
        """Release what is ready, of all kinds."""
        while self._pools:
            await self._pools.popitem()[1].close()
