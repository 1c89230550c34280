"""Carries records off the hot path: a bounded queue, drained by one task into every sink."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from roost.model.usage import InvocationRecord, TransitionRecord

_log = logging.getLogger(__name__)

#: Records waiting at most; what comes on top is dropped and counted.
CAPACITY = 20_000
#: Records passed on before other tasks get their turn.
BATCH = 100


class Sink(Protocol):
    """Takes records; on the event loop, so each call must be quick."""

    def invocation(self, record: InvocationRecord) -> None: ...

    def transition(self, record: TransitionRecord) -> None: ...


class Observer:
    """Where the data plane and the instances report to. Both calls are an append to a queue."""

    def __init__(self, sinks: Sequence[Sink], *, capacity: int = CAPACITY) -> None:
        self._sinks = tuple(sinks)
        self._capacity = capacity
        self._queue: deque[InvocationRecord | TransitionRecord] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Records that found the queue full.
        self.dropped = 0
        #: Records that a sink raised on.
        self.failed = 0

    async def start(self) -> None:
        self._task = asyncio.create_task(self._drain_forever(), name="roost-observer")

    async def close(self) -> None:
        """Pass on what is queued, then end. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        while self._queue:
            self._drain(BATCH)

    def invocation(self, record: InvocationRecord) -> None:
        self._put(record)

    def transition(self, record: TransitionRecord) -> None:
        self._put(record)

    def _put(self, record: InvocationRecord | TransitionRecord) -> None:
        if len(self._queue) >= self._capacity:
            self.dropped += 1
            return
        self._queue.append(record)
        self._wake.set()

    async def _drain_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                self._drain(BATCH)
                await asyncio.sleep(0)

    def _drain(self, count: int) -> None:
        for _ in range(min(count, len(self._queue))):
            record = self._queue.popleft()
            for sink in self._sinks:
                try:
                    _pass_on(sink, record)
                except Exception:
                    self.failed += 1
                    _log.exception("%s could not take a record", type(sink).__name__)


def _pass_on(sink: Sink, record: InvocationRecord | TransitionRecord) -> None:
    if isinstance(record, InvocationRecord):
        sink.invocation(record)
    else:
        sink.transition(record)
