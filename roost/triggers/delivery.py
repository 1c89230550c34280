"""From a trigger to its function: now, or as an asynchronous task."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from typing import Protocol

from roost.functions.tasks.policy import Kind
from roost.functions.tasks.queue import TaskQueue
from roost.model.errors import AccessDenied, Conflict, RoostError, StorageFull, Throttled, Unavailable
from roost.model.function import FunctionSpec
from roost.store.triggers import TriggerRecord
from roost.triggers.ports import (
    Delivery,
    DeliveryError,
    DeliveryFailed,
    DeliveryRefused,
    DeliveryTrouble,
    Event,
    Invoker,
    Report,
)
from roost.triggers.status import TriggerStatus

#: As for any event: what a function is given at once, and what is kept for later.
MAX_INVOKE_BYTES = 32 << 20
MAX_ENQUEUE_BYTES = 8 << 20

#: What another try may mend.
PASSING = (Throttled, StorageFull, Unavailable, AccessDenied)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


class Specs(Protocol):
    def resolve(self, account: str, name: str, qualifier: str | None) -> FunctionSpec:
        """Raises NotFound, AccessDenied while invocations are switched off."""
        ...


class FunctionDelivery:
    """Implements `Delivery` for one trigger."""

    def __init__(
        self, record: TriggerRecord, *, specs: Specs, invoker: Invoker, queue: TaskQueue, status: TriggerStatus
    ) -> None:
        self._record = record
        self._specs = specs
        self._invoker = invoker
        self._queue = queue
        self._status = status

    async def invoke(self, body: bytes) -> None:
        if len(body) > MAX_INVOKE_BYTES:
            raise DeliveryRefused(f"An event has at most {MAX_INVOKE_BYTES} bytes, this one has {len(body)}.")
        try:
            spec = self._spec()
        except AccessDenied as error:
            raise DeliveryTrouble(error.message) from error
        except RoostError as error:
            raise DeliveryRefused(error.message) from error
        run = await self._invoker.invoke(
            spec, qualifier=self._record.qualifier, request_id=str(uuid.uuid4()), payload=body
        )
        if run.kind is not Kind.SUCCEEDED:
            said = f"{run.error_type}: {run.error}" if run.error_type else run.error
            raise _FAILURES[run.kind](said)

    async def enqueue(self, event: Event) -> None:
        if len(event.body) > MAX_ENQUEUE_BYTES:
            raise DeliveryRefused(f"An event has at most {MAX_ENQUEUE_BYTES} bytes, this one has {len(event.body)}.")
        request_id = str(uuid.uuid4())
        headers = {"content-type": "application/json", "x-fc-async-task-id": event.task_id or f"event-{request_id}"}
        try:
            accepted = await self._queue.submit(
                self._spec(),
                qualifier=self._record.qualifier,
                request_id=request_id,
                session_id="",
                payload=event.body,
                headers=headers,
                hops=event.hops,
            )
        except Conflict:
            # The same occurrence in other words: the trigger was changed after it had been accepted.
            return
        if accepted.request_id == request_id:  # or it is an older task's
            self._status.enqueued(1)

    def _spec(self) -> FunctionSpec:
        record = self._record
        return self._specs.resolve(record.account, record.function, record.qualifier)


_FAILURES: dict[Kind, type[DeliveryError]] = {
    Kind.FAULT: DeliveryFailed,
    Kind.REFUSED: DeliveryRefused,
    Kind.TROUBLE: DeliveryTrouble,
    Kind.STOPPED: DeliveryTrouble,
}


async def enqueue_patiently(delivery: Delivery, event: Event, report: Report) -> None:
    """Enqueue it, however long that takes. Raises NotFound and DeliveryRefused only."""
    wait_s = 0.0
    while True:
        try:
            await delivery.enqueue(event)
        except PASSING as error:
            report.trouble(error.message)
            wait_s = min(max(wait_s * 2, _FIRST_WAIT_S), _LONGEST_WAIT_S)
            await asyncio.sleep(max(error.retry_after or 0.0, wait_s * random.uniform(0.75, 1.25)))  # noqa: S311
        else:
            if wait_s:
                report.connected()
            return


async def enqueue_all(delivery: Delivery, events: Sequence[Event], report: Report) -> None:
    """Enqueue them side by side, however long that takes: the disk takes many at once.

    Raises what `enqueue_patiently` does, when all the others have been enqueued or have failed, too.
    """
    tries = (enqueue_patiently(delivery, event, report) for event in events)
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
