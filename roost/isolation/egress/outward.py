"""A room's way to the world: a proxy on a unix socket, for HTTP, CONNECT and SOCKS5 (RFC 1928), and for connections of
programs that know no proxy (`take`, see `transparent`).

It alone resolves and dials: the room has no interface and no resolver, so what does not come here goes nowhere. A name
is resolved once, and what was looked at is what is dialled. A TLS tunnel has to say the name that it was asked for
(SNI), in the open; what goes to port 80 has to be HTTP, with the right Host; redirects come back as requests. One
request a connection.

A tunnel is looked into, with a certificate of the room's own authority, where requests get something on their way or
rules are about methods and paths, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h11

from roost.isolation.egress import client_hello, messages
from roost.isolation.egress.addresses import Address, canonical, plain
from roost.isolation.egress.authority import Authority
from roost.isolation.egress.ends import BUFFER, End, Idle, Stream, TlsServer
from roost.isolation.egress.exchange import Exchange
from roost.isolation.egress.guard import UNGUARDED, Guard
from roost.isolation.egress.injector import Additions, Injector
from roost.isolation.egress.listening import serve_unix
from roost.isolation.egress.messages import (
    HEAD,
    HOP_BY_HOP,
    Asked,
    absolute,
    check_host,
    host_and_port,
    request_of,
)
from roost.isolation.egress.refusal import Refused
from roost.isolation.egress.rules import Policy, Reach, Target
from roost.model.errors import InvalidArgument, RoostError

log = logging.getLogger(__name__)

#: In the folder that the room sees at /run/roost; its guest forwards this port of its loopback there.
PROXY_SOCKET = "proxy.sock"
PROXY_URL = "http://127.0.0.1:3129"

_MOST_DIALLED = 3
#: Of a request that was answered before its end, and is read on so that its sender gets to read the answer.
_LINGER_BYTES, _LINGER_S = 4 << 20, 2.0
_CONNECT_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
Resolve = Callable[[str, int], Awaitable[list[Address]]]


@dataclass(frozen=True, kw_only=True)
class OutwardLimits:
    """Of one room. Seconds and bytes."""

    connections: int = 128
    lookups: int = 4  # of names, at once
    head_s: float = 15.0  # until it has said what it wants
    dial_s: float = 15.0
    idle_s: float = 600.0
    room_bytes: int = 16 << 30  # both ways, in its life


def _least(own: int, usual: int) -> int:
    """`own`: 0 for none."""
    return min(own or usual, usual)


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """A tunnel that is looked into. `additions` are for its request, while `injector` is still the room's."""

    name: str
    port: int
    authority: Authority
    injector: Injector | None
    additions: Additions | None


def proxy_environment() -> dict[str, str]:
    """What programs in the room look for."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    found = {name: PROXY_URL for upper in names for name in (upper, upper.lower())}
    own = "localhost,127.0.0.1,::1"
    return {**found, "NO_PROXY": own, "no_proxy": own, "NODE_USE_ENV_PROXY": "1"}


class RoomProxy:
    """One room's. `resolver` looks names up; `on_bytes` is told what goes either way and may raise Throttled;
    `on_request` is told each `host:port` that was asked for, and whether it may be reached; `on_dialled` the address
    that each connection is from, when it is made and when it is over. `injector` adds to requests; without an
    `authority` no tunnel is looked into; `trust` is what servers are verified by; `guard` has the room's labels, if any
    are kept."""

    def __init__(
        self,
        path: Path,
        policy: Policy,
        reach: Reach,
        resolver: Resolve,
        *,
        on_bytes: Callable[[int], None] = lambda count: None,
        on_request: Callable[[str, bool], None] = lambda target, allowed: None,
        on_dialled: Callable[[tuple[str, int], bool], None] = lambda source, open: None,
        injector: Injector | None = None,
        authority: Authority | None = None,
        guard: Guard = UNGUARDED,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        limits: OutwardLimits | None = None,
    ) -> None:
        self._injector = injector
        self._authority = authority
        self._guard = guard
        self._trust = trust
        self._path = path
        self._policy = policy
        self._reach = reach
        self._on_bytes = on_bytes
        self._on_request = on_request
        self._on_dialled = on_dialled
        self._resolve = resolver
        self._limits = limits or OutwardLimits()
        self._lookups = asyncio.Semaphore(self._limits.lookups)
        self._spent = 0  # bytes
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], Target | None] = {}
        self._tunnels: set[asyncio.Task[None]] = set()  # those of them that nobody looks into

    async def start(self) -> None:
        """Raises OSError when the socket can't be made. Nothing is left of one that has not started."""
        make = partial(asyncio.start_unix_server, self._accept, limit=BUFFER, backlog=128)
        self._server = await serve_unix(self._path, 0o666, make)  # anybody's: its folder is this room's

    async def close(self) -> None:
        """End all of it. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self._path.unlink(missing_ok=True)
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def change(self, policy: Policy, injector: Injector | None = None, authority: Authority | None = None) -> None:
        """From now on this holds; what is under way and not allowed any more is cut."""
        self._policy = policy
        self._injector = injector
        self._authority = authority
        for task, target in list(self._open.items()):
            if target is not None and not policy.allows(target):
                task.cancel()

    def labels_grew(self) -> None:
        """Tunnels that the room's labels do not allow any more are cut."""
        for task in self._tunnels:
            target = self._open.get(task)
            if target is not None and not self._guard.keeps(target):
                task.cancel()

    def may_name(self, name: str) -> bool:
        """Whether a rule is about this name, at whatever port."""
        return self._policy.may_resolve(name, None)

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """Serve a connection that was meant for this host and port: it speaks to them, and of no proxy."""
        self._accept(reader, writer, (host, port))

    # --- one connection ------------------------------------------------------------------------------------------

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meant: tuple[str, int] | None = None
    ) -> None:
        if len(self._open) >= _least(self._policy.most_connections, self._limits.connections):
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(reader, writer, meant))
        self._open[task] = None
        task.add_done_callback(self._open.pop)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meant: tuple[str, int] | None
    ) -> None:
        near = Stream(reader, writer)
        try:
            if meant is not None:
                await self._tunnel(near, *meant, early=b"", accept=b"", refuse=lambda refused: near.reset())
            else:
                await self._proxied(near)
            await near.finish()
        except (OSError, EOFError, TimeoutError, h11.ProtocolError):
            pass  # whoever it was has gone, is too slow, or does not speak HTTP
        except RoostError as error:  # a budget is used up in the middle: the other end sees it cut
            log.info("egress of a room was cut: %s", error.message)
        except Exception:
            log.exception("egress of a room")
        finally:
            near.abort()

    async def _proxied(self, near: Stream) -> None:
        """A client that knows the proxy."""
        async with asyncio.timeout(self._limits.head_s):
            first = await near.exactly(1)
        if first == b"\x05":
            await self._socks(near)
        else:
            await self._http(near, first)

    async def _http(self, near: End, first: bytes) -> None:
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        server.receive_data(first)
        try:
            async with asyncio.timeout(self._limits.head_s):
                request = await request_of(server, near)
            if request.method != b"CONNECT":
                await self._exchange(near, server, request, asked=None)
                await self._linger(near, server)
                return
            host, port = host_and_port(request.target.decode("ascii"), None)
        except Refused as refused:
            await self._answer(near, server, refused)
            await self._linger(near, server)
            return
        early = server.trailing_data[0]
        await self._tunnel(
            near,
            host,
            port,
            early=early,
            accept=_CONNECT_ESTABLISHED,
            refuse=lambda refused: self._refuse(near, refused),
        )

    async def _socks(self, near: Stream) -> None:
        async with asyncio.timeout(self._limits.head_s):
            methods = await near.exactly((await near.exactly(1))[0])
            if 0 not in methods:
                await near.send(b"\x05\xff")
                return
            await near.send(b"\x05\x00")
            version, command, _, kind = await near.exactly(4)
            if version != 5 or kind not in (1, 3, 4):
                await near.send(_socks_reply(8))
                return
            if kind == 3:
                host = (await near.exactly((await near.exactly(1))[0])).decode("latin-1")
            else:
                host = str(ipaddress.ip_address(await near.exactly(4 if kind == 1 else 16)))
            port = int.from_bytes(await near.exactly(2), "big")
        if command != 1:
            await near.send(_socks_reply(7))
            return

        async def refuse(refused: Refused) -> None:
            await near.send(_socks_reply(4 if refused.status == 502 else 2))

        await self._tunnel(near, host, port, early=b"", accept=_socks_reply(0), refuse=refuse)

    async def _answer(self, near: End, server: h11.Connection, refused: Refused) -> None:
        """Unless a reply has begun: what comes now would be taken for a part of it, so it is cut."""
        if server.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._refuse(near, refused)
        else:
            near.abort()

    async def _linger(self, near: End, server: h11.Connection) -> None:
        """A room that is still sending gets to read its answer: who closes what is unread takes that away."""
        if server.their_state is not h11.SEND_BODY or server.our_state is h11.ERROR:
            return
        near.end()
        left = _LINGER_BYTES
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and (data := await near.read()):
                    left -= len(data)

    async def _refuse(self, near: End, refused: Refused) -> None:
        body = f"{refused.message}\n".encode()
        head = f"HTTP/1.1 {refused.status} Refused\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n"
        await near.send(f"{head}connection: close\r\n\r\n".encode() + body)

    # --- whether, and where to -----------------------------------------------------------------------------------

    async def _admitted(
        self, host: str, port: int, *, method: str = "", path: str = "", tunnel: bool = False
    ) -> list[Target]:
        """The addresses that may be dialled for it. Raises Refused."""
        told = f"{host[:255]}:{port}"
        try:
            targets = await self._judged(host, port, method, path)
            for target in targets:
                self._guard.admit(target, tunnel=tunnel)
        except Refused as refused:
            self._on_request(told, refused.status == 502)  # then it may be reached, and is not there
            raise
        self._on_request(told, True)
        return targets

    async def _judged(self, host: str, port: int, method: str, path: str) -> list[Target]:
        try:
            asked = canonical(host)
        except InvalidArgument as error:
            raise Refused(400, error.message) from None
        if not 1 <= port <= 65535:
            raise Refused(400, "A port is a number from 1 to 65535.")
        name = asked if isinstance(asked, str) else ""
        addresses = [asked] if not isinstance(asked, str) else await self._resolved(asked, port)
        if not all(self._reach.has(address) for address in addresses):
            raise Refused(403, f"{host} is, or leads to, an address of this server's own networks.")
        targets = [Target(name=name, address=one, port=port, method=method, path=path) for one in addresses]
        allowed = [target for target in targets if self._policy.allows(target)]
        if not allowed:
            raise Refused(403, f"The policy of this room does not allow {_told(host, port, method, path)}.")
        return allowed

    async def _resolved(self, name: str, port: int) -> list[Address]:
        if not self._policy.may_resolve(name, port):
            raise Refused(403, f"The policy of this room does not allow {name}:{port}.")
        try:
            async with asyncio.timeout(self._limits.dial_s), self._lookups:
                self._guard.admit_name(name, port)  # after the wait: labels may have come meanwhile
                found = [plain(address) for address in await self._resolve(name, port)]
        except (OSError, TimeoutError):
            found = []
        if not found:
            raise Refused(502, f"{name} has no address.")
        return found

    async def _dial(self, targets: list[Target], *, tls: bool = False) -> tuple[Stream, Target]:
        """The first that can be reached; to be given to `_hang_up`. Raises Refused."""
        for target in targets[:_MOST_DIALLED]:
            secured: dict[str, Any] = {"ssl": self._trust(), "server_hostname": target.name} if tls else {}
            try:
                async with asyncio.timeout(self._limits.dial_s):
                    ends = await asyncio.open_connection(str(target.address), target.port, limit=BUFFER, **secured)
                far = Stream(*ends)
                self._on_dialled(far.source, True)
                return far, target
            except ssl.SSLCertVerificationError as error:
                why = error.verify_message
                raise Refused(502, f"{target.name}:{target.port} can't prove who it is: {why}.") from None
            except (OSError, TimeoutError):
                continue
        raise Refused(502, f"{targets[0].name or targets[0].address}:{targets[0].port} can't be reached.")

    def _hang_up(self, far: Stream) -> None:
        far.abort()
        self._on_dialled(far.source, False)

    @contextlib.contextmanager
    def _under_way(self, target: Target, *, tunnel: bool = False) -> Iterator[None]:
        """`change`, and `labels_grew` for a tunnel, may cut it. Raises Refused when they came before."""
        if not self._policy.allows(target):
            raise Refused(403, "The policy of this room has changed.")
        if tunnel:
            self._guard.go_on(target, tunnel=True)
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = target
        if tunnel:
            self._tunnels.add(task)
        try:
            yield
        finally:
            self._open[task] = None
            self._tunnels.discard(task)

    def _spend(self, count: int) -> None:
        """Raises Refused, Throttled."""
        self._spent += count
        if self._spent > _least(self._policy.most_bytes, self._limits.room_bytes):
            raise Refused(429, "This room has used up what it may send and receive.")
        self._on_bytes(count)

    # --- tunnels -------------------------------------------------------------------------------------------------

    async def _tunnel(
        self,
        near: End,
        host: str,
        port: int,
        *,
        early: bytes,
        accept: bytes,
        refuse: Callable[[Refused], Awaitable[None]],
    ) -> None:
        if port == messages.HTTP:  # each request in it is judged by itself
            await near.send(accept)
            await self._requests(near, Asked(host=host, port=port, tls=False), early)
            return
        try:
            if (looked := await self._looked_into(host, port)) is not None:
                await near.send(accept)
                await self._opened(near, looked, early)
                return
            far, target = await self._dial(await self._admitted(host, port, tunnel=True))
        except Refused as refused:
            await refuse(refused)
            return
        try:
            with self._under_way(target, tunnel=True):
                await near.send(accept)
                if port == messages.HTTPS:
                    early = await self._hello(near, target.name, port, early)
                await self._splice(near, far, target, early)
        except Refused as refused:
            self._on_request(f"{host[:255]}:{port}", False)
            log.info("egress of a room was refused: %s", refused.message)
        finally:
            self._hang_up(far)

    async def _looked_into(self, host: str, port: int) -> _Looked | None:
        """A tunnel whose requests have to be seen."""
        try:
            name = canonical(host)
        except InvalidArgument:
            return None
        if self._authority is None or not isinstance(name, str) or not self._policy.may_resolve(name, port):
            return None
        authority, injector, additions = self._authority, self._injector, None
        with contextlib.suppress(Refused):  # it is inside that it can be told
            additions = await self._additions(name, port, tls=True)
            if additions is None and not self._policy.is_of_requests(name, port):
                return None
        return _Looked(name=name, port=port, authority=authority, injector=injector, additions=additions)

    async def _opened(self, near: End, looked: _Looked, early: bytes) -> None:
        """The tunnel ends here, and its request is answered as one of plain HTTP is."""
        name, port = looked.name, looked.port
        try:
            early = await self._hello(near, name, port, early)
        except Refused as refused:
            self._on_request(f"{name}:{port}", False)
            log.info("egress of a room was refused: %s", refused.message)
            return
        inside = TlsServer(near, looked.authority.context(name), early)
        async with asyncio.timeout(self._limits.head_s):
            await inside.handshake()
        await self._requests(inside, Asked(host=name, port=port, tls=True), b"", looked)
        await inside.finish()

    async def _additions(self, name: str, port: int, *, tls: bool) -> Additions | None:
        """What requests to there are given, if anything. Raises Refused."""
        if self._injector is None:
            return None
        return await self._injector.additions(name, port, tls=tls) or None

    async def _hello(self, near: End, name: str, port: int, early: bytes) -> bytes:
        """What the client begins with, once it is known to be TLS for this name. Raises Refused."""
        try:
            async with asyncio.timeout(self._limits.head_s):
                while (hello := client_hello.read(early)) is None:
                    if not (part := await near.read()):
                        raise Refused(403, "the tunnel ended before it began")
                    early += part
        except client_hello.NoHello:
            raise Refused(403, f"the tunnel to port {port} is for TLS alone") from None
        if name and (hello.encrypted or hello.name != name):
            raise Refused(403, f"the tunnel to {name} asks for {hello.name or 'no name'!r}, or hides whom")
        return early

    async def _requests(self, near: End, asked: Asked, early: bytes, looked: _Looked | None = None) -> None:
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        if early:  # nothing would be the end of it
            server.receive_data(early)
        try:
            async with asyncio.timeout(self._limits.head_s):
                request = await request_of(server, near)
            await self._exchange(near, server, request, asked=asked, looked=looked)
        except Refused as refused:
            await self._answer(near, server, refused)
        await self._linger(near, server)

    async def _splice(self, near: End, far: End, target: Target, early: bytes) -> None:
        if early:
            self._spend(len(early))
            self._guard.go_on(target, tunnel=True)
            await far.send(early)
        idle = Idle(self._limits.idle_s)
        ways = [
            asyncio.create_task(self._out(near, far, target, idle)),
            asyncio.create_task(self._back(far, near, target, idle)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            for way in done:
                way.result()
            await far.finish()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _out(self, near: End, far: End, target: Target, idle: Idle) -> None:
        while data := await idle.watch(near.read):
            self._spend(len(data))
            self._guard.go_on(target, tunnel=True)
            await far.send(data)
        far.end()

    async def _back(self, far: End, near: End, target: Target, idle: Idle) -> None:
        while data := await idle.watch(far.read):
            self._spend(len(data))
            await self._guard.heard(target)
            await near.send(data)
        near.end()

    # --- requests ----------------------------------------------------------------------------------------------

    async def _exchange(
        self,
        near: End,
        server: h11.Connection,
        request: h11.Request,
        *,
        asked: Asked | None,
        looked: _Looked | None = None,
    ) -> None:
        """One request, and its reply. `asked` is whom the tunnel that it came in is for. Raises Refused."""
        target = request.target.decode("ascii")
        if asked is None:
            host, port, place = absolute(target)
            asked = Asked(host=host, port=port, tls=False)
        else:
            place = target
            if not place.startswith("/"):
                raise Refused(400, "A path is expected.")
        headers = [(name, value) for name, value in request.headers if name not in HOP_BY_HOP]
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            raise Refused(400, "Where the request's body ends is said in two ways.")
        check_host(headers, asked)
        method = request.method.decode("ascii")
        targets = await self._admitted(asked.host, asked.port, method=method, path=place.partition("?")[0])
        redactor = None
        if looked is not None and looked.additions is not None and looked.injector is self._injector:
            additions: Additions | None = looked.additions  # of when the tunnel came: it is for one request
        else:
            additions = await self._additions(targets[0].name, asked.port, tls=asked.tls)
        if additions is not None:
            place, headers, used = additions.dress(place, headers)
            redactor = additions.redactor()
            if used:
                for one in targets:
                    await self._guard.secret(one)
            self._tell_used(used, asked)
        far, dialled = await self._dial(targets, tls=asked.tls)
        try:
            exchange = Exchange(
                near=near,
                server=server,
                far=far,
                target=dialled,
                guard=self._guard,
                redactor=redactor,
                spend=self._spend,
                idle_s=self._limits.idle_s,
            )
            with self._under_way(dialled):
                head = h11.Request(method=request.method, target=place, headers=[*headers, (b"connection", b"close")])
                await exchange.run(head)
        except (OSError, h11.ProtocolError, TimeoutError):
            if server.our_state is h11.SEND_RESPONSE:
                raise Refused(502, f"{asked.host}:{asked.port} broke off, or does not speak HTTP.") from None
            raise
        finally:
            self._hang_up(far)

    def _tell_used(self, secrets: frozenset[str], asked: Asked) -> None:
        if self._injector is not None:
            for secret in sorted(secrets):
                self._injector.on_use(secret, f"{asked.host[:255]}:{asked.port}")


def _told(host: str, port: int, method: str, path: str) -> str:
    return f"{method} {host}:{port}{path}"[:300] if method else f"{host}:{port}"


def _socks_reply(code: int) -> bytes:
    return bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))
