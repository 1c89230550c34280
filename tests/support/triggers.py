"""What triggers need around them, in memory: a clock that is set by hand, cursors, a way to a function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from roost.store.triggers import TriggerRecord
from roost.triggers.ports import Event


class HandClock:
    """`wall` is set at will; `steady` goes on with it only when time passes."""

    def __init__(self, wall: float) -> None:
        self.wall = wall
        self.steady = 1000.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def is_set(self, wall: float) -> None:
        self.wall = wall


class Cursors:
    """`refuse` is raised in place of keeping one."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.refuse: Exception | None = None

    async def cursor(self, trigger_id: str) -> str | None:
        return self.kept.get(trigger_id)

    async def put_cursor(self, trigger_id: str, value: str) -> None:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        self.kept[trigger_id] = value


class Queue:
    """Tasks as they were accepted; an id that is known is accepted without effect. `refusals` are raised first."""

    def __init__(self) -> None:
        self.tasks: dict[str, Event] = {}
        self.asked = 0
        self.refusals: list[Exception] = []

    async def invoke(self, body: bytes) -> None:
        raise AssertionError("timers do not invoke")

    async def enqueue(self, event: Event) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        self.tasks.setdefault(event.task_id, event)

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.tasks.values()]


def record(type: str, config: dict[str, Any], **changes: Any) -> TriggerRecord:
    fields: dict[str, Any] = {
        "account": "a", "function": "f", "name": "t", "id": "id-1", "qualifier": "LATEST", "description": "",
        "created": 0.0, "modified": 0.0, **changes,
    }  # fmt: skip
    return TriggerRecord(type=type, config=config, **fields)


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)
