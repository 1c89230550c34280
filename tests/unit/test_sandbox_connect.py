"""The Connect protocol's framing, its messages, and what headers say: pure."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.guest.http1 import Head
from roost.guest.sandbox.caller import keepalive_of, user_of
from roost.guest.sandbox.connect import Code, ConnectError, Envelopes, end_of_stream, envelope, timeout_of
from roost.guest.sandbox.endings import ending_of
from roost.guest.sandbox.identities import Identities
from roost.guest.sandbox.messages import BadField, Message, parse
from tests.support.sandbox import GROUP, PASSWD, basic


def head(**fields: str) -> Head:
    return Head("POST", "/", "1.1", [(name.replace("_", "-"), value) for name, value in fields.items()])


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 17))
def test_messages_survive_any_cut(messages: list[bytes], step: int) -> None:
    data = b"".join(envelope(message) for message in messages)
    reader = Envelopes()
    found = [message for at in range(0, len(data), step) for message in reader.feed(data[at : at + step])]
    assert found == messages
    assert not reader.partial


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x01\0\0\0\x01x", Code.INTERNAL),
        (b"\x02\0\0\0\x02{}", Code.INVALID_ARGUMENT),
        (b"\0\0\0\0\x0b", Code.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED),
    ],
)
def test_envelopes_that_are_refused(data: bytes, code: Code) -> None:
    with pytest.raises(ConnectError) as caught:
        Envelopes(limit=10).feed(data)
    assert caught.value.code == code


def test_compressed_messages_among_others() -> None:
    reader = Envelopes(limit=1000, gzip=True)
    packed = gzip.compress(b"x" * 1000)
    assert reader.feed(envelope(b"a") + b"\x01" + envelope(packed)[1:] + b"\x01\0\0\0\0") == [b"a", b"x" * 1000, b""]
    for data, code in (
        (gzip.compress(b"x" * 1001), Code.RESOURCE_EXHAUSTED),
        (packed[:-3], Code.INVALID_ARGUMENT),
        (b"no gzip", Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(ConnectError) as caught:
            Envelopes(limit=1000, gzip=True).feed(b"\x01" + envelope(data)[1:])
        assert caught.value.code == code


def test_a_stream_ends_with_its_error() -> None:
    assert end_of_stream(None) == b"\x02\0\0\0\x02{}"
    data = end_of_stream(ConnectError(Code.NOT_FOUND, 'no "x"'))
    assert (data[0], json.loads(data[5:])) == (2, {"error": {"code": "not_found", "message": 'no "x"'}})
    assert ConnectError(Code.UNAUTHENTICATED, "").status == 401


def test_timeouts_and_keepalives() -> None:
    assert timeout_of(head()) is None
    assert timeout_of(head(connect_timeout_ms="0")) is None
    assert timeout_of(head(connect_timeout_ms="1500")) == 1.5
    for text in ("-1", "1.5", "x", "1" * 11):
        with pytest.raises(ConnectError):
            timeout_of(head(connect_timeout_ms=text))
    assert keepalive_of(head(keepalive_ping_interval="50")) == 50
    for text in ("", "0", "-3", "soon", "9" * 9):
        assert keepalive_of(head(keepalive_ping_interval=text)) == 90


def test_fields_are_checked() -> None:
    message = parse(
        json.dumps(
            {
                "text": "ü", "n": "7", "f": 7.0, "list": ["a"], "map": {"a": "b"}, "flag": True, "snake_case": "s",
                "data": "_-8", "message": {"x": None}, "null": None, "kind": "NAME",
            }
        ).encode()
    )  # fmt: skip
    assert (message.text("text"), message.unsigned("n"), message.unsigned("f")) == ("ü", 7, 7)
    assert (message.texts("list"), message.text_map("map"), message.flag("flag")) == (["a"], {"a": "b"}, True)
    assert (message.text("snakeCase"), message.data("data"), message.enum("kind")) == ("s", b"\xff\xef", "NAME")
    assert not message.message("message").has("x")
    assert not message.has("null")
    assert message.text("absent", "default") == "default"
    assert Message({}).message("absent").message("absent").data("absent") == b""


@pytest.mark.parametrize("data", [b"[]", b"1", b"{", b"\xff", b"nul", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(BadField):
        parse(data)


@pytest.mark.parametrize(
    "value", [1, ["a", 1], {"a": 1}, "a\0b", "\ud800", True, -1, 2**32, 1.5, "not base64!", [["a"]]]
)
def test_fields_of_a_wrong_type(value: object) -> None:
    message = Message({"field": value})
    reads = [message.text, message.texts, message.text_map, message.unsigned, message.flag, message.data]
    reads += [message.message, message.enum]
    refused = 0
    for read in reads:
        try:
            read("field")
        except BadField as error:
            assert "field" in str(error)
            refused += 1
    assert refused >= len(reads) - 2


def test_who_calls(tmp_path) -> None:
    (tmp_path / "passwd").write_text(PASSWD + "broken\nbad:x:-1:0::/:\nhuge:x:99999999999:0::/:\nuser:x:5:5::/:\n")
    (tmp_path / "group").write_text(GROUP)
    identities = Identities(default="user", env={"A": "1"}, database=tmp_path)
    user = user_of(head(), identities)
    assert (user.name, user.uid, user.groups, user.home) == ("user", 1000, (1000, 2000), "/home/user")
    assert user_of(head(authorization=basic("root")), identities).uid == 0
    assert user_of(head(authorization="Bearer x"), identities).name == "user"
    assert user_of(head(authorization="Basic !!"), identities).name == "user"
    for name in ("bad", "huge", "broken", "", "nobody"):
        with pytest.raises(ConnectError, match="invalid username"):
            user_of(head(authorization=basic(name)), identities)
    assert identities.environment(user)["A"] == "1"
    assert identities.environment(user)["HOME"] == "/home/user"
    assert (identities.names().user(1001), identities.names().user(77)) == ("other", "77")
    (tmp_path / "passwd").write_text("fresh:x:1000:1000::/f:/bin/sh\n")
    assert identities.by_uid(1000).name == "fresh"


def test_endings_in_the_words_of_go() -> None:
    told = [ending_of(0, None, False), ending_of(3, None, False), ending_of(None, 9, False), ending_of(None, 11, True)]
    assert [(end.code, end.exited, end.status, end.error) for end in told] == [
        (0, True, "exit status 0", None),
        (3, True, "exit status 3", "exit status 3"),
        (-1, False, "signal: killed", "signal: killed"),
        (-1, False, "signal: segmentation fault (core dumped)", "signal: segmentation fault (core dumped)"),
    ]
    assert ending_of(None, 60, False).status == "signal: signal 60"
