"""A live room, on the server's side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from roost.isolation import linux
from roost.isolation.cgroups import Cgroup
from roost.isolation.disks import Disks
from roost.isolation.drafts import Draft
from roost.isolation.driver import Branch, Left, Usage, WholeCopy
from roost.isolation.futures import seen
from roost.isolation.namespaces.live import Contexts, is_busy
from roost.isolation.namespaces.vacant import WaitingProcess
from roost.model.errors import InvalidArgument, Unavailable

SOCKETS = ("guest.sock", "app.sock")
COPIES = "copies.sock"  # where a kernel of the room's own is asked for copies
NO_SHADOWS = "its contexts have no shadows, as after a restart of the server, or with sandbox_live = false"
_KILL_TIMEOUT_S = 10.0
_LEAVE_S = 0.1  # for which a cell is waited for: a room that is to stand still does not run on for it
#: Places of a room that are in memory, and what each new one has there.
_IN_MEMORY = {"/dev/shm": frozenset[str](), "/run": frozenset({"roost", "roost-sudo.sock"})}  # noqa: S108


class Whole(Protocol):
    """Copies of all that is in a room but its files. See `gvisor.checkpoints`."""

    lack: str  # why there can be none

    def taken(self, pid: int, memory_bytes: int) -> AbstractAsyncContextManager[tuple[WholeCopy, tuple[str, ...]]]: ...


class NamespacesRoom:
    """Made by `NamespacesDriver`. Keeps a pidfd, so a reused process id is never taken for the room."""

    def __init__(
        self,
        *,
        driver: str,
        id: str,
        pid: int,
        pidfd: int,
        cgroup: Cgroup,
        run_dir: Path,
        layer: Path | None,
        disks: Disks,
        on_gone: Callable[[], None],
        contexts: Contexts | None = None,
        waiting: WaitingProcess | None = None,
    ) -> None:
        """`waiting`: its first process, which has been told whose it is, and may not be its guest yet."""
        self._driver = driver
        self.id = id
        self.pid = pid
        self._pidfd = pidfd
        self._cgroup = cgroup
        self._run_dir = run_dir
        self._layer = layer
        self._disks = disks
        self._on_gone = on_gone
        self.whole: Whole | None = None  # set by the driver whose kernel the room has
        self._contexts = contexts
        if contexts is not None:
            contexts.still, contexts.runs = self._still, self._runs
        self._making = None if waiting is None else asyncio.ensure_future(waiting.up())
        if self._making is not None:
            self._making.add_done_callback(seen)
        self._started = start_time(pid)
        self._last_usage: Usage | None = None
        self._ended = asyncio.Event()
        self._destroying = asyncio.Lock()
        self._stilling = asyncio.Lock()
        self._copying: asyncio.Future[None] | None = None
        self._gone = False
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @property
    def handle(self) -> Mapping[str, Any]:
        return {
            "driver": self._driver,
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

    async def made(self) -> None:
        if self._making is not None:
            await asyncio.shield(self._making)

    async def settled(self) -> None:
        await self.made()
        if self._contexts is not None:
            await self._contexts.settled()

    async def freeze(self) -> None:
        async with self._stilling:
            await self._cgroup.freeze()

    async def thaw(self) -> None:
        async with self._stilling:
            await self._cgroup.thaw()

    async def snapshot(self, target: Path, beside: Mapping[Path, Path] | None = None) -> None:
        """The room stands still while its disks are synchronised and copied, for a minute at most."""
        await (await self._copy(target, beside))

    async def rest(self) -> bool:
        """Paused with its memory, it is at rest."""
        if self._contexts is None or self._cgroup.is_frozen():
            return True
        return await self._contexts.at_rest()

    def anonymous(self) -> int:
        """Now."""
        return self._cgroup.anonymous()

    async def branch(
        self,
        target: Path,
        beside: Mapping[Path, Path] | None = None,
        *,
        keep: bool = False,
        now: bool = False,
    ) -> Branch:
        """Its memory while its disks are copied. If its files can't be, nothing is."""
        if self.whole is not None:
            return await self._branch_whole(self.whole, target, beside)
        if self._contexts is None:
            return Branch(files=await self._copy(target, beside), lost=(NO_SHADOWS,))
        if self._cgroup.is_frozen():
            lost_all = ("its contexts stand still, and can't get ready to be copied",)
            return Branch(files=await self._copy(target, beside), lost=lost_all)
        contexts, made = self._contexts, Branch()
        async with contexts.standing_still(now=now) as (still, lost):

            async def memory() -> None:
                copies, others = await contexts.copied(still, keep=keep)
                made.copies, made.lost, made.busy = tuple(copies), (*lost, *others), is_busy(lost)

            try:
                made.files = await self._copy(target, beside, memory)
            except BaseException:
                await made.close()
                raise
        return made

    async def leave(self) -> Branch:
        """What could be lost is looked at while it stands still. If it is not left, nothing is kept."""
        if self._contexts is None:
            raise Unavailable(NO_SHADOWS)
        made = Branch()
        try:
            async with self._contexts.standing_still(_LEAVE_S) as (still, lost), self._still():
                tied = [*lost, *([why] if (why := await self.tied()) else [])]
                copies, others = await self._contexts.copied(still, keep=True) if not tied else ([], [])
                made.copies = tuple(copies)
            tied += [*others, *(what for copy in copies for what in ties(copy.left))]
            if tied:
                raise Unavailable(tied[0])
        except BaseException:
            await made.close()
            raise
        return made

    async def tied(self) -> str:
        """What it has beside contexts and files that last."""
        if self._contexts is None:
            return NO_SHADOWS
        try:
            if not await self._contexts.include(pid for pid in self._cgroup.processes() if pid != self.pid):
                return "it runs other programs"
            for place, usual in _IN_MEMORY.items():
                if not usual.issuperset(_names(f"/proc/{self.pid}/root{place}")):
                    return f"it has files in {place}"
        except OSError:
            return "it has ended"
        return ""

    @property
    def lets_go(self) -> bool:
        return self.whole is not None and not self.whole.lack and not self._cgroup.is_frozen()

    async def _branch_whole(self, whole: Whole, target: Path, beside: Mapping[Path, Path] | None) -> Branch:
        if self._cgroup.is_frozen():
            lost = ("it stands still, and can't get ready to be copied",)
            return Branch(files=await self._copy(target, beside), lost=lost)
        made = Branch()
        async with AsyncExitStack() as taken:
            try:
                made.whole, made.lost = await taken.enter_async_context(
                    whole.taken(self.pid, self._cgroup.usage().memory_bytes)
                )
            except Unavailable as error:
                made.lost, made.busy = (error.message,), is_busy([error.message])
            made.files = await self._copy(target, beside)
        return made

    @asynccontextmanager
    async def _runs(self) -> AsyncIterator[None]:
        """The room does not begin to stand still. Raises Unavailable if it does already."""
        async with self._stilling:
            if not self._has_ended() and self._cgroup.is_frozen():
                raise Unavailable(f"The room {self.id} stands still.")
            yield

    @asynccontextmanager
    async def _still(self, *, anew: bool = False) -> AsyncIterator[None]:
        """The room stands still; it is as it was afterwards. Raises Unavailable if it did before, though `anew`."""
        async with self._stilling, AsyncExitStack() as still:
            if not self._cgroup.is_frozen():
                still.push_async_callback(self._cgroup.thaw)
                await self._cgroup.freeze()
            elif anew:
                raise Unavailable(f"The room {self.id} stands still.")
            yield

    async def _copy(
        self,
        target: Path,
        beside: Mapping[Path, Path] | None = None,
        memory: Callable[[], Awaitable[None]] | None = None,
    ) -> asyncio.Future[Any]:
        """All of it is of the moment at which the room stands still. `memory` copies that while its disks are copied,
        of which either all come to be, or none. What is returned is done when they last (see `Draft.name`)."""
        if self._layer is None:
            raise InvalidArgument(f"The room {self.id} has no layer of its own to take a snapshot of.")
        wanted = {self._layer: target, **(beside or {})}
        ended = Unavailable(f"The room {self.id} ended while a snapshot of it was taken.")
        drafts: list[Draft] = []
        try:
            async with self._still():
                try:
                    await self._draft(wanted, drafts, memory)
                except asyncio.CancelledError:
                    if not self._ended.is_set() or _is_cancelled():
                        raise
                    raise ended from None
                finally:
                    self._copying = None
                if self._has_ended():
                    raise ended
            return _named(zip(drafts, wanted.values(), strict=True))
        finally:
            for draft in drafts:
                draft.discard()

    async def _draft(
        self, wanted: Mapping[Path, Path], drafts: list[Draft], memory: Callable[[], Awaitable[None]] | None
    ) -> None:
        async def copy() -> None:
            for source, target in wanted.items():
                drafts.append(await self._disks.draft(source, target))

        copying = self._copying = asyncio.ensure_future(copy())
        try:
            if memory is not None:
                await memory()
        except BaseException:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            raise
        await copying

    def _has_ended(self) -> bool:
        """Also when the event loop has not heard of it yet."""
        return self._ended.is_set() or linux.has_ended(self._pidfd)

    @property
    def pidfd(self) -> int:
        """Of its init; the room's. Raises Unavailable if it has ended."""
        if self._pidfd < 0:
            raise Unavailable(f"The room {self.id} has ended.")
        return self._pidfd

    def network(self) -> int:
        """A descriptor of its network namespace. Raises Unavailable if it has ended."""
        try:
            return linux.open_network(self.pid, self._pidfd)
        except OSError as error:
            raise Unavailable(f"The room {self.id} has ended.") from error

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
            if self._making is not None:
                await asyncio.wait([self._making])
            self._last_usage = self._cgroup.usage()
            await self._cgroup.remove()
            for name in (*SOCKETS, COPIES):
                (self._run_dir / name).unlink(missing_ok=True)
            if self._layer is not None and not await self._disks.released(self._layer):
                raise Unavailable(f"The disk of the room {self.id} is still mounted.")
            if self._contexts is not None:
                await self._contexts.close()
            self._gone = True
            self._on_gone()


def _named(drafts: Iterable[tuple[Draft, Path]]) -> asyncio.Future[Any]:
    """Each at its path; all of them, or none. As `Draft.name`, of all."""
    named: dict[Path, asyncio.Future[None]] = {}

    def give_up() -> None:
        for target in named:
            target.unlink(missing_ok=True)

    try:
        for draft, target in drafts:
            named[target] = draft.name()
    except BaseException:
        for future in named.values():
            future.cancel()
        give_up()
        raise
    lasting = asyncio.gather(*named.values())
    lasting.add_done_callback(lambda done: give_up() if done.cancelled() or done.exception() else None)
    return lasting


def ties(left: Left) -> Iterator[str]:
    """What a context has that would be lost with its room. Pure."""
    if left.threads:
        yield "a context has threads"
    if left.processes:
        yield "a context has processes"
    if any(name.startswith(("socket:", "pipe:")) for name in left.files):
        yield "a context has connections"


def _names(directory: str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


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
