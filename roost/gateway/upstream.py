"""The other side: pooled HTTP/1.1 connections over unix sockets, to rooms and to the control plane.

What a room sends is hostile input: its head is parsed as strictly as a client's and bounded the same.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import partial
from time import monotonic
from typing import Protocol, cast

from roost.gateway.deadlines import Deadlines
from roost.gateway.framing import Body, ChunkedBody, EndlessBody, LengthBody
from roost.gateway.head import END, MAX_HEAD, BadMessage, ResponseHead, parse_response

_WRITE_HIGH = 256 * 1024
_SUN_PATH = 107
_CONNECT_PAUSE_S = 0.002
#: Bounds on one reply's head: hints that come before it (100, 103), and pieces it comes in, which are searched anew.
_MAX_HINTS = 16
_MAX_PIECES = 1024


class Receiver(Protocol):
    """Takes one response. After `end` or `lost` nothing more is called."""

    def head(self, head: ResponseHead) -> bool:
        """The final head (or 101). Answers whether a body may follow at all (not for HEAD, 204, 304)."""
        ...

    def piece(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def flush(self) -> None:
        """All that arrived together has been handed over."""
        ...

    def lost(self, error: Exception | None) -> None:
        """The connection ended, or broke HTTP (BadMessage), before the response did."""
        ...

    def upstream_writable(self, writable: bool) -> None: ...


class Raw(Protocol):
    """Takes over after 101."""

    def upstream_data(self, data: bytes) -> None: ...

    def upstream_eof(self) -> None: ...

    def upstream_lost(self) -> None: ...

    def upstream_writable(self, writable: bool) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to a unix socket; carries one request at a time."""

    __slots__ = (
        "_body",
        "_buffer",
        "_closed",
        "_discarding",
        "_hints",
        "_paused",
        "_pieces",
        "_raw",
        "_receiver",
        "_rest",
        "_reusable",
        "_transport",
        "answering",
        "deadlines",
        "idle_since",
        "loop",
        "reused",
    )

    def __init__(self, deadlines: Deadlines) -> None:
        self.deadlines = deadlines  # of those who hold a connection of the pool
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._receiver: Receiver | None = None
        self._raw: Raw | None = None
        self._buffer = b""
        self._pieces = 0
        self._hints = 0
        self._body: Body | None = None
        self._rest = b""  # of what was read, while the body is taken in steps; reading is paused meanwhile
        self._paused = False
        self._reusable = True
        self._discarding = False
        self.loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self.loop.create_future()
        self.answering = False  # the first byte of the response has come
        self.reused = False
        self.idle_since = 0.0  # of `time.monotonic`

    @property
    def alive(self) -> bool:
        return not self._transport.is_closing()

    @property
    def kept(self) -> bool:
        """It was `reusable` when it was last used, and nothing has happened to it since."""
        return self._reusable and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """The response has ended, all of the request was taken, and the connection may carry another one."""
        transport = self._transport
        free = self._reusable and self._receiver is None and self._raw is None and not transport.is_closing()
        return free and transport.get_write_buffer_size() == 0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH)

    def data_received(self, data: bytes) -> None:
        if self._raw is not None:
            self._raw.upstream_data(data)
            return
        receiver = self._receiver
        if receiver is None:
            if not self._discarding:  # unasked for: what it means is unknown, so the connection is of no use
                self.abort()
            return
        self.answering = True
        if self._rest:  # a transport may hand over what it had read before it was paused
            self._rest += data
            return
        self._take(receiver, data)

    def eof_received(self) -> bool:
        self._reusable = False
        if self._raw is not None:
            self._raw.upstream_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._reusable = False
        if not self._closed.done():
            self._closed.set_result(None)
        receiver, raw = self._receiver, self._raw
        self._receiver = self._raw = None
        if raw is not None:
            raw.upstream_lost()
        elif receiver is not None:
            if exc is None and isinstance(self._body, EndlessBody):
                receiver.end()
                receiver.flush()
            else:
                receiver.lost(exc)

    def pause_writing(self) -> None:
        self._writable(False)

    def resume_writing(self) -> None:
        self._writable(True)

    def _writable(self, writable: bool) -> None:
        target = self._raw or self._receiver
        if target is not None:
            target.upstream_writable(writable)

    # -- reading

    def _take(self, receiver: Receiver, data: bytes) -> None:
        try:
            self._read(receiver, data)
        except BadMessage as error:
            self._fail(receiver, error)
        else:
            receiver.flush()

    def _go_on(self) -> None:
        """The next step of a body that is taken in steps, unless the client is slow: `resume` calls again then."""
        data, receiver = self._rest, self._receiver
        if not data or self._paused or not self.alive:
            return
        self._rest = b""
        if receiver is not None:
            self._take(receiver, data)
        if not self._rest and not self._paused and self.alive:
            self._transport.resume_reading()

    def _read(self, receiver: Receiver, data: bytes) -> None:
        if self._body is None:
            data = self._buffer + data if self._buffer else data
            rest = self._read_head(receiver, data)
            if rest is None or self._receiver is not receiver:
                return
            data = rest
        body = self._body
        if body is None:
            return
        piece, rest = body.feed(data)
        if piece:
            receiver.piece(piece)
        if body.done:
            if rest:
                self._reusable = False  # more than was asked for
            self._done(receiver)
        elif rest:
            self._rest = rest
            if not self._paused:
                self._transport.pause_reading()
                self.loop.call_soon(self._go_on)

    def _read_head(self, receiver: Receiver, data: bytes) -> bytes | None:
        """Read heads up to the final one; the bytes after it, or None while there is nothing more to do."""
        while True:
            end = data.find(END)
            if end < 0 or end > MAX_HEAD - len(END):
                if end >= 0 or len(data) > MAX_HEAD:
                    raise BadMessage(f"The response's head is larger than {MAX_HEAD} bytes.")
                self._pieces += 1
                if self._pieces > _MAX_PIECES:
                    raise BadMessage(f"The response's head comes in more than {_MAX_PIECES} pieces.")
                self._buffer = data
                return None
            end += len(END)
            head = parse_response(data[:end])
            data = data[end:]
            self._buffer = b""
            if head.status >= 200 or head.status == 101:
                break
            # 100 and 103 are hints for the hop they were sent on
            self._hints += 1
            if self._hints > _MAX_HINTS:
                raise BadMessage(f"More than {_MAX_HINTS} interim responses.")
        if not head.keep_alive:
            self._reusable = False
        may_have_body = receiver.head(head)
        if self._raw is not None:
            if data:
                self._raw.upstream_data(data)
            return None
        if head.length == len(data) and may_have_body and not head.chunked:  # all of it is here, as it mostly is
            if data:
                receiver.piece(data)
            self._done(receiver)
            return None
        self._body = _body_of(head) if may_have_body else LengthBody(0)
        return data

    def _done(self, receiver: Receiver) -> None:
        self._receiver = None
        self._body = None
        receiver.end()

    def _fail(self, receiver: Receiver, error: BadMessage) -> None:
        self._receiver = None
        self._reusable = False
        self._rest = b""
        receiver.lost(error)

    # -- for the one who holds it

    def begin(self, receiver: Receiver) -> None:
        """The next response is for `receiver`."""
        self._receiver = receiver
        self._pieces = self._hints = 0
        self.answering = False

    def splice(self, raw: Raw) -> None:
        """Hand everything that follows to `raw`."""
        self._raw = raw
        self._receiver = None

    def cancel(self) -> None:
        """Half-close: the request is not wanted any more. What still comes is thrown away, until the peer closes."""
        self._receiver = self._raw = None
        self._reusable = False
        self._discarding = True
        self.resume()
        if self._rest:
            self._go_on()  # which drops it and reads on
        self.write_eof()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def pause(self) -> None:
        if not self._paused and self.alive:
            self._paused = True
            if not self._rest:
                self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self.alive:
            self._paused = False
            if self._rest:
                self.loop.call_soon(self._go_on)
            else:
                self._transport.resume_reading()

    def abort(self) -> None:
        self._reusable = False
        self._transport.abort()

    async def closed(self, timeout_s: float) -> bool:
        """Wait for the peer to close; whether it did in time."""
        done, _ = await asyncio.wait({self._closed}, timeout=timeout_s)
        return bool(done)


def _body_of(head: ResponseHead) -> Body:
    if head.chunked:
        return ChunkedBody()
    if head.length is not None:
        return LengthBody(head.length)
    return EndlessBody()


class Pool:
    """Idle connections by socket path, the latest used first. How many are in use at once is bounded by the leases."""

    def __init__(self, *, idle_per_path: int = 64, idle_total: int = 4096, idle_s: float = 4.0,
                 connect_timeout_s: float = 5.0) -> None:  # fmt: skip
        # 4 s: below the 5 s after which uvicorn and Node.js close an idle connection, so the race is theirs to lose.
        self._idle: dict[str, list[UpstreamConnection]] = {}
        self._count = 0
        self._idle_per_path = idle_per_path
        self._idle_total = idle_total
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._deadlines = Deadlines()

    async def acquire(self, path: str, *, fresh: bool = False) -> UpstreamConnection:
        """A connection that carries nothing. Raises OSError when nobody listens there."""
        kept = None if fresh else self.take(path)
        return kept or await self._connect(path)

    def take(self, path: str) -> UpstreamConnection | None:
        """A kept connection, if there is one."""
        idle = self._idle.get(path)
        if not idle:
            return None
        oldest = monotonic() - self._idle_s
        while idle:
            connection = idle.pop()
            self._count -= 1
            if connection.kept and connection.idle_since > oldest:
                connection.reused = True
                return connection
            connection.abort()
        return None

    def give_back(self, path: str, connection: UpstreamConnection) -> None:
        """Keep the connection for later if it is good for that."""
        idle = self._idle.get(path)
        if idle is None:
            idle = self._idle[path] = []
        if not connection.reusable or self._count >= self._idle_total or len(idle) >= self._idle_per_path:
            connection.abort()
            return
        connection.resume()
        connection.idle_since = monotonic()
        idle.append(connection)
        self._count += 1

    def expire(self) -> None:
        """Called now and then: close what has been idle for too long, forget what has died and where nothing is left.

        In between, dead ones count as kept; `take` looks before it gives one out.
        """
        oldest = monotonic() - self._idle_s
        for path, idle in list(self._idle.items()):
            good = [each for each in idle if each.kept and each.idle_since > oldest]
            for each in idle:
                if each not in good:
                    each.abort()
            self._count -= len(idle) - len(good)
            if good:
                idle[:] = good
            else:
                del self._idle[path]

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()
        self._count = 0
        self._deadlines.close()

    async def _connect(self, path: str) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._connect_timeout_s
        while True:
            sock = _try_connect(path)
            if sock is not None:
                break
            if loop.time() >= end:
                raise TimeoutError(errno.ETIMEDOUT, "the socket's backlog stayed full")
            await asyncio.sleep(_CONNECT_PAUSE_S)
        try:
            _, connection = await loop.create_unix_connection(partial(UpstreamConnection, self._deadlines), sock=sock)
        except BaseException:
            sock.close()
            raise
        return connection


def _try_connect(path: str) -> socket.socket | None:
    """A connected socket, or None while the backlog is full. A unix connect never blocks for anything else."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if len(os.fsencode(path)) <= _SUN_PATH:
            sock.connect(path)
        else:
            _connect_beside(sock, path)
    except BlockingIOError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_beside(sock: socket.socket, path: str) -> None:
    """A path too long for `sockaddr_un` is reached through its directory's descriptor."""
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
