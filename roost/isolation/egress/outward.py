"""A room's way to the world: a proxy on a unix socket, for HTTP, CONNECT and SOCKS5 (RFC 1928).

It alone resolves and dials: the room has no interface and no resolver, so what does not come here goes nowhere. A name
is resolved once, and what was looked at is what is dialled. A TLS tunnel has to say the name that it was asked for
(SNI), in the open; what goes to port 80 has to be HTTP, with the right Host; redirects come back as requests. One
request a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11

from roost.isolation.egress import client_hello
from roost.isolation.egress.addresses import Address, canonical, plain
from roost.isolation.egress.rules import Policy, Reach, Target
from roost.model.errors import InvalidArgument, RoostError

log = logging.getLogger(__name__)

#: In the folder that the room sees at /run/roost; its guest forwards this port of its loopback there.
PROXY_SOCKET = "proxy.sock"
PROXY_URL = "http://127.0.0.1:3129"

_HTTP, _HTTPS = 80, 443
_BUFFER = 16 << 10  # that wait on each end of a connection, read and to be written: a room may have many of them
_HEAD = 64 << 10
_MOST_DIALLED = 3
_STALL_S = 600.0
_CONNECT_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HOP_BY_HOP = frozenset(
    {
        b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"trailer", b"upgrade",
        b"expect",
    }
)  # fmt: skip

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


class Refused(Exception):
    """The room may not, or can't. `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def proxy_environment() -> dict[str, str]:
    """What programs in the room look for."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    found = {name: PROXY_URL for upper in names for name in (upper, upper.lower())}
    own = "localhost,127.0.0.1,::1"
    return {**found, "NO_PROXY": own, "no_proxy": own, "NODE_USE_ENV_PROXY": "1"}


class RoomProxy:
    """One room's. `resolver` looks names up; `on_bytes` is told what goes either way and may raise Throttled;
    `on_request` is told each `host:port` that was asked for, and whether it may be reached."""

    def __init__(
        self,
        path: Path,
        policy: Policy,
        reach: Reach,
        resolver: Resolve,
        *,
        on_bytes: Callable[[int], None] = lambda count: None,
        on_request: Callable[[str, bool], None] = lambda target, allowed: None,
        limits: OutwardLimits | None = None,
    ) -> None:
        self._path = path
        self._policy = policy
        self._reach = reach
        self._on_bytes = on_bytes
        self._on_request = on_request
        self._resolve = resolver
        self._limits = limits or OutwardLimits()
        self._lookups = asyncio.Semaphore(self._limits.lookups)
        self._left = self._limits.room_bytes
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], Target | None] = {}

    async def start(self) -> None:
        """Raises OSError when the socket can't be made."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(str(self._path))
        os.chmod(self._path, 0o666)  # noqa: PTH101, S103 - of the socket itself; its folder is this room's
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=_BUFFER, backlog=128)

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

    def change(self, policy: Policy) -> None:
        """From now on this holds; what is under way and not allowed any more is cut."""
        self._policy = policy
        for task, target in list(self._open.items()):
            if target is not None and not policy.allows(target):
                task.cancel()

    # --- one connection ------------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= self._limits.connections:
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._open[task] = None
        task.add_done_callback(self._open.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near = _Side(reader, writer)
        try:
            async with asyncio.timeout(self._limits.head_s):
                first = await reader.readexactly(1)
            if first == b"\x05":
                await self._socks(near)
            else:
                await self._http(near, first)
            await near.finish()
        except (OSError, EOFError, TimeoutError, h11.ProtocolError):
            pass  # whoever it was has gone, is too slow, or does not speak HTTP
        except RoostError as error:  # a budget is used up in the middle: the other end sees it cut
            log.info("egress of a room was cut: %s", error.message)
        except Exception:
            log.exception("egress of a room")
        finally:
            near.abort()

    async def _http(self, near: _Side, first: bytes) -> None:
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        server.receive_data(first)
        try:
            async with asyncio.timeout(self._limits.head_s):
                request = await _request(server, near)
            if request.method != b"CONNECT":
                await self._exchange(near, server, request, asked=None)
                return
            host, port = _authority(request.target.decode("ascii"), None)
        except Refused as refused:
            await self._answer(near, server, refused)
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

    async def _socks(self, near: _Side) -> None:
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

    async def _answer(self, near: _Side, server: h11.Connection, refused: Refused) -> None:
        """Unless a reply has begun: what comes now would be taken for a part of it, so it is cut."""
        if server.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._refuse(near, refused)
        else:
            near.abort()

    async def _refuse(self, near: _Side, refused: Refused) -> None:
        body = f"{refused.message}\n".encode()
        head = f"HTTP/1.1 {refused.status} Refused\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n"
        await near.send(f"{head}connection: close\r\n\r\n".encode() + body)

    # --- whether, and where to -----------------------------------------------------------------------------------

    async def _admitted(self, host: str, port: int, *, method: str = "", path: str = "") -> list[Target]:
        """The addresses that may be dialled for it. Raises Refused."""
        told = f"{host[:255]}:{port}"
        try:
            targets = await self._judged(host, port, method, path)
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
                found = [plain(address) for address in await self._resolve(name, port)]
        except (OSError, TimeoutError):
            found = []
        if not found:
            raise Refused(502, f"{name} has no address.")
        return found

    async def _dial(self, targets: list[Target]) -> tuple[_Side, Target]:
        """The first that can be reached. Raises Refused."""
        for target in targets[:_MOST_DIALLED]:
            try:
                async with asyncio.timeout(self._limits.dial_s):
                    ends = await asyncio.open_connection(str(target.address), target.port, limit=_BUFFER)
                    return _Side(*ends), target
            except (OSError, TimeoutError):
                continue
        raise Refused(502, f"{targets[0].name or targets[0].address}:{targets[0].port} can't be reached.")

    @contextlib.contextmanager
    def _under_way(self, target: Target) -> Iterator[None]:
        """`change` may cut it. Raises Refused when it came before."""
        if not self._policy.allows(target):
            raise Refused(403, "The policy of this room has changed.")
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = target
        try:
            yield
        finally:
            self._open[task] = None

    def _spend(self, count: int) -> None:
        """Raises Refused, Throttled."""
        self._left -= count
        if self._left < 0:
            raise Refused(429, "This room has used up what it may send and receive.")
        self._on_bytes(count)

    # --- tunnels -------------------------------------------------------------------------------------------------

    async def _tunnel(
        self,
        near: _Side,
        host: str,
        port: int,
        *,
        early: bytes,
        accept: bytes,
        refuse: Callable[[Refused], Awaitable[None]],
    ) -> None:
        if port == _HTTP:  # each request in it is judged by itself
            await near.send(accept)
            await self._plain_http(near, host, early)
            return
        try:
            far, target = await self._dial(await self._admitted(host, port))
        except Refused as refused:
            await refuse(refused)
            return
        try:
            with self._under_way(target):
                await near.send(accept)
                if port == _HTTPS:
                    early = await self._hello(near, target.name, early)
                await self._splice(near, far, early)
        except Refused as refused:
            self._on_request(f"{host[:255]}:{port}", False)
            log.info("egress of a room was refused: %s", refused.message)
        finally:
            far.abort()

    async def _hello(self, near: _Side, name: str, early: bytes) -> bytes:
        """What the client begins with, once it is known to be TLS for this name. Raises Refused."""
        try:
            async with asyncio.timeout(self._limits.head_s):
                while (hello := client_hello.read(early)) is None:
                    if not (part := await near.read()):
                        raise Refused(403, "the tunnel ended before it began")
                    early += part
        except client_hello.NoHello:
            raise Refused(403, "port 443 is for TLS alone") from None
        if name and (hello.encrypted or hello.name != name):
            raise Refused(403, f"the tunnel to {name} asks for {hello.name or 'no name'!r}, or hides whom")
        return early

    async def _plain_http(self, near: _Side, host: str, early: bytes) -> None:
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        server.receive_data(early)
        try:
            async with asyncio.timeout(self._limits.head_s):
                request = await _request(server, near)
            await self._exchange(near, server, request, asked=host)
        except Refused as refused:
            await self._answer(near, server, refused)

    async def _splice(self, near: _Side, far: _Side, early: bytes) -> None:
        if early:
            self._spend(len(early))
            await far.send(early)
        idle = _Idle(self._limits.idle_s)
        ways = [asyncio.create_task(self._pump(*ends, idle)) for ends in ((near, far), (far, near))]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            for way in done:
                way.result()
            await far.finish()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, source: _Side, sink: _Side, idle: _Idle) -> None:
        while data := await idle.watch(source.read):
            self._spend(len(data))
            await sink.send(data)
        sink.end()

    # --- plain HTTP ----------------------------------------------------------------------------------------------

    async def _exchange(self, near: _Side, server: h11.Connection, request: h11.Request, *, asked: str | None) -> None:
        """One request, and its reply. `asked` is whom the tunnel that it came in is for. Raises Refused."""
        target = request.target.decode("ascii")
        if asked is None:
            host, port, place = _absolute(target)
        else:
            host, port, place = asked, _HTTP, target
            if not place.startswith("/"):
                raise Refused(400, "A path is expected.")
        headers = [(name, value) for name, value in request.headers if name not in _HOP_BY_HOP]
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            raise Refused(400, "Where the request's body ends is said in two ways.")
        _check_host(headers, host, port)
        method = request.method.decode("ascii")
        targets = await self._admitted(host, port, method=method, path=place.partition("?")[0])
        far, dialled = await self._dial(targets)
        try:
            with self._under_way(dialled):
                client = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
                head = h11.Request(method=request.method, target=place, headers=[*headers, (b"connection", b"close")])
                await self._forward(far, client, head)
                await self._both_ways(near, server, far, client)
        except (OSError, h11.ProtocolError, TimeoutError):
            if server.our_state is h11.SEND_RESPONSE:
                raise Refused(502, f"{host}:{port} broke off, or does not speak HTTP.") from None
            raise
        finally:
            far.abort()

    async def _both_ways(self, near: _Side, server: h11.Connection, far: _Side, client: h11.Connection) -> None:
        """Until the reply has ended; then nobody waits for the rest of the body."""
        upload = asyncio.create_task(self._upload(near, server, far, client))
        upload.add_done_callback(lambda task: None if task.cancelled() or task.exception() is None else far.abort())
        try:
            await self._reply(near, server, far, client)
        except (OSError, h11.ProtocolError):
            if upload.done() and isinstance(failed := upload.exception(), Refused | RoostError):
                raise failed from None
            raise
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, near: _Side, server: h11.Connection, far: _Side, client: h11.Connection) -> None:
        if server.they_are_waiting_for_100_continue:
            await near.send(server.send(h11.InformationalResponse(status_code=100, headers=[])))
        while True:
            event = await _event(server, near, self._limits.idle_s)
            if isinstance(event, h11.EndOfMessage):
                await self._forward(far, client, h11.EndOfMessage())
                break
            if not isinstance(event, h11.Data):
                raise ConnectionResetError
            await self._forward(far, client, event)
        if not await near.read():
            raise ConnectionResetError  # the client has gone

    async def _reply(self, near: _Side, server: h11.Connection, far: _Side, client: h11.Connection) -> None:
        while True:
            event = await _event(client, far, self._limits.idle_s)
            if isinstance(event, h11.InformationalResponse):
                continue
            if isinstance(event, h11.Response):
                kept = [(name, value) for name, value in event.headers if name not in _HOP_BY_HOP]
                event = h11.Response(
                    status_code=event.status_code,
                    reason=event.reason,
                    headers=[*kept, (b"connection", b"close")],
                )
            elif isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage()
            elif not isinstance(event, h11.Data):
                raise ConnectionResetError
            await self._forward(near, server, event)
            if isinstance(event, h11.EndOfMessage):
                return

    async def _forward(self, sink: _Side, connection: h11.Connection, event: Any) -> None:
        data = connection.send(event)
        if data:
            self._spend(len(data))
            await sink.send(data)


class _Idle:
    """Of a connection whose two ways are idle together: one may be silent for as long as the other moves."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._moved = asyncio.get_running_loop().time()

    async def watch(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What is read. Raises TimeoutError when neither way has moved for too long."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(max(self._moved + self._most_s, loop.time() + 0.01)):
                    data = await read()
            except TimeoutError:
                if loop.time() < self._moved + self._most_s:
                    continue  # the other way moved meanwhile
                raise
            self._moved = loop.time()
            return data


class _Side:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=_BUFFER)

    async def read(self) -> bytes:
        return await self._reader.read(2 * _BUFFER)

    async def exactly(self, count: int) -> bytes:
        return await self._reader.readexactly(count)

    async def send(self, data: bytes) -> None:
        """Raises TimeoutError when the other end does not take it for too long."""
        self._writer.write(data)
        async with asyncio.timeout(_STALL_S):
            await self._writer.drain()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()

    async def finish(self) -> None:
        """Close once all is sent."""
        self._writer.close()
        async with asyncio.timeout(5):
            await self._writer.wait_closed()

    def abort(self) -> None:
        self._writer.transport.abort()


async def _event(connection: h11.Connection, side: _Side, timeout_s: float) -> Any:
    """The next one. Raises h11.ProtocolError, OSError, TimeoutError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        async with asyncio.timeout(timeout_s):
            connection.receive_data(await side.read())
    return event


async def _request(server: h11.Connection, near: _Side) -> h11.Request:
    """Raises Refused, OSError."""
    try:
        while (event := server.next_event()) is h11.NEED_DATA:
            server.receive_data(await near.read())
    except h11.RemoteProtocolError as error:
        raise Refused(error.error_status_hint, f"This is not HTTP/1.1 as a proxy takes it: {error}.") from None
    if not isinstance(event, h11.Request):
        raise ConnectionResetError
    return event


def _absolute(target: str) -> tuple[str, int, str]:
    """Host, port and path of a URL. Raises Refused."""
    try:
        parts = urlsplit(target)
        if parts.scheme != "http" or "@" in parts.netloc or not parts.netloc:
            raise Refused(400, "A proxy takes http:// URLs, and CONNECT for everything else.")
        host, port = _authority(parts.netloc, _HTTP)
    except ValueError:
        raise Refused(400, "This is no URL.") from None
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _authority(text: str, usual_port: int | None) -> tuple[str, int]:
    """Raises Refused."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, "" if usual_port is None else str(usual_port)
    if not host or not (port.isascii() and port.isdigit() and len(port) < 6):
        raise Refused(400, "A host and a port are expected.")
    return host, int(port)


def _check_host(headers: list[tuple[bytes, bytes]], host: str, port: int) -> None:
    """Raises Refused when the request's own field names another server."""
    named = [value.decode("latin-1") for name, value in headers if name == b"host"]
    try:
        right = len(named) == 1 and _same(_authority(named[0], _HTTP), (host, port))
    except (Refused, InvalidArgument):
        right = False
    if not right:
        raise Refused(400, "The field Host names another server than the request.")


def _same(one: tuple[str, int], other: tuple[str, int]) -> bool:
    return canonical(one[0]) == canonical(other[0]) and one[1] == other[1]


def _told(host: str, port: int, method: str, path: str) -> str:
    return f"{method} {host}:{port}{path}"[:300] if method else f"{host}:{port}"


def _socks_reply(code: int) -> bytes:
    return bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))
