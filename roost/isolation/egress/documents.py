"""Answers of indexes, kept in memory for a short time and asked for once by however many."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from roost.isolation.futures import seen

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Entry(Generic[T]):
    value: T
    cost: int
    loaded: float


class DocumentCache(Generic[T]):
    """At most `limit_bytes` of what loaders said their values cost; the least recently used go first."""

    def __init__(self, *, fresh_s: float, limit_bytes: int, clock: Callable[[], float]) -> None:
        self._fresh_s = fresh_s
        self._limit = limit_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._loading: dict[str, asyncio.Task[T]] = {}
        self._cost = 0

    async def get(self, key: str, load: Callable[[], Awaitable[tuple[T, int]]]) -> T:
        """The value of a key, loaded unless a fresh one is kept; `load` returns it and its cost in bytes.

        A load serves everyone who asks meanwhile and goes on when they leave. Raises what it raises; that is not kept.
        """
        entry = self._entries.get(key)
        if entry is not None and self._clock() - entry.loaded < self._fresh_s:
            self._entries.move_to_end(key)
            return entry.value
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, load))
            task.add_done_callback(seen)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Stop loading."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, key: str, load: Callable[[], Awaitable[tuple[T, int]]]) -> T:
        try:
            value, cost = await load()
        finally:
            del self._loading[key]
        self._forget(key)
        self._entries[key] = _Entry(value=value, cost=cost, loaded=self._clock())
        self._cost += cost
        while self._cost > self._limit:
            self._forget(next(iter(self._entries)))
        return value

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._cost -= entry.cost
