"""A gateway on real sockets with everything around it played by small stand-ins, each named for what it does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from roost.gateway.connection import ClientLimits
from roost.gateway.invoke import InvokeLimits
from roost.gateway.server import Gateway
from roost.instances.lease import SessionRef
from roost.model.errors import AccessDenied, NotFound, RoostError
from roost.model.function import FunctionSpec, Runtime
from roost.model.session import Session
from roost.model.usage import InvocationRecord

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def spec(name: str = "echo", **changes: object) -> FunctionSpec:
    values: dict[str, object] = {
        "account": "acme",
        "name": name,
        "version": "LATEST",
        "revision": "r1",
        "runtime": Runtime.PYTHON,
        "handler": "index.handler",
        "timeout_s": 30.0,
    }
    return FunctionSpec(**(values | changes))  # type: ignore[arg-type]


@dataclass
class PlayedLease:
    spec: FunctionSpec
    app_socket: str
    instance_id: str = "i-1"
    session: Session | None = None
    cold: bool = False
    restored: bool = False
    request_headers: Mapping[str, str] = field(default_factory=dict)
    fault: Exception | None = None
    failures: int = 0
    released: int = 0
    abandoned: list[str] = field(default_factory=list)

    def release(self) -> None:
        self.released += 1

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)

    async def failure(self) -> Exception:
        self.failures += 1
        return self.fault or RuntimeError("nothing is known")


def _session(spec: FunctionSpec, id: str) -> Session:
    return Session(
        account=spec.account,
        function=spec.name,
        id=id,
        affinity=spec.sessions.affinity,
        created=0,
        modified=0,
        last_used=0,
        ttl_s=60,
        idle_timeout_s=60,
    )


class PlayedFleet:
    """Leases on one socket; `gate` holds every lease back."""

    def __init__(self, app_socket: Path) -> None:
        self.app_socket = app_socket
        self.leases: list[PlayedLease] = []
        self.refs: list[SessionRef | None] = []
        self.error: Exception | None = None
        self.fault: Exception | None = None
        self.restored = False
        self.known: set[str] | None = None  # ids of sessions; None: every id is good
        self.headers: dict[str, str] = {}
        self.warm = True  # a lease is there at once, unless something else here says no
        self.gate: asyncio.Event | None = None
        self.waiting = 0
        self.cancelled = 0

    def try_lease(self, spec: FunctionSpec, session: SessionRef | None = None) -> PlayedLease | None:
        if self.gate is not None or self.error is not None or session is not None or not self.warm:
            return None
        self.refs.append(session)
        lease = PlayedLease(
            spec=spec,
            app_socket=str(self.app_socket),
            fault=self.fault,
            restored=self.restored,
            request_headers=self.headers,
            session=None,
        )
        self.leases.append(lease)
        return lease

    def version_of(self, spec: FunctionSpec, session: SessionRef) -> str:
        return ""

    async def lease(
        self, spec: FunctionSpec, session: SessionRef | None = None, *, task: str = "", timeout_s: float = 60.0
    ) -> PlayedLease:
        self.refs.append(session)
        if self.gate is not None:
            self.waiting += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.waiting -= 1
        if self.error is not None:
            raise self.error
        minted = session.id if session is not None and session.generated else ""
        if minted and self.known is not None and minted not in self.known:
            raise NotFound(f"Session {minted} does not exist.", code="SessionNotFound")
        lease = PlayedLease(
            spec=spec,
            app_socket=str(self.app_socket),
            fault=self.fault,
            restored=self.restored,
            request_headers=self.headers,
            session=_session(spec, session.id or "generated-1") if session else None,
        )
        self.leases.append(lease)
        return lease


class PlayedCatalog:
    def __init__(self, *specs: FunctionSpec) -> None:
        self.specs = {each.name: each for each in specs}

    def resolve(self, account: str, name: str, qualifier: str, *, begun: str = "") -> FunctionSpec:
        if name not in self.specs:
            raise NotFound(f"function '{name}' does not exist", code="FunctionNotFound")
        return self.specs[name]


class OpenAccess:
    """Lets everybody in, except the bearer of "wrong"; "Bearer key" is a key of the server's."""

    def check_http(
        self, account: str, spec: FunctionSpec, qualifier: str, authorization: str, method: str, *, source: bytes
    ) -> bool:
        if authorization == "Bearer wrong":
            raise AccessDenied("no")
        return authorization == "Bearer key"

    def unresolved(self, account: str, name: str, authorization: str, error: RoostError, source: bytes) -> RoostError:
        return error

    def check_signed(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body_sha256: str,
        *,
        source: bytes,
        function: str,
    ) -> str:
        if headers.get("authorization") == "Bearer wrong":
            raise AccessDenied("no")
        return "acme"


class Records:
    def __init__(self) -> None:
        self.seen: list[InvocationRecord] = []

    def invocation(self, record: InvocationRecord) -> None:
        self.seen.append(record)


class PlayedDirectory:
    def __init__(self) -> None:
        self.bound: dict[str, str] = {}
        self.ended: list[str] = []

    def bind(self, spec: FunctionSpec, session_id: str, instance_id: str) -> None:
        self.bound[session_id] = instance_id

    def end(self, spec: FunctionSpec, session_id: str) -> None:
        self.bound.pop(session_id, None)
        self.ended.append(session_id)


@dataclass
class World:
    gateway: Gateway
    host: str
    port: int
    fleet: PlayedFleet
    catalog: PlayedCatalog
    records: Records
    directory: PlayedDirectory
    app_socket: Path
    control_socket: Path

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, limit=1 << 20)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, read until the server closes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            await writer.drain()
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    app: Handler | None,
    *specs: FunctionSpec,
    control: Handler | None = None,
    limits: ClientLimits | None = None,
    invoke: InvokeLimits | None = None,
    **ports: object,
) -> AsyncIterator[World]:
    app_socket, control_socket = folder / "app.sock", folder / "control.sock"
    servers = []
    if app is not None:
        servers.append(await asyncio.start_unix_server(app, app_socket, limit=1 << 20))
    if control is not None:
        servers.append(await asyncio.start_unix_server(control, control_socket, limit=1 << 20))
    fleet, catalog = PlayedFleet(app_socket), PlayedCatalog(*(specs or (spec(),)))
    records, directory = Records(), PlayedDirectory()
    gateway = Gateway(
        account="acme",
        region="local",
        control_socket=control_socket,
        catalog=catalog,
        access=OpenAccess(),
        fleet=fleet,
        observer=records,
        directory=directory,
        client_limits=limits,
        invoke_limits=invoke or InvokeLimits(grace_s=0.5),
        **ports,  # type: ignore[arg-type]
    )
    host, port = await gateway.start("127.0.0.1", 0)
    try:
        yield World(gateway, host, port, fleet, catalog, records, directory, app_socket, control_socket)
    finally:
        await gateway.close(drain_s=1)
        for server in servers:
            server.close()


@dataclass
class Answer:
    """A parsed reply."""

    status: int
    headers: dict[str, str]
    body: bytes


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """(status, fields) of a reply."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), fields


async def read_answer(reader: asyncio.StreamReader, *, bodiless: bool = False) -> Answer:
    status, headers = await read_head(reader)
    if bodiless or status in (204, 304):
        body = b""
    elif "content-length" in headers:
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    elif headers.get("transfer-encoding") == "chunked":
        body = b"".join([piece async for piece in read_chunks(reader)])
    else:
        body = await asyncio.wait_for(reader.read(), 10)
    return Answer(status, headers, body)


async def read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        size = int(await asyncio.wait_for(reader.readuntil(b"\r\n"), 10), 16)
        data = await asyncio.wait_for(reader.readexactly(size + 2), 10)
        if not size:
            return
        yield data[:-2]


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body) of one request as a server sees it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        elif line == b"transfer-encoding: chunked":
            return head, b"".join([piece async for piece in read_chunks(reader)])
    return head, await reader.readexactly(length)


def reply(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"HTTP/1.1 " + status, *lines, b"content-length: %d" % len(body)))
    return head + b"\r\n" + body


def server(answer: Callable[[bytes, bytes], bytes]) -> Handler:
    """A server that keeps its connections and answers `answer(head, body)`; b"" closes without an answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while data := answer(*await read_request(reader)):
                writer.write(data)
                await writer.drain()
        writer.close()

    return serve


#: Answers every request with its own head and body.
mirror = server(lambda head, body: reply(head + body, b"x-kept: yes", b"x-fc-secret: no", b"x-fc-status: 200"))


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on asyncio's own loop and on uvloop."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **given: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**given))

    functools.update_wrapper(run, test)
    signature = inspect.signature(test)
    own = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])  # type: ignore[attr-defined]
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return pytest.mark.parametrize("new_loop", loops.values(), ids=loops.keys())(run)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a test's own time limit bounds it."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
