"""One invocation, from a route to its record: who may, which function, which session, a lease, the exchange, the end.

Every path gives the lease back. A request that is over before its function is done (timeout, client gone, bad body) is
cancelled by a half-close; the instance then has a grace period to let go of it before the lease is abandoned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from roost.gateway import sessions
from roost.gateway.connection import ClientGone, Request
from roost.gateway.events import CLAIM, EventBody, check_bodiless, collect, too_large
from roost.gateway.faults import Answer, NotOffered, Style, render, timed_out, wrap
from roost.gateway.fields import function_fields, guest_head, line
from roost.gateway.ports import Access, AsyncSink, Catalog, Logs, Observer, SessionDirectory
from roost.gateway.proxy import End, Exchange, transfer
from roost.gateway.reply import FunctionReply
from roost.gateway.routes import Event, Http
from roost.gateway.upstream import Pool, UpstreamConnection
from roost.instances.lease import Fleet, Lease
from roost.model.errors import (
    Fault,
    FunctionFault,
    FunctionTimeout,
    InvalidArgument,
    NotFound,
    RoostError,
    Throttled,
)
from roost.model.function import FunctionSpec
from roost.model.usage import InvocationRecord, Outcome

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InvokeLimits:
    """Sizes in bytes, times in seconds."""

    event_bytes: int = 32 * 1024 * 1024
    async_event_bytes: int = 128 * 1024
    lease_timeout_s: float = 60.0
    grace_s: float = 2.0  # for the guest to let go of a cancelled request


@dataclass(kw_only=True)
class _Call:
    """What is known of an invocation so far."""

    request: Request
    route: Event | Http
    id: str
    began: float  # the loop's time
    started: float  # Unix time
    headers: Mapping[str, str]
    spec: FunctionSpec | None = None
    keyed: bool = False  # Authorization carried a key of this server's
    lease: Lease | None = None
    leased_at: float = 0.0
    outcome: Outcome = Outcome.OK
    status: int = 0
    session: sessions.SessionPlan = field(default_factory=sessions.SessionPlan)
    session_id: str = ""
    exchange: Exchange | None = None

    @property
    def style(self) -> Style:
        return Style.EVENT if isinstance(self.route, Event) else Style.HTTP


class Invoker:
    """Runs invocations. All ports are the constructor's."""

    def __init__(
        self,
        *,
        account: str,
        region: str,
        catalog: Catalog,
        access: Access,
        fleet: Fleet,
        observer: Observer,
        pool: Pool,
        limits: InvokeLimits,
        directory: SessionDirectory | None = None,
        logs: Logs | None = None,
        tasks: AsyncSink | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._account = account
        self._region = region
        self._catalog = catalog
        self._access = access
        self._fleet = fleet
        self._observer = observer
        self._pool = pool
        self._limits = limits
        self._directory = directory
        self._logs = logs
        self._tasks = tasks
        self._clock = clock

    async def run(self, request: Request, route: Event | Http, request_id: str) -> None:
        """Answer `request`. Raises nothing but CancelledError, which leaves it unanswered."""
        call = _Call(
            request=request,
            route=route,
            id=request_id,
            began=asyncio.get_running_loop().time(),
            started=self._clock(),
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in request.head.values.items()},
        )
        try:
            await self._run(call)
        except asyncio.CancelledError:
            call.outcome = Outcome.CANCELLED
            raise
        except RoostError as error:
            self._answer_error(call, error)
        except Exception as error:
            _log.exception("request %s failed", request_id)
            self._answer_error(call, wrap(error))
        finally:
            self._record(call)

    async def _run(self, call: _Call) -> None:
        spec = call.spec = self._admit(call)
        if isinstance(call.route, Event):
            kind = call.headers.get("x-fc-invocation-type", "Sync").lower()
            if kind == "async":
                await self._submit(call, spec)
                return
            if kind != "sync":
                raise InvalidArgument("x-fc-invocation-type is Sync or Async.")
            if (call.request.head.length or 0) > self._limits.event_bytes:
                raise too_large(self._limits.event_bytes)
        target = call.route.target if isinstance(call.route, Http) else None
        call.session = sessions.plan(spec.sessions, call.request.head, target=target)
        lease = call.lease = await self._lease(call, spec)
        call.leased_at = asyncio.get_running_loop().time()
        abandoned = ""
        try:
            abandoned = await self._with_lease(call, spec, lease)
        except asyncio.CancelledError:
            if call.exchange is not None and call.exchange.sent:
                abandoned = "cancelled"
            raise
        finally:
            if abandoned:
                lease.abandon(abandoned)
            else:
                lease.release()

    # -- before the lease

    def _admit(self, call: _Call) -> FunctionSpec:
        route, head = call.route, call.request.head
        if isinstance(route, Event):
            path, _, query = head.target.decode("latin-1").partition("?")
            claimed = call.headers.get(CLAIM, "")
            account = self._access.check_signed(head.method, path, query, call.headers, claimed)
            if not head.has_body:
                check_bodiless(claimed)
            return self._catalog.resolve(account, route.name, route.qualifier)
        spec = self._catalog.resolve(self._account, route.name, route.qualifier)
        call.keyed = self._access.check_http(self._account, spec, route.qualifier, call.headers, head.method)
        return spec

    async def _submit(self, call: _Call, spec: FunctionSpec) -> None:
        if self._tasks is None:
            raise NotOffered("Asynchronous invocation is not offered by this server; invoke with type Sync.")
        limit = self._limits.async_event_bytes
        payload = await collect(call.request, limit=limit, claimed_sha256=call.headers.get(CLAIM, ""))
        await self._tasks.submit(
            spec, qualifier=call.route.qualifier, request_id=call.id, payload=payload, headers=call.headers
        )
        call.request.reply(Answer(status=202, fields=line("x-fc-request-id", call.id), body=b""))

    async def _lease(self, call: _Call, spec: FunctionSpec) -> Lease:
        plan = call.session
        try:
            return await self._fleet.lease(spec, plan.ref, timeout_s=self._limits.lease_timeout_s)
        except NotFound:
            if not plan.replace_unknown or plan.ref is None or not plan.ref.id:
                raise
        fresh = replace(plan.ref, id="")
        call.session = replace(plan, ref=fresh)
        return await self._fleet.lease(spec, fresh, timeout_s=self._limits.lease_timeout_s)

    # -- with the lease

    async def _with_lease(self, call: _Call, spec: FunctionSpec, lease: Lease) -> str:
        """Carry the request out. Returns why the lease must be abandoned, "" if it can be released."""
        reply = self._reply(call, spec, lease)
        exchange = call.exchange = Exchange(call.request, head=self._guest_head(call, spec, lease), reply=reply)
        if isinstance(call.route, Event):
            claimed = call.headers.get(CLAIM, "")
            limit = self._limits.event_bytes
            exchange.sink = EventBody(exchange, limit=limit, claimed_sha256=claimed, refuse=exchange.refuse)
        try:
            end, upstream = await transfer(self._pool, lease.app_socket, exchange, spec.timeout_s)
        finally:
            reply.close()
        call.session_id = reply.session_id
        if exchange.response is not None:
            call.status = exchange.response.status
        if end is End.COMPLETE:
            call.outcome = reply.outcome
            return ""
        self._answer_error(call, await self._error_of(end, exchange, spec, lease))
        if upstream is None or end is End.BROKEN:
            return ""
        return await self._let_go(upstream, "timeout" if end is End.TIMEOUT else "cancelled")

    async def _error_of(self, end: End, exchange: Exchange, spec: FunctionSpec, lease: Lease) -> RoostError:
        if end is End.TIMEOUT:
            return timed_out(spec.timeout_s)
        if end is End.CLIENT_GONE:
            return ClientGone()
        if end is End.REFUSED and exchange.refusal is not None:
            return exchange.refusal
        if end is End.BAD_REPLY:
            return FunctionFault(Fault(type="InvalidResponse", message=str(exchange.error)))
        return wrap(await lease.failure())

    async def _let_go(self, upstream: UpstreamConnection, reason: str) -> str:
        """Cancel the request and wait until the guest has let go of it. Returns `reason` if it doesn't."""
        upstream.cancel()
        try:
            return "" if await upstream.closed(self._limits.grace_s) else reason
        finally:
            upstream.abort()

    def _reply(self, call: _Call, spec: FunctionSpec, lease: Lease) -> FunctionReply:
        tail = call.headers.get("x-fc-log-type", "").lower() == "tail"
        return FunctionReply(
            request_id=call.id,
            plan=call.session,
            spec=spec,
            lease=lease,
            prefix=call.route.prefix if isinstance(call.route, Http) else "",
            directory=self._directory,
            logs=self._logs if tail else None,
            began=call.leased_at,
        )

    def _guest_head(self, call: _Call, spec: FunctionSpec, lease: Lease) -> bytes:
        route, request = call.route, call.request
        extra = function_fields(spec, qualifier=route.qualifier, region=self._region, request_id=call.id)
        for name, value in lease.request_headers.items():
            extra += line(name, value)
        event = isinstance(route, Event)
        return guest_head(
            request.head,
            method=request.head.method,
            target=b"/invoke" if isinstance(route, Event) else route.target,
            control_path="/invoke" if event else "/http-invoke",
            prefix="" if isinstance(route, Event) else route.prefix,
            peer=request.peer,
            keyed=event or call.keyed,
            extra=extra,
        )

    # -- after

    def _answer_error(self, call: _Call, error: RoostError) -> None:
        call.outcome = _outcome_of(error)
        request = call.request
        if isinstance(error, ClientGone) or isinstance(request.gone, ClientGone):
            call.status = call.status or ClientGone.status
        elif request.answered:
            request.abort()
        else:
            answer = render(error, style=call.style, request_id=call.id)
            call.status = answer.status
            request.reply(answer)

    def _record(self, call: _Call) -> None:
        spec, lease = call.spec, call.lease
        if spec is None or (lease is None and call.outcome is Outcome.OK):
            return
        now = asyncio.get_running_loop().time()
        leased_at = call.leased_at or now
        self._observer.invocation(
            InvocationRecord(
                request_id=call.id,
                account=spec.account,
                function=spec.name,
                version=spec.version,
                qualifier=call.route.qualifier,
                instance_id=lease.instance_id if lease is not None else "",
                session_id=call.session_id,
                outcome=call.outcome,
                status=call.status,
                started=call.started,
                wait_s=leased_at - call.began,
                duration_s=now - leased_at,
                memory_mb=spec.limits.memory_mb,
                cold=lease.cold if lease is not None else False,
                trace_parent=call.headers.get("traceparent", ""),
            )
        )


def _outcome_of(error: RoostError) -> Outcome:
    if isinstance(error, FunctionTimeout):
        return Outcome.TIMEOUT
    if isinstance(error, FunctionFault):
        return Outcome.FUNCTION_ERROR
    if isinstance(error, Throttled):
        return Outcome.THROTTLED
    # A request that was itself wrong has been cancelled if it had got to an instance.
    return Outcome.SYSTEM_ERROR if error.status >= 500 else Outcome.CANCELLED
