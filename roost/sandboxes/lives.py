"""What moves a sandbox: a room is made for it, held, let go, taken down; its time runs out; its room dies."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol, TypeVar

from roost.instances.background import Background
from roost.instances.instance import Instance, Surroundings
from roost.model.errors import RoostError, Throttled, Unavailable
from roost.model.instance import State, StopReason
from roost.model.sandbox import PauseMode, Sandbox, SandboxState
from roost.sandboxes.assembly import SLOTS, SandboxAssembly
from roost.sandboxes.book import SandboxBook
from roost.sandboxes.census import Census
from roost.sandboxes.entry import Entry
from roost.sandboxes.templates import SandboxTemplate

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A timer looks again at least that often: the clock it counts by may run at another speed than the loop's.
_TIMER_MOST_S = 60.0


class Templates(Protocol):
    """By id or name, with a tag of the account's or without. Raises NotFound."""

    def get(self, name: str, account: str = "") -> SandboxTemplate: ...

    def layers(self) -> Iterable[Sequence[str]]:
        """The images that each needs."""
        ...


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

    async def boot(self, entry: Entry) -> None:
        """Locked. A room for it, up and ready. Raises what prevented it."""
        instance = self.new_instance(entry)
        self.background.spawn(instance.run())
        try:
            await instance.up()
        except BaseException:
            if entry.instance is instance:
                await asyncio.shield(asyncio.ensure_future(self.take_down(entry, StopReason.START_FAILED)))
            raise

    def new_instance(self, entry: Entry) -> Instance:
        """The entry's instance from now on, not running yet."""
        sandbox = entry.sandbox
        entry.samples.new_room()
        entry.instance = Instance(
            id=sandbox.id,
            spec=self.assembly.spec(sandbox),
            session=None,
            around=replace(self._around, preparer=self.assembly.of(sandbox)),
            on_change=lambda instance: self._changed(entry, instance),
            slots=SLOTS,
            app_socket=str(self.assembly.run_dir(sandbox.id) / "app.sock"),
            metered_as=sandbox.id,
        )
        return entry.instance

    async def take_down(self, entry: Entry, reason: StopReason) -> None:
        """Locked. Its room goes, its files stay. Returns when nothing uses them any more."""
        instance, entry.instance = entry.instance, None
        entry.revoke()
        if instance is not None:
            instance.stop(reason, grace=0)
            await instance.stopped.wait()

    def _changed(self, entry: Entry, instance: Instance) -> None:
        if instance.state is not State.STOPPED:
            return
        shutil.rmtree(self.assembly.run_dir(entry.sandbox.id), ignore_errors=True)
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
        if entry.instance is not None:
            await entry.instance.let_go()
        else:
            self.check_room(entry.sandbox)
            await self.boot(entry)
        return await self.change(
            entry,
            state=SandboxState.RUNNING,
            pause_mode=None,
            reason="",
            timeout_s=timeout_s,
            ends_at=self.after(timeout_s),
        )

    async def pause(self, entry: Entry, *, memory: bool, reason: StopReason) -> Sandbox:
        """Locked. Hold its room, or take it down and keep the files. Raises Unavailable if it can't be held."""
        instance = entry.instance
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
        mode = PauseMode.FULL if memory else PauseMode.FILESYSTEM
        return await self.change(entry, state=SandboxState.PAUSED, pause_mode=mode, reason=reason)

    async def kill(self, entry: Entry, reason: StopReason) -> None:
        """It ends, and so do its files."""
        entry.ending = True
        if entry.instance is not None:
            entry.instance.stop(reason, grace=0)  # also what is just starting
        async with entry.lock:
            if self.entries.get(entry.sandbox.id) is not entry:
                return  # somebody else was faster
            await self.take_down(entry, reason)
            self.stop_timer(entry)
            self.forget(entry)
            await self.book.end(entry.sandbox, reason)

    def forget(self, entry: Entry) -> None:
        """Its room is gone; so are its files now, and what it alone stood on."""
        self.entries.pop(entry.sandbox.id, None)
        self.assembly.discard(entry.sandbox.id)
        self.release(entry.sandbox.foundation.layers)

    def release(self, images: Iterable[str]) -> None:
        """Remove those that no sandbox and no template needs."""
        standing = (entry.sandbox.foundation.layers for entry in self.entries.values())
        self.assembly.images.release(images, chain(standing, self.templates.layers()))

    async def put_away(self, entry: Entry) -> None:
        """The server stops: what has a room is paused with its files."""
        self.stop_timer(entry)
        async with entry.lock:
            if entry.instance is not None and not entry.ending:
                await self.take_down(entry, StopReason.SHUTDOWN)
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
