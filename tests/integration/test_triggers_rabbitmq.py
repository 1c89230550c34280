"""Triggers of type rabbitmq: a real RabbitMQ, a client of its protocol, a real server."""

from __future__ import annotations

import asyncio

from roost.triggers.publish import QueuePublisher
from tests.support.brokers import RabbitServer, wait_until
from tests.support.queue_cases import QUICK, QueueCases
from tests.support.queues import Function, RabbitQueue


class TestRabbitmq(QueueCases):
    broker_kind = RabbitServer
    queue_kind = RabbitQueue
    settles_across_restarts = False
    nowhere, refusal = "/?routing_key=nobody", "no queue"

    def test_a_rejected_message_takes_the_queue_s_own_way(self, function: Function, queue: RabbitQueue) -> None:
        async def make() -> None:
            async with queue.channel() as channel:
                await channel.declare_queue("graves", durable=True)
                way = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "graves"}
                await channel.declare_queue(queue.name, durable=True, arguments=way)

        asyncio.run(make())
        function.add(queue.kind, queue.config(declare=True, deadLetter={"reject": True}, retry=QUICK))
        queue.send([b"poison"])
        wait_until(lambda: [letter.body for letter in asyncio.run(queue.taken("graves"))] == [b"poison"])

    def test_a_dead_letter_that_no_queue_takes_is_not_let_go(self, function: Function, queue: RabbitQueue) -> None:
        dead = {"exchange": "amq.direct", "routingKey": "graves-2"}
        function.add(queue.kind, queue.config(deadLetter=dead, retry=QUICK))
        queue.send([b"poison"])
        function.until_status("failing")
        assert function.trigger()["roost"]["lastError"] == "A dead letter was not kept: no queue took it"

        async def make() -> None:
            async with queue.channel() as channel:
                await (await channel.declare_queue("graves-2", durable=True)).bind("amq.direct")

        asyncio.run(make())
        wait_until(lambda: [letter.body for letter in asyncio.run(queue.taken("graves-2"))] == [b"poison"])

    def test_a_queue_that_is_missing_or_deleted_is_said(self, function: Function, queue: RabbitQueue) -> None:
        function.add(queue.kind, queue.config(declare=False), up=False)
        function.until_status("failing")
        assert f"no queue '{queue.name}'" in function.trigger()["roost"]["lastError"]

        async def change(verb: str) -> None:
            async with queue.channel() as channel:
                if verb == "make":
                    await channel.declare_queue(queue.name, durable=True)
                else:
                    await channel.queue_delete(queue.name)

        asyncio.run(change("make"))
        function.until_status("running")
        asyncio.run(change("delete"))
        function.until_status("failing")
        assert "was it deleted?" in function.trigger()["roost"]["lastError"] or "no queue" in str(function.trigger())

    async def test_events_are_published_to_a_queue(self, queue: RabbitQueue) -> None:
        async with queue.channel() as channel:
            await channel.declare_queue(queue.name, durable=True)
            publisher = QueuePublisher()
            await publisher.publish(f"{queue.broker.url}/?routing_key={queue.name}", "e1", b"{}")
            await publisher.close()
            letter = await (await channel.get_queue(queue.name)).get(no_ack=True)
            assert (letter.body, letter.message_id, letter.content_type) == (b"{}", "e1", "application/json")
