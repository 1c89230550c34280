"""A queue with its worker over a real store; the data plane, the catalog and the destinations are played."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from roost.functions.tasks.backlog import BacklogLimits
from roost.functions.tasks.service import Retention
from roost.functions.tasks.tasks import AsyncTasks
from roost.model.errors import NotFound
from roost.model.function import Affinity, FunctionSpec, SessionPolicy
from roost.model.task import FINISHED, Task, TaskState
from roost.store.functions import FunctionRecord
from roost.store.provision import QualifierKind, QualifierRecord
from roost.store.store import Store
from tests.support.gateway_world import spec
from tests.support.scripted_runner import ScriptedRunner
from tests.support.stores import Place


class FewFunctions:
    """A catalog of `f` and `g` with their async settings."""

    region = "local"

    def __init__(self) -> None:
        self.async_invoke = self
        self.config: dict[str, Any] = {}
        self.error: Exception | None = None
        self.listener: Callable[[str, str], None] = lambda account, name: None
        self.names = {"f", "g"}

    def resolve(self, account: str, name: str, qualifier: str | None = None) -> FunctionSpec:
        if self.error is not None:
            raise self.error
        return spec(name, account=account)

    def get(self, account: str, function: str, qualifier: str | None = None) -> QualifierRecord:
        if function not in self.names or (qualifier and not self.config):
            raise NotFound("none")
        return QualifierRecord(
            account=account, function=function, qualifier="LATEST", kind=QualifierKind.ASYNC, config=self.config,
            created=0, modified=0,
        )  # fmt: skip

    def subscribe(self, listener: Callable[[str, str], None]) -> Callable[[], None]:
        self.listener = listener
        return lambda: None


class Receiver:
    """A destination: what came, and what it says to the next ones."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, dict[str, Any]]] = []
        self.errors: list[Exception] = []

    async def publish(self, destination: str, event_id: str, body: bytes) -> None:
        self.got.append((destination, event_id, json.loads(body)))
        if self.errors:
            raise self.errors.pop(0)


class World:
    def __init__(self, store: Store, limits: BacklogLimits, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.requests = 0  # of each session
        self.publisher = Receiver()
        self.catalog = FewFunctions()
        self.runner = ScriptedRunner()
        self.ended: list[str] = []
        self.tasks = AsyncTasks(
            store=store, catalog=self.catalog, limits=limits, retention=Retention(), clock=clock,  # type: ignore[arg-type]
            publishers={"https": self.publisher}, ended=lambda task: self.ended.append(task.id),
            requests=lambda lane: self.requests,
        )  # fmt: skip

    async def submit(self, payload: str, id: str, *, function: str = "f", session: str = "", **headers: str) -> None:
        sent = {"x-fc-async-task-id": id, **{name.replace("_", "-"): value for name, value in headers.items()}}
        sessions = SessionPolicy(affinity=Affinity.HEADER_FIELD if session else Affinity.NONE)
        await self.tasks.queue.submit(
            spec(function, account="a", sessions=sessions), qualifier="LATEST", request_id=f"r-{id}",
            session_id=session,
            payload=payload.encode(), headers=sent,
        )  # fmt: skip

    async def until(self, id: str, *states: TaskState, function: str = "f") -> Task:
        async with asyncio.timeout(20):
            while True:
                task, _, _ = await self.store.tasks.get(("a", function, id))
                if task.state in (states or FINISHED):
                    return task
                await asyncio.sleep(0.01)


NewWorld = Callable[..., Any]
Over = Callable[[str], Awaitable[None]]


async def at_once(instance_id: str) -> None:
    """Nothing runs there any more."""


async def worlds(place: Place) -> AsyncIterator[NewWorld]:
    """For a fixture: opens a world on the same store as the one before, which must have been closed."""
    opened: list[World] = []

    async def new_world(
        *, run: bool = True, clock: Callable[[], float] = time.time, over: Over = at_once, **limits: int
    ) -> World:
        store = place.store()
        await store.open()
        for name in ("f", "g"):
            await store.functions.put(FunctionRecord(account="a", name=name, id=name, config={}, created=1, modified=1))
        opened.append(World(store, BacklogLimits(**limits), clock))
        await opened[-1].tasks.interrupted()
        await opened[-1].tasks.open(over)
        if run:
            opened[-1].tasks.start(opened[-1].runner)
        return opened[-1]

    yield new_world
    for world in opened:
        await world.tasks.close(drain_s=0.1)
        await world.store.close()
