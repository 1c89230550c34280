"""The daemon's ends of a program's pipes and terminals, on the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable


class Source:
    """Owns `fd` and hands what comes out of it to `deliver`, until its end: then `on_end`, once, and it is closed."""

    def __init__(self, fd: int, chunk: int, deliver: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._chunk = chunk
        self._deliver = deliver
        self._on_end = on_end
        self._open = True
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    @property
    def is_open(self) -> bool:
        return self._open

    def allow(self, reading: bool) -> None:
        if not self._open:
            return
        if reading:
            self._loop.add_reader(self._fd, self._read)
        else:
            self._loop.remove_reader(self._fd)

    def drain(self, limit: int) -> None:
        """Read what is there now, about `limit` bytes at most: its writer has been killed."""
        left = limit
        while self._open and left > 0 and (got := self._read()):
            left -= got

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to read now, and no end of it either."""
        if not self._open:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, self._chunk)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            self._deliver(data)
        else:
            self.close()
            self._on_end()
        return len(data)


class Sink:
    """Owns `fd`, where a program reads its input. Writers wait for each other, and for the program to read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = asyncio.Lock()
        self._closed = asyncio.Event()
        os.set_blocking(fd, False)

    @property
    def is_open(self) -> bool:
        return not self._closed.is_set()

    async def write(self, data: bytes) -> None:
        """OSError if nobody will read it."""
        async with self._lock:
            view = memoryview(data)
            while view:
                if self._closed.is_set():
                    raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._writable()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        closed = loop.create_task(self._closed.wait())
        loop.add_writer(self._fd, _fulfil, ready)
        try:
            await asyncio.wait((ready, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            if not self._closed.is_set():
                loop.remove_writer(self._fd)


def _fulfil(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def readable(fd: int) -> None:
    """Wait until `fd` can be read, or is at its end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _fulfil, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def read_to_end(fd: int, limit: int) -> bytes:
    """All that comes out of `fd`, which stays the caller's, up to `limit` bytes."""
    os.set_blocking(fd, False)
    data = b""
    while len(data) < limit:
        try:
            part = os.read(fd, limit - len(data))
        except BlockingIOError:
            await readable(fd)
            continue
        if not part:
            break
        data += part
    return data
