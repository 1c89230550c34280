"""What every kind of queue has to do, with a real broker and a real server. A module per broker takes these over."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import uvloop

from roost.model.errors import Unavailable
from roost.triggers.publish import QueuePublisher
from tests.support.brokers import PASSWORD, Broker, broker, wait_until
from tests.support.queues import Function, MqttQueue, Queue, resident_mb
from tests.support.server import Server

QUICK = {"maxAttempts": 2, "initialDelaySeconds": 0.05}


def numbered(word: str, count: int) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def encoded(bodies: list[str]) -> list[bytes]:
    return [body.encode() for body in bodies]


class QueueCases:
    broker_kind: ClassVar[type[Broker]]
    queue_kind: ClassVar[type[Queue]]
    #: Whether messages that were under way when the broker restarted are settled all the same, and never come again.
    settles_across_restarts: ClassVar[bool] = True
    #: A destination that takes no event, and what its broker says of that.
    nowhere: ClassVar[str]
    refusal: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
        directory: Path = tmp_path_factory.mktemp(cls.queue_kind.kind)
        with broker(cls.broker_kind, directory) as one:
            yield one

    @pytest.fixture
    def secure(self, running: Broker) -> Broker:
        """One that speaks TLS."""
        return running

    @pytest.fixture
    def queue(self, running: Broker, request: pytest.FixtureRequest) -> Queue:
        name = request.node.name.removeprefix("test_").replace("_", "-")[:40]
        return self.queue_kind(running, name)

    @pytest.fixture
    def function(self, server: Server, queue: Queue) -> Iterator[Function]:
        made = Function(server, queue.name)
        yield made
        made.close()

    # --- batches -----------------------------------------------------------------------------------------------

    def test_a_batch_ends_at_its_size_or_with_its_window(self, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config(batch={"size": 4, "windowSeconds": 0.7}))
        bodies = numbered("m", 10)
        queue.send(encoded(bodies), {"tenant": "a"})
        function.until_done(bodies)
        batches = [note["bodies"] for note in function.notes("done")]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert [body for batch in batches for body in batch] == bodies  # in order
        event = function.notes("done")[0]["event"]
        assert (event["source"], event["trigger"]) == (queue.kind, "queue")
        first = event["batch"][0]
        assert (first["body"], first["isBase64Encoded"], first["redelivered"]) == ("m 0", False, False)
        assert first["attributes"]["tenant"] == "a"
        assert {name: first[name] for name in queue.origin()} == queue.origin()
        assert abs(first["timestamp"] / 1000 - time.time()) < 300
        assert len({message["id"] for message in event["batch"]}) == 4

    def test_what_is_no_text_comes_as_base64(self, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config())
        queue.send([b"\xff\x00\xfe"])
        wait_until(lambda: bool(function.notes("done")))
        message = function.notes("done")[0]["event"]["batch"][0]
        assert (message["body"], message["isBase64Encoded"]) == ("/wD+", True)

    def test_a_poison_message_goes_to_the_dead_letters_alone(self, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config(batch={"size": 8, "windowSeconds": 0.7}, retry=QUICK))
        good = numbered("good", 7)
        with queue.mourning() if isinstance(queue, MqttQueue) else contextlib.nullcontext():
            queue.send(encoded([*good[:3], "poison", *good[3:]]))
            function.until_done(good)
            wait_until(lambda: bool(queue.dead()))
        assert sorted(function.bodies("done")) == good  # each once: a part that succeeded is done
        (letter,) = queue.dead()
        assert letter.body == b"poison"
        assert letter.said["roost-reason"] == "ValueError: can't do poison"
        assert int(letter.said["roost-attempts"]) == function.bodies("begin").count("poison")
        assert (letter.said["roost-function"], letter.said["roost-trigger"]) == (function.name, "queue")
        assert letter.said["roost-id"]
        wait_until(lambda: function.trigger()["roost"]["deadLettered"] == 1)
        wait_until(lambda: function.trigger()["roost"]["delivered"] == 7)
        assert function.trigger()["roost"]["lastError"] == "ValueError: can't do poison"
        assert queue.held() in (0, None)

    # --- several consumers -------------------------------------------------------------------------------------

    def test_two_consumers_share_the_messages(self, server: Server, function: Function, queue: Queue) -> None:
        other = Function(server, f"{function.name}-2")
        for consumer in (function, other):
            consumer.add(queue.kind, queue.config(batch={"size": 1}))
        bodies = [f"sleep 0.05 {number}" for number in range(20)]
        queue.send(encoded(bodies))
        wait_until(lambda: len(function.bodies("done")) + len(other.bodies("done")) >= 20)
        other.close()
        assert sorted(function.bodies("done") + other.bodies("done")) == sorted(bodies)
        assert function.bodies("done")
        assert other.bodies("done")

    # --- faults ------------------------------------------------------------------------------------------------

    def test_a_killed_server_loses_nothing(self, server: Server, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config(batch={"size": 3, "windowSeconds": 0.3}))
        bodies = [f"sleep 0.3 {number}" for number in range(9)]
        queue.send(encoded(bodies))
        wait_until(lambda: len(function.notes("begin")) == 2)
        server.kill()
        done = function.bodies("done")
        assert len(done) == 3  # the first batch, and its messages were acknowledged: they don't come again
        server.start()
        function.until_done(bodies)
        assert sorted(set(function.bodies("done"))) == sorted(bodies)
        assert [function.bodies("done").count(body) for body in done] == [1, 1, 1]

    def test_a_broker_that_restarts_in_mid_batch(self, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config(batch={"size": 2, "windowSeconds": 0.3}))
        bodies = [*numbered("a", 2), "sleep 0.5 b", *numbered("c", 5)]
        queue.send(encoded(bodies))
        wait_until(lambda: len(function.notes("begin")) == 2)
        queue.broker.stop()
        queue.broker.start()
        function.until_done(bodies)
        function.until_status("running")
        queue.send([b"after"])
        function.until_done(["after"])
        done = Counter(function.bodies("done"))
        assert set(done) == {*bodies, "after"}
        repeated = {body for body, times in done.items() if times > 1}
        assert repeated <= set(() if self.settles_across_restarts else function.notes("begin")[1]["bodies"])

    def test_wrong_credentials_are_the_trigger_s_last_error(self, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config(endpoint=queue.broker.wrong_url), up=False)
        function.until_status("failing")
        shown = function.trigger()
        assert f"127.0.0.1:{queue.broker.port}" in shown["roost"]["lastError"]
        assert "wrong" not in shown["roost"]["lastError"].split()
        assert "://roost:***@" in shown["triggerConfig"]
        function.change(queue.config())
        function.until_status("running")
        queue.send([b"hello"])
        function.until_done(["hello"])
        assert PASSWORD not in json.dumps(function.trigger())

    def test_a_paused_trigger_takes_nothing_and_goes_on_later(self, function: Function, queue: Queue) -> None:
        function.add(queue.kind, queue.config())
        queue.send([b"before"])
        function.until_done(["before"])
        function.change(queue.config(enable=False))
        function.until_status("paused")
        queue.send(encoded(numbered("later", 3)))
        assert function.bodies("begin") == ["before"]
        function.change(queue.config())
        function.until_done(numbered("later", 3))
        assert sorted(function.bodies("done")) == ["before", *numbered("later", 3)]

    def test_tls_with_a_certificate_that_the_machine_trusts(
        self, secure: Broker, queue: Queue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def publish() -> None:
            publisher = QueuePublisher()
            place = secure.secure_url + self.nowhere
            with pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
                await publisher.publish(place, "e1", b"{}")
            monkeypatch.setenv("SSL_CERT_FILE", str(secure.certificate.file))
            with pytest.raises(Unavailable, match=self.refusal):  # so the broker has answered
                await publisher.publish(place, "e1", b"{}")
            await publisher.close()

        uvloop.run(publish())  # the event loop of the server

    # --- load --------------------------------------------------------------------------------------------------

    def test_a_storm_of_messages_takes_bounded_memory(self, server: Server, function: Function, queue: Queue) -> None:
        config = queue.config(batch={"size": 100, "windowSeconds": 0.2}, concurrency=2)
        function.add(queue.kind, {**config, "enable": True})
        function.change({**config, "enable": False})
        function.until_status("paused")
        padding = "x" * 1000
        queue.send([f"{number} {padding}".encode() for number in range(10_000)])
        before = resident_mb(server.pid)
        most_held, most_mb = 0, before
        function.change(config)
        began = time.monotonic()
        while (delivered := function.trigger()["roost"]["delivered"]) < 10_000:
            assert time.monotonic() - began < 60, function.trigger()
            most_held = max(most_held, queue.held() or 0)
            most_mb = max(most_mb, resident_mb(server.pid))
            time.sleep(0.2)
        assert delivered == 10_000
        numbers = [int(body.split()[0]) for body in function.bodies("done")]
        assert sorted(numbers) == list(range(10_000))
        assert most_held <= 200
        assert max(len(note["bodies"]) for note in function.notes("done")) <= 100
        assert most_mb - before < 60
