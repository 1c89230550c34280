"""Who follows the output of a process: each follower has a bounded queue, and the slowest one sets the pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

#: Bytes that wait for one follower; above it the process is not read, so that it waits in its own `write`.
HIGH_WATER = 256 << 10
MAX_FOLLOWERS = 64


class Follower:
    """The events of a process from the moment it was made, ready to be sent."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._waiting: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self.size = 0

    async def take(self, patience_s: float) -> list[bytes] | None:
        """What has come, at least one event; empty when `patience_s` passed without any; None after the last."""
        if not self._waiting:
            if self._ended:
                return None
            try:
                async with asyncio.timeout(patience_s):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        taken = list(self._waiting)
        self._waiting.clear()
        self._arrived.clear()
        self.size = 0
        self._audience.on_taken()
        return taken or None

    def leave(self) -> None:
        self._audience.remove(self)

    def put(self, event: bytes) -> None:
        self._waiting.append(event)
        self.size += len(event)
        self._arrived.set()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()


class Audience:
    """`on_change(may read)` is called when all followers have room again, and when one no longer has."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._followers: set[Follower] = set()
        self._full = False

    def __len__(self) -> int:
        return len(self._followers)

    def join(self) -> Follower:
        follower = Follower(self)
        self._followers.add(follower)
        return follower

    def tell(self, event: bytes) -> None:
        for follower in self._followers:
            follower.put(event)
        self._update()

    def end(self) -> None:
        for follower in self._followers:
            follower.end()

    def remove(self, follower: Follower) -> None:
        self._followers.discard(follower)
        self._update()

    def on_taken(self) -> None:
        self._update()

    def _update(self) -> None:
        full = any(follower.size > HIGH_WATER for follower in self._followers)
        if full is not self._full:
            self._full = full
            self._on_change(not full)
