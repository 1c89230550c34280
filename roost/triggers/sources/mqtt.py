"""MQTT, by a persistent session with QoS 1 in which acknowledgements wait for success. Needs paho-mqtt.

The broker keeps what is not acknowledged, and sends it again when the session's client is back: so a lost connection
ends the source, and its trigger starts it again. In MQTT 5 the client says how much it can hold, and learns whether
anybody will get a dead letter.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from paho.mqtt.client import MQTTMessage

from roost.functions.triggers.queues import MqttSettings, QueueDestination
from roost.functions.triggers.settings import settings_of
from roost.store.triggers import TriggerRecord
from roost.triggers.adapters import Sender
from roost.triggers.batches import BatchSettings, Broker, NotKept, QueueSource
from roost.triggers.messages import Death, Message
from roost.triggers.sources.mqtt_client import MqttClient, Refused, Session
from roost.triggers.sources.queues import Inbox, address_of, batch_settings


def source(record: TriggerRecord) -> QueueSource:
    """The source of a trigger of type mqtt."""
    settings = settings_of(MqttSettings, record)
    batches = batch_settings(settings)
    pattern = f"$share/{settings.group}/{settings.topic}" if settings.group else settings.topic
    # A session remembers its subscriptions: another one needs another session.
    own = f"roost-{record.id.replace('-', '')}-{hashlib.sha256(pattern.encode()).hexdigest()[:6]}"
    session = Session(
        client_id=settings.client_id or own,
        seconds=settings.session_seconds,
        most=batches.capacity,
        version=settings.version,
    )

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Broker]:
        consumer = MqttConsumer(batches, grave=settings.grave(session.client_id))
        async with MqttClient(settings.address(), session, consumer.take, consumer.inbox.fail) as client:
            consumer.client = client
            await client.subscribe(pattern)
            yield consumer

    return QueueSource(address_of(record), batches, connect)


@contextlib.asynccontextmanager
async def sender(destination: QueueDestination) -> AsyncIterator[Sender]:
    """Publishes to a topic with QoS 1."""
    session = Session(client_id=f"roost-{uuid.uuid4().hex}", seconds=0, most=1, version="5")
    async with MqttClient(destination.endpoint, session) as client:

        async def send(event_id: str, body: bytes) -> None:
            await client.publish(destination.target["topic"], body, {"id": event_id}, content_type="application/json")

        yield send


@dataclass(slots=True, eq=False)
class _Receipt:
    """What a message is acknowledged by. The protocol wants that in the order in which they came."""

    letter: MQTTMessage
    settled: bool = False


class MqttConsumer:
    heartbeat_s: float | None = None  # a session holds what it has

    def __init__(self, batches: BatchSettings, *, grave: str) -> None:
        self.inbox = Inbox()
        self.client: MqttClient | None = None
        self._most = batches.capacity
        self._grave = grave
        self._receipts: deque[_Receipt] = deque()
        self._life = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    def take(self, letter: MQTTMessage) -> None:
        """A message has come. Of those with QoS 0 there may be any number, and they may get lost: here, when all is
        full."""
        if letter.qos == 0 and len(self.inbox) >= self._most:
            return
        receipt = _Receipt(letter)
        if letter.qos > 0:
            self._receipts.append(receipt)
        self.inbox.put(
            Message(
                id=f"{self._life}-{next(self._numbers)}",
                body=bytes(letter.payload),
                attributes=_attributes(letter),
                origin={"topic": letter.topic},
                timestamp=time.time(),
                redelivered=letter.dup,
                handle=receipt,
            )
        )

    async def receive(self, most: int, wait_s: float) -> Sequence[Message]:
        return await self.inbox.receive(most, wait_s)

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            message.handle.settled = True
        while self._receipts and self._receipts[0].settled:
            self._connected().acknowledge(self._receipts.popleft().letter)

    async def bury(self, message: Message, death: Death) -> None:
        letter: MQTTMessage = message.handle.letter
        try:
            await self._connected().publish(self._grave, message.body, {**_user(letter), **death.attributes(message)})
        except Refused as error:
            raise NotKept(f"topic {self._grave}: {error.message}") from error
        await self.acknowledge([message])

    async def extend(self, messages: Sequence[Message]) -> None:
        """There is nothing to extend."""

    async def release(self, messages: Sequence[Message]) -> None:
        """What is not acknowledged comes again with the session. What is done and had to wait its turn should not."""
        for receipt in self._receipts:
            if receipt.settled:
                self._connected().acknowledge(receipt.letter)
        self._receipts.clear()

    def _connected(self) -> MqttClient:
        assert self.client is not None
        return self.client


def _attributes(letter: MQTTMessage) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {}
    if letter.retain:
        found["retain"] = "true"
    if letter.properties is not None:
        for name, field in (
            ("content-type", "ContentType"),
            ("response-topic", "ResponseTopic"),
            ("correlation-data", "CorrelationData"),
        ):
            if (value := getattr(letter.properties, field, None)) is not None:
                found[name] = value
    return {**found, **_user(letter)}


def _user(letter: MQTTMessage) -> dict[str, str]:
    """User properties, of MQTT 5."""
    return dict(getattr(letter.properties, "UserProperty", ())) if letter.properties is not None else {}
