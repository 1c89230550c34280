"""The ends of a connection through a proxy, bounded in what waits and how long: a stream, and TLS over it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

BUFFER = 16 << 10  # bytes that wait on each end, read and to be written: a room may have many connections
_STALL_S = 600.0
_CLOSE_S = 5.0
_NO_LINGER = struct.pack("ii", 1, 0)

T = TypeVar("T")


class End(Protocol):
    """Where bytes come from and go to."""

    async def read(self) -> bytes:
        """What comes next, at most twice BUFFER; b"" at its end. Raises OSError."""
        ...

    async def send(self, data: bytes) -> None:
        """Raises OSError; TimeoutError when the other end does not take it for too long."""
        ...

    def end(self) -> None:
        """No more comes from here, where the transport can say so."""
        ...

    async def finish(self) -> None:
        """Close once all is sent. Raises OSError, TimeoutError."""
        ...

    def abort(self) -> None: ...


class Idle:
    """Of a connection whose two ways are idle together: one may be silent for as long as the other moves."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._moved = asyncio.get_running_loop().time()

    async def watch(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What is read. Raises TimeoutError when neither way has moved for too long."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(max(self._moved + self._most_s, loop.time() + 0.01)):
                    data = await read()
            except TimeoutError:
                if loop.time() < self._moved + self._most_s:
                    continue  # the other way moved meanwhile
                raise
            self._moved = loop.time()
            return data


class Stream:
    """A socket; also with TLS that asyncio does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=BUFFER)
        name = writer.get_extra_info("sockname")
        #: The address that it is from, on this machine.
        self.source: tuple[str, int] = name[:2] if isinstance(name, tuple) else ("", 0)

    async def read(self) -> bytes:
        return await self._reader.read(2 * BUFFER)

    async def exactly(self, count: int) -> bytes:
        """Raises EOFError."""
        return await self._reader.readexactly(count)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(_STALL_S):
            await self._writer.drain()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()

    async def finish(self) -> None:
        self._writer.close()
        async with asyncio.timeout(_CLOSE_S):
            await self._writer.wait_closed()

    async def reset(self) -> None:
        break_off(self._writer)

    def abort(self) -> None:
        self._writer.transport.abort()


def break_off(writer: asyncio.StreamWriter) -> None:
    """End it so that the other end is told at once, and takes it for no orderly end."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


class TlsServer:
    """TLS over another end, as its server. `early` was read from it already."""

    def __init__(self, end: End, context: ssl.SSLContext, early: bytes) -> None:
        self._end = end
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(early)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Raises OSError."""
        await self._until_done(self._tls.do_handshake)

    async def read(self) -> bytes:
        try:
            return await self._until_done(lambda: self._tls.read(2 * BUFFER))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    def end(self) -> None:
        pass

    async def finish(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()
        await self._end.finish()

    def abort(self) -> None:
        self._end.abort()

    async def _until_done(self, step: Callable[[], T]) -> T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._end.read():
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                await self._flush()  # an alert says why
                raise
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._end.send(data)
