"""Whatever a room says, what reads it on the host's side goes on: no error of its own, nothing out of bounds.

`make fuzz` tries a few hundred times as many cases of each.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roost.gateway.head import ResponseHead
from roost.gateway.upstream import UpstreamConnection
from roost.instances.link import GuestLink, WorkerExit
from roost.isolation.egress import client_hello
from roost.isolation.egress.addresses import canonical
from roost.isolation.egress.outward import RoomProxy
from roost.isolation.egress.rules import Policy, Reach, parse_rules
from roost.model.errors import InvalidArgument, Unavailable
from roost.sandboxes.daemon import CommandRefused, DaemonRunner
from tests.fuzz.shapes import around, cut, hello, json_values, mutated

# --- the control connection ------------------------------------------------------------------------------------------

EVENTS = ("log", "ready", "failed", "exited", "pre_stopped", "", "unknown")
FIELDS = ("stream", "text", "init_ms", "error", "code", "signal", "errorType", "errorMessage", "stackTrace")
MESSAGES = st.dictionaries(st.sampled_from(FIELDS), json_values(FIELDS), max_size=5).flatmap(
    lambda fields: st.sampled_from(EVENTS).map(lambda event: {"event": event, **fields})
)


@given(st.lists(st.one_of(MESSAGES.map(lambda one: json.dumps(one).encode()), st.binary(max_size=200)), max_size=8))
@example([b'{"event": "ready", "init_ms": 1e999}', b'{"event": "log", "text": "\\ud800"}', b"[" * 100_000])
def test_control_messages(lines: list[bytes]) -> None:
    async def run() -> None:
        logged: list[tuple[str, str]] = []
        ends: list[WorkerExit] = []
        link = GuestLink(
            Path("/nowhere"),
            on_log=lambda stream, text: logged.append((stream, text)),
            on_exit=ends.append,
            on_lost=lambda: None,
        )
        for line in lines:
            answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            link._ready = answer
            link._receive(line)
            if answer.done() and answer.exception() is None:
                assert 0 <= answer.result() < float("inf")
        for stream, text in logged:
            assert stream in {"stdout", "stderr"}
            text.encode()
        for end in ends:
            assert all(value is None or 0 <= value < 256 for value in (end.code, end.signal))

    asyncio.run(run())


# --- replies ---------------------------------------------------------------------------------------------------------

REPLIES = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nraw",
]


class Taker:
    """What a client would have got."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.ended = ""

    def head(self, head: ResponseHead) -> bool:
        assert not self.status
        assert 100 <= head.status <= 999
        assert not any(byte in part for field in head.fields for part in field for byte in b"\r\n\0")
        self.status = head.status
        return True

    def piece(self, data: bytes) -> None:
        assert self.status
        assert not self.ended
        self.body += data

    def end(self) -> None:
        assert not self.ended
        self.ended = "whole"

    def flush(self) -> None: ...

    def lost(self, error: Exception | None) -> None:
        assert not self.ended
        self.ended = "lost"

    def upstream_writable(self, writable: bool) -> None: ...


class Wire(asyncio.Transport):
    """A connection that only notes whether it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def taken(data: bytes, pieces: list[int], deadlines: Any) -> tuple[int, bytes, str]:
    async def run() -> tuple[int, bytes, str]:
        taker, wire = Taker(), Wire()
        connection = UpstreamConnection(deadlines)
        connection.connection_made(wire)
        connection.begin(taker)
        for piece in cut(data, pieces):
            if not wire.closed:
                connection.data_received(piece)
            for _ in range(50):  # steps of a large body
                await asyncio.sleep(0)
        if not wire.closed:
            connection.eof_received()
        connection.connection_lost(None)
        return taker.status, taker.body, taker.ended

    return asyncio.run(run())


@given(mutated(REPLIES), st.lists(st.integers(0, 400), max_size=4))
def test_replies(data: bytes, pieces: list[int]) -> None:
    status, body, ended = taken(data, [], Deadlines())
    assert ended
    again = taken(data, pieces, Deadlines())
    assert (again[0], again[2]) == (status, ended)
    # What is broken further on is given as far as it had come.
    assert again[1] == body if ended == "whole" else again[1].startswith(body)


class Deadlines:
    """None are due."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: None


# --- a daemon that runs commands of builds ---------------------------------------------------------------------------


def envelope(value: Any, flags: int = 0) -> bytes:
    data = json.dumps(value).encode()
    return bytes([flags]) + len(data).to_bytes(4, "big") + data


ENDS = [
    envelope({"event": {"start": {"pid": 5}}})
    + envelope({"event": {"data": {"stdout": base64.b64encode(b"line\n").decode()}}})
    + envelope({"event": {"end": {"exited": True, "exitCode": 3}}})
    + envelope({}, 2),
    envelope({"error": {"code": "not_found", "message": "no such user"}}, 2),
]


@given(st.one_of(mutated(ENDS), st.lists(json_values(("event", "start", "data", "end", "pid", "error")), max_size=4)))
def test_a_daemon_s_answers(said: bytes | list[Any]) -> None:
    content = said if isinstance(said, bytes) else b"".join(map(envelope, said))
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(content)))
    lines: list[str] = []

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(httpx, "AsyncHTTPTransport", lambda uds: transport)
            try:
                code = await DaemonRunner().run(
                    "/room", "true", user="root", cwd="/", env={}, on_line=lambda stream, text: lines.append(text)
                )
            except (CommandRefused, Unavailable) as error:
                error.message.encode("utf-8", "replace")
            else:
                assert 0 <= code < 256

    asyncio.run(run())


# --- the proxy -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of names that Python can't decode
@given(mutated([hello("good.test"), hello("a" * 60 + ".example.com"), hello(None)]))
def test_a_hello_is_read_as_openssl_reads_it(data: bytes) -> None:
    try:
        read = client_hello.read(data)
    except client_hello.NoHello:
        return
    heard = openssl_hears(data)
    if read is not None and heard is not None:
        assert (read.name or None) == (heard.lower() or None)


def openssl_hears(data: bytes) -> str | None:
    """The name that OpenSSL's server takes from it; "" for none, None if it is refused or cut."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda tls, name, _: names.append(name)  # type: ignore[assignment]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError, UnicodeError):
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    return (names[0] or "") if names else None


@given(st.one_of(st.from_regex(r"[0-9a-fx.]{1,20}", fullmatch=True), st.text(max_size=30), around("127.0.0.1")))
@example("0x7f.1")
@example("2130706433")
@example("127.1")
@example("１２７.0.0.1")  # noqa: RUF001
def test_no_address_passes_for_a_name(text: str) -> None:
    try:
        found = canonical(text)
    except InvalidArgument:
        return
    if isinstance(found, str):
        with pytest.raises(OSError):
            socket.inet_aton(found)
        assert found == found.encode("ascii").decode().lower()
    else:
        assert found == ipaddress.ip_address(str(found))


ASKED = [
    b"GET http://good.test/a HTTP/1.1\r\nhost: good.test\r\n\r\n",
    b"POST http://good.test:80/ HTTP/1.1\r\nhost: good.test\r\ncontent-length: 3\r\n\r\nabc",
    b"CONNECT good.test:443 HTTP/1.1\r\nhost: good.test:443\r\n\r\n",
    b"\x05\x01\x00\x05\x01\x00\x03\x09good.test\x01\xbb",
    b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
]


def test_what_is_asked_of_the_proxy(tmp_path: Path) -> None:
    """One proxy for all cases: what one does to it, the next would meet."""
    asked: set[tuple[str, int]] = set()

    async def resolve(name: str, port: int) -> list[Any]:
        asked.add((name, port))
        return []

    with asyncio.Runner() as runner:
        path = tmp_path / "proxy.sock"
        proxy = RoomProxy(path, Policy(allow=parse_rules(["good.test"])), Reach(), resolve)
        runner.run(proxy.start())

        async def say(data: bytes) -> bytes:
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(data)
                writer.write_eof()
                async with asyncio.timeout(10):
                    return await reader.read()
            except (ConnectionResetError, BrokenPipeError):
                return b""
            finally:
                writer.transport.abort()

        @given(mutated(ASKED))
        def case(data: bytes) -> None:
            reply = runner.run(say(data))
            assert b" 200 " not in reply[:20]
            assert asked <= {("good.test", 80), ("good.test", 443)}

        case()
        assert runner.run(say(ASKED[2])).startswith(b"HTTP/1.1 502 ")  # still there
        runner.run(proxy.close())
        assert proxy._open == {}
