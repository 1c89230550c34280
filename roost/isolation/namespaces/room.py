"""A live room, on the server's side."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from roost.isolation.cgroups import Cgroup
from roost.isolation.disks import Disks
from roost.isolation.drafts import Draft
from roost.isolation.driver import Usage
from roost.model.errors import InvalidArgument, Unavailable

SOCKETS = ("guest.sock", "app.sock")
_KILL_TIMEOUT_S = 10.0


class NamespacesRoom:
    """Made by `NamespacesDriver`. Keeps a pidfd, so a reused process id is never taken for the room."""

    def __init__(
        self,
        *,
        id: str,
        pid: int,
        pidfd: int,
        cgroup: Cgroup,
        run_dir: Path,
        layer: Path | None,
        disks: Disks,
        on_gone: Callable[[], None],
    ) -> None:
        self.id = id
        self.pid = pid
        self._pidfd = pidfd
        self._cgroup = cgroup
        self._run_dir = run_dir
        self._layer = layer
        self._disks = disks
        self._on_gone = on_gone
        self._started = start_time(pid)
        self._last_usage: Usage | None = None
        self._ended = asyncio.Event()
        self._destroying = asyncio.Lock()
        self._stilling = asyncio.Lock()
        self._copying: asyncio.Future[Draft] | None = None
        self._gone = False
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @property
    def handle(self) -> Mapping[str, Any]:
        return {
            "driver": "namespaces",
            "id": self.id,
            "pid": self.pid,
            "started": self._started,
            "cgroup": self._cgroup.name,
            "run_dir": str(self._run_dir),
            "layer": None if self._layer is None else str(self._layer),
        }

    def _on_exit(self) -> None:
        self._close_pidfd()
        self._ended.set()
        if self._copying is not None:  # its files are not of one moment any more, and its disk is to be let go
            self._copying.cancel()

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    async def wait(self) -> None:
        await self._ended.wait()

    async def freeze(self) -> None:
        async with self._stilling:
            await self._cgroup.freeze()

    async def thaw(self) -> None:
        async with self._stilling:
            await self._cgroup.thaw()

    async def snapshot(self, target: Path) -> None:
        """The room stands still while its disk is synchronised and copied, for a minute at most."""
        if self._layer is None:
            raise InvalidArgument(f"The room {self.id} has no layer of its own to take a snapshot of.")
        async with self._stilling, AsyncExitStack() as still:
            if not self._cgroup.is_frozen():
                still.push_async_callback(self._cgroup.thaw)
                await self._cgroup.freeze()
            self._copying = asyncio.ensure_future(self._disks.draft(self._layer, target))
            ended = Unavailable(f"The room {self.id} ended while a snapshot of it was taken.")
            try:
                draft = await self._copying
            except asyncio.CancelledError:
                if not self._ended.is_set() or _is_cancelled():
                    raise
                raise ended from None
            finally:
                self._copying = None
            if self._has_ended():
                draft.discard()
                raise ended
        await draft.publish()

    def _has_ended(self) -> bool:
        """Also when the event loop has not heard of it yet."""
        if self._ended.is_set():
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def usage(self) -> Usage:
        """Now; after `destroy`, what it was in the end."""
        return self._last_usage or self._cgroup.usage()

    async def destroy(self) -> None:
        """Raises Unavailable if a process of it, in the kernel, does not end in time; then it may be called again."""
        async with self._destroying:
            if self._gone:
                return
            if not self._ended.is_set():
                self._cgroup.kill()
                try:
                    await asyncio.wait_for(self._ended.wait(), _KILL_TIMEOUT_S)
                except TimeoutError:
                    raise Unavailable(f"The room {self.id} does not end.") from None
            self._last_usage = self._cgroup.usage()
            await self._cgroup.remove()
            for name in SOCKETS:
                (self._run_dir / name).unlink(missing_ok=True)
            if self._layer is not None and not await self._disks.released(self._layer):
                raise Unavailable(f"The disk of the room {self.id} is still mounted.")
            self._gone = True
            self._on_gone()


def _is_cancelled() -> bool:
    """Whether the present task itself is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The name in parentheses may hold anything; the start time is the 20th field after it.
    return int(text.rpartition(")")[2].split()[19])
