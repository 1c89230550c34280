"""The settings of triggers that consume queues, addresses of brokers, and destinations that are queues."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roost.functions.triggers.endpoints import endpoint_of
from roost.functions.triggers.kinds import check_config
from roost.functions.triggers.queues import QUEUES, NatsSettings, covers, queue_destination
from roost.functions.triggers.settings import shown
from roost.model.errors import InvalidArgument

LEAST: dict[str, dict[str, Any]] = {
    "redis": {"endpoint": "redis://localhost", "stream": "s"},
    "rabbitmq": {"endpoint": "amqp://localhost", "queue": "q"},
    "nats": {"endpoint": "nats://localhost", "stream": "s"},
    "mqtt": {"endpoint": "mqtt://localhost", "topic": "a/b"},
}


def check(kind: str, **fields: Any) -> dict[str, Any]:
    return check_config(kind, json.dumps({**LEAST[kind], **fields}))


def refused(kind: str, **fields: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check(kind, **fields)
    return caught.value.message


@pytest.mark.parametrize("kind", LEAST)
def test_what_is_common_to_all(kind: str) -> None:
    kept = check(kind)
    assert kept["enable"] is True
    assert kept["batch"] == {"size": 10, "bytes": 1 << 20, "windowSeconds": 0}
    assert kept["retry"] == {"maxAttempts": 3, "initialDelaySeconds": 1, "maxDelaySeconds": 60}
    assert kept["concurrency"] == 1
    assert check_config(kind, json.dumps(kept)) == kept  # what is shown may be sent back
    assert check(kind, batch={"size": 5, "windowSeconds": 0.5}, concurrency=2)["batch"]["windowSeconds"] == 0.5
    for wrong in ({"batch": {"size": 0}}, {"batch": {"windowSeconds": 301}}, {"retry": {"maxAttempts": 0}}, {"x": 1}):
        assert next(iter(wrong)) in refused(kind, **wrong)
    assert "batch.size times concurrency" in refused(kind, batch={"size": 1000}, concurrency=11)
    missing = dict(LEAST[kind])
    del missing["endpoint"]
    with pytest.raises(InvalidArgument, match="endpoint: this field is required"):
        check_config(kind, json.dumps(missing))


@pytest.mark.parametrize("kind", LEAST)
def test_the_password_is_masked_and_comes_back_by_its_mask(kind: str) -> None:
    url = LEAST[kind]["endpoint"].replace("://", "://me:s3cret@")
    kept = check(kind, endpoint=url)
    visible = shown(QUEUES[kind], kept)
    assert "s3cret" not in json.dumps(visible)
    assert "://me:***@localhost" in visible["endpoint"]
    assert check_config(kind, json.dumps(visible), kept) == kept


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("redis", {"endpoint": "amqp://localhost"}, "this is the URL of a rabbitmq server"),
        ("redis", {"endpoint": "http://localhost"}, "a URL is expected that begins with redis://"),
        ("redis", {"endpoint": "redis://"}, "the URL names no host"),
        ("redis", {"endpoint": "redis://a:b#c@localhost"}, "no URL"),
        ("redis", {"endpoint": "redis://localhost/one"}, "the number of a database"),
        ("redis", {"endpoint": "redis://localhost?stream=x"}, "options in the URL"),
        ("redis", {"endpoint": "redis://localhost:99999"}, "no URL"),
        ("redis", {"deadLetter": {"stream": "s"}}, "would come back"),
        ("redis", {"startFrom": "now"}, "startFrom"),
        ("rabbitmq", {"deadLetter": {}}, "give one of"),
        ("rabbitmq", {"deadLetter": {"queue": "d", "reject": True}}, "give one of"),
        ("rabbitmq", {"deadLetter": {"queue": "q"}}, "would come back"),
        ("nats", {"endpoint": "nats://localhost/path"}, "has no path"),
        ("nats", {"stream": "a.b"}, "stream"),
        ("nats", {"create": True}, "needs a 'subject'"),
        ("nats", {"subject": "a b"}, "words with dots"),
        ("nats", {"subject": "a.>", "deadLetter": {"subject": "a.dead"}}, "would come back"),
        ("nats", {"deadLetter": {"subject": "dead.*"}}, "wildcards"),
        ("mqtt", {"topic": "a/b#"}, "a topic filter is"),
        ("mqtt", {"topic": "a/#/b"}, "a topic filter is"),
        ("mqtt", {"topic": "$share/g/a"}, "a topic filter is"),
        ("mqtt", {"topic": "#"}, "would come back"),
        ("mqtt", {"group": "a/b"}, "group"),
        ("mqtt", {"deadLetter": {"topic": "a/+"}}, "wildcards"),
        ("mqtt", {"version": "3"}, "version"),
    ],
)
def test_what_is_refused_is_said(kind: str, fields: dict[str, Any], said: str) -> None:
    assert said in refused(kind, **fields)


def test_a_wildcard_leaves_hidden_topics_alone() -> None:
    assert check("mqtt", topic="#", deadLetter={"topic": "$dead/letters"})["topic"] == "#"


def test_dead_letters_have_a_place_without_being_asked_for() -> None:
    settings = NatsSettings.model_validate(LEAST["nats"])
    assert settings.grave("c") == "dead.s.c"


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("a/#", "a/b/c", True),
        ("#", "x", True),
        ("a", "a/b", False),
    ],
)
def test_what_a_pattern_covers(pattern: str, name: str, expected: bool) -> None:
    assert covers(pattern.split("/"), name.split("/"), one="+", rest="#") is expected


def test_an_address() -> None:
    endpoint = endpoint_of("amqps://me%40home:p%2Fw@[::1]/v%2Fhost?x=1")
    assert (endpoint.kind, endpoint.host, endpoint.port, endpoint.secure) == ("rabbitmq", "::1", 5671, True)
    assert (endpoint.user, endpoint.password, endpoint.path) == ("me@home", "p/w", "v/host")
    assert endpoint.options == {"x": "1"}
    assert endpoint.place == "[::1]:5671"
    assert endpoint_of("mqtt://h").port == 1883


def test_destinations() -> None:
    assert queue_destination("redis://h:1/2?stream=a").target == {"stream": "a"}
    assert queue_destination("amqp://h/v?exchange=x&routing_key=k").target == {"exchange": "x", "routing_key": "k"}
    assert queue_destination("nats://h?subject=a.b").target == {"subject": "a.b"}
    assert queue_destination("mqtts://h?topic=a/b").endpoint.secure


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h", r"the URL needs \?stream="),
        ("redis://h?stream=", r"the URL needs \?stream="),
        ("redis://h?stream=a&stream=b", "twice"),
        ("redis://h?stream=a&key=b", "no meaning here, 'key'"),
        ("amqp://h?exchange=x", r"needs \?routing_key="),
        ("nats://h?subject=a.*", "wildcards"),
        ("mqtt://h?topic=a/%23", "wildcards"),
        ("https://h", "a URL is expected that begins with"),
    ],
)
def test_destinations_that_are_none(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        queue_destination(url)
