"""The one discipline of all message queues: bounded batches, acknowledged after success; a bad message harms no other.

What is promised: every message is delivered at least once. In a batch messages stand as they were received; with a
concurrency of 1 a batch begins when the one before it is settled. A batch that fails is tried again as a whole, with
growing pauses, up to `max_attempts`; then it is halved, and halved again, until those that fail stand alone: these go
to the dead letters. Trouble of the system (no instance, a full disk) is waited out and costs a message nothing. No more
than `size * concurrency` messages are held at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from roost.triggers.delivery import MAX_INVOKE_BYTES
from roost.triggers.messages import Death, Message, event_body
from roost.triggers.ports import Delivery, DeliveryFailed, DeliveryRefused, DeliveryTrouble, Report

#: How long an idle consumer waits for messages at a time.
IDLE_S = 5.0
#: What a stopped trigger gives the invocations that run.
STOP_GRACE_S = 2.0
_TROUBLE_S = 0.5
_LONGEST_TROUBLE_S = 30.0


class NotKept(Exception):
    """The place for dead letters did not take one. The connection is sound; it may work later."""


class Broker(Protocol):
    """A connection that consumes one queue. What its methods raise, NotKept aside, means that it is lost."""

    @property
    def heartbeat_s(self) -> float | None:
        """How often `extend` is wanted; None for never."""
        ...

    async def receive(self, most: int, wait_s: float) -> Sequence[Message]:
        """What is there, at most `most` messages; when there is none, what comes first within `wait_s`."""
        ...

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """They are done."""
        ...

    async def bury(self, message: Message, death: Death) -> None:
        """Keep it among the dead letters, durably, then acknowledge it. Raises NotKept."""
        ...

    async def extend(self, messages: Sequence[Message]) -> None:
        """They are still being worked on: nobody else may get them."""
        ...

    async def release(self, messages: Sequence[Message]) -> None:
        """Give them back, undone, for whoever asks next."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    size: int = 10
    bytes: int = 1 << 20
    window_s: float = 0.0
    concurrency: int = 1
    max_attempts: int = 3
    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0

    @property
    def capacity(self) -> int:
        """Messages that are held at most."""
        return self.size * self.concurrency


class Step(Enum):
    """What follows a failure."""

    AGAIN = "again"
    SPLIT = "split"
    BURY = "bury"


def after_failure(count: int, failures: int, settings: BatchSettings) -> Step:
    """For `count` messages that failed together, each of them `failures` times by now."""
    if failures < settings.max_attempts:
        return Step.AGAIN
    return Step.SPLIT if count > 1 else Step.BURY


def retry_delay(failures: int, settings: BatchSettings, chance: float) -> float:
    """Seconds until the next try. `chance` is from 0 to 1."""
    steps: float = 2.0 ** min(failures - 1, 20)
    return min(settings.longest_delay_s, settings.first_delay_s * steps) * (0.5 + chance / 2)


def trouble_delay(troubles: int, chance: float) -> float:
    """Seconds until the next try after that many troubles in a row."""
    steps: float = 2.0 ** min(troubles - 1, 20)
    return min(_LONGEST_TROUBLE_S, _TROUBLE_S * steps) * (0.5 + chance / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Whose messages they are, as events and dead letters say it."""

    source: str
    function: str
    trigger: str


class QueueSource:
    """A trigger's source over a broker. `connect` makes the connection, and ends it."""

    def __init__(
        self, address: Address, settings: BatchSettings, connect: Callable[[], AbstractAsyncContextManager[Broker]]
    ) -> None:
        self._address = address
        self._settings = settings
        self._connect = connect

    async def run(self, delivery: Delivery, report: Report) -> None:
        """Serve until cancelled, or until the connection is lost."""
        async with self._connect() as broker:
            report.connected()
            await Batches(broker, self._address, self._settings, delivery, report).run()


class Batches:
    """One connection's batches, from their collection to their settlement."""

    def __init__(
        self,
        broker: Broker,
        address: Address,
        settings: BatchSettings,
        delivery: Delivery,
        report: Report,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._broker = broker
        self._address = address
        self._settings = settings
        self._delivery = delivery
        self._report = report
        self._chance = chance
        self._held: dict[Message, None] = {}  # in the order of their arrival
        self._waiting: deque[Message] = deque()  # held, and in no batch yet
        self._closing = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.concurrency)

    async def run(self) -> None:
        """Until cancelled: invocations that run get a short grace. When the connection is lost, they run to their end,
        so that what is redelivered does not run beside them; then this raises what went wrong."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lost.add_done_callback(_see)
        parts = [asyncio.create_task(self._collect(lost)), asyncio.create_task(self._extend())]
        grace: float | None = None
        try:
            await asyncio.wait({*parts, lost}, return_when=asyncio.FIRST_COMPLETED)
            error = _error_of(lost, *parts)
            self._report.trouble(str(error))
        except asyncio.CancelledError:
            grace = STOP_GRACE_S
            raise
        finally:
            self._closing.set()
            try:
                parts[0].cancel()
                if self._workers:
                    await asyncio.wait(self._workers, timeout=grace)
            finally:
                await _end(*parts, *self._workers)
                with contextlib.suppress(Exception):  # whoever is not told gives them out again by itself
                    await self._broker.release(list(self._held))
        raise error

    # --- collecting --------------------------------------------------------------------------------------------

    async def _collect(self, lost: asyncio.Future[None]) -> None:
        def done(worker: asyncio.Task[None]) -> None:
            self._workers.discard(worker)
            self._slots.release()
            if not worker.cancelled() and (error := worker.exception()) is not None and not lost.done():
                lost.set_exception(error)

        while True:
            await self._slots.acquire()
            worker = asyncio.create_task(self._work(await self._batch()))
            self._workers.add(worker)
            worker.add_done_callback(done)

    async def _batch(self) -> list[Message]:
        """The next one: as soon as it is full, or its window is over."""
        batch: list[Message] = []
        size, closes = 0, 0.0
        while True:
            while self._waiting and len(batch) < self._settings.size:
                if batch and size + self._waiting[0].size > self._settings.bytes:
                    return batch
                message = self._waiting.popleft()
                if not batch:
                    closes = time.monotonic() + self._settings.window_s
                batch.append(message)
                size += message.size
            most = min(self._settings.size - len(batch), self._settings.capacity - len(self._held))
            left = closes - time.monotonic() if batch else IDLE_S
            if most <= 0 or left <= 0:
                return batch
            received = await self._broker.receive(most, min(left, IDLE_S))
            self._held.update(dict.fromkeys(received))
            self._waiting.extend(received)

    async def _extend(self) -> None:
        every = self._broker.heartbeat_s
        while True:
            await asyncio.sleep(3600 if every is None else every)
            if every is not None and self._held:
                await self._broker.extend(list(self._held))

    # --- delivering --------------------------------------------------------------------------------------------

    async def _work(self, part: list[Message], failures: int = 0) -> None:
        """Bring each of these messages to its acknowledgement, or to the dead letters; unless all is closing."""
        body = event_body(self._address.source, self._address.trigger, part)
        if len(body) > MAX_INVOKE_BYTES:
            await self._too_large(part, failures)
            return
        troubles = 0
        while not self._closing.is_set():
            try:
                await self._delivery.invoke(body)
            except DeliveryFailed as error:
                failures, troubles = failures + 1, 0
                self._report.failed(len(part), error.message)
                match after_failure(len(part), failures, self._settings):
                    case Step.SPLIT:
                        await self._halves(part, failures)
                        return
                    case Step.BURY:
                        await self._bury(part[0], error.message, failures)
                        return
                await self._pause(retry_delay(failures, self._settings, self._chance()))
            except (DeliveryTrouble, DeliveryRefused) as error:
                troubles += 1
                await self._wait_out(error.message, troubles)
            else:
                await self._broker.acknowledge(part)
                self._settled(part)
                self._report.delivered(len(part))
                return

    async def _halves(self, part: list[Message], failures: int) -> None:
        middle = len(part) // 2
        await self._work(part[:middle], failures)
        await self._work(part[middle:], failures)

    async def _too_large(self, part: list[Message], failures: int) -> None:
        if len(part) > 1:
            await self._halves(part, failures)
            return
        reason = f"The message is too large: an event has at most {MAX_INVOKE_BYTES >> 20} MiB."
        self._report.failed(1, reason)
        await self._bury(part[0], reason, failures)

    async def _bury(self, message: Message, reason: str, failures: int) -> None:
        death = Death(
            function=self._address.function,
            trigger=self._address.trigger,
            reason=reason,
            attempts=failures,
            at=time.time(),
        )
        troubles = 0
        while not self._closing.is_set():
            try:
                await self._broker.bury(message, death)
            except NotKept as error:
                troubles += 1
                await self._wait_out(f"A dead letter was not kept: {error}", troubles)
            else:
                self._settled([message])
                self._report.dead_lettered(1)
                return

    def _settled(self, part: Sequence[Message]) -> None:
        for message in part:
            del self._held[message]

    async def _wait_out(self, trouble: str, troubles: int) -> None:
        self._report.trouble(trouble)
        await self._pause(trouble_delay(troubles, self._chance()))
        self._report.connected()

    async def _pause(self, seconds: float) -> None:
        """Wait, unless all is closing."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


def _error_of(*futures: asyncio.Future[None]) -> BaseException:
    """Of those, none of which ends but by failing, the first that has."""
    errors = [future.exception() for future in futures if future.done()]
    return next(error for error in errors if error is not None)


def _see(future: asyncio.Future[None]) -> None:
    """Its error has been seen, also when nobody is left to whom it matters."""
    if not future.cancelled():
        future.exception()


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel them, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
