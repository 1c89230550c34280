"""The way out of a room for programs that know no proxy: a network namespace of this test, and the proxy behind it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from roost.isolation.driver import Door
from roost.isolation.egress.outward import OutwardLimits, RoomProxy
from roost.isolation.egress.rules import Policy, Reach, parse_rules
from roost.isolation.egress.transparent import Transparent
from roost.isolation.namespaces import doorman
from roost.isolation.namespaces.doors import Doors, check_doors
from roost.model.errors import InvalidArgument, Unavailable
from tests.integration.test_egress_outward import LOOPBACK, World, echo, tls, web
from tests.support.network_rooms import NetworkRoom, network_room

RESOLVER = "198.18.0.1"
Options = tuple[tuple[int, int, int], ...]
REFUSED = (ConnectionError, PermissionError)


@pytest.fixture(scope="module")
def room() -> Iterator[NetworkRoom]:
    with network_room() as made:
        yield made


class Outside(World):
    """A world whose proxy has a room's network before it."""

    def __init__(self, folder: Path, room: NetworkRoom) -> None:
        super().__init__(folder)
        self.room = room
        self.doors = Doors()
        self.refused: list[str] = []
        self.door: Door | None = None

    async def open(self, *allow: str, reach: Reach = LOOPBACK, limits: OutwardLimits | None = None) -> RoomProxy:
        proxy = await super().open(*allow, reach=reach, limits=limits)
        self.door = await self.doors.open(self.room.netns)
        way = Transparent(self.door, proxy, on_refused=self.refused.append)
        await way.start()
        self._stack.push_async_callback(way.close)
        return proxy

    async def close(self) -> None:
        await super().close()
        await self.doors.close()

    async def look_up(self, name: str, *, kind: int = 1, server: str = RESOLVER) -> str | None:
        """The address of a name, None when there is no such name, "" when it has none of this kind."""
        return await self.room.run(look_up, name, kind, server)

    async def reach(self, host: str, port: int, data: bytes = b"hello", **options: Any) -> Any:
        """What the other end answers to it, or the OSError."""
        if host[-1].isalpha() and ":" not in host:
            found = await self.look_up(host)
            if found is None:
                return None
            host = found
        return await self.room.run(lambda: reach(host, port, data, **options))


def look_up(name: str, kind: int, server: str) -> str | None:
    with connected(server) as sock:
        return ask(sock, name, kind)


def connected(server: str = RESOLVER) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((server, 53))
    return sock


def ask(sock: socket.socket, name: str, kind: int) -> str | None:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"
    sock.send(struct.pack(">6H", 9, 0x100, 1, 0, 0, 0) + labels + struct.pack(">2H", kind, 1))
    reply = sock.recv(2000)
    _, flags, _, answers, _, _ = struct.unpack_from(">6H", reply)
    if flags & 0xF:
        return None
    return socket.inet_ntoa(reply[-4:]) if answers else ""


def reach(
    host: str, port: int, data: bytes, *, source: str = "", options: tuple[tuple[int, int, int], ...] = ()
) -> Any:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.settimeout(10)
        for option in options:
            sock.setsockopt(*option)
        if source:
            sock.bind((source, 0))
        sock.connect((host, port))
        sock.sendall(data)
        got = b""
        while part := sock.recv(1 << 16):
            got += part
            if got == data:
                break
        return got


def send_datagram(host: str, port: int) -> Any:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((host, port))
        sock.send(b"hello")
        return sock.recv(100)


@pytest_asyncio.fixture
async def world(tmp_path: Path, room: NetworkRoom) -> AsyncIterator[Outside]:
    made = Outside(tmp_path, room)
    yield made
    await made.close()


# --- what is reached, and what is not -------------------------------------------------------------------------------


async def test_a_name_that_is_allowed_is_reached_and_no_other(world: Outside) -> None:
    port, other = await world.serve(echo), await world.serve(echo)
    await world.open(f"good.test:{port}")
    assert await world.reach("good.test", port) == b"hello"
    assert await world.reach("GOOD.test", port) == b"hello"
    assert isinstance(await world.reach("good.test", other), ConnectionResetError)
    assert await world.look_up("bad.test") is None
    assert world.asked == ["good.test"] * 2  # the resolver of the host
    assert world.told == [(f"good.test:{port}", True)] * 2 + [(f"good.test:{other}", False)]
    assert world.refused == ["bad.test:53"]
    assert world.bytes == 4 * len(b"hello")


async def test_an_address_that_is_allowed_is_reached_and_no_other(world: Outside, room: NetworkRoom) -> None:
    house = "10.99.0.1"  # an address of the server's: of loopback, in its place

    async def dial(host: str, port: int, **options: Any) -> Any:
        return await connect("127.0.0.1" if host in (house, "fd00::1") else host, port, **options)

    connect = asyncio.open_connection
    port = await world.serve(echo)
    reach_all = Reach(private=(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")))
    await world.open(house, "fd00::1", reach=reach_all)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "open_connection", dial)
        assert await world.reach(house, port) == b"hello"
        assert await world.reach("fd00::1", port) == b"hello"
        assert await world.reach(f"::ffff:{house}", port) == b"hello"
        for denied in ("10.99.0.2", "fd00::2", "169.254.169.254", "100.100.100.200", "fd00:ec2::254", "1.1.1.1"):
            assert isinstance(await world.reach(denied, port), ConnectionResetError), denied
    assert (f"10.99.0.2:{port}", False) in world.told


async def test_no_rule_opens_the_server_s_networks(world: Outside) -> None:
    port = await world.serve(echo)
    world.names["inner.test"] = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("1.1.1.1")]
    await world.open("*", reach=Reach())
    for host in ("inner.test", "10.0.0.1", "169.254.169.254", "198.18.0.1", "198.18.200.200", "0.1.2.3"):
        assert isinstance(await world.reach(host, port), ConnectionError), host
    assert (f"inner.test:{port}", False) in world.told
    assert isinstance(await world.reach("127.0.0.1", port), ConnectionRefusedError)  # the room's own


async def test_a_name_is_resolved_when_it_is_dialled_and_looked_at_then(world: Outside) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    address = await world.look_up("good.test")
    assert world.asked == []
    assert await world.reach(str(address), port) == b"hello"
    world.names["good.test"] = [ipaddress.ip_address("10.0.0.1")]
    assert isinstance(await world.reach(str(address), port), ConnectionResetError)
    del world.names["good.test"]
    assert isinstance(await world.reach(str(address), port), ConnectionResetError)


async def test_names_are_no_tunnel(world: Outside) -> None:
    await world.open("good.test", "*.wide.test")
    for name in ("secret.bad.test", "secret.good.test", "wide.test", "7.7.7.7", "localhost", "_x"):
        assert await world.look_up(name) is None, name
    assert await world.look_up("secret.wide.test")  # a rule is about it; nobody is asked until it is dialled
    assert await world.look_up("good.test", kind=28) == ""
    assert await world.look_up("good.test", kind=16) == ""
    assert await world.look_up("good.test", server="8.8.8.8")  # answered here too
    assert await world.look_up("bad.test", server="8.8.8.8") is None
    assert world.asked == []


async def test_all_else_fails_at_once(world: Outside, room: NetworkRoom) -> None:
    await world.open("*")
    for host, port in (("8.8.8.8", 443), ("10.0.0.1", 5), ("2001:db8::1", 53), ("2001:db8::1", 443), ("8.8.8.8", 853)):
        assert isinstance(await room.run(send_datagram, host, port), REFUSED), (host, port)

    def ping(family: int, protocol: int, host: str) -> None:
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:  # the room itself may not
            sock.sendto(b"\x08\0\xf7\xff\0\0\0\0", (host, 0))

    assert isinstance(await room.run(ping, socket.AF_INET, socket.IPPROTO_ICMP, "8.8.8.8"), PermissionError)
    assert isinstance(await room.run(ping, socket.AF_INET6, socket.IPPROTO_ICMPV6, "2001:db8::1"), PermissionError)
    assert isinstance(await room.run(ping, socket.AF_INET, 132, "8.8.8.8"), PermissionError)  # SCTP


async def test_the_room_s_own_traffic_stays_its_own(world: Outside, room: NetworkRoom) -> None:
    await world.open("good.test")

    def within(bound: str, dialled: str, family: int = socket.AF_INET) -> Any:
        with socket.socket(family) as listener:
            listener.bind((bound, 0))
            listener.listen()
            with socket.create_connection((dialled, listener.getsockname()[1]), 5) as client:
                listener.settimeout(0.5)
                listener.accept()[0].sendall(b"mine")
                return client.recv(10)

    assert await room.run(within, "127.0.0.1", "127.0.0.1") == b"mine"
    assert await room.run(within, "127.0.0.9", "127.0.0.9") == b"mine"
    assert await room.run(within, "0.0.0.0", "127.0.0.1") == b"mine"
    assert await room.run(within, "::1", "::1", socket.AF_INET6) == b"mine"
    # Any address can be bound here. Who listens on one hears nothing, as what goes to it is turned to the proxy.
    assert isinstance(await room.run(within, "10.1.2.3", "10.1.2.3"), TimeoutError | ConnectionResetError)


async def test_the_port_itself_leads_nowhere(world: Outside) -> None:
    await world.open("*", reach=Reach(private=(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))))
    assert world.door is not None
    port = world.door.names.getsockname()[1]
    canary = socket.create_server(("127.0.0.1", port))  # the same port of the host
    world._stack.callback(canary.close)
    for host in ("127.0.0.1", "0.0.0.0", "::1"):
        got = await world.reach(host, port)
        assert got == b"" or isinstance(got, ConnectionError), host
    canary.settimeout(0.1)
    with pytest.raises(TimeoutError):
        canary.accept()
    assert world.told == []


async def test_where_a_connection_comes_from_changes_nothing(world: Outside) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    freebind = (socket.SOL_IP, 15, 1)
    device = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for source in ("10.9.9.9", "127.0.0.5"):
        assert await world.reach("good.test", port, source=source, options=(freebind, device)) == b"hello"
        assert isinstance(await world.reach("1.1.1.1", port, source=source), ConnectionError)


# --- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arrives"), [("good.test", True), ("bad.test", False), (None, False)])
async def test_tls_has_to_name_whom_the_connection_is_for(
    world: Outside, monkeypatch: pytest.MonkeyPatch, name: str | None, arrives: bool
) -> None:
    port = await world.serve(echo, tls(world.folder))
    monkeypatch.setattr("roost.isolation.egress.messages.HTTPS", port)
    await world.open(f"good.test:{port}")
    address = await world.look_up("good.test")

    def shake_hands() -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((address, port), 10) as sock,
            context.wrap_socket(sock, server_hostname=name) as secure,
        ):
            secure.sendall(b"hello")
            return secure.recv(100)

    said = await world.room.run(shake_hands)
    assert (said == b"hello") is arrives
    assert ((f"good.test:{port}", False) in world.told) is not arrives
    if arrives:
        assert await world.reach("good.test", port, b"SSH-2.0-x\r\n\r\n") != b"SSH-2.0-x\r\n\r\n"


async def test_port_80_is_for_http_with_the_right_host(world: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    port = await world.serve(web(seen))
    monkeypatch.setattr("roost.isolation.egress.messages.HTTP", port)
    await world.open(f"GET good.test:{port}/ok")
    for request, wanted in (
        (b"GET /ok HTTP/1.1\r\nhost: good.test\r\n\r\n", b"HTTP/1.1 200"),
        (b"GET /no HTTP/1.1\r\nhost: good.test\r\n\r\n", b"HTTP/1.1 403"),
        (b"POST /ok HTTP/1.1\r\nhost: good.test\r\n\r\n", b"HTTP/1.1 403"),
        (b"GET /ok HTTP/1.1\r\nhost: bad.test\r\n\r\n", b"HTTP/1.1 400"),
        (b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 400"),
    ):
        reply = await world.reach("good.test", port, request)
        assert isinstance(reply, bytes) and reply.startswith(wanted), (request, reply)
    assert len(seen) == 1


# --- bounds, and life -----------------------------------------------------------------------------------------------


async def test_rules_that_change_hold_at_once_for_both_ways(world: Outside) -> None:
    port = await world.serve(echo)
    proxy = await world.open(f"good.test:{port}", f"bad.test:{port}")
    ends: dict[str, socket.socket] = {}
    for name in ("good.test", "bad.test"):
        address = await world.look_up(name)
        ends[name] = await world.room.run(socket.create_connection, (address, port), 10)
        ends[name].sendall(b"x")
        assert await asyncio.to_thread(ends[name].recv, 1) == b"x"
    proxy.change(Policy(allow=parse_rules([f"good.test:{port}"])))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.to_thread(ends["bad.test"].recv, 1) == b""
    ends["good.test"].sendall(b"y")
    assert await asyncio.to_thread(ends["good.test"].recv, 1) == b"y"
    assert await world.look_up("bad.test") is None
    for end in ends.values():
        end.close()


async def test_budgets_are_those_of_the_room(world: Outside) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}", limits=OutwardLimits(room_bytes=100_000))
    got = await world.reach("good.test", port, bytes(60_000))
    assert not isinstance(got, bytes) or len(got) < 60_000
    assert await world.reach("good.test", port) != b"hello"
    reply = await world.say(b"CONNECT good.test:%d HTTP/1.1\r\nhost: x\r\n\r\nmore" % port)
    assert b"more" not in reply


async def test_a_room_has_so_many_connections_at_once(world: Outside) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}", limits=OutwardLimits(connections=5))
    address = await world.look_up("good.test")
    held = [await world.room.run(socket.create_connection, (address, port), 10) for _ in range(5)]
    for one in held:  # all are served
        one.sendall(b"x")
        assert await asyncio.to_thread(one.recv, 1) == b"x"
    assert await world.reach(str(address), port) != b"hello"
    with contextlib.suppress(ConnectionError):  # the proxy counts the same
        assert await world.say(b"CONNECT good.test:1 HTTP/1.1\r\nhost: x\r\n\r\n") == b""
    for one in held:
        one.close()
    for _ in range(100):
        if await world.reach(str(address), port) == b"hello":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("there is no room again")


async def test_a_flood_of_questions_and_connections_is_bounded(world: Outside, room: NetworkRoom) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((RESOLVER, 53))
            for number in range(20_000):
                with contextlib.suppress(OSError):
                    sock.send(struct.pack(">6H", number % 65536, 0x100, 1, 0, 0, 0) + b"\x03bad\x04test\0\0\1\0\1")

    await room.run(flood)
    assert len(world.refused) < 6_000
    await asyncio.sleep(0.2)
    assert await world.reach("good.test", port) == b"hello"


async def test_without_a_server_nothing_leaves_and_the_next_one_takes_over(world: Outside, room: NetworkRoom) -> None:
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    address = await world.look_up("good.test")
    asking = await room.run(connected)  # a program may ask from one socket as long as it lives
    assert await room.run(ask, asking, "good.test", 1) == address
    await world._stack.aclose()
    assert isinstance(await world.reach(str(address), port), ConnectionError)
    assert isinstance(await room.run(look_up, "good.test", 1, RESOLVER), ConnectionRefusedError)
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    assert await world.look_up("good.test") == address  # programs may remember it
    assert await room.run(ask, asking, "good.test", 1) == address
    asking.close()
    assert await world.reach(str(address), port) == b"hello"


async def test_without_its_rules_a_room_reaches_itself_alone(world: Outside, room: NetworkRoom) -> None:
    """What stands behind the rules: here is all the power over this network that no room has."""
    port = await world.serve(echo)
    await world.open(f"good.test:{port}")
    address = str(await world.look_up("good.test"))
    assert await world.reach(address, port) == b"hello"
    transparent = (socket.SOL_IP, 19, 1)
    assert await world.reach(address, port, options=(transparent,)) == b"hello"  # which no room may say
    flush = await room.run(subprocess.run, [doorman.nft(), "flush", "ruleset"])
    assert flush.returncode == 0
    for host in (address, "1.1.1.1", "2001:db8::1", "169.254.169.254"):
        assert isinstance(await world.reach(host, port), ConnectionRefusedError), host
        assert isinstance(await room.run(send_datagram, host, 53), ConnectionRefusedError), host
    assert [told for told in world.told if told[0] != f"good.test:{port}"] == []


async def test_a_room_without_a_door_reaches_nothing(world: Outside) -> None:
    with network_room() as closed:
        for host in ("1.1.1.1", "10.0.0.1", "2001:db8::1"):
            error = await closed.run(lambda host=host: reach(host, 80, b"x"))
            assert isinstance(error, OSError)
            assert "unreachable" in str(error) or "Cannot assign" in str(error)


# --- the host -------------------------------------------------------------------------------------------------------


async def test_the_host_s_own_network_is_no_room_s(world: Outside) -> None:
    before = Path("/proc/net/route").read_text(), Path("/proc/net/fib_trie").read_text()
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(Unavailable, match="not the server's own"):
        await world.doors.open(own)
    os.close(own)
    assert (Path("/proc/net/route").read_text(), Path("/proc/net/fib_trie").read_text()) == before


async def test_a_missing_nft_is_named(world: Outside, monkeypatch: pytest.MonkeyPatch, room: NetworkRoom) -> None:
    monkeypatch.setattr(doorman, "_NFT_PATH", "/nowhere")
    with pytest.raises(Unavailable, match="apt-get install nftables"):
        check_doors("namespaces")
    with pytest.raises(InvalidArgument, match="not on gVisor's"):
        check_doors("gvisor")
    error = room.do(doorman.open_door)
    assert isinstance(error, OSError)
    assert error.strerror == doorman.NO_NFT
