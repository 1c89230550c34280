"""NATS JetStream, by a durable pull consumer. Needs nats-py.

A connection that breaks is made anew below all this; the server knows the consumer's messages by their numbers, so a
batch that was under way can be acknowledged afterwards. While a batch is worked on, its messages' time is extended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Sequence

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import FlushTimeoutError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy, RetentionPolicy
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from roost.functions.triggers.endpoints import Endpoint
from roost.functions.triggers.queues import NatsSettings, QueueDestination
from roost.functions.triggers.settings import settings_of
from roost.model.errors import InvalidArgument, Unavailable
from roost.store.triggers import TriggerRecord
from roost.triggers.adapters import Sender
from roost.triggers.batches import BatchSettings, Broker, NotKept, QueueSource
from roost.triggers.messages import Death, Message
from roost.triggers.sources.queues import address_of, batch_settings, foreign, let_go

_CONNECT_S = 5
_REPLY_S = 10.0
#: A server that has not answered two of these is gone.
_PING_S = 20
#: A connection that broke is given up after so many tries, a second each.
_RECONNECTS = 15
_FLUSH_TRIES = 3
_SILENCE_S = 0.5


def source(record: TriggerRecord) -> QueueSource:
    """The source of a trigger of type nats."""
    settings = settings_of(NatsSettings, record)
    batches = batch_settings(settings)

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Broker]:
        async with _connection(settings.address(), reconnects=_RECONNECTS) as connection:
            yield await NatsConsumer.join(connection, record, settings, batches)

    return QueueSource(address_of(record), batches, connect)


@contextlib.asynccontextmanager
async def sender(destination: QueueDestination) -> AsyncIterator[Sender]:
    """Publishes to a subject that a stream takes in. The event's id keeps the stream from taking it in twice."""
    async with _connection(destination.endpoint, reconnects=0) as connection:
        stream = connection.jetstream(timeout=_REPLY_S)

        async def send(event_id: str, body: bytes) -> None:
            await stream.publish(destination.target["subject"], body, headers={"Nats-Msg-Id": event_id})

        yield send


@contextlib.asynccontextmanager
async def _connection(endpoint: Endpoint, *, reconnects: int) -> AsyncIterator[Client]:
    connected = False

    async def on_error(error: Exception) -> None:
        if not connected:
            raise error  # the first connection is tried once

    with foreign(f"NATS at {endpoint.place}", NatsError):
        connection = await nats.connect(
            f"nats://{endpoint.place}",
            user=endpoint.user or None,
            password=endpoint.password or None,
            tls=ssl.create_default_context() if endpoint.secure else None,
            tls_hostname=endpoint.host if endpoint.secure else None,
            connect_timeout=_CONNECT_S,
            allow_reconnect=reconnects > 0,
            max_reconnect_attempts=reconnects,
            reconnect_time_wait=1,
            ping_interval=_PING_S,
            error_cb=on_error,
            name="roost",
        )
        connected = True
        try:
            yield connection
        finally:
            await let_go(connection.close())


class NatsConsumer:
    """One puller of a durable consumer, which others may pull from as well."""

    def __init__(
        self, connection: Client, subscription: JetStreamContext.PullSubscription, *, ack_wait_s: float, grave: str
    ) -> None:
        self._connection = connection
        self._stream = connection.jetstream(timeout=_REPLY_S)
        self._subscription = subscription
        self._grave = grave
        self._held: set[str] = set()
        self._silences = 0
        self.heartbeat_s: float | None = ack_wait_s / 3

    @classmethod
    async def join(
        cls, connection: Client, record: TriggerRecord, settings: NatsSettings, batches: BatchSettings
    ) -> NatsConsumer:
        """Find or make the stream, the consumer and the place for dead letters. Raises NatsError, InvalidArgument."""
        stream = connection.jetstream(timeout=_REPLY_S)
        name = settings.consumer or f"roost-{record.id}"
        grave = settings.grave(name)
        if settings.create and settings.subject is not None:
            await _make_stream(stream, settings.stream, settings.subject)
            await _make_stream(stream, f"{settings.stream}-dead", grave)
        await _check_grave(stream, settings, grave)
        info = await _make_consumer(stream, name, settings, batches)
        subscription = await stream.pull_subscribe_bind(name, settings.stream)
        return cls(connection, subscription, ack_wait_s=info.config.ack_wait or settings.ack_wait_seconds, grave=grave)

    async def receive(self, most: int, wait_s: float) -> Sequence[Message]:
        try:
            letters = await self._subscription.fetch(most, timeout=max(wait_s, 0.01))
        except TimeoutError:
            letters = []
        except ServiceUnavailableError:
            # Its stream is not served at the moment: the server has just started, or chooses a new leader.
            self._silences += 1
            if self._silences * _SILENCE_S > _REPLY_S:
                raise
            await asyncio.sleep(_SILENCE_S)
            return []
        self._silences = 0
        found = [self._message(letter) for letter in letters]
        fresh = [message for message in found if message.id not in self._held]  # not those that we were late to extend
        self._held.update(message.id for message in fresh)
        return fresh

    def _message(self, letter: Msg) -> Message:
        about = letter.metadata
        return Message(
            id=f"{about.stream}:{about.sequence.stream}",
            body=letter.data,
            attributes=dict(letter.headers or {}),
            origin={"stream": about.stream, "subject": letter.subject},
            timestamp=about.timestamp.timestamp() if about.timestamp else time.time(),
            redelivered=about.num_delivered > 1,
            handle=letter,
        )

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """Returns when the server has them. Across a reconnection they are sent again, which does no harm."""
        for last in range(_FLUSH_TRIES):
            await self._answer(messages, Msg.Ack.Ack)
            try:
                await self._connection.flush(int(_REPLY_S))
                break
            except FlushTimeoutError:
                if last == _FLUSH_TRIES - 1:
                    raise
        self._forget(messages)

    async def bury(self, message: Message, death: Death) -> None:
        letter: Msg = message.handle
        kept = {name: value for name, value in (letter.headers or {}).items() if not name.lower().startswith("nats-")}
        headers = {**kept, **death.attributes(message), "Nats-Msg-Id": f"dead:{message.id}"}
        try:
            await self._stream.publish(self._grave, letter.data, headers=headers)
        except NoStreamResponseError as error:
            raise NotKept(f"no stream takes in the subject {self._grave}") from error
        except APIError as error:
            raise NotKept(f"subject {self._grave}: {error.description or error}") from error
        await self.acknowledge([message])

    async def extend(self, messages: Sequence[Message]) -> None:
        await self._answer(messages, Msg.Ack.Progress)

    async def release(self, messages: Sequence[Message]) -> None:
        await self._answer(messages, Msg.Ack.Nak)
        self._forget(messages)
        await self._connection.flush(1)

    async def _answer(self, messages: Sequence[Message], answer: bytes) -> None:
        for message in messages:
            await self._connection.publish(message.handle.reply, answer)

    def _forget(self, messages: Sequence[Message]) -> None:
        self._held.difference_update(message.id for message in messages)


async def _make_stream(stream: JetStreamContext, name: str, subject: str) -> None:
    """On disk, unless there is one of that name."""
    try:
        await stream.stream_info(name)
    except NotFoundError:
        await stream.add_stream(name=name, subjects=[subject], retention=RetentionPolicy.LIMITS)


async def _check_grave(stream: JetStreamContext, settings: NatsSettings, grave: str) -> None:
    """Better no start than a first dead letter that nobody keeps, or one that comes back as a message."""
    try:
        found = await stream.find_stream_name_by_subject(grave)
    except NotFoundError as error:
        raise Unavailable(
            f"No stream takes in the subject {grave}, where dead letters go: make one, or set 'create' to true."
        ) from error
    if found == settings.stream and settings.subject is None:
        raise InvalidArgument(
            f"Stream {found} takes in the subject {grave}, where dead letters go: they would come back as messages."
        )


async def _make_consumer(
    stream: JetStreamContext, name: str, settings: NatsSettings, batches: BatchSettings
) -> ConsumerInfo:
    """The durable one of that name, whoever made it."""
    try:
        info: ConsumerInfo = await stream.consumer_info(settings.stream, name)
    except NotFoundError:
        policy = DeliverPolicy.NEW if settings.start_from == "latest" else DeliverPolicy.ALL
        info = await stream.add_consumer(
            settings.stream,
            ConsumerConfig(
                durable_name=name,
                deliver_policy=policy,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=settings.ack_wait_seconds,
                max_deliver=-1,
                filter_subject=settings.subject,
                max_ack_pending=max(1000, batches.capacity * 10),
            ),
        )
    if info.config.deliver_subject or info.config.ack_policy != AckPolicy.EXPLICIT:
        raise InvalidArgument(
            f"Consumer {name} of stream {settings.stream} is not one that is pulled from and acknowledges."
        )
    return info
