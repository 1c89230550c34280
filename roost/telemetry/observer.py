"""Carries records off the hot path: a bounded queue, drained by one task into every sink."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar, cast

from roost.model.usage import InvocationRecord, TransitionRecord

R = TypeVar("R", InvocationRecord, TransitionRecord)

_log = logging.getLogger(__name__)

#: Records waiting at most; what comes on top is dropped and counted.
CAPACITY = 20_000
#: Records passed on before other tasks get their turn.
BATCH = 100


#: Takes records of one kind; on the event loop, so each call must be quick.
InvocationSink = Callable[[InvocationRecord], None]
TransitionSink = Callable[[TransitionRecord], None]


class Observer:
    """Where the data plane and the instances report to. Both calls are an append to a queue."""

    def __init__(
        self,
        *,
        invocations: Iterable[InvocationSink] = (),
        transitions: Iterable[TransitionSink] = (),
        capacity: int = CAPACITY,
    ) -> None:
        self._invocations = tuple(invocations)
        self._transitions = tuple(transitions)
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
        batch = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        for kind, records in groupby(batch, type):
            if kind is InvocationRecord:
                self._pass_on(cast("list[InvocationRecord]", list(records)), self._invocations)
            else:
                self._pass_on(cast("list[TransitionRecord]", list(records)), self._transitions)

    def _pass_on(self, records: Sequence[R], sinks: Sequence[Callable[[R], None]]) -> None:
        for sink in sinks:
            left = iter(records)
            while True:  # again, with what is left, after a record that the sink could not take
                try:
                    for record in left:
                        sink(record)
                    break
                except Exception:
                    self.failed += 1
                    _log.exception("%s could not take a record", getattr(sink, "__qualname__", sink))
