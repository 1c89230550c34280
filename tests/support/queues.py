"""Queues of real brokers: the official client of each sends messages, and looks at what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import httpx
import nats
import paho.mqtt.client as mqtt
import redis
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.brokers import PASSWORD, USER, Broker, wait_until
from tests.support.server import Server

#: Notes each batch in a file of the host when it begins and when it is done, and does what its messages say.
NOTES = """
import json, os, time
def note(name, **fields):
    fd = os.open("/mnt/notes/" + name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, json.dumps(fields).encode() + b"\\n")
    os.close(fd)
def handler(event, context):
    event = json.loads(event)
    bodies = [message["body"] for message in event["batch"]]
    note(context.function.name, phase="begin", bodies=bodies)
    for body in bodies:
        if body.startswith("sleep "):
            time.sleep(float(body.split()[1]))
        if body.startswith("poison"):
            raise ValueError("can't do " + body)
    note(context.function.name, phase="done", bodies=bodies, event=event if len(bodies) < 20 else None)
"""
MOUNT = {"nasConfig": {"mountPoints": [{"serverAddr": "notes:/", "mountDir": "/mnt/notes"}]}}


class Function:
    """A deployed one that notes its batches, and its triggers."""

    def __init__(self, server: Server, name: str, **fields: Any) -> None:
        self.server = server
        self.name = name
        self._client = httpx.Client(timeout=30, trust_env=False, verify=False)
        server.deploy(name, {"index.py": NOTES}, timeout=60, **MOUNT, **fields)

    def notes(self, phase: str) -> list[dict[str, Any]]:
        log = self.server.data_dir / "volumes/default/notes" / self.name
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [note for note in found if note["phase"] == phase]

    def bodies(self, phase: str) -> list[str]:
        return [body for note in self.notes(phase) for body in note["bodies"]]

    def until_done(self, bodies: Sequence[str], timeout: float = 30) -> None:
        """Until each of them was part of a batch that succeeded."""
        wait_until(
            lambda: set(bodies) <= set(self.bodies("done")),
            timeout,
            what=lambda: f"missing {sorted(set(bodies) - set(self.bodies('done')))[:20]}; {self.triggers()}",
        )

    def close(self) -> None:
        for trigger in self.triggers():
            self.remove(trigger["triggerName"])
        self._client.close()

    # --- triggers ----------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str = "", **body: Any) -> dict[str, Any]:
        url = f"{self.server.url}/2023-03-30/functions/{self.name}/triggers{path}"
        reply = self._client.request(method, url, json=body or None)
        assert reply.status_code < 300, reply.text
        return dict(reply.json()) if reply.content else {}

    def add(self, kind: str, config: dict[str, Any], *, name: str = "queue", up: bool = True) -> None:
        self._call("POST", triggerName=name, triggerType=kind, triggerConfig=json.dumps(config))
        if up:
            self.until_status("running", name)

    def change(self, config: dict[str, Any], *, name: str = "queue") -> None:
        self._call("PUT", f"/{name}", triggerConfig=json.dumps(config))

    def remove(self, name: str = "queue") -> None:
        self._call("DELETE", f"/{name}")

    def trigger(self, name: str = "queue") -> dict[str, Any]:
        return self._call("GET", f"/{name}")

    def triggers(self) -> list[dict[str, Any]]:
        return list(self._call("GET")["triggers"])

    def switch(self, *, off: bool) -> None:
        """Function Compute's DisableFunctionInvocation and EnableFunctionInvocation."""
        verb = "disable" if off else "enable"
        reply = self._client.post(f"{self.server.url}/2023-03-30/functions/{self.name}/invoke/{verb}", json={})
        assert reply.status_code < 300, reply.text

    def until_status(self, status: str, name: str = "queue", timeout: float = 20) -> None:
        wait_until(lambda: self.trigger(name)["status"] == status, timeout, what=lambda: str(self.trigger(name)))


@dataclass
class DeadLetter:
    body: bytes
    said: dict[str, str]  # the attributes that Roost added


class Queue:
    """One queue of a broker. `send` returns when the broker has the messages."""

    kind = ""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name

    def config(self, **fields: Any) -> dict[str, Any]:
        """Of a trigger, which is the first to come here."""
        raise NotImplementedError

    def send(self, bodies: Sequence[bytes], attributes: dict[str, str] | None = None) -> None:
        raise NotImplementedError

    def dead(self) -> list[DeadLetter]:
        """All dead letters of the queue."""
        raise NotImplementedError

    def held(self) -> int | None:
        """Messages that consumers have and have not acknowledged; None where the broker does not say."""
        raise NotImplementedError

    def origin(self) -> dict[str, str]:
        """What a message says of where it came from."""
        raise NotImplementedError


def said_of(attributes: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in attributes.items() if name.startswith("roost-")}


class RedisQueue(Queue):
    kind = "redis"

    def config(self, **fields: Any) -> dict[str, Any]:
        return {"endpoint": self.broker.url, "stream": self.name, "group": "workers", **fields}

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        with redis.Redis(port=self.broker.port, username=USER, password=PASSWORD) as client:
            yield client

    def send(self, bodies: Sequence[bytes], attributes: dict[str, str] | None = None) -> None:
        with self.client() as client, client.pipeline(transaction=False) as pipeline:
            for body in bodies:
                pipeline.xadd(self.name, {"body": body, **(attributes or {})})
            pipeline.execute()

    def dead(self) -> list[DeadLetter]:
        with self.client() as client:
            entries = [
                {name.decode(): value for name, value in fields.items()}
                for _, fields in client.xrange(f"{self.name}:dead")
            ]
        return [
            DeadLetter(
                entry["body"], said_of({name: value.decode() for name, value in entry.items() if name != "body"})
            )
            for entry in entries
        ]

    def held(self) -> int:
        with self.client() as client:
            return int(client.xpending(self.name, "workers")["pending"])

    def origin(self) -> dict[str, str]:
        return {"stream": self.name}


class RabbitQueue(Queue):
    kind = "rabbitmq"

    def config(self, **fields: Any) -> dict[str, Any]:
        return {"endpoint": self.broker.url, "queue": self.name, "declare": True, **fields}

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        connection = await aio_pika.connect(self.broker.url)
        async with connection, connection.channel() as channel:
            yield channel

    def send(self, bodies: Sequence[bytes], attributes: dict[str, str] | None = None) -> None:
        async def send() -> None:
            async with self.channel() as channel:
                for start in range(0, len(bodies), 500):
                    await asyncio.gather(
                        *(
                            channel.default_exchange.publish(
                                aio_pika.Message(
                                    body, headers=dict(attributes or {}), delivery_mode=aio_pika.DeliveryMode.PERSISTENT
                                ),
                                self.name,
                            )
                            for body in bodies[start : start + 500]
                        )
                    )

        asyncio.run(send())

    def dead(self) -> list[DeadLetter]:
        return asyncio.run(self.taken(f"{self.name}.dead"))

    async def taken(self, queue: str) -> list[DeadLetter]:
        """What is in a queue: read, and put back."""
        found = []
        async with self.channel() as channel:
            letters = await channel.get_queue(queue)
            while (letter := await letters.get(fail=False)) is not None:
                found.append(DeadLetter(letter.body, said_of(letter.headers)))
        return found

    def held(self) -> int | None:
        return None

    def origin(self) -> dict[str, str]:
        return {"queue": self.name, "exchange": "", "routingKey": self.name}


class NatsQueue(Queue):
    kind = "nats"

    def config(self, **fields: Any) -> dict[str, Any]:
        return {
            "endpoint": self.broker.url,
            "stream": self.name,
            "subject": f"{self.name}.*",
            "create": True,
            "consumer": "workers",
            "ackWaitSeconds": 2,
            **fields,
        }

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        async with await nats.connect(f"nats://127.0.0.1:{self.broker.port}", user=USER, password=PASSWORD) as client:
            yield client.jetstream()

    def send(self, bodies: Sequence[bytes], attributes: dict[str, str] | None = None) -> None:
        async def send() -> None:
            async with self.client() as stream:
                for start in range(0, len(bodies), 500):
                    await asyncio.gather(
                        *(
                            stream.publish(f"{self.name}.new", body, headers=attributes)
                            for body in bodies[start : start + 500]
                        )
                    )

        asyncio.run(send())

    def dead(self) -> list[DeadLetter]:
        async def dead() -> list[DeadLetter]:
            async with self.client() as stream:
                count = (await stream.stream_info(f"{self.name}-dead")).state.messages
                letters = [await stream.get_msg(f"{self.name}-dead", seq=number + 1) for number in range(count)]
                return [DeadLetter(letter.data, said_of(letter.headers)) for letter in letters]

        return asyncio.run(dead())

    def held(self) -> int:
        async def held() -> int:
            async with self.client() as stream:
                return int((await stream.consumer_info(self.name, "workers")).num_ack_pending)

        return asyncio.run(held())

    def origin(self) -> dict[str, str]:
        return {"stream": self.name, "subject": f"{self.name}.new"}


class MqttQueue(Queue):
    """Its dead letters are collected by a subscriber of the test's, which must be there before them."""

    kind = "mqtt"

    def __init__(self, broker: Broker, name: str) -> None:
        super().__init__(broker, name)
        self._dead: list[DeadLetter] = []

    def config(self, **fields: Any) -> dict[str, Any]:
        return {
            "endpoint": self.broker.url,
            "topic": f"{self.name}/+",
            "group": "workers",
            "deadLetter": {"topic": f"dead/{self.name}"},
            **fields,
        }

    @contextlib.contextmanager
    def client(self) -> Iterator[mqtt.Client]:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.username_pw_set(USER, PASSWORD)
        client.max_inflight_messages_set(200)
        connected = threading.Event()
        client.on_connect = lambda *_: connected.set()
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        try:
            assert connected.wait(10)
            yield client
        finally:
            client.disconnect()
            client.loop_stop()

    def send(self, bodies: Sequence[bytes], attributes: dict[str, str] | None = None) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = list((attributes or {}).items())
        with self.client() as client:
            sent = [client.publish(f"{self.name}/new", body, qos=1, properties=properties) for body in bodies]
            for one in sent:
                one.wait_for_publish(30)

    @contextlib.contextmanager
    def mourning(self) -> Iterator[None]:
        """While somebody subscribes to the dead letters."""
        subscribed = threading.Event()

        def take(_client: Any, _data: Any, letter: mqtt.MQTTMessage) -> None:
            self._dead.append(DeadLetter(letter.payload, said_of(dict(letter.properties.UserProperty))))

        with self.client() as client:
            client.on_message = take
            client.on_subscribe = lambda *_: subscribed.set()
            client.subscribe(f"dead/{self.name}", qos=1)
            assert subscribed.wait(10)
            yield

    def dead(self) -> list[DeadLetter]:
        return list(self._dead)

    def held(self) -> int | None:
        return None

    def origin(self) -> dict[str, str]:
        return {"topic": f"{self.name}/new"}


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024
