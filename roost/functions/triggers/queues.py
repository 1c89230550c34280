"""The settings of triggers that consume message queues, and destinations that are queues."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from roost.functions.definition import Shape
from roost.functions.triggers.endpoints import Endpoint, endpoint_of
from roost.functions.triggers.settings import SourceSettings, wrong

Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
#: Names in NATS: subjects are made of tokens, a stream or consumer has none of what separates them.
NatsName = Annotated[str, Field(max_length=200, pattern=r"^[^\s.*>/\\\x00-\x1f\x7f]+$")]
Start = Literal["latest", "earliest"]


def _subject(value: str) -> str:
    if not re.fullmatch(r"[^\s.\x00-\x1f]+(\.[^\s.\x00-\x1f]+)*", value) or len(value) > 255:
        raise wrong("a subject is words with dots between them, without spaces")
    return value


def _plain_subject(value: str) -> str:
    if {"*", ">"} & set(_subject(value).split(".")):
        raise wrong("messages can't be sent to a subject with wildcards")
    return value


def _topic_filter(value: str) -> str:
    levels = value.split("/")
    if (
        not value
        or len(value.encode()) > 1024
        or "\x00" in value
        or value.startswith("$share/")
        or any(("+" in one or "#" in one) and len(one) > 1 for one in levels)
        or "#" in levels[:-1]
    ):
        raise wrong(
            "a topic filter is levels with '/' between them, where '+' stands for one level and '#' at the end for all "
            "that follow; 'group' makes it a shared subscription"
        )
    return value


def _topic(value: str) -> str:
    if not value or len(value.encode()) > 1024 or set("+#\x00") & set(value):
        raise wrong("messages can't be sent to a topic with wildcards")
    return value


def covers(pattern: Sequence[str], name: Sequence[str], *, one: str, rest: str) -> bool:
    """Whether `pattern` takes in `name`, part by part: `one` stands for any part, `rest` for all that follow."""
    for position, part in enumerate(pattern):
        if part == rest:
            return True
        if position == len(name) or part not in (one, name[position]):
            return False
    return len(pattern) == len(name)


_CIRCLE = wrong("deadLetter: dead letters would come back as messages; send them elsewhere")
Subject = Annotated[str, AfterValidator(_subject)]
PlainSubject = Annotated[str, AfterValidator(_plain_subject)]
TopicFilter = Annotated[str, AfterValidator(_topic_filter)]
Topic = Annotated[str, AfterValidator(_topic)]


class Batch(Shape):
    """A batch ends at `size` messages, `bytes` of bodies and attributes, or `windowSeconds` after its first."""

    size: Annotated[int, Field(ge=1, le=10_000)] = 10
    bytes: Annotated[int, Field(ge=1, le=16 << 20)] = 1 << 20
    window_seconds: Annotated[float, Field(ge=0, le=300, strict=False)] = 0


class Retry(Shape):
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    initial_delay_seconds: Annotated[float, Field(ge=0, le=3600, strict=False)] = 1
    max_delay_seconds: Annotated[float, Field(ge=0, le=3600, strict=False)] = 60


class QueueSettings(SourceSettings):
    """What all queues have in common. `endpoint` is the broker's URL, with user and password where it wants them."""

    URLS: ClassVar[tuple[str, ...]] = ("endpoint",)
    KIND: ClassVar[str]

    endpoint: Annotated[str, Field(max_length=2048)]
    batch: Batch = Batch()
    concurrency: Annotated[int, Field(ge=1, le=100)] = 1
    retry: Retry = Retry()

    @model_validator(mode="after")
    def _check(self) -> QueueSettings:
        try:
            endpoint = endpoint_of(self.endpoint)
        except ValueError as error:
            raise wrong(f"endpoint: {error}") from error
        if endpoint.kind != self.KIND:
            raise wrong(f"endpoint: this is the URL of a {endpoint.kind} server")
        if endpoint.options:
            raise wrong("endpoint: options in the URL have no meaning here")
        _check_path("endpoint", endpoint)
        if self.batch.size * self.concurrency > 10_000:
            raise wrong("batch.size times concurrency is the number of messages that are held, and at most 10000")
        return self

    def address(self) -> Endpoint:
        """Where the broker is."""
        return endpoint_of(self.endpoint)


def _check_path(field: str, endpoint: Endpoint) -> None:
    if endpoint.kind == "redis" and not re.fullmatch(r"[0-9]{0,4}", endpoint.path):
        raise wrong(f"{field}: the path of a redis URL is the number of a database")
    if endpoint.kind in ("nats", "mqtt") and endpoint.path:
        raise wrong(f"{field}: a {endpoint.kind} URL has no path")
    if endpoint.kind == "redis" and endpoint.user and not endpoint.password:
        raise wrong(f"{field}: a redis URL with a user needs a password (redis://:password@host has no user)")


# --- Redis Streams ---------------------------------------------------------------------------------------------------


class RedisDeadLetter(Shape):
    stream: Name


class RedisSettings(QueueSettings):
    """`group`: consumers of one group share the messages; '' for one of the trigger's own. `claimAfterSeconds`: what
    a consumer that shows no life for so long has taken, another one gets. `bodyField`: the field that is the body."""

    KIND: ClassVar[str] = "redis"

    stream: Name
    group: Annotated[str, Field(max_length=255)] = ""
    start_from: Start = "latest"
    claim_after_seconds: Annotated[float, Field(ge=1, le=86_400, strict=False)] = 60
    body_field: Name = "body"
    dead_letter: RedisDeadLetter | None = None

    @property
    def grave(self) -> str:
        """The stream of dead letters."""
        return self.dead_letter.stream if self.dead_letter else f"{self.stream}:dead"

    @model_validator(mode="after")
    def _no_circle(self) -> RedisSettings:
        if self.grave == self.stream:
            raise _CIRCLE
        return self


# --- RabbitMQ --------------------------------------------------------------------------------------------------------


class RabbitmqDeadLetter(Shape):
    """One of: a durable `queue`, made if it is missing; an `exchange` with `routingKey`; `reject`, for a queue that
    has a dead letter exchange of its own."""

    queue: Name | None = None
    exchange: Name | None = None
    routing_key: Annotated[str, Field(max_length=255)] = ""
    reject: bool = False

    @model_validator(mode="after")
    def _one(self) -> RabbitmqDeadLetter:
        if [self.queue is not None, self.exchange is not None, self.reject].count(True) != 1:
            raise wrong("give one of 'queue', 'exchange' and 'reject'")
        if self.routing_key and self.exchange is None:
            raise wrong("'routingKey' belongs to an 'exchange'")
        return self


class RabbitmqSettings(QueueSettings):
    """`declare`: make the queue, durable, if it is missing."""

    KIND: ClassVar[str] = "rabbitmq"

    queue: Name
    declare: bool = False
    dead_letter: RabbitmqDeadLetter | None = None

    @property
    def grave(self) -> RabbitmqDeadLetter:
        return self.dead_letter or RabbitmqDeadLetter(queue=f"{self.queue}.dead")

    @model_validator(mode="after")
    def _no_circle(self) -> RabbitmqSettings:
        if self.grave.queue == self.queue:
            raise _CIRCLE
        return self


# --- NATS JetStream --------------------------------------------------------------------------------------------------


class NatsDeadLetter(Shape):
    subject: PlainSubject


class NatsSettings(QueueSettings):
    """`consumer`: the durable one that is used, and made if it is missing; '' for one of the trigger's own. `create`:
    make the stream too, over `subject`, and one for dead letters."""

    KIND: ClassVar[str] = "nats"

    stream: NatsName
    subject: Subject | None = None
    consumer: Annotated[str, Field(max_length=200, pattern=r"^[^\s.*>/\\\x00-\x1f\x7f]*$")] = ""
    create: bool = False
    start_from: Start = "latest"
    ack_wait_seconds: Annotated[float, Field(ge=1, le=86_400, strict=False)] = 30
    dead_letter: NatsDeadLetter | None = None

    def grave(self, consumer: str) -> str:
        """The subject of dead letters."""
        return self.dead_letter.subject if self.dead_letter else f"dead.{self.stream}.{consumer}"

    @model_validator(mode="after")
    def _subjects(self) -> NatsSettings:
        if self.create and self.subject is None:
            raise wrong("'create' needs a 'subject', which the stream takes in")
        if self.subject is not None and covers(self.subject.split("."), self.grave("-").split("."), one="*", rest=">"):
            raise _CIRCLE
        return self


# --- MQTT ------------------------------------------------------------------------------------------------------------


class MqttDeadLetter(Shape):
    topic: Topic


class MqttSettings(QueueSettings):
    """`group` makes it a shared subscription. `clientId` names the session in which the broker keeps what comes while
    the trigger is away, `sessionSeconds` how long; '' for one of the trigger's own."""

    KIND: ClassVar[str] = "mqtt"

    topic: TopicFilter
    group: Annotated[str, Field(max_length=255, pattern=r"^[^/+#\x00-\x1f]*$")] = ""
    client_id: Annotated[str, Field(max_length=255, pattern=r"^[^\x00-\x1f]*$")] = ""
    session_seconds: Annotated[int, Field(ge=1, le=0xFFFFFFFE)] = 7 * 86_400
    version: Literal["5", "3.1.1"] = "5"
    dead_letter: MqttDeadLetter | None = None

    @model_validator(mode="after")
    def _no_circle(self) -> MqttSettings:
        hidden = self.grave("-").startswith("$") and self.topic[0] in "+#"  # which a wildcard never takes in
        if not hidden and covers(self.topic.split("/"), self.grave("-").split("/"), one="+", rest="#"):
            raise _CIRCLE
        return self

    def grave(self, client: str) -> str:
        """The topic of dead letters."""
        return self.dead_letter.topic if self.dead_letter else f"dead/{client}"


QUEUES: Mapping[str, type[QueueSettings]] = {
    shape.KIND: shape for shape in (RedisSettings, RabbitmqSettings, NatsSettings, MqttSettings)
}


# --- destinations ----------------------------------------------------------------------------------------------------

#: Options of a destination's URL, by kind: those it must have, and those it may have.
_OPTIONS: Mapping[str, tuple[set[str], set[str]]] = {
    "redis": ({"stream"}, set()),
    "rabbitmq": ({"routing_key"}, {"exchange"}),
    "nats": ({"subject"}, set()),
    "mqtt": ({"topic"}, set()),
}
_TARGETS: Mapping[str, Any] = {"subject": _plain_subject, "topic": _topic}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDestination:
    """A queue that gets what a task came to. `target`: `stream`; `exchange`, `routing_key`; `subject`; or `topic`."""

    endpoint: Endpoint
    target: Mapping[str, str]


def queue_destination(url: str) -> QueueDestination:
    """Raises ValueError with half a sentence that says what is wrong, and does not repeat what may be secret."""
    endpoint = endpoint_of(url)
    _check_path("the destination", endpoint)
    needed, allowed = _OPTIONS[endpoint.kind]
    given = {name for name, value in endpoint.options.items() if value or name in allowed}
    if missing := needed - given:
        raise ValueError(f"the URL needs ?{missing.pop()}=...")
    if unknown := set(endpoint.options) - needed - allowed:
        raise ValueError(f"the URL has an option that has no meaning here, {min(unknown)[:40]!r}")
    for name, value in endpoint.options.items():
        if name in _TARGETS:
            _TARGETS[name](value)
    return QueueDestination(endpoint=endpoint, target=endpoint.options)
