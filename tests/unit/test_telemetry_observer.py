"""Records reach every sink, off the caller's path; usage is saved."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.metering import Meter
from roost.telemetry.observer import Observer
from roost.telemetry.usage_saver import UsageSaver

INVOCATION = InvocationRecord(
    request_id="r", account="default", function="f", version="LATEST", qualifier="LATEST", instance_id="i-1",
    session_id="", outcome=Outcome.OK, status=200, started=90.0, wait_s=0.0, duration_s=2.0, memory_mb=512, cold=False,
)  # fmt: skip
TRANSITION = TransitionRecord(
    instance_id="i-1", account="default", function="f", version="LATEST", session_id="", generation=1,
    before=State.READY, after=State.FROZEN, at=100.0, held_s=1.0, leased_s=0.0, cpu_us=0, memory_mb=512,
)  # fmt: skip


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[InvocationRecord | TransitionRecord] = []

    def invocation(self, record: InvocationRecord) -> None:
        self.records.append(record)

    def transition(self, record: TransitionRecord) -> None:
        self.records.append(record)


class Broken:
    """A sink that fails at everything."""

    def invocation(self, record: InvocationRecord) -> None:
        raise RuntimeError("broken")

    def transition(self, record: TransitionRecord) -> None:
        raise RuntimeError("broken")


def observe(*sinks: Kept | Broken, capacity: int = 1000) -> Observer:
    return Observer(
        invocations=[sink.invocation for sink in sinks],
        transitions=[sink.transition for sink in sinks],
        capacity=capacity,
    )


async def test_every_sink_gets_every_record_in_order() -> None:
    first, second = Kept(), Kept()
    observer = observe(first, second)
    await observer.start()
    sent = [replace(INVOCATION, request_id=str(number)) for number in range(300)]
    for record in sent:
        observer.invocation(record)
    observer.transition(TRANSITION)
    assert first.records == []
    async with asyncio.timeout(20):
        while len(second.records) < 301:
            await asyncio.sleep(0)
    assert first.records == second.records == [*sent, TRANSITION]
    await observer.close()


async def test_a_broken_sink_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    observer = observe(Broken(), kept)
    await observer.start()
    observer.invocation(INVOCATION)
    observer.transition(TRANSITION)
    await observer.close()
    assert kept.records == [INVOCATION, TRANSITION]
    assert observer.failed == 2
    assert "Broken.transition could not take a record" in caplog.text


async def test_a_full_queue_drops_and_counts() -> None:
    kept = Kept()
    observer = observe(kept, capacity=2)
    await observer.start()
    for _ in range(5):
        observer.invocation(INVOCATION)
    await observer.close()
    assert (len(kept.records), observer.dropped) == (2, 3)


async def test_closing_passes_on_what_waits_and_may_be_repeated() -> None:
    kept = Kept()
    observer = observe(kept)
    observer.transition(TRANSITION)
    await observer.close()
    await observer.close()
    assert kept.records == [TRANSITION]


async def test_usage_is_saved_when_it_changed_and_at_the_end() -> None:
    saved: list[dict[str, Any]] = []

    async def save(snapshot: dict[str, Any]) -> None:
        saved.append(snapshot)

    meter = Meter()
    saver = UsageSaver(meter, save, every_s=0.001)
    await saver.start()
    meter.invocation(INVOCATION)
    async with asyncio.timeout(20):
        while not saved:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    meter.invocation(INVOCATION)
    await saver.close()
    await saver.close()
    assert len(saved) == 2
    again = Meter()
    again.restore(saved[-1])
    assert again.usage("default").invocations == 2


async def test_a_failed_save_is_tried_again() -> None:
    attempts: list[int] = []

    async def save(snapshot: dict[str, Any]) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("disk full")

    meter = Meter()
    saver = UsageSaver(meter, save)
    meter.invocation(INVOCATION)
    await saver.close()
    await saver.close()
    await saver.close()
    assert len(attempts) == 2
