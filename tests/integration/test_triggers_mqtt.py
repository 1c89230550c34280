"""Triggers of type mqtt: a real Mosquitto, a client of its protocol, a real server."""

from __future__ import annotations

import threading

from roost.triggers.publish import QueuePublisher
from tests.support.brokers import Mosquitto, wait_until
from tests.support.queue_cases import QUICK, QueueCases
from tests.support.queues import Function, MqttQueue


class TestMqtt(QueueCases):
    broker_kind = Mosquitto
    queue_kind = MqttQueue
    settles_across_restarts = False
    nowhere, refusal = "?topic=nobody", "no matching subscribers"

    def test_a_dead_letter_that_nobody_gets_is_not_let_go(self, function: Function, queue: MqttQueue) -> None:
        function.add(queue.kind, queue.config(retry=QUICK))
        queue.send([b"poison"])
        function.until_status("failing")
        assert "no matching subscribers" in function.trigger()["roost"]["lastError"]
        with queue.mourning():
            wait_until(lambda: [letter.body for letter in queue.dead()] == [b"poison"])
        assert function.bodies("begin") == ["poison"] * 2

    def test_an_older_version_of_the_protocol(self, function: Function, queue: MqttQueue) -> None:
        config = queue.config(version="3.1.1", group="", deadLetter={"topic": "dead/old"}, retry=QUICK)
        function.add(queue.kind, config)
        queue.send([b"one", b"poison"])
        function.until_done(["one"])
        wait_until(lambda: function.trigger()["roost"]["deadLettered"] == 1)
        function.change({**config, "enable": False})
        function.until_status("paused")
        queue.send([b"two"])
        function.change(config)
        function.until_done(["two"])

    def test_retained_messages_come_once(self, function: Function, queue: MqttQueue) -> None:
        with queue.client() as client:
            client.publish(f"{queue.name}/kept", b"kept", qos=1, retain=True).wait_for_publish(10)
        function.add(queue.kind, queue.config(group=""))
        function.until_done(["kept"])
        assert function.notes("done")[0]["event"]["batch"][0]["attributes"]["retain"] == "true"
        function.change(queue.config(group="", concurrency=2))
        function.until_status("running")
        queue.send([b"new"])
        function.until_done(["new"])
        assert function.bodies("done") == ["kept", "new"]

    async def test_events_are_published_to_a_topic(self, queue: MqttQueue) -> None:
        got = threading.Event()
        with queue.client() as client:
            client.on_message = lambda _client, _data, letter: (
                got.set() if (letter.payload, letter.properties.UserProperty) == (b"{}", [("id", "e1")]) else None
            )
            client.on_subscribe = lambda *_: got.set()
            client.subscribe(f"{queue.name}/done", qos=1)
            assert got.wait(10)
            got.clear()
            publisher = QueuePublisher()
            await publisher.publish(f"{queue.broker.url}?topic={queue.name}/done", "e1", b"{}")
            await publisher.close()
            assert got.wait(10)
