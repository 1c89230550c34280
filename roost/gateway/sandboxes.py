"""Requests to sandboxes, from the check of their tokens to the end of the reply.

With a sandbox that runs and a connection at hand nothing is waited for. The daemon's ports go to its own socket; any
other port through the relay of the room's init, a connection of its own after one line that names the port. There is no
deadline: a stream lasts as long as both ends want it, or until the sandbox is paused or ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from roost.gateway.connection import ClientGone, Request
from roost.gateway.faults import Answer, wrap
from roost.gateway.head import BadMessage, ResponseHead
from roost.gateway.proxy import End, Exchange, settle
from roost.gateway.sandbox_access import answer, refusal, signer, unsigned
from roost.gateway.sandbox_audit import event_of
from roost.gateway.sandbox_cors import cors_lines, preflight
from roost.gateway.sandbox_head import room_head
from roost.gateway.sandbox_routes import DAEMON_PORTS, SandboxTarget
from roost.gateway.uploads import UploadNames, boundary_of
from roost.gateway.upstream import Pool, UpstreamConnection
from roost.model.audit import Audit
from roost.model.errors import RoostError
from roost.model.sandbox import Sandbox, explain
from roost.sandboxes.entry import SandboxLease
from roost.sandboxes.fleet import Gone

_log = logging.getLogger(__name__)
#: For the daemon to let go of a request whose client has gone.
_GRACE_S = 2.0


class Traffic(Protocol):
    """What is asked of the sandboxes. All but `lease` and `mourn` answer from memory, at once."""

    def now(self) -> float: ...

    def find(self, id: str) -> Sandbox | None: ...

    def known(self) -> Iterable[Sandbox]: ...

    def why_gone(self, id: str) -> Gone: ...

    def try_lease(self, id: str) -> SandboxLease | None: ...

    async def lease(self, id: str) -> SandboxLease: ...

    async def mourn(self, lease: SandboxLease) -> None: ...


class _Reply:
    """What is added to a sandbox's reply."""

    strip_ours = True
    prepare = None

    def __init__(self, lines: bytes, *, restored: bool) -> None:
        self._lines = lines + b"x-roost-sandbox-restored: files\r\n" if restored else lines

    def lines(self, head: ResponseHead) -> bytes:
        return self._lines

    def rewriter(self, head: ResponseHead) -> None:
        return None


@dataclass(kw_only=True, slots=True, eq=False)
class _Flight:
    """A request that a sandbox has taken."""

    request: Request
    target: SandboxTarget
    lease: SandboxLease
    exchange: Exchange

    @property
    def daemon(self) -> bool:
        """The daemon answers it: its connections are kept. Those to a server of the user's are not, as that may close
        one at any moment, and who closes on a request has perhaps run it."""
        return self.target.port in DAEMON_PORTS


class SandboxPlane:
    """`traffic` has the sandboxes, `pool` the connections; `spawn` runs what takes its time."""

    def __init__(
        self,
        traffic: Traffic,
        pool: Pool,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        audit: Audit | None = None,
    ) -> None:
        self._traffic = traffic
        self._audit = audit
        self._pool = pool
        self._spawn = spawn
        self._flights: set[_Flight] = set()

    def begin(self, request: Request, target: SandboxTarget) -> Coroutine[Any, Any, None] | None:
        """Start to answer. What is left to do is returned, to be run as a task; it may hold a lease, so it must be
        begun."""
        if target.port in DAEMON_PORTS and (asked := preflight(request.head)) is not None:
            request.reply(asked)
            return None
        sandbox = self._traffic.find(target.id) if target.id else signer(self._traffic.known(), request.head)
        if sandbox is None:
            self._reply(request, target, self._gone(target) if target.id else unsigned())
            return None
        target = target if target.id else replace(target, id=sandbox.id)
        refused = refusal(sandbox, target.port, request.head, self._traffic.now())
        if self._audit is not None:
            event = event_of(sandbox, target.port, request.head, refused=refused is not None)
            if event is not None:
                self._audit(event)
        if refused is not None:
            self._reply(request, target, refused)
            return None
        lease = self._traffic.try_lease(target.id)
        if lease is None:
            return self._lease_and_run(request, target)
        flight = self._flight(request, target, lease)
        try:
            upstream = self._pool.take(lease.app_socket) if flight.daemon else None
            if upstream is None:
                return self._run(flight)
            self._send(flight, upstream)
        except BaseException:
            lease.release()
            raise
        return None

    @property
    def busy(self) -> bool:
        return bool(self._flights)

    def cancel(self) -> None:
        """Break off all that is under way: the server ends."""
        for flight in list(self._flights):
            flight.exchange.cancel()

    # -- on the way there

    def _flight(self, request: Request, target: SandboxTarget, lease: SandboxLease) -> _Flight:
        """Everything ready to be sent; the lease goes back if that fails."""
        try:
            exchange = self._exchange(request, target, lease)
            self._name_files(exchange, request, target, lease.sandbox)
        except BaseException:
            lease.release()
            raise
        return _Flight(request=request, target=target, lease=lease, exchange=exchange)

    def _name_files(self, exchange: Exchange, request: Request, target: SandboxTarget, sandbox: Sandbox) -> None:
        """Tell the audit of each file of an upload whose address names none."""
        audit, head = self._audit, request.head
        if audit is None or head.method != "POST" or (boundary := boundary_of(head)) == b"":
            return
        event = event_of(sandbox, target.port, head, refused=False)
        if event is None or event.action != "file.write" or "path" in event.detail:
            return

        def tell(path: str) -> None:
            audit(replace(event, detail={**event.detail, "path": path}))

        exchange.filter = UploadNames(exchange, boundary, tell)

    @staticmethod
    def _exchange(request: Request, target: SandboxTarget, lease: SandboxLease) -> Exchange:
        daemon = target.port if target.port in DAEMON_PORTS else None
        host = request.head.values.get(b"host", b"localhost")
        mask = lease.sandbox.network.get("maskRequestHost") if daemon is None else None
        if isinstance(mask, str):
            host = _field_value(mask.replace("${PORT}", str(target.port)))
        lines = b"" if daemon is None else cors_lines(request.head)
        head = room_head(request.head, host=host, peer=request.peer, daemon_port=daemon)
        return Exchange(request, head=head, reply=_Reply(lines, restored=lease.restored))

    async def _lease_and_run(self, request: Request, target: SandboxTarget) -> None:
        try:
            lease = await self._traffic.lease(target.id)
        except Exception as cause:
            self._reply(request, target, self._failed(target, cause))
            return
        await self._run(self._flight(request, target, lease))

    async def _run(self, flight: _Flight) -> None:
        try:
            upstream = await self._connect(flight)
        except OSError:
            await self._broken(flight)
            return
        except BaseException:
            flight.lease.release()
            raise
        self._send(flight, upstream)

    async def _connect(self, flight: _Flight) -> UpstreamConnection:
        """A fresh connection to the port."""
        if flight.daemon:
            return await self._pool.acquire(flight.lease.app_socket, fresh=True)
        upstream = await self._pool.acquire(flight.lease.guest_socket, fresh=True)
        upstream.write(b"port %d\n" % flight.target.port)
        return upstream

    def _send(self, flight: _Flight, upstream: UpstreamConnection) -> None:
        if not flight.lease.held:  # revoked while it was connected: nobody would answer
            self._ended(flight, upstream, End.CANCELLED)
            return
        self._flights.add(flight)
        flight.lease.on_revoked = flight.exchange.cancel
        flight.exchange.start(upstream, None, partial(self._ended, flight, upstream))

    # -- at the end

    def _ended(self, flight: _Flight, upstream: UpstreamConnection, end: End) -> None:
        self._flights.discard(flight)
        flight.lease.on_revoked = None
        if end is End.COMPLETE:
            if flight.daemon:
                settle(self._pool, flight.lease.app_socket, flight.exchange, upstream)
            else:
                upstream.abort()
            flight.lease.release()
        elif end is End.CANCELLED:
            upstream.abort()
            flight.lease.release()
            self._answer(flight, self._gone(flight.target, moving=True, broken_off=flight.lease.why))
        elif end is End.BROKEN and flight.exchange.replayable:
            upstream.abort()
            self._spawn(self._run(flight))
        elif end in (End.BROKEN, End.BAD_REPLY):
            upstream.abort()
            self._spawn(self._broken(flight))
        else:
            refused = flight.exchange.refusal
            if refused is not None:
                self._answer(flight, answer(refused.status, {"code": refused.status, "message": str(refused)}))
            self._spawn(self._let_go(flight, upstream))

    async def _let_go(self, flight: _Flight, upstream: UpstreamConnection) -> None:
        """Tell the other end that its client has gone, and give it a moment to see it."""
        try:
            upstream.cancel()
            await upstream.closed(_GRACE_S)
        finally:
            upstream.abort()
            flight.lease.release()

    async def _broken(self, flight: _Flight) -> None:
        """The other end is gone, or speaks no HTTP: say which."""
        target, lease = flight.target, flight.lease
        try:
            if flight.request.answered:
                flight.request.abort()
            elif await lease.ended(wait=flight.daemon):
                await self._traffic.mourn(lease)
                self._answer(flight, self._gone(target))
            elif isinstance(flight.exchange.error, BadMessage):
                self._answer(flight, _port_answer(target, f"The port does not speak HTTP: {flight.exchange.error}"))
            else:
                self._answer(flight, _port_answer(target, "The sandbox is running but port is not open"))
        finally:
            lease.release()

    def _answer(self, flight: _Flight, reply: Answer) -> None:
        if isinstance(flight.request.gone, ClientGone):
            return
        if flight.request.answered:
            flight.request.abort()
        else:
            self._reply(flight.request, flight.target, reply)

    @staticmethod
    def _reply(request: Request, target: SandboxTarget, reply: Answer) -> None:
        if target.port in DAEMON_PORTS:  # pages are to be able to read why
            reply = replace(reply, fields=reply.fields + cors_lines(request.head))
        request.reply(reply)

    def _gone(self, target: SandboxTarget, *, moving: bool = False, broken_off: str = "") -> Answer:
        """As clients look for it: they tell a sandbox that is gone by 'was not found'. `broken_off`: what ended the
        request, where the sandbox goes on."""
        if broken_off:
            text = f"The request was broken off: {explain(broken_off)}"
            return answer(502, {"sandboxId": target.id, "message": text, "code": 502, "reason": broken_off})
        why = self._traffic.why_gone(target.id)
        body: dict[str, object] = {"sandboxId": target.id, "message": "The sandbox was not found", "code": 502}
        if why.reason:
            body["message"] = f"The sandbox was not found: {why.sentence}"
            body["reason"] = why.reason
        elif moving:
            body["message"] = "The sandbox was not found: it is being paused or ended"
        return answer(502, body)

    def _failed(self, target: SandboxTarget, cause: Exception) -> Answer:
        if isinstance(cause, Gone):
            return self._gone(target)
        error: RoostError = wrap(cause)
        if error is not cause:
            _log.error("a request to sandbox %s failed", target.id, exc_info=cause)
        return answer(error.status, {"sandboxId": target.id, "message": error.message, "code": error.status})


def _port_answer(target: SandboxTarget, message: str) -> Answer:
    return answer(502, {"sandboxId": target.id, "message": message, "port": target.port, "code": 502})


def _field_value(text: str) -> bytes:
    """A value of a header field: nothing in it can begin another one."""
    return "".join(letter for letter in text if letter.isprintable()).encode("latin-1", "replace")
