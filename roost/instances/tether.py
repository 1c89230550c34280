"""What ties an instance to one room: the control connection to its guest, and word of the room's end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from roost.instances.link import GuestLink, WorkerExit
from roost.isolation.driver import Room
from roost.model.errors import RoostError

#: A control connection that breaks usually tells of the room's end; this long one waits to hear of that instead.
LOST_GRACE = 1.0
#: Between tries to take down a room that does not end; the longest, which then repeats.
_DESTROY_PAUSE_MAX = 30.0

log = logging.getLogger(__name__)


class Tether:
    """`on_log` and `on_exit` are a `GuestLink`'s. `on_end` is called when the room has ended: what those are told who
    wait for its guest. `on_lost`: the control connection broke, and for a while nothing was heard of the room's end."""

    def __init__(
        self,
        room: Room,
        socket: Path,
        *,
        on_log: Callable[[str, str], None],
        on_exit: Callable[[WorkerExit], None],
        on_end: Callable[[], RoostError],
        on_lost: Callable[[], None],
    ) -> None:
        self._room = room
        self._socket = socket
        self._on_log = on_log
        self._on_exit = on_exit
        self._on_end = on_end
        self._on_lost = on_lost
        self._breaks = False  # for a reason that is known
        self._watcher: asyncio.Task[None] | None = None
        self._open = True
        self.link = self._new_link()

    def _new_link(self) -> GuestLink:
        link = GuestLink(
            self._socket,
            on_log=self._on_log,
            on_exit=self._exited,
            on_lost=lambda: self._lost(link),
        )
        return link

    async def open(self) -> None:
        """Connect, and watch the room from now on. Raises Unavailable when nobody listens."""
        await self.link.open()
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        await self._room.wait()
        self.link.broken(self._on_end())

    def _exited(self, how: WorkerExit) -> None:
        if self._open:  # what a room says that is being taken down changes nothing
            self._on_exit(how)

    def _lost(self, link: GuestLink) -> None:
        if not self._breaks:
            asyncio.get_running_loop().call_later(LOST_GRACE, self._give_up, link)

    def _give_up(self, link: GuestLink) -> None:
        if self._open and link is self.link:
            self._on_lost()

    @contextlib.asynccontextmanager
    async def loosened(self, timeout: float) -> AsyncIterator[None]:
        """Within, the connection may break: it is made anew in any case, for that may not have been noticed yet."""
        self._breaks = True
        try:
            yield
        finally:
            self._breaks = False
            await asyncio.shield(asyncio.ensure_future(self._again(timeout)))

    async def _again(self, timeout: float) -> None:
        if not self._open:
            return
        await self.link.close()
        link = self.link = self._new_link()
        try:
            await link.open()
            await link.attach(timeout)
        except RoostError:
            self._lost(link)

    def let_go(self) -> None:
        """The room is going to be taken down: its end is no news."""
        self._open = False
        if self._watcher is not None:
            self._watcher.cancel()

    async def close(self) -> None:
        """The room has ended; what it had logged has been delivered when this returns, unless that takes long."""
        await self.link.drained(1.0)
        await self.link.close()


async def destroy(room: Room, whose: str) -> None:
    """A room that does not end (a process stuck in the kernel) is tried again: what it holds is not given up."""
    pause = 0.1
    while True:
        try:
            await room.destroy()
        except (RoostError, OSError) as error:
            log.error("%s: %s", whose, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _DESTROY_PAUSE_MAX)
        else:
            return
