"""The proxy through which a room reaches the world, before servers of this test on loopback; with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from roost.isolation.egress.addresses import Address
from roost.isolation.egress.outward import OutwardLimits, RoomProxy
from roost.isolation.egress.resolver import Resolver
from roost.isolation.egress.rules import Policy, Reach, parse_networks, parse_rules
from roost.model.errors import Throttled
from tests.support.tls import certificate

LOOPBACK = Reach(private=parse_networks(["127.0.0.0/8"]))
HOUSE = ipaddress.ip_address("127.0.0.1")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class World:
    """A proxy, canaries on loopback behind names that this test resolves, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, list[Address]] = {"good.test": [HOUSE], "bad.test": [HOUSE]}
        self.asked: list[str] = []
        self.told: list[tuple[str, bool]] = []
        self.bytes = 0
        self.most = 1 << 40
        self._stack = contextlib.AsyncExitStack()
        self.proxy: RoomProxy | None = None

    async def resolve(self, name: str, port: int) -> list[Address]:
        self.asked.append(name)
        if name not in self.names:
            raise socket.gaierror(-2, "unknown")
        return self.names[name]

    def count(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.most:
            raise Throttled("used up")

    async def open(self, *allow: str, reach: Reach = LOOPBACK, limits: OutwardLimits | None = None) -> RoomProxy:
        self.proxy = RoomProxy(
            self.folder / "proxy.sock",
            Policy(allow=parse_rules(allow)),
            reach,
            self.resolve,
            on_bytes=self.count,
            on_request=lambda target, allowed: self.told.append((target, allowed)),
            limits=limits,
        )
        await self.proxy.start()
        self._stack.push_async_callback(self.proxy.close)
        return self.proxy

    async def serve(self, handler: Handler, context: ssl.SSLContext | None = None) -> int:
        server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
        self._stack.callback(server.close)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def talk(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "proxy.sock"))
        self._stack.callback(writer.transport.abort)
        return reader, writer

    async def say(self, data: bytes) -> bytes:
        reader, writer = await self.talk()
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()

    async def close(self) -> None:
        await self._stack.aclose()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def web(seen: list[bytes], reply: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        seen.append(head + await reader.readexactly(length))
        writer.write(reply)
        writer.close()

    return handle


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


# --- plain HTTP ------------------------------------------------------------------------------------------------------


async def test_a_request_goes_to_the_right_server_and_its_reply_comes_back(world: World) -> None:
    seen: list[bytes] = []
    port = await world.serve(web(seen))
    await world.open(f"good.test:{port}")
    reply = await world.say(
        b"POST http://good.test:%d/a?b=c HTTP/1.1\r\nhost: good.test:%d\r\ncontent-length: 4\r\n"
        b"proxy-authorization: secret\r\nconnection: keep-alive\r\n\r\nbody" % (port, port)
    )
    assert status(reply) == 200
    assert reply.endswith(b"\r\n\r\nhello")
    assert b"connection: close" in reply.lower()
    [head] = seen
    assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert head.endswith(b"body")
    assert b"proxy-authorization" not in head.lower()
    assert world.told == [(f"good.test:{port}", True)]
    assert world.bytes > 100


async def test_bodies_of_unknown_length_go_both_ways(world: World) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.readuntil(b"0\r\n\r\n")
        assert b"5\r\nfirst\r\n6\r\nsecond\r\n" in got
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")
        writer.close()

    port = await world.serve(handle)
    await world.open(f"good.test:{port}")
    reply = await world.say(
        b"PUT http://good.test:%d/ HTTP/1.1\r\nhost: good.test:%d\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n" % (port, port)
    )
    assert status(reply) == 200
    assert b"first" in reply and b"second" in reply


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [("GET", "/v1/x", 200), ("POST", "/v1/x", 403), ("GET", "/v2", 403), ("GET", "/v1/../v2", 403)],
)
async def test_methods_and_paths_are_looked_at(world: World, method: str, path: str, wanted: int) -> None:
    seen: list[bytes] = []
    port = await world.serve(web(seen))
    await world.open(f"GET good.test:{port}/v1/*")
    line = f"{method} http://good.test:{port}{path} HTTP/1.1\r\nhost: good.test:{port}\r\ncontent-length: 0\r\n\r\n"
    assert status(await world.say(line.encode())) == wanted
    assert len(seen) == (wanted == 200)


@pytest.mark.parametrize(
    ("request_bytes", "wanted"),
    [
        (b"GET http://bad.test:{port}/ HTTP/1.1\r\nhost: bad.test:{port}\r\n\r\n", 403),
        (b"GET http://GOOD.test:{port}/ HTTP/1.1\r\nhost: good.TEST:{port}\r\n\r\n", 200),
        (b"GET http://good.test:{port}/ HTTP/1.1\r\nhost: bad.test:{port}\r\n\r\n", 400),
        (b"GET http://good.test:{port}/ HTTP/1.1\r\nhost: good.test\r\n\r\n", 400),
        (b"GET http://good.test.:{port}/ HTTP/1.1\r\nhost: good.test.:{port}\r\n\r\n", 400),
        (b"GET http://good.test.evil.org:{port}/ HTTP/1.1\r\nhost: good.test.evil.org:{port}\r\n\r\n", 403),
        (b"GET http://user@good.test:{port}/ HTTP/1.1\r\nhost: good.test:{port}\r\n\r\n", 400),
        (b"GET https://good.test:{port}/ HTTP/1.1\r\nhost: good.test:{port}\r\n\r\n", 400),
        (b"GET /path HTTP/1.1\r\nhost: good.test:{port}\r\n\r\n", 400),
        (b"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n", 403),
        (b"GET http://2130706433:{port}/ HTTP/1.1\r\nhost: 2130706433:{port}\r\n\r\n", 400),
        (b"GET http://0x7f.1:{port}/ HTTP/1.1\r\nhost: 0x7f.1:{port}\r\n\r\n", 400),
        (b"GET http://[::ffff:127.0.0.1]:{port}/ HTTP/1.1\r\nhost: [::ffff:127.0.0.1]:{port}\r\n\r\n", 403),
        (b"POST http://good.test:{port}/ HTTP/1.1\r\nhost: good.test:{port}\r\n"
         b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST http://good.test:{port}/ HTTP/1.1\r\nhost: good.test:{port}\r\n"
         b"content-length: 4\r\ncontent-length: 5\r\n\r\nbody", 400),
        (b"GET http://good.test:{port}/\x01 HTTP/1.1\r\nhost: good.test:{port}\r\n\r\n", 400),
        (b"GET http://good.test:{port}/ HTTP/1.1\r\nhost: good.test:{port}\r\nx : y\r\n\r\n", 400),
        (b"GET http://good.test:{port}/ HTTP/1.1\r\nhost: good.test:{port}\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
    ],
)  # fmt: skip
async def test_tricks_are_refused_before_anything_is_dialled(world: World, request_bytes: bytes, wanted: int) -> None:
    seen: list[bytes] = []
    port = await world.serve(web(seen))
    await world.open(f"good.test:{port}")
    reply = await world.say(request_bytes.replace(b"{port}", str(port).encode()))
    assert status(reply) == wanted, reply
    assert len(seen) == (wanted == 200)


async def test_a_second_request_on_the_same_connection_reaches_nobody(world: World) -> None:
    seen: list[bytes] = []
    port = await world.serve(web(seen))
    await world.open(f"good.test:{port}")
    one = b"GET http://good.test:%d/ HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port)
    reply = await world.say(one + one.replace(b"good.test", b"bad.test"))
    assert reply.count(b"HTTP/1.1 200") == 1
    assert len(seen) == 1


@pytest.mark.parametrize(("host", "wanted"), [("good.test", 413), ("bad.test", 403)], ids=["by a server", "here"])
async def test_who_is_answered_while_it_still_sends_gets_to_read_it(world: World, host: str, wanted: int) -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
        writer.write_eof()
        await reader.read()
        writer.close()

    port = await world.serve(early)
    await world.open(f"good.test:{port}")
    reader, writer = await world.talk()
    head = f"POST http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 200000\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(10):
        said = await reader.readuntil(b"\r\n\r\n")
        for _ in range(20):
            writer.write(bytes(10_000))
            await writer.drain()
            await asyncio.sleep(0)
        assert status(said) == wanted and len(await reader.read()) < 200


async def test_a_redirect_is_another_request(world: World) -> None:
    seen: list[bytes] = []
    port = await world.serve(
        web(seen, b"HTTP/1.1 302 Found\r\nlocation: http://bad.test/\r\ncontent-length: 0\r\n\r\n")
    )
    await world.open(f"good.test:{port}")
    reply = await world.say(b"GET http://good.test:%d/ HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port))
    assert status(reply) == 302
    assert world.asked == ["good.test"]


async def test_who_breaks_off_or_speaks_no_http_is_named(world: World) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-something\r\n")
        writer.close()

    port = await world.serve(rude)
    await world.open(f"good.test:{port}", "gone.test:1")
    reply = await world.say(b"GET http://good.test:%d/ HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port))
    assert status(reply) == 502
    reply = await world.say(b"GET http://gone.test:1/ HTTP/1.1\r\nhost: gone.test:1\r\n\r\n")
    assert status(reply) == 502
    assert b"gone.test has no address" in reply


# --- where names lead ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["169.254.169.254"], ["::1"], ["10.0.0.1"]]
)
async def test_a_name_that_leads_inside_is_refused(world: World, addresses: list[str]) -> None:
    port = await world.serve(echo)
    world.names["good.test"] = [ipaddress.ip_address(one) for one in addresses]
    await world.open(f"good.test:{port}", reach=Reach())
    reply = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port))
    assert status(reply) == 403
    assert b"this server's own networks" in reply
    assert world.told == [(f"good.test:{port}", False)]


async def test_a_name_is_resolved_once_and_that_address_is_dialled(world: World) -> None:
    """What a name leads to between the look and the dial makes no difference: there is no second look."""
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    reader, writer = await world.talk()
    writer.write(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % port)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 200
    assert world.asked == ["good.test"]


async def test_names_that_no_rule_is_about_are_told_to_no_resolver(world: World) -> None:
    await world.open("good.test")
    assert status(await world.say(b"CONNECT secret.evil.org:443 HTTP/1.1\r\nhost: x\r\n\r\n")) == 403
    assert world.asked == []


async def test_without_rules_nothing_is_reached(world: World) -> None:
    port = await world.serve(echo)
    await world.open()
    for asked in (b"good.test", b"127.0.0.1"):
        assert status(await world.say(b"CONNECT %b:%d HTTP/1.1\r\nhost: x\r\n\r\n" % (asked, port))) == 403


# --- tunnels ---------------------------------------------------------------------------------------------------------


async def test_a_tunnel_carries_what_it_is_given_both_ways_to_the_end(world: World) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    reader, writer = await world.talk()
    writer.write(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\nearly" % port)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 200
    data = bytes(range(256)) * 4096

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    async with asyncio.timeout(10):
        assert await reader.read(-1) == b"early" + data
    await sending
    assert world.bytes == 2 * len(b"early" + data)


def tls(folder: Path) -> ssl.SSLContext:
    cert, key = certificate(folder, "good.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


@pytest.mark.parametrize(
    ("name", "arrives"),
    [("good.test", True), ("GOOD.test", True), ("bad.test", False), (None, False), ("good.test.evil.org", False)],
)
async def test_tls_has_to_name_whom_the_tunnel_is_for(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str | None, arrives: bool
) -> None:
    port = await world.serve(echo, tls(world.folder))
    monkeypatch.setattr("roost.isolation.egress.messages.HTTPS", port)
    await world.open(f"good.test:{port}")
    reader, writer = await world.talk()
    writer.write(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % port)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 200
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for part in (hello[:3], hello[3:50], hello[50:]):  # it may come in pieces
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert bool(await reader.read(100)) is arrives
    assert ((f"good.test:{port}", False) in world.told) is not arrives


async def test_port_443_is_for_tls_and_80_for_http(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    port, plain = await world.serve(echo), await world.serve(web(seen))
    monkeypatch.setattr("roost.isolation.egress.messages.HTTPS", port)
    monkeypatch.setattr("roost.isolation.egress.messages.HTTP", plain)
    await world.open(f"good.test:{port}", f"GET good.test:{plain}/ok")
    assert (await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\nSSH-2.0-x\r\n" % port)).endswith(
        b"\r\n\r\n"
    )
    tunnel = b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % plain
    for inside, wanted in (
        (b"GET /ok HTTP/1.1\r\nhost: good.test\r\n\r\n", b"200 OK"),
        (b"GET /other HTTP/1.1\r\nhost: good.test\r\n\r\n", b"403 Refused"),
        (b"GET /ok HTTP/1.1\r\nhost: bad.test\r\n\r\n", b"400 Refused"),
        (b"GET http://bad.test/ HTTP/1.1\r\nhost: bad.test\r\n\r\n", b"400 Refused"),
        (b"SSH-2.0-x\r\n\r\n", b"400 Refused"),
    ):
        reply = await world.say(tunnel + inside)
        assert reply.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 " + wanted), reply
    assert len(seen) == 1
    reader, writer = await world.talk()
    writer.write(tunnel)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 200  # who waits for that is served as well
    writer.write(b"GET /ok HTTP/1.1\r\nhost: good.test\r\n\r\n")
    assert status(await reader.read()) == 200


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (b"\x05\x01\x00\x03\x09good.test", 0),
        (b"\x05\x01\x00\x03\x08bad.test", 2),
        (b"\x05\x01\x00\x03\x0agood.test\0", 2),
        (b"\x05\x01\x00\x03\x09gone.test", 4),
        (b"\x05\x01\x00\x01\x7f\x00\x00\x01", 2),
        (b"\x05\x02\x00\x03\x09good.test", 7),
        (b"\x05\x03\x00\x03\x09good.test", 7),
        (b"\x05\x01\x00\x09\x09good.test", 8),
    ],
)
async def test_socks(world: World, asked: bytes, code: int) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}", f"gone.test:{port}")
    reader, writer = await world.talk()
    writer.write(b"\x05\x02\x00\x02")
    assert await reader.readexactly(2) == b"\x05\x00"
    writer.write(asked + port.to_bytes(2, "big"))
    assert (await reader.readexactly(10))[1] == code
    if code == 0:
        writer.write(b"through")
        assert await reader.readexactly(7) == b"through"


async def test_socks_with_a_password_alone_is_refused(world: World) -> None:
    await world.open("good.test")
    assert await world.say(b"\x05\x01\x02") == b"\x05\xff"


# --- bounds, and life ------------------------------------------------------------------------------------------------


async def test_budgets_cut_a_tunnel(world: World) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}", limits=OutwardLimits(room_bytes=100_000))
    reader, writer = await world.talk()
    writer.write(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % port)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(bytes(1_000_000))
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read(-1)) < 100_000
    reply = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\nmore" % port)
    assert b"more" not in reply


async def test_a_policy_has_budgets_of_its_own_that_change_while_a_room_runs(world: World) -> None:
    port = await world.serve(echo)
    proxy = await world.open(f"good.test:{port}")
    connect = b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % port

    def held(**budgets: int) -> Policy:
        return Policy(allow=parse_rules([f"good.test:{port}"]), **budgets)

    proxy.change(held(most_connections=1))
    reader, writer = await world.talk()
    writer.write(connect)
    await reader.readuntil(b"\r\n\r\n")
    second, _ = await world.talk()
    with contextlib.suppress(ConnectionError):
        assert await second.read() == b""  # one too many
    proxy.change(held(most_bytes=50_000))
    other, more = await world.talk()
    more.write(connect)
    await other.readuntil(b"\r\n\r\n")
    writer.write(bytes(100_000))
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read(-1)) < 50_000
    assert b"more" not in await world.say(connect + b"more")
    proxy.change(held())  # what every room may, again: it has spent little of that
    reader, writer = await world.talk()
    writer.write(connect + b"more")
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(4) == b"more"


async def test_a_budget_that_ends_within_a_reply_cuts_it(world: World) -> None:
    body = bytes(50_000)
    port = await world.serve(web([], b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)))
    await world.open(f"good.test:{port}", limits=OutwardLimits(room_bytes=20_000))
    reader, writer = await world.talk()
    writer.write(b"GET http://good.test:%d/ HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port))
    reply = b""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                reply += part
    assert b"Refused" not in reply
    assert len(reply) < len(body)


async def test_lookups_that_hang_hold_up_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    def look(name: str, port: int, **options: Any) -> list[Any]:
        if name == "slow.test":
            hang.wait(20)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    resolver = Resolver(2)
    slow = [asyncio.create_task(resolver.resolve("slow.test", 1)) for _ in range(2)]
    await asyncio.sleep(0.05)
    for task in slow:
        task.cancel()
    third = asyncio.create_task(resolver.resolve("good.test", 1))
    await asyncio.sleep(0.05)
    assert not third.done()  # both places are taken still
    hang.set()
    async with asyncio.timeout(5):
        assert await third == [HOUSE]


async def test_a_tunnel_is_idle_when_neither_way_moves(world: World) -> None:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(12):
            writer.write(b"x")
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)

    port = await world.serve(tell)
    await world.open(f"good.test:{port}", limits=OutwardLimits(idle_s=0.5))
    began = asyncio.get_running_loop().time()
    reply = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % port)
    assert reply.endswith(b"x" * 12)  # the client was silent for longer than that
    assert asyncio.get_running_loop().time() - began < 8


async def test_an_account_s_budget_cuts_a_tunnel(world: World) -> None:
    port = await world.serve(echo)
    world.most = 1000
    await world.open(f"good.test:{port}")
    reply = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n%b" % (port, bytes(2000)))
    assert len(reply) < 1000


async def test_a_policy_that_changes_holds_at_once(world: World) -> None:
    port = await world.serve(echo)
    proxy = await world.open(f"good.test:{port}", f"bad.test:{port}")
    connect = b"CONNECT %b:%d HTTP/1.1\r\nhost: x\r\n\r\n"
    ends: dict[bytes, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    for name in (b"good.test", b"bad.test"):
        reader, writer = ends[name] = await world.talk()
        writer.write(connect % (name, port))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    proxy.change(Policy(allow=parse_rules([f"good.test:{port}"])))
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await ends[b"bad.test"][0].read() == b""
    reader, writer = ends[b"good.test"]
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"
    assert status(await world.say(connect % (b"bad.test", port))) == 403


async def test_slow_and_many_clients_are_bounded(world: World) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}", limits=OutwardLimits(head_s=0.3, connections=20))
    slow = [await world.talk() for _ in range(20)]
    for _, writer in slow:
        writer.write(b"CONNECT good")
    await asyncio.sleep(0.05)
    reader, _ = await world.talk()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""  # one too many
    async with asyncio.timeout(5):
        for reader, _ in slow:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    reply = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\n" % 1)
    assert status(reply) == 403  # there is room again


async def test_clients_and_servers_that_go_leave_nothing(world: World) -> None:
    gone = asyncio.Event()

    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    port = await world.serve(stay)
    proxy = await world.open(f"good.test:{port}")
    for request in (
        b"GET http://good.test:%d/ HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port),
        b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\nx" % port,
    ):
        gone.clear()
        _, writer = await world.talk()
        writer.write(request)
        await asyncio.sleep(0.1)
        writer.transport.abort()
        async with asyncio.timeout(5):
            await gone.wait()
    _, writer = await world.talk()
    writer.write(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\nx" % port)
    await asyncio.sleep(0.1)
    await proxy.close()
    await proxy.close()
    assert not (world.folder / "proxy.sock").exists()
    assert [task for task in asyncio.all_tasks() if "RoomProxy" in repr(task)] == []


# --- real clients ----------------------------------------------------------------------------------------------------


@pytest.fixture
def forwarded(tmp_path: Path) -> Any:
    """The port at which programs find the proxy, as in a room."""

    async def start() -> int:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_unix_connection(str(tmp_path / "proxy.sock"))

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    while data := await source.read(1 << 16):
                        sink.write(data)
                        await sink.drain()
                    sink.write_eof()

            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            writer.close()
            far_writer.close()

        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    return start


async def test_httpx_urllib_and_curl_go_through(world: World, forwarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = await world.serve(web([]))
    secure = await world.serve(web([]), tls(world.folder))
    monkeypatch.setattr("roost.isolation.egress.messages.HTTPS", secure)
    await world.open(f"good.test:{plain}", f"good.test:{secure}")
    proxy = f"http://127.0.0.1:{await forwarded()}"
    async with httpx.AsyncClient(proxy=proxy, trust_env=False, verify=False) as client:
        assert (await client.get(f"http://good.test:{plain}/")).text == "hello"
        assert (await client.get(f"https://good.test:{secure}/")).text == "hello"
        assert (await client.get(f"http://bad.test:{plain}/")).status_code == 403
        with pytest.raises(httpx.ProxyError, match="403"):
            await client.get(f"https://bad.test:{secure}/")
    code = (
        "import urllib.request;"
        f"print(urllib.request.build_opener(urllib.request.ProxyHandler({{'http': {proxy!r}}}))"
        f".open('http://good.test:{plain}/').read())"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.stdout.strip() == b"b'hello'", done.stderr
    for options in (["--proxy", proxy], ["--proxy", proxy.replace("http", "socks5h")]):
        command = ["curl", "-sk", "--max-time", "20", *options, f"https://good.test:{secure}/"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
        assert done.stdout == b"hello", (options, done)
