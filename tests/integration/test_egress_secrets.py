"""What the proxy puts into a room's requests and takes out of the replies, before TLS servers of this test."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from roost.isolation.egress.authority import BUNDLE, Authority
from roost.isolation.egress.injection import injection_of
from roost.isolation.egress.injector import Injector
from roost.isolation.egress.outward import RoomProxy
from roost.isolation.egress.placeholders import placeholder
from roost.isolation.egress.rules import Policy, parse_rules
from roost.model.secret import Secret
from tests.integration.test_egress_outward import HOUSE, LOOPBACK, Handler, World
from tests.support.tls import certificate

VALUE = "sk-live-0123456789"
OTHER = "tok-other-0123456789"


class Told(World):
    """The same with secrets, servers of TLS, and a client in the place of the room."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.secrets: dict[str, Secret] = {}
        self.used: list[tuple[str, str]] = []
        self.names["good.test"] = self.names["other.test"] = self.names["bad.test"] = [HOUSE]
        self.trusted = ssl.create_default_context()
        self.found: list[str] = []
        self.shown = folder / "egress"
        self.shown.mkdir()

    def keep(self, name: str, value: str = VALUE, **metadata: str) -> None:
        self.secrets[name] = Secret(
            account="a", id=f"sec_{name}", name=name, value=value, metadata=metadata, created=0, updated=0
        )

    async def find(self, name: str) -> Secret | None:
        self.found.append(name)
        return self.secrets.get(name)

    async def look(self, *allow: str, rules: dict[str, Any] | None = None, variables: list[str] | None = None) -> None:
        injector = Injector(injection_of(rules or {}, variables or []), self.find, lambda *what: self.used.append(what))
        self.authority = Authority.open(self.folder, self.shown)
        self.proxy = RoomProxy(
            self.folder / "proxy.sock",
            Policy(allow=parse_rules(allow)),
            LOOPBACK,
            self.resolve,
            on_bytes=self.count,
            on_request=lambda target, allowed: self.told.append((target, allowed)),
            injector=injector,
            authority=self.authority,
            trust=lambda: self.trusted,
        )
        await self.proxy.start()
        self._stack.push_async_callback(self.proxy.close)

    async def tls(self, handler: Handler, name: str = "good.test", *, trusted: bool = True) -> int:
        cert, key = certificate(self.folder, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        if trusted:
            self.trusted.load_verify_locations(cert)
        return await self.serve(handler, context)

    async def fetch(self, url: str, *, bundle: Path | None = None, **options: Any) -> httpx.Response:
        """As a program in the room does that knows the proxy and trusts what it is told to."""
        relay = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = relay.sockets[0].getsockname()[1]
        verify = ssl.create_default_context(cafile=str(bundle or self.shown / BUNDLE))
        try:
            async with httpx.AsyncClient(proxy=f"http://127.0.0.1:{port}", verify=verify, trust_env=False) as client:
                return await client.request(options.pop("method", "GET"), url, timeout=10, **options)
        finally:
            relay.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_unix_connection(str(self.folder / "proxy.sock"))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, far[1]), pump(far[0], writer), return_exceptions=True)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[Told]:
    made = Told(tmp_path)
    yield made
    await made.close()


def echo(seen: list[bytes], *more: bytes, cut: int = 0) -> Handler:
    """Says back what it was sent, in the head and in the body, in pieces of `cut` bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        auth = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"authorization")), b"none: 1")
        fields = [b"x-echo: " + auth, b"content-length: %d" % len(head), *more]
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(fields) + b"\r\n\r\n")
        for at in range(0, len(head), cut or len(head)):
            writer.write(head[at : at + (cut or len(head))])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    return handle


async def test_a_placeholder_becomes_the_value_at_the_secret_s_host_and_never_comes_back(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen, cut=3))
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    reply = await world.fetch(
        f"https://good.test:{port}/a?key={placeholder('api')}",
        headers={"authorization": f"Bearer {placeholder('api')}"},
    )
    assert reply.status_code == 200
    assert f"Bearer {VALUE}".encode() in seen[0]
    assert f"GET /a?key={VALUE} ".encode() in seen[0]
    assert VALUE not in reply.text
    assert VALUE not in str(reply.headers)
    assert f"Bearer {'*' * len(VALUE)}" in reply.headers["x-echo"]
    assert world.used == [("api", f"good.test:{port}")]
    assert world.told == [(f"good.test:{port}", True)]


async def test_a_placeholder_stays_one_at_every_other_host(world: Told) -> None:
    seen: list[bytes] = []
    one, two = await world.tls(echo(seen)), await world.tls(echo(seen), "other.test")
    world.keep("api", hosts=f"good.test:{one}")
    world.keep("two", OTHER, hosts=f"other.test:{two}")
    await world.look(f"good.test:{one}", f"other.test:{two}", variables=[placeholder("api"), placeholder("two")])
    reply = await world.fetch(f"https://other.test:{two}/", headers={"authorization": placeholder("api")})
    assert reply.status_code == 200
    assert placeholder("api").encode() in seen[0]
    assert VALUE.encode() not in seen[0]
    assert world.used == []


async def test_a_secret_that_was_not_granted_is_not_put_in(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    world.keep("api", hosts=f"good.test:{port}")
    world.keep("private", OTHER, hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    await world.fetch(f"https://good.test:{port}/", headers={"authorization": placeholder("private")})
    assert placeholder("private").encode() in seen[0]
    assert OTHER.encode() not in seen[0]


async def test_basic_authentication_is_filled(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    reply = await world.fetch(f"https://good.test:{port}/", auth=("me", placeholder("api")))
    sent = base64.b64encode(f"me:{VALUE}".encode())
    assert b"Basic " + sent in seen[0]
    assert VALUE not in reply.text


async def test_a_rule_s_header_replaces_the_room_s(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    world.keep("api")  # bound by the rule alone
    rules = {f"good.test:{port}": [{"transform": {"headers": {"Authorization": f"Bearer {placeholder('api')}"}}}]}
    await world.look(f"good.test:{port}", rules=rules)
    reply = await world.fetch(f"https://good.test:{port}/", headers={"authorization": "mine"})
    assert seen[0].lower().count(b"authorization:") == 1
    assert f"Bearer {VALUE}".encode() in seen[0]
    assert b"mine" not in seen[0]
    assert VALUE not in reply.text
    del world.secrets["api"]
    gone = await world.fetch(f"https://good.test:{port}/")
    assert gone.status_code == 502
    assert "does not exist" in gone.text


async def test_a_new_value_holds_from_the_next_request(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    for value in (VALUE, OTHER):
        world.keep("api", value, hosts=f"good.test:{port}")
        await world.fetch(f"https://good.test:{port}/", headers={"x-key": placeholder("api")})
    assert [VALUE.encode() in seen[0], OTHER.encode() in seen[1]] == [True, True]
    assert world.found == ["api", "api"]  # once for each request


async def test_a_reply_that_can_not_be_looked_through_is_not_given(world: Told) -> None:
    port = await world.tls(echo([], b"content-encoding: gzip"))
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    reply = await world.fetch(f"https://good.test:{port}/", headers={"authorization": placeholder("api")})
    assert reply.status_code == 502
    assert "compressed" in reply.text


async def test_a_value_that_would_split_a_request_is_not_sent(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    world.keep("api", "a\r\nhost: evil.test", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    reply = await world.fetch(f"https://good.test:{port}/", headers={"authorization": placeholder("api")})
    assert reply.status_code == 502
    assert seen == []


async def test_a_server_that_can_not_prove_its_name_gets_nothing(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen), trusted=False)
    wrong = await world.tls(echo(seen), "bad.test")
    world.keep("api", hosts=f"good.test:{port} good.test:{wrong}")
    await world.look(f"good.test:{port}", f"good.test:{wrong}", variables=[placeholder("api")])
    for one in (port, wrong):
        reply = await world.fetch(f"https://good.test:{one}/", headers={"authorization": placeholder("api")})
        assert reply.status_code == 502
        assert "can't prove who it is" in reply.text
    assert seen == []


async def test_only_what_has_to_be_is_looked_into(world: Told) -> None:
    """A tunnel to a host without a secret is the client's and the server's own."""
    port = await world.tls(echo([]), "other.test")
    world.keep("api", hosts="good.test")
    await world.look(f"other.test:{port}", variables=[placeholder("api")])
    own = world.folder / "other.test.crt"
    reply = await world.fetch(f"https://other.test:{port}/", bundle=own)
    assert reply.status_code == 200
    with pytest.raises(httpx.ConnectError):  # the room's authority has not signed this one
        await world.fetch(f"https://other.test:{port}/")


async def test_methods_and_paths_of_https_are_judged(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    await world.look(f"GET good.test:{port}/v1/*")
    assert (await world.fetch(f"https://good.test:{port}/v1/a?b")).status_code == 200
    for method, path in (("POST", "/v1/a"), ("GET", "/v2"), ("GET", "/v1/%2e%2e/v2")):
        reply = await world.fetch(f"https://good.test:{port}{path}", method=method)
        assert reply.status_code == 403
    assert len(seen) == 1


async def test_a_tunnel_that_is_looked_into_is_for_the_host_it_names(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.tls(echo(seen))
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    reply = await world.fetch(f"https://good.test:{port}/", headers={"host": "bad.test"})
    assert reply.status_code == 400
    # TLS for another name, no TLS at all: the tunnel is cut
    hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = hello.wrap_bio(incoming, outgoing, server_hostname="bad.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    for first in (outgoing.read(), b"GET / HTTP/1.1\r\nhost: good.test\r\n\r\n"):
        said = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: good.test:%d\r\n\r\n" % (port, port) + first)
        assert said == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert seen == []
    assert world.told[-1] == (f"good.test:{port}", False)


async def test_a_secret_is_not_sent_in_the_clear(world: Told) -> None:
    seen: list[bytes] = []
    port = await world.serve(echo(seen))
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    await world.fetch(f"http://good.test:{port}/", headers={"authorization": placeholder("api")})
    assert VALUE.encode() not in seen[0]
    world.keep("api", hosts=f"http://good.test:{port}")
    await world.fetch(f"http://good.test:{port}/", headers={"authorization": placeholder("api")})
    assert VALUE.encode() in seen[1]


async def test_bodies_go_both_ways_and_streams_are_not_held(world: Told) -> None:
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.append(await reader.readexactly(300_000))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(3):
            part = f"data: {json.dumps({'n': number, 'k': VALUE})}\n\n".encode()
            writer.write(b"%x\r\n" % len(part) + part + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        writer.close()

    port = await world.tls(handle)
    world.keep("api", hosts=f"good.test:{port}")
    await world.look(f"good.test:{port}", variables=[placeholder("api")])
    reply = await world.fetch(f"https://good.test:{port}/", method="POST", content=b"x" * 300_000)
    assert got == [b"x" * 300_000]
    assert [json.loads(line[6:])["n"] for line in reply.text.splitlines() if line] == [0, 1, 2]
    assert VALUE not in reply.text


def test_an_authority_is_the_room_s_own_and_lasts(tmp_path: Path) -> None:
    for room in ("one", "two"):
        (tmp_path / room / "egress").mkdir(parents=True)
    first = Authority.open(tmp_path / "one", tmp_path / "one" / "egress")
    bundle = (tmp_path / "one" / "egress" / BUNDLE).read_bytes()
    again = Authority.open(tmp_path / "one", tmp_path / "one" / "egress")
    assert (tmp_path / "one" / "egress" / BUNDLE).read_bytes() == bundle
    assert again._certificate == first._certificate
    Authority.open(tmp_path / "two", tmp_path / "two" / "egress")
    assert (tmp_path / "two" / "egress" / BUNDLE).read_bytes() != bundle
    assert b"PRIVATE" not in bundle
    assert stat.S_IMODE((tmp_path / "one" / "authority.pem").stat().st_mode) == 0o600
    (tmp_path / "one" / "authority.pem").write_bytes(b"cut")
    Authority.open(tmp_path / "one", tmp_path / "one" / "egress")
    for number in range(100):
        first.context(f"host-{number}.test")
    assert len(first._contexts) == 64
