"""What moves a sandbox: a room is made for it, held, let go, taken down; its time runs out; its room dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from roost.instances.background import Background
from roost.instances.instance import Instance
from roost.instances.surroundings import Surroundings
from roost.isolation.driver import Branch, MemoryLost
from roost.model.errors import RoostError, Throttled, Unavailable
from roost.model.instance import State, StopReason
from roost.model.sandbox import Foundation, PauseMode, Sandbox, SandboxState
from roost.sandboxes.assembly import SLOTS, SandboxAssembly
from roost.sandboxes.book import SandboxBook
from roost.sandboxes.census import Census
from roost.sandboxes.entry import Entry
from roost.sandboxes.templates import SandboxTemplate

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A timer looks again at least that often: the clock it counts by may run at another speed than the loop's.
_TIMER_MOST_S = 60.0
SOON_S = 0.02  # from a rollback's reply to what can be done later
GONE_S = 1.0  # for which the end of a room is waited for that is not the sandbox's own, or not any more
_LEAVE_S = 30.0  # for which the end of a room in whose place another is is waited for, where it can't be made still


class Templates(Protocol):
    """By id or name, with a tag of the account's or without. Raises NotFound."""

    def get(self, name: str, account: str = "") -> SandboxTemplate: ...

    def layers(self) -> Iterable[Sequence[str]]:
        """The images that each needs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Successor:
    """A room that is to take the place of its sandbox's own, and the sandbox as it was made for."""

    sandbox: Sandbox
    instance: Instance


class Lives:
    """The entries of one server and every step of theirs. What says `locked` wants the entry's lock held.

    One event loop; nothing here blocks it. `book` is written here and where sandboxes are made.
    """

    def __init__(
        self,
        *,
        book: SandboxBook,
        templates: Templates,
        assembly: SandboxAssembly,
        around: Surroundings,
        max_running: int,
        admit: Callable[[str, int], None] = lambda account, memory_mb: None,
    ) -> None:
        """`admit` may refuse an account one more room with so much memory: it raises Throttled."""
        self.book = book
        self.templates = templates
        self.assembly = assembly
        self.entries: dict[str, Entry] = {}
        self.background = Background()
        self.leaving = Background()  # rooms that are laid down, in whose place others are or might have been
        self.census = Census()
        self.closing = False
        self._around = replace(around, on_output=self._output)
        self._max_running = max_running
        self._admit = admit

    def now(self) -> float:
        return self._around.clock()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end in a task of its own, whoever waits for it: nobody leaves a sandbox halfway."""
        return await asyncio.shield(self.background.spawn(work))

    async def change(self, entry: Entry, **fields: Any) -> Sandbox:
        """Replace what its record says."""
        entry.sandbox = replace(entry.sandbox, **fields)
        self.set_timer(entry)
        return await self.book.change(entry.sandbox)

    async def commit(self, entry: Entry, changed: Callable[[Sandbox], Sandbox]) -> Sandbox:
        """Have its record as `changed` makes it, where that must be stored first. Raises RoostError, and nothing has
        changed then."""
        stored = changed(entry.sandbox)
        await self.book.commit(stored)
        entry.sandbox = changed(entry.sandbox)
        self.set_timer(entry)
        if entry.sandbox != stored:  # others changed it meanwhile
            await self.book.change(entry.sandbox)
        return entry.sandbox

    # --- a room comes and goes -----------------------------------------------------------------------------------

    def check_room(self, sandbox: Sandbox) -> None:
        """For one more room. Raises Unavailable when the server stops, Throttled when it or the account is full."""
        if self.closing:
            raise Unavailable("Roost is shutting down.", retry_after=5)
        if sum(entry.instance is not None for entry in self.entries.values()) >= self._max_running:
            raise Throttled(
                f"This server runs {self._max_running} sandboxes at most (max_sandboxes); kill some, or pause them "
                "without their memory.",
                retry_after=1,
            )
        self._admit(sandbox.account, sandbox.limits.memory_mb)

    async def boot(self, entry: Entry, branch: Branch | None = None) -> None:
        """Locked. A room for it, up and ready; its contexts are copies of those of `branch`. Raises what prevented
        it."""
        instance = self.new_instance(entry, branch)
        self.background.spawn(instance.run())
        try:
            await instance.up()
        except BaseException:
            if entry.instance is instance:
                await asyncio.shield(asyncio.ensure_future(self.take_down(entry, StopReason.START_FAILED)))
            raise

    def new_instance(self, entry: Entry, branch: Branch | None = None) -> Instance:
        """The entry's instance from now on, not running yet."""
        entry.samples.new_room()
        entry.instance = self._instance_of(entry, entry.sandbox, branch)
        return entry.instance

    def _instance_of(self, entry: Entry, sandbox: Sandbox, branch: Branch | None) -> Instance:
        entry.places.add(sandbox.place)
        return Instance(
            id=sandbox.id,
            spec=self.assembly.spec(sandbox),
            session=None,
            around=replace(self._around, preparer=self.assembly.of(sandbox, lambda: entry.sandbox, branch)),
            on_change=lambda instance: self._changed(entry, instance),
            slots=SLOTS,
            app_socket=str(self.assembly.run_dir(sandbox.place) / "app.sock"),
            metered_as=sandbox.id,
        )

    def successor(self, entry: Entry, branch: Branch, *, foundation: Foundation, at: str) -> Successor:
        """Begin to make a room in the place of what it has, over another foundation and with contexts as in `branch`.
        Until it is recorded it is nobody's, and whoever asked for it lays it down: a server that is killed before has
        lost nothing, and the next one removes whichever of the two is not in the record. Raises Unavailable,
        Throttled where it may have none."""
        if entry.instance is None or self.closing:
            self.check_room(entry.sandbox)
        entry.latest += 1
        sandbox = replace(entry.sandbox, foundation=foundation, at=at, rollbacks=entry.latest)
        new = Successor(sandbox=sandbox, instance=self._instance_of(entry, sandbox, branch))
        self.background.spawn(new.instance.run())
        return new

    async def make_way(self, entry: Entry) -> None:
        """Locked. Before its room is another: wait until those that are to go have gone, else they would be more and
        more. Raises Unavailable."""
        if not await self._hurry(entry, _LEAVE_S):
            raise Unavailable(f"The room that sandbox {entry.sandbox.id} had before does not end.", retry_after=5)

    @staticmethod
    async def _hurry(entry: Entry, seconds: float) -> bool:
        """Have the rooms go that are to, and wait so long at most. Whether there are none any more."""
        entry.wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while going := [task for task in entry.leaving if not task.done()]:
                    await asyncio.wait(going)
                return True
        return False

    async def swap(self, entry: Entry, new: Successor) -> Sandbox:
        """Locked, after `make_way`. A new room takes the place of what it has; it runs then. Raises what prevented
        that, and it is as it was."""
        before, old = entry.sandbox, entry.instance
        made = new.sandbox
        fields: dict[str, Any] = {"foundation": made.foundation, "at": made.at, "rollbacks": made.rollbacks}
        fields |= {"state": SandboxState.RUNNING, "pause_mode": None, "reason": ""}
        if before.state is SandboxState.PAUSED:
            fields["ends_at"] = self.after(before.timeout_s)
        still, stopped = before.state is SandboxState.PAUSED, None
        try:
            await new.instance.up()
            if not new.instance.usable:
                raise Unavailable(f"The new room of sandbox {before.id} has ended.", retry_after=1)
            if not still and old is not None:
                stopped = old
                still = await _made_still(old)
            await self.commit(entry, lambda sandbox: replace(sandbox, **fields))
        except BaseException:
            await asyncio.shield(self.background.spawn(self._unswap(entry, new, stopped)))
            raise
        entry.instance = new.instance
        entry.samples.new_room()
        # As it was made to stand, it stands: nobody ends it with a last word to its guest, nor does it just begin.
        still = still and (old is None or (old.usable and old.state is not State.STARTING))
        await entry.drop_kept()
        entry.wanted.clear()
        leaving = self._leave(entry, self._replaced(entry, old, before, still=still))
        entry.revoke(StopReason.ROLLED_BACK)
        if not still and old is not None and old.room is not None:  # nothing of it runs on
            ending = asyncio.ensure_future(old.room.wait())
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait([leaving, ending], timeout=_LEAVE_S, return_when=first)
            ending.cancel()
        if new.instance.state is State.STOPPED:  # between two steps of this
            self.background.spawn(self.died(entry, new.instance))
        return entry.sandbox

    async def _unswap(self, entry: Entry, new: Successor, stopped: Instance | None) -> None:
        runs = stopped is None or await _thawed(stopped)
        try:
            await self.lay_down(entry, new)
        finally:
            if stopped is not None and not runs and not await _thawed(stopped):
                log.error("sandbox %s stands still: pause and resume it", stopped.id)

    async def _replaced(self, entry: Entry, old: Instance | None, before: Sandbox, *, still: bool) -> None:
        if still:  # who went back has something to do with what is there now
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(entry.wanted.wait(), SOON_S)
        await self._lay_down(old, before.place)
        self.release(before.foundation.layers)

    def lay_down(self, entry: Entry, new: Successor) -> asyncio.Task[None]:
        """It takes no room's place, and goes with its files, whoever waits for that."""
        return self._leave(entry, self._lay_down(new.instance, new.sandbox.place))

    def _leave(self, entry: Entry, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.leaving.spawn(work)
        entry.leaves(task)
        return task

    async def _lay_down(self, instance: Instance | None, place: str) -> None:
        """End what is no entry's, with its files."""
        if instance is not None:
            instance.stop(StopReason.ROLLED_BACK, grace=0, abrupt=True)
            await instance.stopped.wait()
        self.assembly.discard(place)

    async def take_down(self, entry: Entry, reason: StopReason) -> None:
        """Locked. Its room goes, its files stay. Returns when nothing uses them any more."""
        instance, entry.instance = entry.instance, None
        entry.revoke()
        if instance is not None:
            instance.stop(reason, grace=0)
        await entry.drop_ahead()
        if instance is not None:
            await instance.stopped.wait()

    def _changed(self, entry: Entry, instance: Instance) -> None:
        if instance.state is not State.STOPPED:
            return
        run_dir = Path(instance.app_socket).parent
        shutil.rmtree(run_dir, ignore_errors=True)
        entry.places.discard(run_dir.name)
        if entry.instance is instance and instance.served:
            self.background.spawn(self.died(entry, instance))

    async def died(self, entry: Entry, instance: Instance) -> None:
        """Its room ended by itself: the files are kept. Once for each; nothing if it was to end anyway."""
        async with entry.lock:
            if entry.instance is not instance:
                return
            entry.instance = None
            reason = instance.ended or StopReason.EXITED
            log.info("sandbox %s: its room ended (%s); its files are kept", entry.sandbox.id, reason)
            await entry.drop_ahead()
            await self.change(entry, state=SandboxState.PAUSED, pause_mode=PauseMode.FILESYSTEM, reason=reason)

    def _output(self, spec: object, id: str, stream: str, text: str) -> None:
        entry = self.entries.get(id)
        if entry is not None:
            entry.lines.add(self.now(), stream, text)

    # --- paused, resumed, ended ----------------------------------------------------------------------------------

    async def resume(self, entry: Entry, timeout_s: int, *, memory: bool) -> Sandbox:
        """Locked. Run again: let the held room go, or start another over the files. On failure it stays paused."""
        if self.closing:
            raise Unavailable("Roost is shutting down.", retry_after=5)
        if entry.instance is not None and not memory:
            await self.take_down(entry, StopReason.PAUSED)
            await self.change(entry, pause_mode=PauseMode.FILESYSTEM, reason=StopReason.PAUSED)
        entry.restored = False
        if entry.instance is not None:
            await entry.instance.let_go()
        else:
            self.check_room(entry.sandbox)
            try:
                branch = await self._brought_back(entry, memory=memory)
                await self.boot(entry, branch)
            except BaseException:
                if entry.kept is not None:  # what has come back by then is in memory until it goes to disk again
                    entry.kept.bytes = await entry.kept.branch.measure()
                raise
            entry.restored = branch is None
            await entry.drop_kept()
        return await self.change(
            entry,
            state=SandboxState.RUNNING,
            pause_mode=None,
            reason="",
            timeout_s=timeout_s,
            ends_at=self.after(timeout_s),
        )

    async def _brought_back(self, entry: Entry, *, memory: bool) -> Branch | None:
        """Locked. What went to disk, if it is wanted. Raises Unavailable if it can't be had now; it stays there."""
        await self.miss(entry)
        kept = entry.kept
        if kept is None:
            return None
        if not memory:
            await entry.drop_kept()
            await self.change(entry, pause_mode=PauseMode.FILESYSTEM, reason=StopReason.PAUSED)
            return None
        try:
            await kept.branch.recall()
        except MemoryLost as error:
            await self._lose(entry, error.message)
            return None
        kept.disk_bytes = 0
        return Branch(copies=kept.branch.copies)  # who makes a room of it does not own it

    async def miss(self, entry: Entry) -> None:
        """Locked. What it is to be resumed with, and is gone with the process that held it, is known to be."""
        if entry.kept is not None and not await entry.kept.branch.alive():
            await self._lose(entry, "what held it has ended")

    async def _lose(self, entry: Entry, why: str) -> None:
        """Locked. It is paused with its files alone, and its owner gets to know why."""
        log.warning("sandbox %s is paused with its files alone, its memory is lost: %s", entry.sandbox.id, why)
        entry.lines.add(self.now(), "stderr", f"The memory that was on disk is lost, its files are kept: {why}")
        await entry.drop_kept()
        await self.change(entry, pause_mode=PauseMode.FILESYSTEM, reason=StopReason.LOST)

    async def pause(self, entry: Entry, *, memory: bool, reason: StopReason) -> Sandbox:
        """Locked. Hold its room, or take it down and keep the files. Raises Unavailable if it can't be held."""
        instance = entry.instance
        if entry.ahead is not None:
            entry.ahead.end()
        if memory and instance is not None and not instance.freezes:
            if reason is not StopReason.TIMEOUT:
                raise Unavailable(
                    "This server's rooms can't be paused with memory (that takes root): pause without it."
                )
            memory = False
        if memory and instance is not None:
            instance.hold_once_up()  # no lease is given any more
            entry.revoke()
            try:
                await instance.hold()
            except RoostError:
                if reason is not StopReason.TIMEOUT or not instance.usable:
                    raise
                memory = False  # its time is over, so it must stop; its files are kept in any case
        if not memory:
            await self.take_down(entry, reason)
        await entry.drop_ahead()
        entry.still_since = self.now()
        mode = PauseMode.FULL if memory else PauseMode.FILESYSTEM
        return await self.change(entry, state=SandboxState.PAUSED, pause_mode=mode, reason=reason)

    async def kill(self, entry: Entry, reason: StopReason) -> None:
        """It ends, and so do its files."""
        entry.ending = entry.ending or reason
        if entry.instance is not None:
            entry.instance.stop(reason, grace=0)  # also what is just starting
        async with entry.lock:
            if self.entries.get(entry.sandbox.id) is not entry:
                return  # somebody else was faster
            await self.take_down(entry, reason)
            await self._hurry(entry, GONE_S)
            await entry.drop_memory()
            self.stop_timer(entry)
            self.forget(entry)
            await self.book.end(entry.sandbox, reason)
            await self.assembly.forget_labels(entry.sandbox)

    def forget(self, entry: Entry) -> None:
        """Its room is gone; so are its files now, and what it alone stood on."""
        self.entries.pop(entry.sandbox.id, None)
        self.assembly.discard(entry.sandbox.place)
        self.release(chain.from_iterable(entry.sandbox.standing))

    def release(self, images: Iterable[str]) -> None:
        """Remove those that no sandbox and no template needs."""
        standing = chain.from_iterable(entry.sandbox.standing for entry in self.entries.values())
        self.assembly.images.release(images, chain(standing, self.templates.layers()))

    @contextlib.contextmanager
    def holding(self, layers: Sequence[str]) -> Iterator[None]:
        """None of these images goes while the block lasts, and then those that nobody needs any more."""
        try:
            with self.assembly.images.holding(layers):
                yield
        finally:
            self.release(layers)

    async def put_away(self, entry: Entry) -> None:
        """The server stops: what has a room is paused with its files."""
        self.stop_timer(entry)
        async with entry.lock:
            if (entry.instance is not None or entry.kept is not None) and not entry.ending:
                await self.take_down(entry, StopReason.SHUTDOWN)
                await entry.drop_kept()
                await self.change(
                    entry, state=SandboxState.PAUSED, pause_mode=PauseMode.FILESYSTEM, reason=StopReason.SHUTDOWN
                )

    # --- time ----------------------------------------------------------------------------------------------------

    def after(self, timeout_s: int) -> float:
        """The moment so many seconds from now."""
        return round(self.now() + timeout_s, 3)

    def set_timer(self, entry: Entry) -> None:
        self.stop_timer(entry)
        if entry.sandbox.state is SandboxState.RUNNING and not entry.ending and not self.closing:
            left = entry.sandbox.ends_at - self.now()
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(min(max(left, 0.0), _TIMER_MOST_S), self._look, entry)

    @staticmethod
    def stop_timer(entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _look(self, entry: Entry) -> None:
        if self.now() < entry.sandbox.ends_at:
            self.set_timer(entry)
        else:
            self.background.spawn(self._time_is_up(entry))

    async def _time_is_up(self, entry: Entry) -> None:
        sandbox = entry.sandbox
        if not sandbox.auto_pause:
            if self._still_due(entry):
                await self.kill(entry, StopReason.TIMEOUT)
            return
        async with entry.lock:
            if self._still_due(entry):
                await self.pause(entry, memory=sandbox.auto_pause_memory, reason=StopReason.TIMEOUT)

    def _still_due(self, entry: Entry) -> bool:
        """Nobody gave it more time while it was waited for."""
        sandbox = entry.sandbox
        return (
            not entry.ending
            and not self.closing
            and sandbox.state is SandboxState.RUNNING
            and sandbox.ends_at <= self.now()
        )


async def _made_still(instance: Instance) -> bool:
    """Whether nothing of its room runs any more: it stands still, until its end."""
    if instance.room is None:
        return True
    if not instance.freezes:
        return False
    try:
        await instance.room.freeze()
    except (RoostError, OSError):  # as where a process of it is in the kernel, or this one may open no more
        return False
    return True


async def _thawed(instance: Instance) -> bool:
    """Whether its room runs again, or has ended."""
    if instance.room is None:
        return True
    try:
        await instance.room.thaw()
    except (RoostError, OSError):
        return False
    return True
