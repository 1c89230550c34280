"""What a source of events is, and what it needs of the rest of Roost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from roost.functions.tasks.policy import Run
from roost.model.function import FunctionSpec
from roost.store.triggers import TriggerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event on its way to a function."""

    id: str  # unique within its trigger; of a redelivery the same, where the source knows it
    body: bytes  # what the function gets (JSON), already in the shape that the docs promise
    task_id: str = ""  # for `enqueue`: deterministic, so that the same occurrence is never enqueued twice
    hops: int = 0  # invocations that led to it


class DeliveryError(Exception):
    """An event did not get through. `message` is one sentence for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DeliveryFailed(DeliveryError):
    """The function failed on it."""


class DeliveryRefused(DeliveryError):
    """Nothing can run it: the function or its qualifier is gone, the event is too large."""


class DeliveryTrouble(DeliveryError):
    """The system can't now: no instance is to be had, the disk is full. Not the event's fault."""


class Delivery(Protocol):
    """How a source reaches its function."""

    async def invoke(self, body: bytes) -> None:
        """Run the function now and wait for its end. Raises DeliveryFailed, DeliveryRefused, DeliveryTrouble."""
        ...

    async def enqueue(self, event: Event) -> None:
        """Accept it durably as an asynchronous task; one that has been accepted before is accepted again without
        effect. Raises Throttled, StorageFull, Unavailable, AccessDenied (invocations are off): wait, and try again;
        and NotFound."""
        ...


class Report(Protocol):
    """What a source tells of itself."""

    def delivered(self, count: int) -> None:
        """So many events were run to success. What was enqueued is counted by itself."""
        ...

    def failed(self, count: int, error: str) -> None:
        """The function failed on so many."""
        ...

    def dead_lettered(self, count: int) -> None:
        """So many were given up, and put aside."""
        ...

    def connected(self) -> None:
        """The source is up. The last error stays to be seen."""
        ...

    def trouble(self, error: str) -> None:
        """The source is not: its broker is down, its bucket is gone."""
        ...


class Source(Protocol):
    """One trigger at work."""

    async def run(self, delivery: Delivery, report: Report) -> None:
        """Serve until cancelled. Whatever it raises is the trigger's last error; it is started again after a while."""
        ...


#: Raises RoostError for settings that can't be served here.
Factory = Callable[[TriggerRecord], Source]


class Invoker(Protocol):
    """Runs functions on instances, as any invocation, with nobody who waits for the reply."""

    async def invoke(self, spec: FunctionSpec, *, qualifier: str, request_id: str, payload: bytes) -> Run:
        """Raises nothing but CancelledError, which breaks the run off."""
        ...


class Cursors(Protocol):
    """How far a trigger has come. Both raise StorageFull, Throttled or Unavailable."""

    async def cursor(self, trigger_id: str) -> str | None: ...

    async def put_cursor(self, trigger_id: str, value: str) -> None: ...


def task_id(record: TriggerRecord, occurrence: str) -> str:
    """The id of the task that an occurrence becomes: always the same one for the same trigger."""
    digest = hashlib.sha256(f"{record.id}\0{occurrence}".encode()).hexdigest()
    return f"{record.type}-{digest[:40]}"
