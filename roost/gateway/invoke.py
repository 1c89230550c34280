"""One invocation, from a route to its record: who may, which function, which session, a lease, the exchange, the end.

Every path gives the lease back. A request that is over before its function is done (timeout, client gone, bad body) is
cancelled by a half-close; the instance then has a grace period to let go of it before the lease is abandoned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from roost.gateway import sessions
from roost.gateway.call import Call, Flight, outcome_of
from roost.gateway.connection import ClientGone, Request
from roost.gateway.events import CLAIM, EventBody, check_bodiless, collect, too_large
from roost.gateway.faults import Answer, NotOffered, render, timed_out, wrap
from roost.gateway.fields import FunctionFields, guest_head, kept_fields, line
from roost.gateway.head import RequestHead, TextFields
from roost.gateway.ports import Access, AsyncSink, Catalog, Logs, Observer, SessionDirectory
from roost.gateway.proxy import COMPLETE, End, Exchange, conclude, settle, transfer
from roost.gateway.reply import FunctionReply
from roost.gateway.routes import Event, Http
from roost.gateway.upstream import Pool, UpstreamConnection
from roost.instances.chains import HOPS, Chains
from roost.instances.lease import Fleet, Lease, SessionRef
from roost.model.errors import Fault, FunctionFault, InvalidArgument, NotFound, RoostError
from roost.model.function import FunctionSpec
from roost.model.usage import Outcome

_log = logging.getLogger(__name__)
_HOPS = HOPS.encode()


def _line_of(hops: int) -> bytes:
    return b"%b: %d\r\n" % (_HOPS, hops)


_NO_HOPS = _line_of(0)


@dataclass(frozen=True, kw_only=True)
class InvokeLimits:
    """Sizes in bytes, times in seconds."""

    event_bytes: int = 32 * 1024 * 1024
    async_event_bytes: int = 128 * 1024
    lease_timeout_s: float = 60.0
    grace_s: float = 2.0  # for the guest to let go of a cancelled request


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
        chains: Chains,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._account = account
        self._fields = FunctionFields(region)
        self._catalog = catalog
        self._access = access
        self._fleet = fleet
        self._observer = observer
        self._pool = pool
        self._limits = limits
        self._directory = directory
        self._logs = logs
        self._tasks = tasks
        self._chains = chains
        self._spawn = spawn
        self._clock = clock
        self._warm: set[Flight] = set()

    def begin(self, request: Request, route: Event | Http, request_id: str) -> Coroutine[Any, Any, None] | None:
        """Start to answer `request`.

        With a warm instance and a connection to it at hand nothing has to be waited for: None is returned, and the
        reply's arrival ends the invocation. Otherwise what is left to do is returned, to be run as a task; it raises
        nothing but CancelledError, which leaves the request unanswered. It may hold a lease, so it must be begun.
        """
        call = Call(request=request, route=route, id=request_id, began=time.perf_counter(), started=self._clock())
        try:
            spec = call.spec = self._admit(call)
            if call.deferred:
                return self._guarded(call, lambda: self._submit(call, spec))
            lease = self._fleet.try_lease(spec, call.session.ref)
            if lease is not None and self._start_warm(call, spec, lease):
                return None
            return self._guarded(call, lambda: self._run(call, spec, lease))
        except Exception as error:
            self._answer_error(call, error)
            self._record(call)
            return None

    async def _guarded(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        """`work`, an answer to whatever it raises, and the record of the invocation."""
        try:
            await work()
        except asyncio.CancelledError:
            call.outcome = Outcome.CANCELLED
            raise
        except Exception as error:
            self._answer_error(call, error)
        finally:
            self._record(call)

    # -- before the lease

    def _admit(self, call: Call) -> FunctionSpec:
        """Who calls what, and in which session. Raises RoostError."""
        route, head = call.route, call.request.head
        if isinstance(route, Event):
            path, _, query = head.target.decode("latin-1").partition("?")
            claimed = call.header(CLAIM)
            fields, source = TextFields(head.values), call.request.peer
            account = self._access.check_signed(
                head.method, path, query, fields, claimed, source=source, function=route.name
            )
            if not head.has_body:
                check_bodiless(claimed)
            spec = self._catalog.resolve(account, route.name, route.qualifier)
            call.spec = spec  # from here on its failures are the function's
            self._check_event(call)
            target = None
        else:
            account, source = route.account or self._account, call.request.peer
            authorization = call.header(b"authorization")
            try:
                spec = call.spec = self._catalog.resolve(account, route.name, route.qualifier)
            except RoostError as error:
                raise self._access.unresolved(account, route.name, authorization, error, source) from None
            call.keyed = self._access.check_http(
                account, spec, route.qualifier, authorization, head.method, source=source
            )
            call.deferred = _is_async(call)
            target = route.target
        call.hops = self._chains.admit(call.request.connection.source, head.values.get(_HOPS), account, spec.name)
        plan = call.session = sessions.plan(spec.sessions, head, target=target)
        if plan.ref is not None and not call.deferred:
            spec = call.spec = self._same_version(call, spec, plan.ref)
        return spec

    def _same_version(self, call: Call, drawn: FunctionSpec, ref: SessionRef) -> FunctionSpec:
        """A session stays with the version it runs on, whatever an alias with weights draws for its next request."""
        begun = self._fleet.version_of(drawn, ref)
        if begun in ("", drawn.version):
            return drawn
        return self._catalog.resolve(drawn.account, drawn.name, call.route.qualifier, begun=begun)

    def _check_event(self, call: Call) -> None:
        call.deferred = _is_async(call)
        if not call.deferred and (call.request.head.length or 0) > self._limits.event_bytes:
            raise too_large(self._limits.event_bytes)

    async def _submit(self, call: Call, spec: FunctionSpec) -> None:
        if self._tasks is None:
            raise NotOffered("Asynchronous invocation is not offered by this server; invoke with type Sync.")
        route = call.route
        claimed = call.header(CLAIM) if isinstance(route, Event) else ""
        payload = await collect(call.request, limit=self._limits.async_event_bytes, claimed_sha256=claimed)
        ref = call.session.ref
        task = await self._tasks.submit(
            spec,
            qualifier=call.route.qualifier,
            request_id=call.id,
            session_id=ref.id if ref is not None else "",
            payload=payload,
            headers=TextFields(call.request.head.values),
            http=None if isinstance(route, Event) else http_fields(route, call.request, call.keyed),
            hops=call.hops,
        )
        fields = line("x-fc-request-id", task.request_id) + line("x-fc-async-task-id", task.task_id)
        path = "/" if isinstance(route, Event) else route.prefix
        fields += sessions.reply_lines(call.session, task.session_id, path=path)
        call.request.reply(Answer(status=202, fields=fields, body=b""))

    def plan(self, spec: FunctionSpec, head: RequestHead, target: bytes | None) -> sessions.SessionPlan:
        """What a task's request means by its session; `target` is None for an event. Raises InvalidArgument."""
        return sessions.plan(spec.sessions, head, target=target)

    async def run_task(self, call: Call, spec: FunctionSpec, begin: Callable[[str], Awaitable[None]]) -> None:
        """Run an event that no client waits for; `begin(instance id)` is awaited before anything of it is sent. The
        request learns of every end; raises nothing but CancelledError."""

        async def work() -> None:
            ref = call.session.ref
            chosen = call.spec = spec if ref is None else self._same_version(call, spec, ref)
            lease = self._fleet.try_lease(chosen, ref) or await self._lease(call, chosen)
            try:
                await begin(lease.instance_id)
            except BaseException:
                lease.release()
                raise
            await self._run(call, chosen, lease)

        await self._guarded(call, work)

    async def _lease(self, call: Call, spec: FunctionSpec) -> Lease:
        plan, task = call.session, call.task_id or call.id
        try:
            return await self._fleet.lease(spec, plan.ref, task=task, timeout_s=self._limits.lease_timeout_s)
        except NotFound:
            if not plan.replace_unknown or plan.ref is None or not plan.ref.id:
                raise
        fresh = replace(plan.ref, id="")
        call.session = replace(plan, ref=fresh)
        return await self._fleet.lease(spec, fresh, task=task, timeout_s=self._limits.lease_timeout_s)

    # -- with the lease: on the spot

    def _start_warm(self, call: Call, spec: FunctionSpec, lease: Lease) -> bool:
        """Send the request off, if a connection to the instance waits for one."""
        upstream = self._pool.take(lease.app_socket)
        if upstream is None:
            return False
        try:
            flight = self._flight(call, spec, lease)
        except BaseException:
            upstream.abort()
            lease.release()
            raise
        self._warm.add(flight)
        flight.exchange.start(upstream, spec.timeout_s, partial(self._ended, flight, upstream))
        return True

    def _ended(self, flight: Flight, upstream: UpstreamConnection, end: End) -> None:
        """What was sent off is over."""
        self._warm.discard(flight)
        call, lease = flight.call, flight.lease
        if end is COMPLETE:
            try:
                settle(self._pool, lease.app_socket, flight.exchange, upstream)
                flight.reply.close()
                flight.learn()
                call.outcome = flight.reply.outcome
            finally:
                lease.release()
                self._record(call)
        elif end is End.CANCELLED:
            upstream.cancel()
            upstream.abort()
            flight.reply.close()
            call.outcome = Outcome.CANCELLED
            lease.abandon("cancelled")
            self._record(call)
            call.request.abort()
        else:
            self._spawn(self._guarded(call, lambda: self._held(flight, partial(self._conclude, flight, upstream, end))))

    @property
    def busy(self) -> bool:
        """Requests that were sent off on the spot are under way."""
        return bool(self._warm)

    def cancel(self) -> None:
        """Break those off."""
        for flight in list(self._warm):
            flight.exchange.cancel()

    # -- with the lease: in a task

    async def _run(self, call: Call, spec: FunctionSpec, lease: Lease | None) -> None:
        lease = lease or await self._lease(call, spec)
        try:
            flight = self._flight(call, spec, lease)
        except BaseException:
            lease.release()
            raise
        await self._held(flight, lambda: transfer(self._pool, lease.app_socket, flight.exchange, spec.timeout_s))

    async def _conclude(
        self, flight: Flight, upstream: UpstreamConnection, end: End
    ) -> tuple[End, UpstreamConnection | None]:
        deadline = flight.call.leased_at + flight.spec.timeout_s
        return await conclude(self._pool, flight.lease.app_socket, flight.exchange, upstream, end, deadline=deadline)

    async def _held(
        self, flight: Flight, transfer: Callable[[], Awaitable[tuple[End, UpstreamConnection | None]]]
    ) -> None:
        """The exchange to its end, then the lease goes back, one way or the other."""
        abandoned = ""
        try:
            try:
                end, upstream = await transfer()
            finally:
                flight.reply.close()
            abandoned = await self._judge(flight, end, upstream)
        except asyncio.CancelledError:
            abandoned = "cancelled" if flight.exchange.sent else ""
            raise
        finally:
            if abandoned:
                flight.lease.abandon(abandoned)
            else:
                flight.lease.release()

    async def _judge(self, flight: Flight, end: End, upstream: UpstreamConnection | None) -> str:
        """Answer for a failure. Returns why the lease must be abandoned, "" if it can be released."""
        flight.learn()
        if end is COMPLETE:
            flight.call.outcome = flight.reply.outcome
            return ""
        self._answer_error(flight.call, await self._error_of(end, flight.exchange, flight.spec, flight.lease))
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

    def _flight(self, call: Call, spec: FunctionSpec, lease: Lease) -> Flight:
        """Everything ready to be sent."""
        call.lease = lease
        self._chains.enter(lease.instance_id, call.hops)
        call.leased_at = time.perf_counter()
        tail = _wants_tail(call)
        reply = FunctionReply(
            request_id=call.id,
            plan=call.session,
            spec=spec,
            lease=lease,
            prefix=call.route.prefix if isinstance(call.route, Http) else "",
            directory=self._directory,
            logs=self._logs if tail else None,
            began=call.leased_at,
        )
        exchange = Exchange(call.request, head=self._guest_head(call, spec, lease, tail), reply=reply)
        if isinstance(call.route, Event):
            exchange.filter = EventBody(
                exchange,
                limit=self._limits.event_bytes,
                claimed_sha256=call.header(CLAIM),
                refuse=exchange.refuse,
            )
        return Flight(call=call, spec=spec, lease=lease, reply=reply, exchange=exchange)

    def _guest_head(self, call: Call, spec: FunctionSpec, lease: Lease, tail: bool) -> bytes:
        route, request = call.route, call.request
        extra = self._fields.lines(spec, qualifier=route.qualifier, request_id=call.id)
        for name, value in lease.request_headers.items():
            extra += line(name, value)
        if tail:
            extra += b"x-fc-log-type: Tail\r\n"
        extra += (_line_of(call.hops) if call.hops else _NO_HOPS) + call.extra
        keyed = call.keyed or isinstance(route, Event)
        return guest_head(request.head, route=route, peer=request.peer, keyed=keyed, extra=extra)

    # -- after

    def _answer_error(self, call: Call, cause: Exception) -> None:
        error = wrap(cause)
        if error is not cause:
            _log.error("request %s failed", call.id, exc_info=cause)
        call.outcome = outcome_of(error)
        request = call.request
        if isinstance(error, ClientGone) or isinstance(request.gone, ClientGone):
            call.status = call.status or ClientGone.status
        elif request.answered:
            request.abort()
        else:
            answer = render(error, style=call.style, request_id=call.id)
            call.status = answer.status
            request.reply(answer)

    def _record(self, call: Call) -> None:
        if call.lease is not None:
            self._chains.leave(call.lease.instance_id, call.hops)
        record = call.record(time.perf_counter())
        if record is not None:
            self._observer.invocation(record)


def http_fields(route: Http, request: Request, keyed: bool) -> dict[str, str]:
    """A request to a function's own address, to be made later."""
    head, target = request.head, route.target.decode("latin-1")
    kept = kept_fields(head, keyed, request.peer)
    return {":method": head.method, ":prefix": route.prefix, ":target": target, **kept}


def _is_async(call: Call) -> bool:
    """Raises InvalidArgument."""
    kind = call.request.head.values.get(b"x-fc-invocation-type")
    if kind is None or kind.lower() in (b"", b"sync"):
        return False
    if kind.lower() == b"async":
        return True
    raise InvalidArgument("x-fc-invocation-type is Sync or Async.")


def _wants_tail(call: Call) -> bool:
    return call.request.head.values.get(b"x-fc-log-type", b"").lower() == b"tail"
