"""A live room without cgroups, on the server's side. It ends with its first process, as does its pid namespace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roost.isolation import linux
from roost.isolation.driver import Branch, Usage
from roost.isolation.namespaces.room import SOCKETS, start_time
from roost.isolation.unprivileged import usage
from roost.isolation.unprivileged.folders import NO_SNAPSHOTS
from roost.model.errors import Unavailable

_KILL_TIMEOUT_S = 10.0


class UnprivilegedRoom:
    """Made by `UnprivilegedDriver`. Keeps a pidfd, so a reused process id is never taken for the room.

    `place` is the room's own folder in the data directory, removed by `on_gone`.
    """

    lets_go = False

    def __init__(
        self,
        *,
        driver: str,
        id: str,
        pid: int,
        pidfd: int,
        place: Path,
        run_dir: Path,
        pids: int,
        on_gone: Callable[[], None],
    ) -> None:
        self._driver = driver
        self.id = id
        self.pid = pid
        self._pidfd = pidfd
        self._place = place
        self._run_dir = run_dir
        self._pids = pids
        self._on_gone = on_gone
        self._started = start_time(pid)
        self._usage = Usage(cpu_us=0, memory_bytes=0, memory_peak_bytes=0, pids=0, oom_kills=0)
        self._ended = asyncio.Event()
        self._destroying = asyncio.Lock()
        self._gone = False
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @property
    def handle(self) -> Mapping[str, Any]:
        return {
            "driver": self._driver,
            "id": self.id,
            "pid": self.pid,
            "started": self._started,
            "place": self._place.name,
            "run_dir": str(self._run_dir),
            "pids": self._pids,
        }

    def _on_exit(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._ended.set()

    async def wait(self) -> None:
        await self._ended.wait()

    async def freeze(self) -> None:
        """Raises Unavailable: who isn't root has no freezer."""
        raise Unavailable(f"The room {self.id} can't be frozen: that takes cgroups, and so root.")

    async def thaw(self) -> None:
        """It is never frozen."""

    async def made(self) -> None:
        """At once."""

    async def settled(self) -> None:
        """At once: nothing is copied into it."""

    async def snapshot(self, target: Path, beside: Mapping[Path, Path] | None = None) -> None:
        """Raises Unavailable."""
        raise Unavailable(NO_SNAPSHOTS)

    async def branch(
        self,
        target: Path,
        beside: Mapping[Path, Path] | None = None,
        *,
        keep: bool = False,
        now: bool = False,
    ) -> Branch:
        """Raises Unavailable."""
        raise Unavailable(NO_SNAPSHOTS)

    async def tied(self) -> str:
        return NO_SNAPSHOTS

    async def leave(self) -> Branch:
        """Raises Unavailable."""
        raise Unavailable(NO_SNAPSHOTS)

    async def rest(self) -> bool:
        """It can't be told."""
        return True

    def anonymous(self) -> int:
        """Not known."""
        return 0

    def network(self) -> int:
        """A descriptor of its network namespace. Raises Unavailable if it has ended."""
        try:
            return linux.open_network(self.pid, self._pidfd)
        except OSError as error:
            raise Unavailable(f"The room {self.id} has ended.") from error

    def _has_ended(self) -> bool:
        """Also when the event loop has not heard of it yet."""
        return self._ended.is_set() or linux.has_ended(self._pidfd)

    def usage(self) -> Usage:
        """Now; once it has ended, the last that was seen of it. CPU time never goes back, whoever has ended."""
        if not self._has_ended():
            seen = usage.look(self.pid, self._pids)
            if not self._has_ended():
                known = self._usage
                self._usage = Usage(
                    cpu_us=max(known.cpu_us, seen.cpu_us),
                    memory_bytes=seen.memory_bytes,
                    memory_peak_bytes=max(known.memory_peak_bytes, seen.memory_bytes),
                    pids=seen.processes,
                    oom_kills=0,
                )
        return self._usage

    async def destroy(self) -> None:
        """Raises Unavailable if a process of it, in the kernel, does not end in time; then it may be called again."""
        async with self._destroying:
            if self._gone:
                return
            if not self._ended.is_set():
                self.usage()
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                try:
                    await asyncio.wait_for(self._ended.wait(), _KILL_TIMEOUT_S)
                except TimeoutError:
                    raise Unavailable(f"The room {self.id} does not end.") from None
            for name in SOCKETS:
                (self._run_dir / name).unlink(missing_ok=True)
            self._gone = True
            self._on_gone()
