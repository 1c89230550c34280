"""Triggers of type nats: a real NATS server with JetStream, its official client, a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.triggers.publish import QueuePublisher
from tests.support.brokers import Broker, NatsServer, SecureNatsServer, broker, wait_until
from tests.support.queue_cases import QueueCases
from tests.support.queues import Function, NatsQueue


class TestNats(QueueCases):
    broker_kind = NatsServer
    queue_kind = NatsQueue
    settles_across_restarts = False  # mostly they are, but an acknowledgement may fall into the gap
    nowhere, refusal = "?subject=nobody.wants", "no response from stream"

    @pytest.fixture
    def secure(self, tmp_path: Path) -> Iterator[Broker]:
        with broker(SecureNatsServer, tmp_path) as one:
            yield one

    def test_a_batch_may_take_longer_than_the_time_to_acknowledge(self, function: Function, queue: NatsQueue) -> None:
        function.add(queue.kind, queue.config(ackWaitSeconds=1))
        queue.send([b"sleep 3"])
        function.until_done(["sleep 3"])
        wait_until(lambda: queue.held() == 0)
        queue.send([b"next"])
        function.until_done(["next"])
        assert function.bodies("begin") == ["sleep 3", "next"]

    def test_a_stream_that_is_missing_is_said(self, function: Function, queue: NatsQueue) -> None:
        function.add(queue.kind, queue.config(create=False), up=False)
        function.until_status("failing")
        assert "No stream takes in the subject dead." in function.trigger()["roost"]["lastError"]

    def test_a_consumer_that_others_made_is_used(self, function: Function, queue: NatsQueue) -> None:
        async def make() -> None:
            async with queue.client() as stream:
                await stream.add_stream(name=queue.name, subjects=[f"{queue.name}.*"])
                await stream.add_stream(name="graves", subjects=["graves.>"])
                await stream.add_consumer(queue.name, durable_name="workers", ack_policy="explicit")

        asyncio.run(make())
        queue.send([b"before"])
        function.add(queue.kind, queue.config(create=False, deadLetter={"subject": "graves.a"}))
        function.until_done(["before"])

    async def test_events_are_published_to_a_subject_once(self, queue: NatsQueue) -> None:
        async with queue.client() as stream:
            await stream.add_stream(name=queue.name, subjects=[f"{queue.name}.*"])
            publisher = QueuePublisher()
            for _ in range(2):
                await publisher.publish(f"{queue.broker.url}?subject={queue.name}.done", "e1", b"{}")
            await publisher.close()
            assert (await stream.stream_info(queue.name)).state.messages == 1
            assert (await stream.get_msg(queue.name, seq=1)).data == b"{}"
