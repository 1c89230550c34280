"""The manager of triggers with a real catalog and store: one source for every enabled trigger, as they are now."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import FunctionConfig, InputCode
from roost.functions.packages import PackageStore
from roost.functions.tasks.backlog import BacklogLimits
from roost.functions.tasks.policy import Kind, Run
from roost.functions.tasks.service import Retention
from roost.functions.tasks.tasks import AsyncTasks
from roost.model.errors import AccessDenied, NotFound, Throttled
from roost.model.function import FunctionSpec
from roost.store.store import Store
from roost.store.triggers import TriggerRecord
from roost.triggers import manager as managers
from roost.triggers.manager import TriggerManager
from roost.triggers.ports import (
    Delivery,
    DeliveryFailed,
    DeliveryRefused,
    DeliveryTrouble,
    Event,
    Report,
    task_id,
)
from roost.triggers.status import Statuses, state_of
from tests.support.stores import Place
from tests.support.triggers import until

TIMER = json.dumps({"cronExpression": "@every 1h"})


class PlayedInvoker:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bytes]] = []
        self.run = Run(kind=Kind.SUCCEEDED)

    async def invoke(self, spec: FunctionSpec, *, qualifier: str, request_id: str, payload: bytes) -> Run:
        self.calls.append((spec.version, qualifier, payload))
        return self.run


@dataclass(eq=False)
class Played:
    """A source that says what it is, and does what it is told."""

    record: TriggerRecord
    log: list[str]
    fail: list[Exception] = field(default_factory=list)
    end_s: float = 0.0

    async def run(self, delivery: Delivery, report: Report) -> None:
        name = self.record.name
        self.log.append(f"{name} begins")
        try:
            if self.fail:
                raise self.fail.pop(0)
            report.connected()
            await asyncio.get_running_loop().create_future()
        finally:
            # One that takes its time to end.
            await asyncio.sleep(self.end_s)
            self.log.append(f"{name} ends")


class World:
    def __init__(self, store: Store, folder: Path, most: int = 100) -> None:
        packages = PackageStore(folder / "code")
        packages.open()
        self.store = store
        self.catalog = FunctionCatalog(store, packages)
        self.tasks = AsyncTasks(
            store=store, catalog=self.catalog, limits=BacklogLimits(queued=most), retention=Retention(),
            clock=lambda: 1_800_000_000.0, publishers={},
        )  # fmt: skip
        self.log: list[str] = []
        self.made: list[TriggerRecord] = []
        self.fail: list[Exception] = []
        self.end_s = 0.0
        self.invoker, self.statuses = PlayedInvoker(), Statuses()
        self.manager = TriggerManager(
            catalog=self.catalog,
            queue=self.tasks.queue,
            invoker=self.invoker,
            factories={"timer": self._make},
            statuses=self.statuses,
            chance=lambda: 0.5,
        )

    def _make(self, record: TriggerRecord) -> Played:
        self.made.append(record)
        return Played(record, self.log, self.fail, self.end_s)

    async def function(self, name: str = "f") -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("index.py", "x")
        code = InputCode.model_validate({"zipFile": base64.b64encode(buffer.getvalue()).decode()})
        config = FunctionConfig.model_validate({"runtime": "python3.12", "handler": "index.handler"})
        await self.catalog.create("a", name, config, code)

    async def trigger(self, name: str = "t", config: str = TIMER, **fields: Any) -> TriggerRecord:
        values = {"type": "timer", "qualifier": None, "description": "", **fields}
        return await self.catalog.triggers.create("a", "f", name, config=config, **values)


async def _over(_instance_id: str) -> None:
    """Nothing runs on the instances of a server before this one: there was none."""


@pytest.fixture
async def world(place: Place, tmp_path: Path) -> AsyncIterator[World]:
    """On each backend of the store."""
    store = place.store()
    await store.open()
    made = World(store, tmp_path)
    await made.catalog.load()
    await made.tasks.open(_over)
    await made.function()
    try:
        yield made
    finally:
        await made.manager.close(grace_s=5)
        await made.tasks.close(drain_s=1)
        await store.close()
    assert {task for task in asyncio.all_tasks() if "_serve" in repr(task)} == set()


async def test_triggers_that_are_there_are_served_and_changes_are_followed(world: World) -> None:
    await world.trigger("old")
    await world.trigger("resting", '{"cronExpression": "@every 1h", "enable": false}')
    world.manager.start()
    await until(lambda: world.log == ["old begins"])
    record = await world.trigger("new")
    await until(lambda: world.log[1:] == ["new begins"])
    assert state_of(record, world.statuses.of(record)) == "running"

    paused = await world.catalog.triggers.update(
        "a", "f", "new", config='{"cronExpression": "@every 1h", "enable": false}'
    )
    await until(lambda: world.log[2:] == ["new ends"])
    assert state_of(paused, world.statuses.of(paused)) == "paused"
    await world.catalog.triggers.update("a", "f", "new", config=TIMER)
    await until(lambda: world.log[3:] == ["new begins"])

    await world.catalog.triggers.update("a", "f", "new", description="other words")
    await until(lambda: world.log[4:] == ["new ends", "new begins"])
    assert world.made[-1].description == "other words"
    await world.catalog.triggers.update("a", "f", "new", description="other words", config=TIMER)
    await world.catalog.update("a", "f", {"timeout": 9})
    await asyncio.sleep(0.05)
    assert len(world.log) == 6, "what changed nothing of a trigger disturbs none"

    await world.catalog.triggers.delete("a", "f", "new")
    await until(lambda: world.log[6:] == ["new ends"])
    await world.catalog.delete("a", "f")
    await until(lambda: world.log[7:] == ["old ends"])
    assert list(world.statuses.counts()) == [], "nothing is remembered of what is gone"


async def test_two_sources_of_one_trigger_never_run_at_once(world: World) -> None:
    world.manager.start()
    world.end_s = 0.05
    await world.trigger()
    for number in range(5):
        await asyncio.sleep(0.02)
        await world.catalog.triggers.update("a", "f", "t", description=str(number))
    await until(lambda: world.made[-1].description == "4")
    await world.manager.close(grace_s=5)
    assert world.log == ["t begins", "t ends"] * (len(world.log) // 2)


async def test_what_fails_is_started_again_later_and_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managers, "_FIRST_PAUSE_S", 0.02)
    loop = asyncio.get_running_loop()
    world.fail[:] = [
        ConnectionError("amqp://me:secret@broker is down"),
        NotFound("There is no queue."),
        KeyError("bug"),
    ]
    began = loop.time()
    world.manager.start()
    record = await world.trigger()
    status = world.statuses.of(record)
    await until(lambda: status.last_error != "")
    assert status.last_error == "ConnectionError: amqp://me:***@broker is down"
    assert state_of(record, status) == "failing"
    await until(lambda: status.last_error == "There is no queue.")
    await until(lambda: status.up)
    assert loop.time() - began >= 0.02 + 0.04 + 0.08, "the pauses grow"
    assert world.log.count("t begins") == 4
    assert status.last_error == "KeyError: 'bug'", "it stays to be seen"
    assert state_of(record, status) == "running"


async def test_close_waits_for_sources_to_end_but_not_for_ever(world: World) -> None:
    world.manager.start()
    world.end_s = 3.0
    await world.trigger()
    await until(lambda: world.log == ["t begins"])
    await world.manager.close(grace_s=0.1)
    assert world.log == ["t begins"]
    await until(lambda: world.log == ["t begins", "t ends"])


# --- the way to the function -----------------------------------------------------------------------------------


async def test_an_event_is_run_at_once_by_the_qualifier(world: World) -> None:
    await world.catalog.versions.publish("a", "f", "")
    await world.catalog.aliases.create("a", "f", "prod", version="1", weights={}, description="")
    record = await world.trigger(qualifier="prod")
    delivery = world.manager.delivery(record)
    await delivery.invoke(b"{}")
    assert world.invoker.calls == [("1", "prod", b"{}")]
    for kind, error in (
        (Kind.FAULT, DeliveryFailed),
        (Kind.TROUBLE, DeliveryTrouble),
        (Kind.REFUSED, DeliveryRefused),
        (Kind.STOPPED, DeliveryTrouble),
    ):
        world.invoker.run = Run(kind=kind, error_type="E", error="why")
        with pytest.raises(error, match=r"^E: why$"):
            await delivery.invoke(b"{}")
    with pytest.raises(DeliveryRefused, match="at most"):
        await delivery.invoke(b"x" * (33 << 20))
    await world.catalog.restrict("a", "f", "for now")
    with pytest.raises(DeliveryTrouble, match="for now"):
        await delivery.invoke(b"{}")
    await world.catalog.delete("a", "f")
    with pytest.raises(DeliveryRefused, match="no function"):
        await delivery.invoke(b"{}")


async def test_an_occurrence_becomes_one_task_however_often_it_is_enqueued(world: World) -> None:
    record = await world.trigger()
    delivery, status = world.manager.delivery(record), world.statuses.of(record)
    id = task_id(record, "1")
    for _ in range(3):
        await delivery.enqueue(Event(id="1", body=b"{}", task_id=id))
    task, payload, _ = await world.store.tasks.get(("a", "f", id))
    assert (payload, task.fields["content-type"]) == (b"{}", "application/json")
    assert status.enqueued_count == 1
    # In other words: the trigger's payload was changed between a crash and the restart.
    await delivery.enqueue(Event(id="1", body=b'{"other": 1}', task_id=id))
    assert (await world.store.tasks.get(("a", "f", id)))[1] == b"{}"
    assert status.enqueued_count == 1
    await delivery.enqueue(Event(id="2", body=b"{}", task_id=task_id(record, "2")))
    await delivery.enqueue(Event(id="3", body=b"{}"))
    assert status.enqueued_count == 3
    assert status.last_success > 0


async def test_what_can_not_be_enqueued_is_said(world: World, tmp_path: Path) -> None:
    record = await world.trigger()
    delivery = world.manager.delivery(record)
    with pytest.raises(DeliveryRefused, match="at most"):
        await delivery.enqueue(Event(id="1", body=b"x" * (9 << 20)))
    for number in range(100):
        await delivery.enqueue(Event(id="", body=b"{}", task_id=f"t{number}"))
    with pytest.raises(Throttled, match="full"):
        await delivery.enqueue(Event(id="", body=b"{}", task_id="more"))
    await world.catalog.restrict("a", "f", "for now")
    with pytest.raises(AccessDenied, match="for now"):
        await delivery.enqueue(Event(id="", body=b"{}"))
    await world.catalog.delete("a", "f")
    with pytest.raises(NotFound):
        await delivery.enqueue(Event(id="", body=b"{}"))


async def test_a_cursor_lives_and_goes_with_its_trigger(world: World) -> None:
    record = await world.trigger()
    cursors = world.store.triggers
    assert await cursors.cursor(record.id) is None
    await cursors.put_cursor(record.id, "1")
    await cursors.put_cursor(record.id, "2")
    await world.catalog.triggers.update("a", "f", "t", description="changed")
    assert await cursors.cursor(record.id) == "2", "a change of the trigger keeps it"
    await world.catalog.triggers.delete("a", "f", "t")
    assert await cursors.cursor(record.id) is None
    await cursors.put_cursor(record.id, "3")
    assert await cursors.cursor(record.id) is None, "a source that was late to end leaves nothing behind"
    again = await world.trigger()
    await cursors.put_cursor(again.id, "4")
    await world.catalog.delete("a", "f")
    assert await cursors.cursor(again.id) is None
