"""The discipline of message queues, over a queue in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.triggers import batches
from roost.triggers.batches import Address, Batches, BatchSettings, Step, after_failure, retry_delay, trouble_delay
from roost.triggers.messages import Message, event_body
from roost.triggers.ports import DeliveryFailed, DeliveryRefused, DeliveryTrouble
from tests.support.scripted_queue import ScriptedBroker, ScriptedDelivery, Tally, message

ADDRESS = Address(source="redis", function="f", trigger="t")


@contextlib.asynccontextmanager
async def serving(
    broker: ScriptedBroker, delivery: ScriptedDelivery, report: Tally | None = None, **fields: object
) -> AsyncIterator[asyncio.Task[None]]:
    made = Batches(
        broker,
        ADDRESS,
        BatchSettings(**fields),
        delivery,
        report or Tally(),
        chance=lambda: 0.0,  # type: ignore[arg-type]
    )
    task = asyncio.create_task(made.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.done()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def bodies(messages: list[Message]) -> list[str]:
    return [one.body.decode() for one in messages]


def named(count: int) -> list[Message]:
    return [message(str(number)) for number in range(count)]


def fail_on(*words: str) -> Callable[[list[str]], None]:
    def act(found: list[str]) -> None:
        if set(words) & set(found):
            raise DeliveryFailed(f"bad: {found}")

    return act


# --- decisions -------------------------------------------------------------------------------------------------------


def test_after_a_failure() -> None:
    rules = BatchSettings(max_attempts=3)
    assert after_failure(10, 2, rules) is Step.AGAIN
    assert after_failure(10, 3, rules) is Step.SPLIT
    assert after_failure(1, 2, rules) is Step.AGAIN
    assert after_failure(1, 3, rules) is Step.BURY
    assert after_failure(1, 7, rules) is Step.BURY


def test_pauses_grow_to_their_limit_and_vary() -> None:
    rules = BatchSettings(first_delay_s=1, longest_delay_s=10)
    assert [retry_delay(failures, rules, 1.0) for failures in (1, 2, 3, 4, 5, 500)] == [1, 2, 4, 8, 10, 10]
    assert retry_delay(2, rules, 0.0) == 1
    assert [trouble_delay(troubles, 1.0) for troubles in (1, 2, 3, 500)] == [0.5, 1, 2, 30]


def test_an_event_says_what_was_received() -> None:
    one = Message(
        id="7",
        body=b"caf\xc3\xa9",
        attributes={"a": "b", "c": b"d", "e": b"\xff"},
        origin={"topic": "x/y"},
        timestamp=1.5,
    )
    other = Message(id="8", body=b"\xff\x00", attributes={}, origin={"topic": "z"}, timestamp=2, redelivered=True)
    assert json.loads(event_body("mqtt", "mine", [one, other])) == {
        "source": "mqtt",
        "trigger": "mine",
        "batch": [
            {
                "id": "7", "body": "café", "isBase64Encoded": False, "topic": "x/y", "timestamp": 1500,
                "attributes": {"a": "b", "c": "d", "e": {"base64": "/w=="}}, "redelivered": False,
            },
            {
                "id": "8", "body": "/wA=", "isBase64Encoded": True, "topic": "z", "timestamp": 2000,
                "attributes": {}, "redelivered": True,
            },
        ],
    }  # fmt: skip


# --- batches ---------------------------------------------------------------------------------------------------------


async def test_full_batches_go_at_once_and_the_rest_with_the_window() -> None:
    broker, delivery = ScriptedBroker(named(7)), ScriptedDelivery()
    async with serving(broker, delivery, size=3, window_s=0.05):
        await until(lambda: len(broker.acknowledged) == 7)
    assert delivery.batches == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


async def test_a_window_collects_what_comes_in_it() -> None:
    broker, delivery = ScriptedBroker(), ScriptedDelivery()
    async with serving(broker, delivery, size=10, window_s=0.3):
        for one in named(3):
            broker.put(one)
            await asyncio.sleep(0.02)
        await until(lambda: len(broker.acknowledged) == 3)
    assert delivery.batches == [["0", "1", "2"]]


async def test_a_batch_has_no_more_bytes_than_it_may_but_for_one_large_message() -> None:
    sizes = [40, 40, 40, 200, 10, 10]
    broker = ScriptedBroker([message("x" * size) for size in sizes])
    delivery = ScriptedDelivery()
    async with serving(broker, delivery, size=10, bytes=100):
        await until(lambda: len(broker.acknowledged) == 6)
    assert [[len(body) for body in batch] for batch in delivery.batches] == [[40, 40], [40], [200], [10, 10]]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40),
    size=st.integers(1, 7),
    concurrency=st.integers(1, 4),
    limit=st.integers(1, 8),
    poison=st.sets(st.integers(0, 39), max_size=4),
)
async def test_every_message_is_settled_once_and_no_more_are_held_than_may_be(
    count: int, size: int, concurrency: int, limit: int, poison: set[int]
) -> None:
    broker = ScriptedBroker(named(count))
    delivery = ScriptedDelivery(fail_on(*map(str, poison)))
    rules = {"size": size, "concurrency": concurrency, "bytes": limit, "max_attempts": 2, "first_delay_s": 0.0}
    async with serving(broker, delivery, **rules):
        await until(lambda: len(broker.acknowledged) + len(broker.buried) == count)
    dead = {one.body.decode() for one, _ in broker.buried}
    assert dead == {str(number) for number in poison if number < count}
    assert sorted(bodies(broker.acknowledged), key=int) == [str(n) for n in range(count) if n not in poison]
    assert broker.most_out <= size * concurrency
    assert delivery.most_running <= concurrency


async def test_no_more_is_asked_for_while_the_function_is_busy() -> None:
    gate = asyncio.Event()
    broker, delivery = ScriptedBroker(named(100)), ScriptedDelivery(gate=gate)
    async with serving(broker, delivery, size=5, concurrency=2):
        await until(lambda: delivery.running == 2)
        await asyncio.sleep(0.05)
        assert (broker.most_out, len(broker.queued)) == (10, 90)
        gate.set()
        await until(lambda: len(broker.acknowledged) == 100)


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failing_batch_is_halved_down_to_its_poison() -> None:
    broker, report = ScriptedBroker(named(8)), Tally()
    delivery = ScriptedDelivery(fail_on("5"))
    async with serving(broker, delivery, report, size=8, max_attempts=2, first_delay_s=0.0):
        await until(lambda: bool(broker.buried) and len(broker.acknowledged) == 7)
    whole = [str(number) for number in range(8)]
    assert delivery.batches == [whole, whole, whole[:4], whole[4:], ["4", "5"], ["4"], ["5"], ["6", "7"]]
    ((dead, death),) = broker.buried
    assert (dead.body, death.attempts, death.reason) == (b"5", 5, "bad: ['5']")
    assert (report.delivered_count, report.dead_count) == (7, 1)
    said = death.attributes(dead)
    assert (said["roost-id"], said["roost-attempts"], said["roost-trigger"]) == (dead.id, "5", "t")


async def test_a_passing_failure_costs_a_try_and_no_message() -> None:
    left = [2]

    def act(_: list[str]) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise DeliveryFailed("not yet")

    broker, report = ScriptedBroker(named(3)), Tally()
    async with serving(broker, ScriptedDelivery(act), report, size=3, max_attempts=3, first_delay_s=0.01):
        await until(lambda: len(broker.acknowledged) == 3)
    assert (report.failed_count, broker.buried) == (6, [])


@pytest.mark.parametrize("kind", [DeliveryTrouble, DeliveryRefused])
async def test_trouble_of_the_system_is_waited_out(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    monkeypatch.setattr(batches, "_TROUBLE_S", 0.001)
    left = [20]

    def act(_: list[str]) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise kind("no instance")

    broker, report = ScriptedBroker(named(2)), Tally()
    monkeypatch.setattr(batches, "_LONGEST_TROUBLE_S", 0.001)
    async with serving(broker, ScriptedDelivery(act), report, size=2, max_attempts=1):
        await until(lambda: len(broker.acknowledged) == 2)
    assert (report.failed_count, broker.buried) == (0, [])
    assert report.troubles == ["no instance"] * 20
    assert report.up == 20  # again, after each


async def test_a_dead_letter_that_is_not_kept_is_not_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_TROUBLE_S", 0.001)
    broker, report = ScriptedBroker(named(1)), Tally()
    broker.refusals = 2
    delivery = ScriptedDelivery(fail_on("0"))
    async with serving(broker, delivery, report, max_attempts=1):
        await until(lambda: bool(broker.buried))
    assert report.troubles == ["A dead letter was not kept: no place"] * 2
    assert len(delivery.batches) == 1  # the function is not asked again
    assert broker.acknowledged == []


async def test_a_message_too_large_for_an_event_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_INVOKE_BYTES", 400)
    broker = ScriptedBroker([message("a"), message("x" * 1000), message("b")])
    delivery = ScriptedDelivery()
    async with serving(broker, delivery, size=3, bytes=10_000):
        await until(lambda: len(broker.acknowledged) == 2 and bool(broker.buried))
    assert bodies(broker.acknowledged) == ["a", "b"]
    assert "too large" in broker.buried[0][1].reason


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_stopped_it_lets_what_runs_end_and_gives_the_rest_back() -> None:
    gate = asyncio.Event()
    broker, delivery = ScriptedBroker(named(6)), ScriptedDelivery(gate=gate)
    async with serving(broker, delivery, size=2, concurrency=2) as task:
        await until(lambda: delivery.running == 2)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        gate.set()
        await asyncio.wait({task})
    assert task.cancelled()
    assert bodies(broker.acknowledged) == ["0", "1", "2", "3"]
    assert broker.released == []


async def test_stopped_it_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "STOP_GRACE_S", 0.05)
    broker, delivery = ScriptedBroker(named(3)), ScriptedDelivery(gate=asyncio.Event())
    async with serving(broker, delivery, size=3) as task:
        await until(lambda: delivery.running == 1)
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert broker.acknowledged == []
    assert bodies(broker.released) == ["0", "1", "2"]


async def test_stopped_it_does_not_try_again() -> None:
    broker = ScriptedBroker(named(1))
    delivery = ScriptedDelivery(fail_on("0"))
    async with serving(broker, delivery, first_delay_s=60, longest_delay_s=60) as task:
        await until(lambda: bool(delivery.batches))
        task.cancel()
        await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert bodies(broker.released) == ["0"]


async def test_a_lost_connection_ends_it_when_what_runs_is_over() -> None:
    gate = asyncio.Event()
    broker, delivery = ScriptedBroker(named(1)), ScriptedDelivery(gate=gate)
    async with serving(broker, delivery, concurrency=2) as task:
        await until(lambda: delivery.running == 1)
        broker.break_off(ConnectionError("gone"))
        await asyncio.sleep(0.02)
        assert not task.done()
        gate.set()
        with pytest.raises(ConnectionError, match="gone"):
            await task
    assert len(delivery.batches) == 1


async def test_messages_under_way_are_extended() -> None:
    gate = asyncio.Event()
    broker, delivery = ScriptedBroker(named(3), heartbeat_s=0.01), ScriptedDelivery(gate=gate)
    async with serving(broker, delivery, size=2, concurrency=1):
        await until(lambda: len(broker.extended) > 2)
        assert bodies(broker.extended[0]) == ["0", "1"]
        gate.set()
        await until(lambda: len(broker.acknowledged) == 3)
    assert broker.out == 0
