"""The client's side: one TCP connection, its requests one after the other, and every limit on them.

A request is handed to `serve` as soon as its head is whole; its body waits in a small buffer until somebody takes it
(`Request.stream_to`), with the socket paused when the buffer is full. The next request of the connection is looked at
only after the answer to this one has ended, so pipelining needs no queue but the same bounded buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, cast

from roost.gateway.faults import Answer, BadRequest, Style, reason, render
from roost.gateway.framing import Body, ChunkedBody, LengthBody
from roost.gateway.head import END, MAX_HEAD, BadMessage, RequestHead, parse_request
from roost.model.errors import RoostError, Unavailable

_BUFFER = 64 * 1024
_WRITE_HIGH = 256 * 1024
_LINGER_BYTES = 4 << 20
_MAX_PIECES = 1024


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """What one client may take. Seconds and counts."""

    head_timeout_s: float = 10.0  # from the first byte of a head to its last
    idle_timeout_s: float = 75.0  # between requests
    body_timeout_s: float = 300.0  # without a byte of a body that is awaited
    linger_s: float = 2.0  # how long an answered client may go on sending what nobody reads
    max_connections: int = 10_000


class BodySink(Protocol):
    """Takes a request's body."""

    def body(self, data: bytes) -> None: ...

    def body_end(self) -> None: ...


class Splice(Protocol):
    """Takes over after `101 Switching Protocols`."""

    def client_data(self, data: bytes) -> None: ...

    def client_eof(self) -> None: ...

    def client_lost(self) -> None: ...

    def client_writable(self, writable: bool) -> None: ...


class Request:
    """One request and the way to answer it."""

    __slots__ = ("_buffer", "_buffered", "_ended", "_sink", "answered", "connection", "gone", "head", "keep_alive",
                 "on_gone", "on_writable", "peer")  # fmt: skip

    def __init__(self, head: RequestHead, connection: ClientConnection) -> None:
        self.head = head
        self.peer = connection.peer
        self.connection = connection
        #: Set once the client can't be answered any more, or broke HTTP in its body: then `on_gone` is called.
        self.gone: RoostError | None = None
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[bool], None] | None = None
        self.answered = False  # the first byte of an answer was written
        self.keep_alive = head.keep_alive
        self._sink: BodySink | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._ended = not head.has_body

    @property
    def body_ended(self) -> bool:
        """The client has sent all of its body."""
        return self._ended

    def stream_to(self, sink: BodySink) -> None:
        """Give the body to `sink` from now on, what is buffered first; ask the client for it if it waits."""
        if self.head.expects_continue and not self._ended and not self._buffer and not self.answered:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._sink = sink
        for data in self._buffer:
            sink.body(data)
        self._buffer.clear()
        if self._buffered:
            self._buffered = 0
            self.connection.resume()
        if self._ended:
            sink.body_end()

    def receive(self, data: bytes, ended: bool) -> None:
        """The connection read a piece of the body."""
        self._ended = ended
        if self._sink is not None:
            if data:
                self._sink.body(data)
            if ended:
                self._sink.body_end()
        elif data and not self.answered:
            self._buffer.append(data)
            self._buffered += len(data)
            if self._buffered >= _BUFFER:
                self.connection.pause()

    def lose(self, error: RoostError) -> None:
        """The client went away or broke HTTP."""
        if self.gone is None:
            self.gone = error
            if self.on_gone is not None:
                self.on_gone()

    def write(self, data: bytes) -> None:
        self.answered = True
        self.connection.write(data)

    def finish(self, *, keep_alive: bool) -> None:
        """The answer has ended."""
        self.answered = True
        self._sink = None
        self._buffer.clear()
        self.connection.answered(self, keep_alive=keep_alive and self._ended and self.keep_alive)

    def reply(self, answer: Answer) -> None:
        """Answer as a whole; nothing must have been answered yet."""
        head = self.head
        keep = self.keep_alive and self._ended and not self.connection.draining
        self.write(encode(answer, keep_alive=keep, http11=head.http11, head_only=head.method == "HEAD"))
        self.finish(keep_alive=keep)

    def abort(self) -> None:
        """Break the connection: the client must not take what it has for a whole answer."""
        self.connection.abort_request(self)


def encode(answer: Answer, *, keep_alive: bool, http11: bool = True, head_only: bool = False) -> bytes:
    connection = b"connection: close\r\n"
    if keep_alive:
        connection = b"" if http11 else b"connection: keep-alive\r\n"
    return b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n%b\r\n%b" % (
        answer.status,
        reason(answer.status),
        answer.fields,
        len(answer.body),
        connection,
        b"" if head_only else answer.body,
    )


class Host(Protocol):
    """The server a connection belongs to."""

    limits: ClientLimits
    draining: bool

    def admit(self, connection: ClientConnection) -> bool:
        """Whether there is room for one more; it is counted until `leave`."""
        ...

    def leave(self, connection: ClientConnection) -> None: ...

    def serve(self, request: Request) -> None:
        """Start to answer. Must not raise."""
        ...

    def new_request_id(self) -> str: ...


def _marked(head: bytes) -> bytes:
    """A whole head that came over TLS: who gets it is told so, as a proxy in front would."""
    if b"\r\nx-forwarded-proto:" in head.lower():
        return head
    return head[: -len(b"\r\n")] + b"x-forwarded-proto: https\r\n\r\n"


class ClientConnection(asyncio.Protocol):
    """The protocol of one accepted connection."""

    __slots__ = ("_body", "_buffer", "_eof", "_host", "_lingering", "_next_waits", "_paused", "_pieces", "_request",
                 "_secure", "_splice", "_transport", "_writable", "deadline", "peer", "source")  # fmt: skip

    def __init__(self, host: Host, *, secure: bool = False) -> None:
        self._host = host
        self._secure = secure
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._buffer = b""
        self._request: Request | None = None
        self._body: Body | None = None  # of the present request, while it is not read to its end
        self._splice: Splice | None = None
        self._paused = False
        self._writable = True
        self._next_waits = False  # for the client to read what was answered before
        self._eof = False
        self._lingering = 0
        self._pieces = 0  # that the present head came in so far
        self.peer = b""  # its address
        self.source: tuple[str, int] | None = None  # the same, with the port
        #: The time (`time.monotonic`) after which the connection is taken down by `expire`; 0 for none.
        self.deadline = 0.0

    @property
    def draining(self) -> bool:
        return self._host.draining

    @property
    def idle(self) -> bool:
        return self._request is None

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer, self.source = name[0].encode("ascii"), name[:2]
        else:
            self.peer = b"unix"
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH)
        host = self._host
        if not host.admit(self):
            self._tell(Unavailable("Too many connections.", retry_after=1))
            transport.close()  # nobody will look after it
            return
        self.deadline = monotonic() + host.limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        if self._splice is not None:
            self._splice.client_data(data)
        elif self._body is not None:
            self._read_body(data)
        elif self._lingering:
            self._lingering -= len(data)
            if self._lingering <= 0:
                self.abort()
        elif self._request is not None:
            self._buffer += data  # the next request; it waits for the end of this one's answer
            if len(self._buffer) >= _BUFFER:
                self.pause()
        else:
            self._read_head(self._buffer + data if self._buffer else data)

    def eof_received(self) -> bool:
        self._eof = True
        if self._splice is not None:
            self._splice.client_eof()
            return self._transport.can_write_eof()  # TLS has no half-close
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.leave(self)
        self.deadline = 0.0
        self._buffer = b""
        self._body = None
        if self._splice is not None:
            self._splice.client_lost()
        elif self._request is not None:
            self._request.lose(ClientGone())

    def pause_writing(self) -> None:
        self._set_writable(False)

    def resume_writing(self) -> None:
        self._set_writable(True)
        if self._next_waits:
            self._next_waits = False
            self._next()

    def _set_writable(self, writable: bool) -> None:
        self._writable = writable
        if self._splice is not None:
            self._splice.client_writable(writable)
        elif self._request is not None and self._request.on_writable is not None:
            self._request.on_writable(writable)

    # -- reading

    def _read_head(self, data: bytes) -> None:
        if data.startswith(b"\r\n"):
            data = data[2:]  # an empty line before a request is allowed, once
        end = data.find(END)
        if end < 0 or end > MAX_HEAD - len(END):
            if data and not self._buffer:
                self.deadline = monotonic() + self._host.limits.head_timeout_s
            self._buffer = data
            self._judge_partial(data, end)
            return
        end += len(END)
        try:
            head = parse_request(_marked(data[:end]) if self._secure else data[:end])
        except BadMessage as error:
            self._refuse(BadRequest(error.message, error.status))
            return
        self._buffer = b""
        self._pieces = 0
        self.deadline = 0.0
        request = self._request = Request(head, self)
        rest = data[end:]
        if not head.has_body:
            self._buffer = rest
        else:
            self._body = ChunkedBody() if head.chunked else LengthBody(head.length or 0)
            self._await_body()
            if rest:
                self._read_body(rest)
                if self._request is not request:
                    return
        self._host.serve(request)

    def _judge_partial(self, data: bytes, end: int) -> None:
        """A head that is not whole yet: is it hopeless?"""
        self._pieces += 1
        if self._pieces > _MAX_PIECES:  # each is searched together with all before it
            self._refuse(BadRequest(f"The request's head comes in more than {_MAX_PIECES} pieces.", 431))
        elif end >= 0 or len(data) > MAX_HEAD:
            self._refuse(BadRequest(f"The request's head is larger than {MAX_HEAD} bytes.", 431))
        elif data.count(b"\n") != data.count(b"\r\n"):
            self._refuse(BadRequest("Malformed HTTP message: a line does not end in CRLF.", 400))

    def _read_body(self, data: bytes) -> None:
        body, request = self._body, self._request
        if body is None or request is None:
            return
        try:
            piece, rest = body.feed(data)
            while rest and not body.done:  # a step of many tiny chunks; the socket's own reads bound them all
                more, rest = body.feed(rest)
                piece += more
        except BadMessage as error:
            self._body = None
            self._break(request, BadRequest(error.message, error.status))
            return
        if body.done:
            self._body = None
            self._buffer = rest
            self.deadline = 0.0
        else:
            self._await_body()
        request.receive(piece, body.done)

    def _await_body(self) -> None:
        self.deadline = monotonic() + self._host.limits.body_timeout_s

    def _break(self, request: Request, error: BadRequest) -> None:
        """The body is not HTTP: nothing that follows can be understood."""
        request.keep_alive = False
        if request.on_gone is None:  # nobody serves it yet
            self._request = None
            self._refuse(error)
            return
        self._lingering = _LINGER_BYTES
        self.deadline = monotonic() + self._host.limits.linger_s
        request.lose(error)

    def pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
            if self._body is not None:
                self.deadline = 0.0  # it is we who don't read

    def resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            if self._body is not None:
                self._await_body()

    # -- answering

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def answered(self, request: Request, *, keep_alive: bool) -> None:
        """`request` is done with; go on with the next one, or end the connection."""
        if self._request is not request:
            return
        self._request = None
        host = self._host
        if not keep_alive or host.draining or self._eof:
            self._end()
            return
        self.deadline = monotonic() + host.limits.idle_timeout_s
        if not self._writable:
            self._next_waits = True  # or a client that only writes would fill our memory with answers
        elif self._buffer:
            # Not from here: a client with a thousand pipelined bad requests would nest a thousand calls.
            asyncio.get_running_loop().call_soon(self._next)
        elif self._paused:
            self.resume()

    def _next(self) -> None:
        """Go on with what came meanwhile."""
        if self._request is not None or self._transport.is_closing():
            return
        self.resume()
        buffer, self._buffer = self._buffer, b""
        if buffer:
            self._read_head(buffer)

    def _refuse(self, error: RoostError) -> None:
        """Answer a request that was never understood, and end. Its client may be sending more of it."""
        self._tell(error)
        self._buffer = b""
        self._lingering = self._lingering or _LINGER_BYTES
        self._end()

    def _tell(self, error: RoostError) -> None:
        self.write(encode(render(error, style=Style.API, request_id=self._host.new_request_id()), keep_alive=False))

    def _end(self) -> None:
        """End after an answer. A client still sending must get to read it, so the socket is not slammed: unread input
        makes the kernel reset the connection and throw the answer away."""
        transport = self._transport
        if transport.is_closing():
            return
        if self._body is None and not self._lingering and not self._buffer:
            self.deadline = monotonic() + self._host.limits.idle_timeout_s  # to read what was written
            transport.close()
            return
        self._body = None
        self._lingering = self._lingering or _LINGER_BYTES
        self.deadline = monotonic() + self._host.limits.linger_s
        self.resume()
        if transport.can_write_eof():
            transport.write_eof()

    def splice(self, splice: Splice) -> None:
        """Hand everything that follows to `splice`, beginning with what is buffered."""
        self._splice = splice
        self.deadline = 0.0
        buffer, self._buffer = self._buffer, b""
        self.resume()
        if buffer:
            splice.client_data(buffer)

    def write_eof(self) -> None:
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def abort_request(self, request: Request) -> None:
        if self._request is request:
            self._transport.abort()

    def expire(self, now: float) -> None:
        """Called now and then by the server: end the connection if its time is over."""
        if not self.deadline or now < self.deadline:
            return
        self.deadline = now + self._host.limits.linger_s
        if self._lingering or self._transport.is_closing():
            self.abort()
        elif self._buffer:
            self._refuse(BadRequest("The request's head took too long to arrive.", 408))
        else:
            self.close()


class ClientGone(RoostError):
    """The client closed its connection; nobody reads this."""

    code = "ClientClosedRequest"
    status = 499

    def __init__(self) -> None:
        super().__init__("The client has gone.")
