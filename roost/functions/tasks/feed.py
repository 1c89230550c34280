"""Who follows which task. Nothing of a task is in here: whoever is woken looks into the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from roost.model.errors import Throttled
from roost.model.task import TaskKey


class TaskFeed:
    """At most `limit` followers at once."""

    def __init__(self, *, limit: int = 1000) -> None:
        self._limit = limit
        self._count = 0
        self._followers: dict[TaskKey, set[asyncio.Event]] = {}

    def changed(self, key: TaskKey) -> None:
        """The store has something new of that task. On the way of every task: mostly nobody follows."""
        for follower in self._followers.get(key, ()):
            follower.set()

    @contextlib.contextmanager
    def follow(self, key: TaskKey) -> Iterator[asyncio.Event]:
        """An event that is set at each change; to be cleared before a look into the store. Raises Throttled."""
        if self._count >= self._limit:
            raise Throttled(f"{self._limit} clients follow tasks already.", retry_after=5)
        follower = asyncio.Event()
        followers = self._followers.setdefault(key, set())
        followers.add(follower)
        self._count += 1
        try:
            yield follower
        finally:
            self._count -= 1
            followers.discard(follower)
            if not followers and self._followers.get(key) is followers:
                del self._followers[key]
