"""Redis Streams, by a consumer group: XREADGROUP, XACK, and XAUTOCLAIM for what dead consumers left. Needs redis-py.

A connection that breaks is made anew below all this, so a restart of the server in mid-batch costs nothing: the
entries are still pending, and are acknowledged when the batch is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from roost.functions.triggers.endpoints import Endpoint
from roost.functions.triggers.queues import QueueDestination, RedisSettings
from roost.functions.triggers.settings import settings_of
from roost.model.errors import Unavailable
from roost.store.triggers import TriggerRecord
from roost.triggers.adapters import Sender
from roost.triggers.batches import Broker, NotKept, QueueSource
from roost.triggers.messages import Death, Message
from roost.triggers.sources.queues import address_of, batch_settings, foreign

_CONNECT_S = 5.0
#: A reply that does not come, beyond the time that a command may block.
_REPLY_S = 10.0
_RETRIES = 6
_BEGINNING = b"0-0"
Fields = Mapping[bytes, bytes]
Entry = tuple[bytes, Fields | None]


def source(record: TriggerRecord) -> QueueSource:
    """The source of a trigger of type redis."""
    settings = settings_of(RedisSettings, record)

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Broker]:
        async with _client(settings.address(), connections=settings.concurrency + 4, retries=_RETRIES) as client:
            yield await RedisStream.join(client, record, settings)

    return QueueSource(address_of(record), batch_settings(settings), connect)


@contextlib.asynccontextmanager
async def sender(destination: QueueDestination) -> AsyncIterator[Sender]:
    """Adds entries to a stream. A broken connection is not tried again: whoever sends does that."""
    async with _client(destination.endpoint, connections=16, retries=0) as client:

        async def send(event_id: str, body: bytes) -> None:
            await client.xadd(destination.target["stream"], {"id": event_id, "body": body})

        yield send


@contextlib.asynccontextmanager
async def _client(endpoint: Endpoint, *, connections: int, retries: int) -> AsyncIterator[Redis]:
    """`retries` are for a connection that has once been there; the first one is tried once."""
    client = Redis(
        host=endpoint.host,
        port=endpoint.port,
        db=int(endpoint.path or "0"),
        username=endpoint.user or None,
        password=endpoint.password or None,
        ssl=endpoint.secure,
        max_connections=connections,
        socket_connect_timeout=_CONNECT_S,
        socket_timeout=_REPLY_S,
        retry=Retry(NoBackoff(), 0),
        client_name="roost",
    )
    with foreign(f"Redis at {endpoint.place}", RedisError):
        try:
            await client.ping()
            client.set_retry(Retry(EqualJitterBackoff(base=0.1, cap=3.0), retries))
            yield client
        except (AuthenticationError, AuthorizationError) as error:
            raise Unavailable(f"Redis at {endpoint.place} refused the user or password: {error}.") from error
        finally:
            await client.aclose()


class RedisStream:
    """One consumer of a group. Its name is the trigger's: what it held when its server died is what it reads first."""

    def __init__(self, client: Redis, settings: RedisSettings, *, group: str, consumer: str) -> None:
        self._client = client
        self._stream = settings.stream
        self._grave = settings.grave
        self._body_field = settings.body_field.encode()
        self._group = group
        self._consumer = consumer
        self._claim_ms = int(settings.claim_after_seconds * 1000)
        self._claims_at = 0.0  # when to look for what others left, and from where on
        self._claimed = _BEGINNING
        self._unread: str | None = "0"  # how far our own pending entries of earlier are read; None when all are
        self._held: set[str] = set()
        self.heartbeat_s = settings.claim_after_seconds / 3

    @classmethod
    async def join(cls, client: Redis, record: TriggerRecord, settings: RedisSettings) -> RedisStream:
        """Make the group, unless it is there. Raises RedisError."""
        group = settings.group or f"{record.function}-{record.name}"
        stream = cls(client, settings, group=group, consumer=f"roost-{record.id}")
        await stream._make_group("$" if settings.start_from == "latest" else "0")
        return stream

    async def _make_group(self, start: str) -> None:
        try:
            await self._client.xgroup_create(self._stream, self._group, id=start, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    # --- receiving ---------------------------------------------------------------------------------------------

    async def receive(self, most: int, wait_s: float) -> Sequence[Message]:
        try:
            return await self._own(most) or await self._abandoned(most) or await self._new(most, wait_s)
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            # The stream was deleted, or its server lost it. Whatever is there now came after that: nobody has read it.
            await self._make_group("0")
            return []

    async def _own(self, most: int) -> list[Message]:
        """What this consumer took in an earlier life."""
        while self._unread is not None:
            entries = await self._read(self._unread, most, None)
            self._unread = entries[-1][0].decode() if entries else None
            if found := await self._messages(entries, redelivered=True):
                return found
        return []

    async def _abandoned(self, most: int) -> list[Message]:
        """What other consumers hold and show no life; also what we were given by a reply that got lost."""
        if time.monotonic() < self._claims_at:
            return []
        reply = await self._client.xautoclaim(
            self._stream, self._group, self._consumer, min_idle_time=self._claim_ms, start_id=self._claimed, count=most
        )
        self._claimed, entries = reply[0], cast(list[Entry], reply[1])
        if self._claimed == _BEGINNING:
            self._claims_at = time.monotonic() + self._claim_ms / 2000
        return await self._messages(entries, redelivered=True)

    async def _new(self, most: int, wait_s: float) -> list[Message]:
        return await self._messages(await self._read(">", most, max(1, int(wait_s * 1000))), redelivered=False)

    async def _read(self, start: str, most: int, block_ms: int | None) -> list[Entry]:
        reply = await self._client.xreadgroup(
            self._group, self._consumer, {self._stream: start}, count=most, block=block_ms
        )
        if isinstance(reply, dict):  # by RESP3
            return cast(list[Entry], [entry for part in reply.values() for page in part for entry in page])
        return cast(list[Entry], reply[0][1] if reply else [])

    async def _messages(self, entries: Sequence[Entry], *, redelivered: bool) -> list[Message]:
        """Entries that were trimmed from the stream meanwhile are pending without being there: they are let go."""
        gone = [id for id, fields in entries if not fields]
        if gone:
            await self._client.xack(self._stream, self._group, *gone)
        found = [
            self._message(id.decode(), fields, redelivered=redelivered)
            for id, fields in entries
            if fields and id.decode() not in self._held
        ]
        self._held.update(message.id for message in found)
        return found

    def _message(self, id: str, fields: Fields, *, redelivered: bool) -> Message:
        return Message(
            id=id,
            body=fields.get(self._body_field, b""),
            attributes={
                name.decode(errors="replace"): value for name, value in fields.items() if name != self._body_field
            },
            origin={"stream": self._stream},
            timestamp=_milliseconds(id) / 1000,
            redelivered=redelivered,
            handle=fields,
        )

    # --- settling ----------------------------------------------------------------------------------------------

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        await self._client.xack(self._stream, self._group, *(message.id for message in messages))
        self._forget(messages)

    async def bury(self, message: Message, death: Death) -> None:
        fields: dict[Any, Any] = {**message.handle, **death.attributes(message)}
        try:
            await self._client.xadd(self._grave, fields)
        except ResponseError as error:
            raise NotKept(f"stream {self._grave}: {error}") from error
        await self.acknowledge([message])

    async def extend(self, messages: Sequence[Message]) -> None:
        ids: list[Any] = [message.id for message in messages]
        await self._client.xclaim(self._stream, self._group, self._consumer, 0, ids, justid=True)

    async def release(self, messages: Sequence[Message]) -> None:
        """They stay ours: we read them first when we are back, and others claim them when we are not."""
        self._forget(messages)

    def _forget(self, messages: Sequence[Message]) -> None:
        self._held.difference_update(message.id for message in messages)


def _milliseconds(id: str) -> int:
    """When an entry was added: the first half of its id, which a client may have made up."""
    return min(int(id.partition("-")[0]), 1 << 50)
