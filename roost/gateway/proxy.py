"""One request to one upstream and its reply back: both directions at once, each with back-pressure, nothing collected.

`Exchange` is the sink of the client's body and the receiver of the upstream's reply. What arrives together leaves
together: the pieces that one read brought are written with one write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Protocol

from roost.gateway.connection import BodySink, ClientGone, Request
from roost.gateway.fields import response_head, switching_head
from roost.gateway.framing import LAST_CHUNK, chunk
from roost.gateway.head import BadMessage, ResponseHead
from roost.gateway.splice import Tunnel
from roost.gateway.upstream import Pool, UpstreamConnection
from roost.model.errors import RoostError

_log = logging.getLogger(__name__)
#: RFC 9110: sending one of these twice does what sending it once does.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class End(Enum):
    """How an exchange ended."""

    COMPLETE = "complete"
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"
    REFUSED = "refused"  # the request turned out to be bad while its body went by; `refusal` says how
    BROKEN = "broken"  # the upstream's connection ended before its reply did
    BAD_REPLY = "bad_reply"  # the upstream's reply is not HTTP
    CANCELLED = "cancelled"  # the server ends


COMPLETE = End.COMPLETE  # for every request: Python 3.11 is slow to find a member of an enum


class Rewriter(Protocol):
    """Changes a reply's body as it goes by."""

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Reply(Protocol):
    """What is added to an upstream's reply."""

    strip_ours: bool

    @property
    def prepare(self) -> Callable[[], Coroutine[None, None, None]] | None:
        """To be awaited, if there, between the arrival of the reply's head and `lines`. Bounded by whoever does it."""
        ...

    def lines(self, head: ResponseHead) -> bytes:
        """Whole field lines for the reply's head."""
        ...

    def rewriter(self, head: ResponseHead) -> Rewriter | None: ...


def may_replay(*, reused: bool, answering: bool, whole: bool, method: str, error: Exception | None) -> bool:
    """May a request whose connection broke be sent again on a new one?

    Only when the connection was kept from before (else the upstream itself is broken), no byte of a reply came and
    all that was sent is still at hand. A write to a unix socket fails with EPIPE only if the peer had closed before
    it could read it: then nothing has run. After a reset part of it may have been read, so the method must be
    idempotent. A clean end says that somebody took the request and died of it: never sent twice.
    """
    if not reused or answering or not whole:
        return False
    if isinstance(error, BrokenPipeError):
        return True
    return isinstance(error, ConnectionResetError) and method in _IDEMPOTENT


class Exchange:
    """Carries `request` to `upstream` and the reply back."""

    __slots__ = (
        "_chunked_reply",
        "_chunked_request",
        "_ended",
        "_first",
        "_held",
        "_keep_alive",
        "_on_end",
        "_out",
        "_reply",
        "_request",
        "_rewriter",
        "_sending",
        "_slot",
        "_unsaid",
        "_upstream",
        "error",
        "filter",
        "refusal",
        "response",
    )

    def __init__(self, request: Request, *, head: bytes, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._upstream: UpstreamConnection | None = None
        self._first: list[bytes] | None = [head]  # all that was sent so far, while that is little
        self._sending = False  # `_first` went out; later pieces follow at once
        self._out: list[bytes] = []
        self._chunked_request = request.head.chunked
        self._chunked_reply = False
        self._rewriter: Rewriter | None = None
        self._ended = False
        self._keep_alive = False
        self._unsaid: tuple[ResponseHead, int | None] | None = None  # the reply's head, with the length that it gets
        self._on_end: Callable[[End], None] | None = None  # while it runs
        self._slot = 0  # of the upstream's deadlines
        self._held: asyncio.Task[None] | None = None  # prepares the reply
        self.filter: BodySink | None = None  # takes the client's body in place of the exchange, and passes it on
        self.error: Exception | None = None  # of a broken upstream
        self.refusal: RoostError | None = None
        self.response: ResponseHead | None = None

    def start(self, upstream: UpstreamConnection, timeout_s: float | None, on_end: Callable[[End], None]) -> None:
        """Go. `on_end` is called once: when the reply has ended or can't. It gets the upstream back, to keep it when
        the end is COMPLETE, to cancel it otherwise. After BROKEN it may be started again if `replayable`."""
        request = self._request
        self._on_end = on_end
        self._upstream = upstream
        if request.gone is not None:
            self._finish(self._gone_end(request.gone))
            return
        request.on_gone = self._client_gone
        request.on_writable = self._client_writable
        if timeout_s is not None:
            self._slot = upstream.deadlines.join(self, max(0.0, timeout_s), upstream.loop)
        upstream.begin(self)
        self._send_first(upstream)

    async def run(self, upstream: UpstreamConnection, timeout_s: float | None) -> End:
        """`start`, and wait for the end."""
        done: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.start(upstream, timeout_s, lambda end: None if done.done() else done.set_result(end))
        try:
            return await done
        finally:
            self._stop()

    def cancel(self) -> None:
        """End it now, with CANCELLED."""
        self._finish(End.CANCELLED)

    def expire(self) -> None:
        """End it now, with TIMEOUT."""
        self._finish(End.TIMEOUT)

    def _send_first(self, upstream: UpstreamConnection) -> None:
        if not self._sending:
            sink = self.filter or self
            if sink is not self or self._request.head.has_body:
                self._request.stream_to(sink)
        self._sending = True
        if self._first is not None:
            upstream.write(self._first[0] if len(self._first) == 1 else b"".join(self._first))

    @property
    def sent(self) -> bool:
        """Something of the request may have reached an upstream."""
        return self._sending

    @property
    def request_ended(self) -> bool:
        """All of the request has been written to the upstream."""
        return self._request.body_ended

    @property
    def replayable(self) -> bool:
        """After BROKEN: it is safe to `run` again on a fresh connection."""
        upstream = self._upstream
        return upstream is not None and may_replay(
            reused=upstream.reused,
            answering=upstream.answering,
            whole=self._first is not None,
            method=self._request.head.method,
            error=self.error,
        )

    def refuse(self, error: RoostError) -> None:
        """The request must not go on."""
        self.refusal = error
        self._request.keep_alive = False
        self._finish(End.REFUSED)

    def _finish(self, end: End) -> None:
        on_end = self._on_end
        if on_end is not None:
            self._stop()
            on_end(end)

    def _stop(self) -> None:
        """Let go of everything that could call back. Leaves no cycle, so that no collector has to find this object."""
        self._on_end = self.filter = None
        self._request.on_gone = self._request.on_writable = None
        if self._held is not None:
            self._held.cancel()
        if self._slot and self._upstream is not None:
            self._upstream.deadlines.leave(self, self._slot)
            self._slot = 0

    # -- the client's body

    def body(self, data: bytes) -> None:
        self._pass(chunk(data) if self._chunked_request else data)

    def body_end(self) -> None:
        if self._chunked_request:
            self._pass(LAST_CHUNK)

    def _pass(self, data: bytes) -> None:
        if not self._sending:
            if self._first is not None:
                self._first.append(data)
            return
        self._first = None  # from here on it can't be sent again
        if self._upstream is not None:
            self._upstream.write(data)

    def _client_gone(self) -> None:
        gone = self._request.gone
        if gone is not None:
            self._finish(self._gone_end(gone))

    def _gone_end(self, gone: RoostError) -> End:
        if isinstance(gone, ClientGone):
            return End.CLIENT_GONE
        self.refusal = gone
        return End.REFUSED

    def _client_writable(self, writable: bool) -> None:
        if self._upstream is not None:
            self._upstream.resume() if writable else self._upstream.pause()

    # -- the upstream's reply

    def upstream_writable(self, writable: bool) -> None:
        connection = self._request.connection
        connection.resume() if writable else connection.pause()

    def head(self, head: ResponseHead) -> bool:
        request = self._request
        self.response = head
        if head.status == 101:
            self._switch(head)
            return False
        asked, reply = request.head, self._reply
        bodiless = asked.method == "HEAD" or head.status in (204, 304)
        self._rewriter = None if bodiless else reply.rewriter(head)
        length = None if self._rewriter is not None or head.status == 204 else head.length
        self._chunked_reply = not bodiless and length is None and asked.http11
        delimited = bodiless or length is not None or self._chunked_reply
        self._keep_alive = request.keep_alive and delimited and not request.connection.draining
        self._unsaid = (head, length)
        if (prepare := reply.prepare) is not None:
            self._hold(prepare)
        return not bodiless

    def _response_head(self, head: ResponseHead, length: int | None) -> bytes:
        # Answered before it was all there: the connection is going to be closed, and who isn't told sends its next
        # request into it.
        if self._ended and not self._request.body_ended:
            self._keep_alive = False
        return response_head(
            head,
            extra=self._reply.lines(head),
            length=length,
            chunked=self._chunked_reply,
            close=not self._keep_alive,
            keep_alive_10=not self._request.head.http11,
            strip_ours=self._reply.strip_ours,
        )

    def _hold(self, prepare: Callable[[], Coroutine[None, None, None]]) -> None:
        """Keep the reply back until it is prepared; what comes with its head waits, the rest stays in the socket."""

        def prepared(task: asyncio.Task[None]) -> None:
            self._held = None
            if task.cancelled():
                return
            if (error := task.exception()) is not None:
                _log.error("a reply was not prepared", exc_info=error)
            if self._upstream is not None:
                self._upstream.resume()
            self.flush()

        self._held = asyncio.get_running_loop().create_task(prepare())
        self._held.add_done_callback(prepared)
        if self._upstream is not None:
            self._upstream.pause()

    def piece(self, data: bytes) -> None:
        if self._rewriter is not None:
            data = self._rewriter.feed(data)
        if data:
            self._out.append(chunk(data) if self._chunked_reply else data)

    def end(self) -> None:
        self._ended = True
        if self._rewriter is not None:
            rest = self._rewriter.finish()
            if rest:
                self._out.append(chunk(rest) if self._chunked_reply else rest)
        if self._chunked_reply:
            self._out.append(LAST_CHUNK)

    def flush(self) -> None:
        if self._on_end is None or self._held is not None:
            return  # held back; or timed out or gone meanwhile: then the client has had its answer
        out, request = self._out, self._request
        if self._unsaid is not None:
            out.insert(0, self._response_head(*self._unsaid))
            self._unsaid = None
        if out:
            request.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._ended:
            request.finish(keep_alive=self._keep_alive)
            self._finish(COMPLETE)

    def lost(self, error: Exception | None) -> None:
        self.error = error
        self._finish(End.BAD_REPLY if isinstance(error, BadMessage) else End.BROKEN)

    def _switch(self, head: ResponseHead) -> None:
        request, upstream = self._request, self._upstream
        if not request.head.upgrade or upstream is None:
            raise BadMessage("The function switched protocols without having been asked.")
        request.write(switching_head(head, extra=self._reply.lines(head)))
        tunnel = Tunnel(request.connection, upstream, on_end=self._tunnel_ended)
        upstream.splice(tunnel)
        request.connection.splice(tunnel)

    def _tunnel_ended(self, client_lost: bool) -> None:
        self._finish(End.CLIENT_GONE if client_lost else End.COMPLETE)


async def transfer(
    pool: Pool, path: str, exchange: Exchange, timeout_s: float | None
) -> tuple[End, UpstreamConnection | None]:
    """Run `exchange` over a connection to `path`, over a second one if the first was stale.

    Returns the connection too when it is neither back in the pool nor closed: the caller cancels or aborts it. On
    cancellation it is cancelled and closed here.
    """
    deadline = None if timeout_s is None else time.perf_counter() + timeout_s
    try:
        upstream = await pool.acquire(path)
    except OSError as error:
        exchange.error = error
        return End.BROKEN, None
    end = await _run(exchange, upstream, deadline)
    return await conclude(pool, path, exchange, upstream, end, deadline=deadline)


async def conclude(
    pool: Pool, path: str, exchange: Exchange, upstream: UpstreamConnection, end: End, *, deadline: float | None
) -> tuple[End, UpstreamConnection | None]:
    """What comes after the first try: a second one over a new connection, if the first was stale. As `transfer`;
    `deadline` is a time of `perf_counter`."""
    if end is End.BROKEN:
        upstream.abort()
        if not exchange.replayable:
            return end, None
        try:
            upstream = await pool.acquire(path, fresh=True)
        except OSError as error:
            exchange.error = error
            return End.BROKEN, None
        end = await _run(exchange, upstream, deadline)
    if end is COMPLETE:
        settle(pool, path, exchange, upstream)
        return end, None
    if end is End.BROKEN:
        upstream.abort()
        return end, None
    return end, upstream


def settle(pool: Pool, path: str, exchange: Exchange, upstream: UpstreamConnection) -> None:
    """After COMPLETE: keep the connection, if it is good for another request."""
    if exchange.request_ended:
        pool.give_back(path, upstream)
    else:  # what another request would send now would be taken for the rest of this one's body
        upstream.abort()


async def _run(exchange: Exchange, upstream: UpstreamConnection, deadline: float | None) -> End:
    try:
        return await exchange.run(upstream, None if deadline is None else deadline - time.perf_counter())
    except BaseException:
        upstream.cancel()
        upstream.abort()
        raise
