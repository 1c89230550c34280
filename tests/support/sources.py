"""Sources of triggers over a real store, without a server: what they enqueue is kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost.functions.triggers.kinds import check_config, check_record
from roost.model.errors import RoostError
from roost.store.functions import FunctionRecord
from roost.store.store import Store
from roost.store.triggers import TriggerRecord
from roost.triggers.ports import Event, Source


@dataclass
class Inbox:
    """A `Delivery` that takes tasks as the queue does: each id once."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    offered: int = 0
    most: int = 0  # at once
    refuse: Callable[[], RoostError | None] = lambda: None
    before: Callable[[Event], None] = lambda event: None
    _now: int = 0

    async def invoke(self, body: bytes) -> None:
        raise NotImplementedError

    async def enqueue(self, event: Event) -> None:
        self.before(event)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await asyncio.sleep(0)
        finally:
            self._now -= 1
        if (error := self.refuse()) is not None:
            raise error
        self.offered += 1
        self.tasks.setdefault(event.task_id, json.loads(event.body))

    @property
    def objects(self) -> list[tuple[str, str]]:
        """(what happened, key) of each event about objects."""
        said = [event for task in self.tasks.values() for event in task["events"]]
        return [(event["eventName"].partition(":")[0], event["oss"]["object"]["key"]) for event in said]

    @property
    def rows(self) -> list[Any]:
        """Of tables, in the order of their tasks."""
        return [row for task in self.tasks.values() for row in task["rows"]]


@dataclass
class Notes:
    """A `Report`."""

    up: bool = False
    errors: list[str] = field(default_factory=list)

    def delivered(self, count: int) -> None: ...

    def dead_lettered(self, count: int) -> None: ...

    def failed(self, count: int, error: str) -> None:
        self.errors.append(error)

    def connected(self) -> None:
        self.up = True

    def trouble(self, error: str) -> None:
        self.up = False
        self.errors.append(error)


@contextlib.asynccontextmanager
async def opened(folder: Path, url: str = "") -> AsyncIterator[Store]:
    """A store with a function `f` of the account `default`."""
    store = Store(folder / "roost.db", url)
    await store.open()
    try:
        await store.functions.put(
            FunctionRecord(account="default", name="f", id="f", config={}, created=0.0, modified=0.0)
        )
        yield store
    finally:
        await store.close()


async def trigger(store: Store, type: str, config: dict[str, Any], **fields: Any) -> TriggerRecord:
    """A trigger of `f`, as the API makes it."""
    now = time.time()
    values: dict[str, Any] = {"created": now, "modified": now, "source_arn": "", "id": "t", **fields}
    record = TriggerRecord(
        account="default",
        function="f",
        name=values["id"],
        type=type,
        qualifier="LATEST",
        description="",
        config=check_config(type, json.dumps(config)),
        invocation_role="",
        **values,
    )
    check_record(record)
    await store.triggers.put(record)
    return record


@contextlib.asynccontextmanager
async def serving(make: Callable[[], Source], inbox: Inbox, notes: Notes | None = None) -> AsyncIterator[Notes]:
    """A source at work, started again when it fails, until the end of the block."""
    report = Notes() if notes is None else notes

    async def work() -> None:
        while True:
            try:
                await make().run(inbox, report)
            except RoostError as error:
                report.trouble(error.message)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(work())
    try:
        yield report
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.02)


async def quiet(inbox: Inbox, seconds: float = 0.5) -> None:
    """Until nothing has come for a while."""
    before = -1
    while before != inbox.offered:
        before = inbox.offered
        await asyncio.sleep(seconds)
