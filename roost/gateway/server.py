"""The data plane as a server: accepts, routes, and ends gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path

from roost.gateway.connection import ClientConnection, ClientGone, ClientLimits, Request
from roost.gateway.control import ControlPlane
from roost.gateway.faults import Style, render, wrap
from roost.gateway.invoke import InvokeLimits, Invoker
from roost.gateway.ports import Access, AsyncSink, Catalog, Logs, Observer, SessionDirectory
from roost.gateway.routes import Control, route
from roost.gateway.upstream import Pool
from roost.instances.lease import Fleet
from roost.model.errors import RoostError

_log = logging.getLogger(__name__)
_SWEEP_S = 1.0


class Gateway:
    """The streaming HTTP/1.1 proxy in front of functions and the control plane.

    Construct it anywhere; `start` and `close` run in the same event loop. `control_socket` is the unix socket of the
    control plane. `account` owns the functions that are reached by path.
    """

    def __init__(
        self,
        *,
        account: str,
        region: str,
        control_socket: Path,
        catalog: Catalog,
        access: Access,
        fleet: Fleet,
        observer: Observer,
        directory: SessionDirectory | None = None,
        logs: Logs | None = None,
        tasks: AsyncSink | None = None,
        client_limits: ClientLimits | None = None,
        invoke_limits: InvokeLimits | None = None,
    ) -> None:
        self.limits = client_limits or ClientLimits()
        self.draining = False
        self.connections: set[ClientConnection] = set()
        self._pool = Pool()
        self._control = ControlPlane(socket=control_socket, pool=self._pool)
        self._invoker = Invoker(
            account=account,
            region=region,
            catalog=catalog,
            access=access,
            fleet=fleet,
            observer=observer,
            pool=self._pool,
            limits=invoke_limits or InvokeLimits(),
            directory=directory,
            logs=logs,
            tasks=tasks,
        )
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty = asyncio.Event()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address, with the port that was chosen for port 0. Raises OSError."""
        loop = self._loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self), host, port, backlog=1024, start_serving=True
        )
        self._sweep()
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    async def close(self, *, drain_s: float = 10.0) -> None:
        """Stop accepting, let requests end for `drain_s` seconds, then break what is left."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in list(self.connections):
            connection.close()
        self._pool.close()
        await self._leave_all()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def _leave_all(self) -> None:
        """Give the last answers a moment to leave, then break their connections."""
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), self.limits.linger_s)
        for connection in list(self.connections):
            connection.abort()

    # -- for connections

    def admit(self, connection: ClientConnection) -> bool:
        if self.draining or len(self.connections) >= self.limits.max_connections:
            return False
        self.connections.add(connection)
        return True

    def leave(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._empty.set()

    def now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0

    def new_request_id(self) -> str:
        """Like Function Compute's: version, time, randomness."""
        noise = os.urandom(10).hex()
        return f"1-{int(time.time()):08x}-{noise[:8]}-{noise[8:]}"

    def serve(self, request: Request) -> None:
        """Start to answer `request`."""
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._tasks.add(task)

        def gone() -> None:
            task.cancel()

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                self._cancelled(request)

        request.on_gone = gone
        task.add_done_callback(done)

    async def _answer(self, request: Request) -> None:
        request_id = self.new_request_id()
        try:
            where = route(request.head.method, request.head.target)
            if isinstance(where, Control):
                await self._control.run(request, request_id)
            else:
                await self._invoker.run(request, where, request_id)
        except RoostError as error:
            self._fail(request, error, request_id)
        except Exception as error:
            _log.exception("request %s failed", request_id)
            self._fail(request, wrap(error), request_id)

    def _cancelled(self, request: Request) -> None:
        """Over before it was answered: the client went, broke HTTP, or the server ends."""
        if request.gone is None or isinstance(request.gone, ClientGone):
            request.abort()
        else:
            self._fail(request, request.gone, self.new_request_id())

    def _fail(self, request: Request, error: RoostError, request_id: str) -> None:
        if request.answered:
            request.abort()
        else:
            request.reply(render(error, style=Style.API, request_id=request_id))

    def _sweep(self) -> None:
        """Once a second, instead of a timer for every request: the deadlines of clients and of idle upstreams."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.expire(now)
        self._pool.expire(now)
        limits = self.limits
        pause = min(_SWEEP_S, limits.head_timeout_s / 4, limits.idle_timeout_s / 4, limits.linger_s / 4)
        self._sweeper = loop.call_later(max(0.01, pause), self._sweep)
