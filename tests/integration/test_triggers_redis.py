"""Triggers of type redis: a real Redis, its official client, a real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from roost.model.errors import Unavailable
from roost.triggers.publish import QueuePublisher
from tests.support.brokers import PASSWORD, USER, RedisServer, wait_until
from tests.support.queue_cases import QUICK, QueueCases, encoded, numbered
from tests.support.queues import Function, RedisQueue
from tests.support.tasks import configure, submit


def to(place: str) -> dict[str, Any]:
    return {"onSuccess": {"destination": place}}


class TestRedis(QueueCases):
    broker_kind = RedisServer
    queue_kind = RedisQueue
    nowhere, refusal = "?stream=no-stream", "WRONGTYPE"

    @pytest.fixture
    def secure(self, running: RedisServer) -> RedisServer:
        with redis.Redis(port=running.port, username=USER, password=PASSWORD) as client:
            client.set("no-stream", "text")
        return running

    def test_what_a_dead_consumer_held_another_one_takes(self, function: Function, queue: RedisQueue) -> None:
        with queue.client() as client:
            client.xgroup_create(queue.name, "workers", id="0", mkstream=True)
            queue.send(encoded(numbered("left", 3)))
            assert len(client.xreadgroup("workers", "dead", {queue.name: ">"}, count=3)[0][1]) == 3
        function.add(queue.kind, queue.config(claimAfterSeconds=1))
        function.until_done(numbered("left", 3))
        wait_until(lambda: queue.held() == 0)
        assert all(message["redelivered"] for note in function.notes("done") for message in note["event"]["batch"])

    def test_entries_that_were_trimmed_are_let_go(self, function: Function, queue: RedisQueue) -> None:
        function.add(queue.kind, queue.config(batch={"size": 3, "windowSeconds": 0.3}))
        queue.send(encoded(["sleep 20", *numbered("b", 2)]))
        wait_until(lambda: bool(function.notes("begin")))
        function.change(queue.config(enable=False))
        with queue.client() as client:
            client.xtrim(queue.name, maxlen=1, approximate=False)
        function.change(queue.config())
        function.until_done(["b 1"])
        wait_until(lambda: queue.held() == 0)
        assert function.bodies("done") == ["b 1"]

    def test_a_stream_that_is_deleted_may_come_again(self, function: Function, queue: RedisQueue) -> None:
        function.add(queue.kind, queue.config())
        with queue.client() as client:
            client.delete(queue.name)
        queue.send([b"new"])
        function.until_done(["new"])

    def test_a_dead_letter_stays_pending_until_it_is_kept(self, function: Function, queue: RedisQueue) -> None:
        with queue.client() as client:
            client.set(f"{queue.name}:dead", "in the way")
        function.add(queue.kind, queue.config(retry=QUICK))
        queue.send([b"poison"])
        function.until_status("failing")
        assert "WRONGTYPE" in function.trigger()["roost"]["lastError"]
        assert queue.held() == 1
        with queue.client() as client:
            client.delete(f"{queue.name}:dead")
        wait_until(lambda: queue.held() == 0)
        assert [letter.body for letter in queue.dead()] == [b"poison"]
        assert function.bodies("begin") == ["poison"] * 2

    def test_a_function_that_is_switched_off_costs_a_message_nothing(
        self, function: Function, queue: RedisQueue
    ) -> None:
        function.add(queue.kind, queue.config(retry={"maxAttempts": 1}))
        function.switch(off=True)
        queue.send([b"patient"])
        function.until_status("failing")
        assert queue.held() == 1
        function.switch(off=False)
        function.until_done(["patient"])
        about = function.trigger()["roost"]
        assert (about["failed"], about["deadLettered"]) == (0, 0)
        assert "disabled" in about["lastError"]

    def test_a_body_may_be_another_field(self, function: Function, queue: RedisQueue) -> None:
        function.add(queue.kind, queue.config(bodyField="question", startFrom="earliest"))
        with queue.client() as client:
            client.xadd(queue.name, {"question": "why?", "from": "me", b"raw": b"\xff"})
        function.until_done(["why?"])
        message = function.notes("done")[0]["event"]["batch"][0]
        assert message["attributes"] == {"from": "me", "raw": {"base64": "/w=="}}

    def test_a_task_s_end_is_told_to_a_queue(self, function: Function, queue: RedisQueue) -> None:
        place = f"{queue.broker.url}?stream={queue.name}"
        wrong = configure(function.server, function.name, destinationConfig=to(queue.broker.url))
        assert (wrong.status_code, "the URL needs ?stream=" in wrong.text) == (400, True)
        kept = configure(function.server, function.name, destinationConfig=to(place))
        assert kept.json()["destinationConfig"]["onSuccess"]["destination"] == place.replace(PASSWORD, "***")
        assert submit(function.server, function.name, '{"batch": []}', id="told").status_code == 202
        with queue.client() as client:
            wait_until(lambda: client.xlen(queue.name) == 1)
            ((_, fields),) = client.xrange(queue.name)
        assert json.loads(fields[b"body"])["requestContext"]["taskId"] == "told"
        assert fields[b"id"]

    async def test_events_are_published_to_a_stream(self, queue: RedisQueue) -> None:
        publisher = QueuePublisher()
        place = f"redis://{USER}:{PASSWORD}@127.0.0.1:{queue.broker.port}/0?stream={queue.name}"
        await publisher.publish(place, "e1", b"{}")
        await publisher.publish(place, "e2", b"[]")
        with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:\d+ refused the user or password"):
            await publisher.publish(place.replace(PASSWORD, "wrong"), "e3", b"{}")
        await publisher.close()
        with queue.client() as client:
            entries = [fields for _, fields in client.xrange(queue.name)]
        assert entries == [{b"id": b"e1", b"body": b"{}"}, {b"id": b"e2", b"body": b"[]"}]
