"""Looks names up with this machine's resolver, which blocks: so many at once, in threads that nothing waits for."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading

from roost.isolation.egress.addresses import Address


class Resolver:
    """At most `most` lookups run; others wait. One that hangs holds its place until it ends, though nobody waits for
    it any more, and neither other parts of the server nor its end are held up."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def resolve(self, name: str, port: int) -> list[Address]:
        """Raises OSError."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Address]] = loop.create_future()
        look = threading.Thread(target=self._look, args=(name, port, loop, found), name="roost-resolve", daemon=True)
        try:
            look.start()
        except RuntimeError as error:  # the machine has no thread to give
            self._places.release()
            raise OSError(str(error)) from error
        return await found

    def _look(
        self, name: str, port: int, loop: asyncio.AbstractEventLoop, found: asyncio.Future[list[Address]]
    ) -> None:
        result: list[Address] | OSError
        try:
            rows = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            result = list(dict.fromkeys(ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in rows))
        except (OSError, UnicodeError) as error:
            result = error if isinstance(error, OSError) else OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(self._tell, found, result)

    def _tell(self, found: asyncio.Future[list[Address]], result: list[Address] | OSError) -> None:
        self._places.release()
        if found.done():
            return
        if isinstance(result, OSError):
            found.set_exception(result)
        else:
            found.set_result(result)
