"""The data plane as a server: accepts, routes, and ends gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from roost.gateway.browsers import check_api_caller, check_function_caller, check_host, check_sandbox_caller
from roost.gateway.connection import ClientConnection, ClientGone, ClientLimits, Request
from roost.gateway.control import ControlPlane
from roost.gateway.faults import Style, render, wrap
from roost.gateway.head import RequestHead
from roost.gateway.invoke import InvokeLimits, Invoker
from roost.gateway.ports import Access, AsyncSink, Catalog, Logs, Observer, SessionDirectory
from roost.gateway.routes import Control, Event, Http, Route, route
from roost.gateway.sandbox_routes import SandboxTarget, target_of
from roost.gateway.sandboxes import SandboxPlane, Traffic
from roost.gateway.tasks import TaskRunner
from roost.gateway.upstream import Pool
from roost.instances.chains import Chains
from roost.instances.lease import Fleet
from roost.model.audit import Audit
from roost.model.errors import RoostError
from roost.model.task import MAX_HOPS

_log = logging.getLogger(__name__)
_SWEEP_S = 1.0
_DRAIN_PAUSE_S = 0.01
_random_bits = random.getrandbits


class Gateway:
    """The streaming HTTP/1.1 proxy in front of functions and the control plane.

    Construct it anywhere; `start` and `close` run in the same event loop. `control_socket` is the unix socket of the
    control plane. `account` owns the functions that are reached by path. `keyless`: nobody has to prove who calls, so
    what pages in browsers send is refused (see `browsers`). `sandbox_domain`: sandboxes are below it, and
    below localhost.
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
        keyless: bool = False,
        sandboxes: Traffic | None = None,
        sandbox_domain: str = "",
        audit: Audit | None = None,
        chains: Chains | None = None,
    ) -> None:
        self.keyless = keyless
        self._sandbox_domain = sandbox_domain.partition(":")[0].encode("ascii")
        self.limits = client_limits or ClientLimits()
        self.draining = False
        self.connections: set[ClientConnection] = set()
        self._pool = Pool()
        chains = chains or Chains(MAX_HOPS)
        self._control = ControlPlane(socket=control_socket, pool=self._pool, chains=chains)
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
            chains=chains,
            spawn=self._spawn,
        )
        self._sandboxes = None if sandboxes is None else SandboxPlane(sandboxes, self._pool, self._spawn, audit)
        #: Runs asynchronous tasks the way of requests.
        self.tasks = TaskRunner(self._invoker)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Listen; returns the address, with the port that was chosen for port 0. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(self, secure=tls is not None),
            host,
            port,
            backlog=1024,
            start_serving=True,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else self.limits.head_timeout_s,
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
        await self._drain(drain_s)
        await asyncio.sleep(0)  # every task has begun
        self._invoker.cancel()
        if self._sandboxes is not None:
            self._sandboxes.cancel()
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

    async def _drain(self, drain_s: float) -> None:
        """Let what runs go on to its end, at most for `drain_s` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + drain_s
        while self._busy and (left := end - loop.time()) > 0:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=left)
            else:
                await asyncio.sleep(min(_DRAIN_PAUSE_S, left))

    @property
    def _busy(self) -> bool:
        return bool(self._tasks) or self._invoker.busy or (self._sandboxes is not None and self._sandboxes.busy)

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

    def new_request_id(self) -> str:
        """Like Function Compute's: version, time, randomness."""
        # No secret: a generator that costs no system call will do.
        digits = f"{int(time.time()) << 80 | _random_bits(80):028x}"
        return f"1-{digits[:8]}-{digits[8:16]}-{digits[16:]}"

    def serve(self, request: Request) -> None:
        """Start to answer `request`."""
        request_id = self.new_request_id()
        work: Coroutine[Any, Any, None] | None = None
        try:
            known = request.head.leads
            where = known[1] if known is not None and known[0] is self else self._look(request.head)
            if isinstance(where, Http | Event):
                work = self._invoker.begin(request, where, request_id)
            elif isinstance(where, Control):
                work = self._control.run(request, request_id)
            elif self._sandboxes is not None:
                work = self._sandboxes.begin(request, where)
        except Exception as error:
            self._failed(request, error, request_id)
        if work is not None:
            self._answer(request, work, request_id)

    def _look(self, head: RequestHead) -> Route | SandboxTarget:
        """Where a request leads, if who sends it may go there at all. The head alone tells, so it remembers.

        Raises RoostError."""
        where: Route | SandboxTarget | None = None if self._sandboxes is None else target_of(head)
        if isinstance(where, SandboxTarget):
            if self.keyless:
                self._check_sandbox_caller(head, where)
        else:
            if self.keyless:
                check_host(head)
            where = route(head.method, head.target)
            if self.keyless:
                check_function_caller(head) if isinstance(where, Http) else check_api_caller(head)
        head.leads = (self, where)
        return where

    def _check_sandbox_caller(self, head: RequestHead, target: SandboxTarget) -> None:
        """Raises AccessDenied. A host's name below the domain that this server was given is its own."""
        if not target.domain or target.domain != self._sandbox_domain:
            check_host(head)
        check_sandbox_caller(head)

    def _answer(self, request: Request, work: Coroutine[Any, Any, None], request_id: str) -> None:
        """Let a task answer `request`; it ends when the client goes before it has an instance."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def gone() -> None:
            # Not at once: a task that is cancelled before its first step would never give its lease back.
            asyncio.get_running_loop().call_soon(task.cancel)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                self._cancelled(request)
            elif (error := task.exception()) is not None:
                self._failed(request, error, request_id)

        request.on_gone = gone
        task.add_done_callback(done)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cancelled(self, request: Request) -> None:
        """Over before it was answered: the client went, broke HTTP, or the server ends."""
        if request.gone is None or isinstance(request.gone, ClientGone):
            request.abort()
        else:
            self._fail(request, request.gone, self.new_request_id())

    def _failed(self, request: Request, cause: BaseException, request_id: str) -> None:
        error = wrap(cause)
        if error is not cause:
            _log.error("request %s failed", request_id, exc_info=cause)
        self._fail(request, error, request_id)

    def _fail(self, request: Request, error: RoostError, request_id: str) -> None:
        if request.answered:
            request.abort()
        else:
            request.reply(render(error, style=Style.API, request_id=request_id))

    def _sweep(self) -> None:
        """Once a second, instead of a timer for every request: the deadlines of clients and of idle upstreams."""
        now = time.monotonic()
        for connection in list(self.connections):
            connection.expire(now)
        self._pool.expire()
        limits = self.limits
        pause = min(_SWEEP_S, limits.head_timeout_s / 4, limits.idle_timeout_s / 4, limits.linger_s / 4)
        self._sweeper = asyncio.get_running_loop().call_later(max(0.01, pause), self._sweep)
