from __future__ import annotations

import json
from typing import Any

import pytest

from roost.guest.config import BadStart, StartConfig, parse_start
from roost.guest.environment import worker_environment
from roost.guest.events import BadReply, http_event, http_reply, invoke_reply
from roost.guest.faults import StartFailed, describe, stack_of
from roost.guest.http1 import parse_head
from roost.guest.loading import split_name


def test_the_http_event_has_function_computes_shape() -> None:
    head = parse_head(
        b"PUT /a%20b?x=1&x=2&y= HTTP/1.1\r\nhost: f.example:8700\r\nuser-agent: ua\r\n"
        b"x-forwarded-for: 10.0.0.1, 10.0.0.2\r\nx-fc-request-id: r-1\r\nx-fc-access-key-secret: secret\r\n"
    )
    event = json.loads(http_event(head, "h\u00e9".encode(), "42"))
    context = event.pop("requestContext")
    assert context.pop("timeEpoch").isdigit()
    assert context.pop("time").endswith("Z")
    assert event == {
        "version": "v1",
        "rawPath": "/a%20b",
        "headers": {"Host": "f.example:8700", "User-Agent": "ua", "X-Forwarded-For": "10.0.0.1, 10.0.0.2"},
        "queryParameters": {"x": "1,2", "y": ""},
        "body": "h\u00e9",
        "isBase64Encoded": False,
    }
    assert context == {
        "accountId": "42",
        "domainName": "f.example:8700",
        "domainPrefix": "f",
        "http": {"method": "PUT", "path": "/a b", "protocol": "HTTP/1.1", "sourceIp": "10.0.0.1", "userAgent": "ua"},
        "requestId": "r-1",
    }


def test_a_body_that_is_no_text_is_encoded() -> None:
    event = json.loads(http_event(parse_head(b"GET / HTTP/1.1\r\n"), b"\xff\x00", ""))
    assert (event["body"], event["isBase64Encoded"]) == ("/wA=", True)


@pytest.mark.parametrize(
    ("result", "body", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        (bytearray(b"a"), b"a", "application/octet-stream"),
        ("\u2713", "\u2713".encode(), "text/plain; charset=utf-8"),
        (None, b"", "application/octet-stream"),
        ({"a": [1, None]}, b'{"a": [1, null]}', "application/json"),
        (3.5, b"3.5", "application/json"),
    ],
)
def test_results_of_an_invocation(result: object, body: bytes, content_type: str) -> None:
    reply = invoke_reply(result)
    assert (reply.status, reply.body, reply.headers) == (200, body, [("content-type", content_type)])
    assert http_reply(result).body == body


def test_a_reply_in_parts() -> None:
    reply = http_reply(
        {
            "statusCode": "404",
            "headers": {"Content-Type": "text/x", "Set-Cookie": ["a=1", "b=2"], "Content-Length": "9"},
            "body": "aGk=",
            "isBase64Encoded": True,
        }
    )
    assert (reply.status, reply.body) == (404, b"hi")
    assert reply.headers == [("content-type", "text/x"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]


def test_a_reply_in_parts_may_come_as_json_text() -> None:
    assert http_reply('{"statusCode": 201, "body": {"a": 1}}').status == 201
    assert http_reply('{"a": 1}').status == 200
    assert http_reply("{broken").body == b"{broken"


@pytest.mark.parametrize(
    "result",
    [
        object(),
        {"statusCode": 99},
        {"statusCode": True},
        {"statusCode": "x"},
        {"statusCode": 200, "headers": []},
        {"statusCode": 200, "body": "%", "isBase64Encoded": True},
        {1, 2},
    ],
)
def test_bad_results_are_refused(result: object) -> None:
    with pytest.raises(BadReply):
        http_reply(result)


def test_a_circular_result_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadReply):
        invoke_reply(loop)


def test_a_fault_with_a_broken_message_is_still_described() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise KeyError

    assert describe(Broken())["errorMessage"] == "(no message: KeyError in __str__)"


def test_a_deep_stack_is_shortened() -> None:
    def down(depth: int) -> None:
        if depth:
            down_again(depth - 1)
        raise ValueError

    def down_again(depth: int) -> None:
        down(depth)

    with pytest.raises(ValueError) as caught:
        down(200)
    stack = stack_of(caught.value)
    assert len(stack) == 61
    assert "raise ValueError" in stack[-1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("index.handler", ("index", "handler")), ("a/b/c.d", ("a.b.c", "d")), ("a.b.c", ("a.b", "c"))],
)
def test_handler_names(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["index", ".handler", "index.", ""])
def test_bad_handler_names(name: str) -> None:
    with pytest.raises(StartFailed):
        split_name(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"handler": ""},
        {"runtime": "java"},
        {"concurrency": 0},
        {"concurrency": True},
        {"env": {"a": 1}},
        {"env": {"a=b": "c"}},
        {"env": []},
        {"initializer": "index.init"},
        {"command": "run"},
        {"port": 70000},
        {"entropy": "zz"},
        {"time_zone": "a\0b"},
    ],
)
def test_bad_start_messages_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadStart, match=next(iter(fields))):
        parse_start({"handler": "index.handler"} | fields)


def test_a_start_message_without_optional_fields() -> None:
    config = parse_start({"handler": "a.b", "initializer": None, "pre_stop": {"handler": ""}})
    assert config == StartConfig(handler="a.b")


def test_the_documented_variables_win() -> None:
    config = parse_start({"handler": "a.b", "env": {"PATH": "/mine", "FC_REGION": "x"}, "region": "here"})
    env = worker_environment(config)
    assert env["PATH"] == "/.roost/bin:/mine:/root/.local/bin"
    assert env["FC_REGION"] == "here"
    assert "FC_SERVER_PORT" not in env
