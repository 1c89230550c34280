"""A queue in memory, and a function that does what a script says: for the batches' own tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from roost.triggers.batches import NotKept
from roost.triggers.messages import Death, Message
from roost.triggers.ports import Event


def message(body: str | bytes, **fields: object) -> Message:
    data = body.encode() if isinstance(body, str) else body
    return Message(id=f"id-{body!r}", body=data, attributes={}, origin={}, timestamp=0.0, **fields)  # type: ignore[arg-type]


class ScriptedBroker:
    def __init__(self, messages: Sequence[Message] = (), *, heartbeat_s: float | None = None) -> None:
        self.heartbeat_s = heartbeat_s
        self.queued = list(messages)
        self.asked: list[int] = []  # how many were asked for
        self.acknowledged: list[Message] = []
        self.buried: list[tuple[Message, Death]] = []
        self.extended: list[list[Message]] = []
        self.released: list[Message] = []
        self.lost: Exception | None = None  # what everything raises
        self.refusals = 0  # dead letters that are not kept before one is
        self.out = self.most_out = 0  # not settled, now and at most
        self._more = asyncio.Event()

    def put(self, *messages: Message) -> None:
        self.queued += messages
        self._more.set()

    def break_off(self, error: Exception) -> None:
        self.lost = error
        self._more.set()

    async def receive(self, most: int, wait_s: float) -> Sequence[Message]:
        assert most > 0
        self.asked.append(most)
        if not self.queued and self.lost is None:
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), wait_s)
            except TimeoutError:
                return []
        self._check()
        given, self.queued = self.queued[:most], self.queued[most:]
        self.out += len(given)
        self.most_out = max(self.most_out, self.out)
        return given

    def _check(self) -> None:
        if self.lost is not None:
            raise self.lost

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        self._check()
        self.acknowledged += messages
        self.out -= len(messages)

    async def bury(self, message: Message, death: Death) -> None:
        self._check()
        if self.refusals:
            self.refusals -= 1
            raise NotKept("no place")
        self.buried.append((message, death))
        self.out -= 1

    async def extend(self, messages: Sequence[Message]) -> None:
        self._check()
        self.extended.append(list(messages))

    async def release(self, messages: Sequence[Message]) -> None:
        self._check()
        self.released += messages


class ScriptedDelivery:
    """`act` gets the bodies of a batch; what it raises is what the invocation raises."""

    def __init__(self, act: Callable[[list[str]], object] = lambda bodies: None, *, gate: asyncio.Event | None = None):
        self.batches: list[list[str]] = []
        self.running = self.most_running = 0
        self._act = act
        self._gate = gate

    async def invoke(self, body: bytes) -> None:
        bodies = [one["body"] for one in json.loads(body)["batch"]]
        self.batches.append(bodies)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self._gate is not None:
                await self._gate.wait()
            self._act(bodies)
        finally:
            self.running -= 1

    async def enqueue(self, event: Event) -> None:
        raise AssertionError("queues invoke")


class Tally:
    """A Report."""

    def __init__(self) -> None:
        self.delivered_count = self.failed_count = self.dead_count = 0
        self.errors: list[str] = []
        self.troubles: list[str] = []
        self.up = 0

    def delivered(self, count: int) -> None:
        self.delivered_count += count

    def failed(self, count: int, error: str) -> None:
        self.failed_count += count
        self.errors.append(error)

    def dead_lettered(self, count: int) -> None:
        self.dead_count += count

    def connected(self) -> None:
        self.up += 1

    def trouble(self, error: str) -> None:
        self.troubles.append(error)
