"""CloudEvents 1.0 as they come in, and who may send them. The sender is the official SDK."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.functions.triggers.webhook import WebhookSettings
from roost.model.errors import InvalidArgument, Unauthenticated
from roost.triggers.cloudevents import identity, is_cloudevents, read_events
from roost.triggers.credentials import check_signature, check_token

ATTRIBUTES = {
    "specversion": "1.0", "id": "id/1 ü€\"%", "source": "/sensors/tn-1234567?a=b", "type": "com.example.hot",
    "time": datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=UTC), "subject": "the ☀", "dataschema": "https://example.com/s",
    "comexampleextension": "value",
}  # fmt: skip
PLAIN = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
JSON = {"content-type": "application/cloudevents+json"}


def sent(message: http.HTTPMessage) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in message.headers.items()}
    assert is_cloudevents(headers)
    (event,) = read_events(headers, message.body)
    return event


@pytest.mark.parametrize(
    ("content_type", "data", "shown"),
    [
        ("application/json", {"a": [1, "ü"]}, {"data": {"a": [1, "ü"]}}),
        ("application/json; charset=utf-8", {"a": 1}, {"data": {"a": 1}}),
        ("application/vnd.x+json", {"a": 1}, {"data": {"a": 1}}),
        ("text/plain", "grüße", {"data": "grüße"}),
        ("application/octet-stream", b"\x00\xff", {"data_base64": "AP8="}),
        (None, {"a": 1}, {"data": {"a": 1}}),
        (None, None, {}),
    ],
)
def test_binary_and_structured_mode_bring_the_same_event(content_type: str | None, data: Any, shown: Any) -> None:
    attributes = dict(ATTRIBUTES) | ({"datacontenttype": content_type} if content_type else {})
    event = CloudEvent(attributes, data)
    wanted = {**attributes, "time": "2026-01-31T23:59:59.123456Z", **shown}
    assert sent(http.to_binary(event, JSONFormat())) == wanted
    assert sent(http.to_structured(event, JSONFormat())) == wanted


def test_a_batch_brings_each_of_its_events() -> None:
    events = [CloudEvent({**ATTRIBUTES, "id": str(number)}, {"n": number}) for number in range(3)]
    body = b"[" + b",".join(JSONFormat().write(event) for event in events) + b"]"
    headers = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}
    assert is_cloudevents(headers)
    assert [event["data"] for event in read_events(headers, body)] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert read_events(headers, b"[]") == []


def test_an_event_is_the_same_by_its_source_and_id_alone() -> None:
    def of(source: str, id: str, **more: Any) -> str:
        return identity({**PLAIN, "source": source, "id": id, **more})

    assert of("/a", "1") == of("/a", "1", data=2, type="another")
    assert len({of("/a", "1"), of("/a", "2"), of("/b", "1"), of("/a1", ""), of('/a", "1', "")}) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": None}, "id: a CloudEvent needs"),
        ({"id": ""}, "id: "),
        ({"id": 5}, "id: a string"),
        ({"source": None}, "source: a CloudEvent needs"),
        ({"source": "a b"}, "source: 'a b' is not a URI"),
        ({"source": "http://[bad"}, "source: "),
        ({"type": None}, "type: a CloudEvent needs"),
        ({"type": ["t"]}, "type: a string"),
        ({"specversion": None}, "specversion: a CloudEvent needs"),
        ({"specversion": "0.3"}, "specversion: '0.3' is not supported"),
        ({"time": "yesterday"}, "time: 'yesterday' is not a time of RFC 3339"),
        ({"time": "2026-13-01T00:00:00Z"}, "time: "),
        ({"time": "2026-01-01 00:00:00Z"}, "time: "),
        ({"subject": ""}, "subject: "),
        ({"dataschema": "relative"}, "dataschema: 'relative' is not a URI"),
        ({"datacontenttype": ""}, "datacontenttype: "),
        ({"Upper": "x"}, "Upper: the name"),
        ({"with-dash": "x"}, "with-dash: the name"),
        ({"ext": {"a": 1}}, "ext: a string, a boolean or an integer"),
        ({"ext": 1.5}, "ext: a string, a boolean or an integer"),
        ({"data": 1, "data_base64": "AA=="}, "data_base64: an event has either"),
        ({"data_base64": "%%%"}, "data_base64: it is not base64"),
        ({"data_base64": 5}, "data_base64: it is not base64"),
    ],
)
def test_what_is_wrong_names_the_attribute(change: dict[str, Any], said: str) -> None:
    event = {**PLAIN, **change}
    with pytest.raises(InvalidArgument, match=f"^{said}"):
        read_events(JSON, json.dumps(event).encode())
    batch = json.dumps([PLAIN, event]).encode()
    with pytest.raises(InvalidArgument, match=rf"^\[1\]\.{said}"):
        read_events({"content-type": "application/cloudevents-batch+json"}, batch)


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (JSON, b"{", "not valid JSON"),
        (JSON, b"\xff", "not valid JSON"),
        (JSON, b"[" * 100_000, "not valid JSON"),
        (JSON, b"[]", "must be a JSON object"),
        ({"content-type": "application/cloudevents-batch+json"}, b"{}", "JSON list"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[5]", r"\[0\] must be a JSON object"),
        ({"content-type": "application/cloudevents+avro"}, b"", "content-type: .*avro"),
        ({"content-type": "application/cloudevents"}, b"", "content-type: "),
        ({"ce-id": "1", "ce-source": "/s", "ce-type": "t"}, b"", "specversion: a CloudEvent needs"),
        ({"ce-specversion": "1.0"}, b"", "id: a CloudEvent needs"),
        ({**{f"ce-{k}": v for k, v in PLAIN.items()}, "ce-subject": "%ff"}, b"", "subject: its value is not UTF-8"),
        ({**{f"ce-{k}": v for k, v in PLAIN.items()}, "ce-my-ext": "1"}, b"", "my-ext: the name"),
        ({**{f"ce-{k}": v for k, v in PLAIN.items()}, "ce-data": "1"}, b"", "data: it is no attribute"),
        ({**{f"ce-{k}": v for k, v in PLAIN.items()}, "content-type": "application/json"}, b"{", "data: it is not"),
        ({**{f"ce-{k}": v for k, v in PLAIN.items()}, "content-type": "text/plain"}, b"\xff", "data: it is not"),
    ],
)
def test_what_is_no_cloudevent_is_said_to_be_none(headers: dict[str, str], body: bytes, said: str) -> None:
    assert is_cloudevents(headers)
    with pytest.raises(InvalidArgument, match=said):
        read_events(headers, body)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=2)
NAMES = st.sampled_from([*PLAIN, "data", "data_base64", "time", "dataschema", "ext", "X"])


@settings(max_examples=200)
@given(
    body=st.binary(max_size=20)
    | st.dictionaries(NAMES, VALUES | st.just("1.0")).map(lambda one: json.dumps(one).encode())
)
def test_nothing_that_is_sent_raises_anything_else(body: bytes) -> None:
    for media in ("application/cloudevents+json", "application/cloudevents-batch+json"):
        try:
            for event in read_events({"content-type": media}, body):
                json.dumps(event)
        except InvalidArgument:
            pass


def test_filters_look_at_attributes() -> None:
    hook = WebhookSettings.model_validate(
        {
            "authType": "none",
            "filters": [{"exact": {"type": "t"}, "prefix": {"source": "/a/"}}, {"suffix": {"subject": ".png"}}],
        }
    )
    event = {"type": "t", "source": "/a/b", "subject": "x.png"}
    assert hook.admits(event)
    for change in ({"type": "T"}, {"source": "/b"}, {"subject": "x.jpg"}, {"subject": None}):
        assert not hook.admits({**event, **change})


# --- who may send ------------------------------------------------------------------------------------------------


def hook(**config: Any) -> WebhookSettings:
    return WebhookSettings.model_validate(config)


def test_githubs_signature_is_githubs_own_example() -> None:
    signed = hook(authType="hmac", secret="It's a Secret to Everybody")
    right = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    check_signature(signed, right, b"Hello, World!")
    check_signature(signed, "sha256=" + right[7:].upper(), b"Hello, World!")
    for wrong, content in (
        (right, b"Hello, World?"),
        (right[:-1], b"Hello, World!"),
        (right[7:], b"Hello, World!"),
        ("sha1=" + right[7:], b"Hello, World!"),
        ("", b"Hello, World!"),
        ("sha256=ü", b"Hello, World!"),
        ("sha256=", b""),
    ):
        with pytest.raises(Unauthenticated, match="X-Hub-Signature-256") as caught:
            check_signature(signed, wrong, content)
        assert caught.value.status == 401
        assert right[7:20] not in caught.value.message


def test_other_ways_to_write_a_signature() -> None:
    signed = hook(
        authType="hmac", secret="12345678", signatureHeader="X-Sign", signaturePrefix="v1,", signatureEncoding="base64"
    )
    digest = base64.b64encode(hmac.new(b"12345678", b"x", hashlib.sha256).digest()).decode()
    check_signature(signed, "v1," + digest, b"x")
    with pytest.raises(Unauthenticated, match="X-Sign"):
        check_signature(signed, "v1," + digest.swapcase(), b"x")


def test_bearer_tokens() -> None:
    signed = hook(authType="bearer", token="a-token-of-the-test")
    check_token(signed, "Bearer a-token-of-the-test")
    check_token(signed, "bearer  a-token-of-the-test ")
    for wrong in ("", "Bearer", "Bearer a-token", "Basic a-token-of-the-test", "a-token-of-the-test", "Bearer ü"):
        with pytest.raises(Unauthenticated) as caught:
            check_token(signed, wrong)
        assert caught.value.status == 401
    check_token(hook(authType="none"), "")
    check_signature(hook(authType="none"), "", b"")
