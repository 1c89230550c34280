"""A gateway on real sockets with everything around it played by small stand-ins, each named for what it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roost.gateway.connection import ClientLimits
from roost.gateway.invoke import InvokeLimits
from roost.gateway.server import Gateway
from roost.instances.lease import SessionRef
from roost.model.errors import AccessDenied, NotFound
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
    app_socket: Path
    instance_id: str = "i-1"
    session: Session | None = None
    cold: bool = False
    restored: bool = False
    request_headers: Mapping[str, str] = field(default_factory=dict)
    fault: Exception | None = None
    released: int = 0
    abandoned: list[str] = field(default_factory=list)

    def release(self) -> None:
        self.released += 1

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)

    async def failure(self) -> Exception:
        return self.fault or RuntimeError("nothing is known")


class PlayedFleet:
    """Leases on one socket; `session` decides what a session reference becomes, `gate` holds every lease back."""

    def __init__(self, app_socket: Path) -> None:
        self.app_socket = app_socket
        self.leases: list[PlayedLease] = []
        self.refs: list[SessionRef | None] = []
        self.session: Callable[[FunctionSpec, SessionRef], Session] | None = None
        self.error: Exception | None = None
        self.fault: Exception | None = None
        self.restored = False
        self.headers: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.waiting = 0
        self.cancelled = 0

    async def lease(
        self, spec: FunctionSpec, session: SessionRef | None = None, *, timeout_s: float = 60.0
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
        lease = PlayedLease(
            spec=spec,
            app_socket=self.app_socket,
            fault=self.fault,
            restored=self.restored,
            request_headers=self.headers,
            session=self.session(spec, session) if self.session and session else None,
        )
        self.leases.append(lease)
        return lease


class PlayedCatalog:
    def __init__(self, *specs: FunctionSpec) -> None:
        self.specs = {each.name: each for each in specs}

    def resolve(self, account: str, name: str, qualifier: str) -> FunctionSpec:
        if name not in self.specs:
            raise NotFound(f"function '{name}' does not exist", code="FunctionNotFound")
        return self.specs[name]


class OpenAccess:
    """Lets everybody in, except the bearer of "wrong"."""

    def check_http(
        self, account: str, spec: FunctionSpec, qualifier: str, headers: Mapping[str, str], method: str
    ) -> str:
        if headers.get("authorization") == "Bearer wrong":
            raise AccessDenied("no")
        return account

    def check_signed(self, method: str, path: str, query: str, headers: Mapping[str, str], body_sha256: str) -> str:
        if headers.get("authorization") == "Bearer wrong":
            raise AccessDenied("no")
        return "acme"


class Records:
    def __init__(self) -> None:
        self.seen: list[InvocationRecord] = []
        self.arrived = asyncio.Condition()

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


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a test's own time limit bounds it."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
