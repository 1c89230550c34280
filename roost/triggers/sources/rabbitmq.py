"""RabbitMQ, by a consumer whose prefetch is what may be held. Needs aio-pika.

Messages belong to a channel: when that is lost they go back to their queue, and what was under way comes again as
redelivered. So nothing is made anew below all this: a lost connection ends the source, and its trigger starts it again.
"""

from __future__ import annotations

import contextlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aiormq.exceptions import (
    AMQPError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)

from roost.functions.triggers.endpoints import Endpoint
from roost.functions.triggers.queues import QueueDestination, RabbitmqDeadLetter, RabbitmqSettings
from roost.functions.triggers.settings import settings_of
from roost.model.errors import Unavailable
from roost.store.triggers import TriggerRecord
from roost.triggers.adapters import Sender
from roost.triggers.batches import Broker, NotKept, QueueSource
from roost.triggers.messages import Death, Message
from roost.triggers.sources.queues import Inbox, address_of, batch_settings, foreign, let_go, said_of

_CONNECT_S = 10.0
_CONFIRM_S = 10.0
_HEARTBEAT_S = 20
#: Of the standard's message properties, those that say something of a message.
_PROPERTIES = ("content_type", "content_encoding", "correlation_id", "reply_to", "type", "app_id", "user_id")


def source(record: TriggerRecord) -> QueueSource:
    """The source of a trigger of type rabbitmq."""
    settings = settings_of(RabbitmqSettings, record)
    batches = batch_settings(settings)

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Broker]:
        async with _connection(settings.address()) as connection:
            grave = await Grave.dig(connection, settings.grave)
            if settings.declare:
                await _make_queue(connection, settings.queue)
            consumer = RabbitmqConsumer(settings.queue, grave)
            await consumer.start(connection, prefetch=batches.capacity)
            yield consumer

    return QueueSource(address_of(record), batches, connect)


@contextlib.asynccontextmanager
async def sender(destination: QueueDestination) -> AsyncIterator[Sender]:
    """Publishes to an exchange, or by its name to a queue; what reaches no queue is an error."""
    async with _connection(destination.endpoint) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await _exchange(channel, destination.target.get("exchange"))

        async def send(event_id: str, body: bytes) -> None:
            message = aio_pika.Message(
                body,
                message_id=event_id,
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            try:
                await exchange.publish(message, destination.target["routing_key"], mandatory=True, timeout=_CONFIRM_S)
            except DeliveryError as error:
                raise Unavailable("RabbitMQ has no queue that takes the event.") from error

        yield send


@contextlib.asynccontextmanager
async def _connection(endpoint: Endpoint) -> AsyncIterator[AbstractConnection]:
    with foreign(f"RabbitMQ at {endpoint.place}", AMQPError, ChannelInvalidStateError):
        connection = await aio_pika.connect(
            host=endpoint.host,
            port=endpoint.port,
            login=endpoint.user or "guest",
            password=endpoint.password or "guest",
            virtualhost=endpoint.path or "/",
            ssl=endpoint.secure,
            ssl_context=ssl.create_default_context() if endpoint.secure else None,
            timeout=_CONNECT_S,
            heartbeat=_HEARTBEAT_S,
            client_properties={"connection_name": "roost"},
        )
        try:
            yield connection
        finally:
            await let_go(connection.close())


async def _exchange(channel: AbstractChannel, name: str | None) -> AbstractExchange:
    return await channel.get_exchange(name) if name else channel.default_exchange


async def _make_queue(connection: AbstractConnection, name: str) -> None:
    """A durable one, unless there is one of that name, of whatever kind."""
    async with connection.channel() as channel:
        with contextlib.suppress(ChannelPreconditionFailed):
            await channel.declare_queue(name, durable=True)


class Grave:
    """Where dead letters go. Its channel is its own: an error of it must not cost the consumer what it holds."""

    def __init__(self, connection: AbstractConnection, settings: RabbitmqDeadLetter) -> None:
        self._connection = connection
        self._settings = settings
        self._channel: AbstractChannel | None = None
        self._exchange: AbstractExchange | None = None

    @classmethod
    async def dig(cls, connection: AbstractConnection, settings: RabbitmqDeadLetter) -> Grave:
        """Raises AMQPError."""
        if settings.queue is not None:
            await _make_queue(connection, settings.queue)
        return cls(connection, settings)

    async def bury(self, letter: AbstractIncomingMessage, said: dict[str, str]) -> None:
        """Returns when the broker has confirmed that a queue has it, and then lets go of it. Raises NotKept."""
        if self._settings.reject:
            await letter.reject(requeue=False)
            return
        copy = aio_pika.Message(
            letter.body,
            headers={**letter.headers, **said},
            message_id=letter.message_id,
            timestamp=letter.timestamp,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            content_type=letter.content_type,
            content_encoding=letter.content_encoding,
            correlation_id=letter.correlation_id,
            reply_to=letter.reply_to,
            type=letter.type,
            app_id=letter.app_id,
        )
        try:
            exchange = await self._open()
            await exchange.publish(copy, self._routing_key(letter), mandatory=True, timeout=_CONFIRM_S)
        except DeliveryError as error:
            raise NotKept("no queue took it") from error
        except ChannelNotFoundEntity as error:
            self._channel = None
            raise NotKept(str(error)) from error
        await letter.ack()

    def _routing_key(self, letter: AbstractIncomingMessage) -> str:
        return self._settings.queue or self._settings.routing_key or letter.routing_key or ""

    async def _open(self) -> AbstractExchange:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            self._exchange = await _exchange(self._channel, self._settings.exchange)
        assert self._exchange is not None
        return self._exchange


class RabbitmqConsumer:
    heartbeat_s: float | None = None  # a consumer holds what it has for as long as its channel lives

    def __init__(self, queue: str, grave: Grave) -> None:
        self._queue = queue
        self._grave = grave
        self._inbox = Inbox()
        self._life = uuid.uuid4().hex[:12]

    async def start(self, connection: AbstractConnection, *, prefetch: int) -> None:
        """Raises AMQPError."""
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=prefetch)
        queue = await channel.declare_queue(self._queue, passive=True)
        channel.close_callbacks.add(self._closed)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(self._cancelled)
        await queue.consume(self._take)

    async def _take(self, letter: AbstractIncomingMessage) -> None:
        self._inbox.put(self._message(letter))

    def _closed(self, _channel: object, error: BaseException | None) -> None:
        said = "it was closed" if error is None else said_of(error)
        self._inbox.fail(Unavailable(f"The connection to RabbitMQ is lost: {said}."))

    def _cancelled(self, _frame: object) -> None:
        self._inbox.fail(Unavailable(f"RabbitMQ ended the consumption of queue {self._queue}: was it deleted?"))

    def _message(self, letter: AbstractIncomingMessage) -> Message:
        named = {name.replace("_", "-"): getattr(letter, name) for name in _PROPERTIES}
        properties = {name: str(value) for name, value in named.items() if value}
        headers = {name: _header(value) for name, value in letter.headers.items()}
        return Message(
            id=letter.message_id or f"{self._life}-{letter.delivery_tag}",
            body=letter.body,
            attributes={**properties, **headers},
            origin={"queue": self._queue, "exchange": letter.exchange or "", "routingKey": letter.routing_key or ""},
            timestamp=letter.timestamp.timestamp() if letter.timestamp else time.time(),
            redelivered=bool(letter.redelivered),
            handle=letter,
        )

    async def receive(self, most: int, wait_s: float) -> Sequence[Message]:
        return await self._inbox.receive(most, wait_s)

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await message.handle.ack()

    async def bury(self, message: Message, death: Death) -> None:
        await self._grave.bury(message.handle, death.attributes(message))

    async def extend(self, messages: Sequence[Message]) -> None:
        """There is nothing to extend."""

    async def release(self, messages: Sequence[Message]) -> None:
        """What is held goes back to the queue with the channel."""


def _header(value: Any) -> str | bytes:
    return value if isinstance(value, str | bytes) else str(value)
