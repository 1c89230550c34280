"""Contexts: one by one, and all of a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from roost.guest.async_server import Exchange
from roost.guest.framing import Fields
from roost.guest.sandbox.interpreter.kernel import Kernel, KernelEnded
from roost.guest.sandbox.interpreter.languages import LANGUAGES, Language
from roost.guest.sandbox.interpreter.lifeline import STILL_RUNS, Copy
from roost.guest.sandbox.interpreter.processes import Spawn
from roost.guest.sandbox.interpreter.requests import PYTHON, Execute
from roost.guest.sandbox.interpreter.sink import Sink

MAX_CONTEXTS = 128
#: A cell whose client has gone is interrupted at these intervals. If it goes on for as long as `_PATIENCE_S` and
#: somebody waits for the context, its process is ended.
_INSIST_S = (0.5, 1.0, 2.0, 3.0)
_PATIENCE_S = 10.0
_AGAIN_S = 0.25  # between interrupts for who can't wait


class CannotStart(Exception):
    """There is no process for the context; the text says why."""


class Busy(CannotStart):
    """A cell that runs does not end."""


class Context:
    """Variables that live from cell to cell. Cells run one after another, in the order in which they came."""

    def __init__(
        self,
        spawn: Spawn,
        language: Language,
        cwd: str,
        id: str = "",
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare` is awaited before a process is asked for, where it is in the event loop."""
        raw = os.urandom(16).hex()
        self.id = id or "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
        self.language = language.name
        self.cwd = cwd
        self._start_s = language.start_s
        self._encode = language.encode
        self._ends_apart = language.ends_apart
        self._spawn = partial(spawn, {"language": language.name, "cwd": cwd})
        self._prepare = prepare
        self._turn = asyncio.Lock()
        self._waiting: set[Sink] = set()
        self._kernel: Kernel | None = None
        self._running: Sink | None = None
        self._lost = ""  # why the variables of the cells before are gone, until that has been said
        self._held: Kernel | None = None
        self._standing = False
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def kernel(self) -> Kernel | None:
        """Its process, if it has one."""
        return self._kernel

    def begin(self) -> None:
        """Ask for a process, without waiting for it. Needs no event loop yet. Raises CannotStart."""
        try:
            self._kernel = Kernel(self._spawn)
        except OSError as error:
            raise CannotStart(error.strerror or str(error)) from error

    async def start(self) -> None:
        """Have a process. Raises CannotStart."""
        async with self._turn:
            await self._live()

    async def execute(self, cell: Execute, exchange: Exchange, fields: Fields) -> None:
        """Run a cell and reply with what comes of it. Whoever cancels this interrupts the cell."""
        sink = Sink(exchange, fields, lambda: self._stop(sink), ends_apart=self._ends_apart)
        task = self._run(self._take_turn(cell, sink))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            sink.abandon()
            raise

    @property
    def begun(self) -> bool:
        """Whether a process was asked for, or taken over."""
        return self._kernel is not None

    def take_over(self, kernel: Kernel) -> None:
        """Its process is a copy."""
        self._kernel = kernel

    async def hold(self, wait_s: float, *, now: bool = False) -> int:
        """Take its turn, and have it stand still between two cells until `release`; the number of its process. `now`:
        cells before are interrupted.

        Raises CannotStart if that can't be, with why.
        """
        await self._acquire(wait_s, now=now)
        try:
            kernel = await self._live()
            if not kernel.live_pid:
                raise CannotStart("its process was made by a fork of the daemon's")
            await kernel.hold()
        except KernelEnded as error:
            self._turn.release()
            raise CannotStart(str(error)) from None
        except BaseException:
            if self._kernel is not None:
                self._kernel.release()  # it may have heard of it already
            self._turn.release()
            raise
        self._held = kernel
        return kernel.live_pid

    def release(self) -> None:
        """After `hold`."""
        kernel, self._held = self._held, None
        if kernel is not None:
            kernel.release()
            self._turn.release()

    @property
    def runs(self) -> bool:
        """Whether a cell runs, or is about to, or it is busy otherwise."""
        return self._turn.locked() or bool(self._waiting)

    async def rest(self, wait_s: float) -> None:
        """Return when its cells have ended. Raises Busy."""
        await self._acquire(wait_s, now=False)
        self._turn.release()

    async def stand(self, wait_s: float) -> None:
        """Take its turn, until `go_on`: the room is copied with all its processes, of which one in Python is told.
        Raises CannotStart if that can't be, with why."""
        await self._acquire(wait_s, now=False)
        self._standing = True
        if self.language != PYTHON or self._kernel is None:
            return
        kernel = None
        try:
            kernel = await self._live()
            await kernel.hold(rests=False)
        except KernelEnded as error:
            self.go_on(None)
            raise CannotStart(str(error)) from None
        except CannotStart:
            self.go_on(None)
            raise
        except BaseException:
            self._held = kernel  # it may have heard of it already
            self.go_on(None)
            raise
        self._held = kernel

    def go_on(self, own: Mapping[str, str] | None) -> None:
        """After `stand`; `own`: this is the copy, and these are variables of its own."""
        kernel, self._held = self._held, None
        if kernel is not None and own is None:
            kernel.release()
        elif kernel is not None and own is not None:
            kernel.renew(own)
        if self._standing:
            self._standing = False
            self._turn.release()

    async def replace(self, make: Callable[[], Awaitable[Kernel]], wait_s: float, *, now: bool = False) -> None:
        """In its turn, as `hold`: have another process, whatever the one before was. Raises CannotStart, and what
        `make` does."""
        await self._acquire(wait_s, now=now)
        try:
            kernel = await make()
            if self._closed:  # by now
                kernel.close()
                raise CannotStart("the context was removed")
            self._drop()
            self._lost = ""
            self._kernel = kernel
            await self._live()
        finally:
            self._turn.release()

    async def _acquire(self, wait_s: float, *, now: bool) -> None:
        """Its turn. Raises Busy."""
        interrupting = self._run(self._interrupt()) if now and self._turn.locked() else None
        try:
            async with asyncio.timeout(wait_s):
                await self._turn.acquire()
        except TimeoutError:
            raise Busy(STILL_RUNS) from None
        finally:
            if interrupting is not None:
                interrupting.cancel()

    async def _interrupt(self) -> None:
        """Each cell that runs, until this is cancelled."""
        while True:
            if self._running is not None and self._kernel is not None:
                self._kernel.interrupt()
            await asyncio.sleep(_AGAIN_S)

    async def restart(self) -> None:
        """Begin anew; a cell that runs ends with an error. Raises CannotStart."""
        self._drop()
        self._lost = ""
        await self.start()

    def close(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.close()

    async def _take_turn(self, cell: Execute, sink: Sink) -> None:
        self._waiting.add(sink)
        async with self._turn:
            self._waiting.discard(sink)
            if not sink.abandoned:
                await self._execute(cell, sink)
        await sink.finish()

    async def _execute(self, cell: Execute, sink: Sink) -> None:
        try:
            kernel = await self._live()
        except CannotStart as error:
            sink.error("ContextNotStarted", str(error))
            return
        if self._lost:  # a cell that counts on what is gone must not run
            sink.error("ContextRestarting", f"Context was restarted: {self._lost}")
            self._lost = ""
            return
        sink.number(kernel.next_number)
        self._running = sink
        try:
            await kernel.run(self._encode(cell.code, cell.env), sink)
        except KernelEnded as error:
            if self._closed:
                text = "Connection to the execution was closed before the execution was finished"
                sink.error("UnexpectedEndOfExecution", text)
            else:
                sink.error("ContextRestarting", f"Context was restarted: {error}")
            self._forget(kernel)
        finally:
            self._running = None

    async def _live(self) -> Kernel:
        """The process, started if there is none. Raises CannotStart."""
        if self._kernel is not None and self._kernel.started and not self._kernel.alive:
            self._lost = self._kernel.how_it_ended()
            self._forget(self._kernel)
        if self._closed:
            raise CannotStart("the context was removed")
        unused = self._kernel is not None
        if self._kernel is None:
            if self._prepare is not None:
                await self._prepare()
            if self._closed:  # by now
                raise CannotStart("the context was removed")
            self.begin()
        kernel = self._kernel
        assert kernel is not None
        if not kernel.started:
            try:
                await kernel.start(self._start_s)
            except KernelEnded as error:
                self._forget(kernel)
                if not unused:
                    raise CannotStart(str(error)) from error
                if kernel.adopted:
                    self._lost = f"what it is a copy of does not go on here: {error}"
                return await self._live()  # else it had waited, and ended before anybody had anything in it
            except BaseException:
                if kernel.adopted:
                    self._lost = "nobody waited until its copy went on"
                self._forget(kernel)
                raise
        return kernel

    def _forget(self, kernel: Kernel) -> None:
        kernel.close()
        if self._kernel is kernel:
            self._kernel = None

    def _stop(self, sink: Sink) -> None:
        if self._running is sink and self._kernel is not None:
            self._run(self._insist(self._kernel, sink))

    async def _insist(self, kernel: Kernel, sink: Sink) -> None:
        """Interrupt the cell until it stops: it may catch KeyboardInterrupt, or be where nothing reaches it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        pauses = iter(_INSIST_S)
        while self._running is sink and kernel.alive:
            kernel.interrupt()
            await asyncio.sleep(next(pauses, _INSIST_S[-1]))
            wanted = any(not waiting.abandoned for waiting in self._waiting)
            if self._running is sink and wanted and loop.time() - began > _PATIENCE_S:
                self._lost = "a cell whose client had gone could not be interrupted"
                self._forget(kernel)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Contexts:
    """All contexts, in the order in which they were made. Each language has one for those who name none."""

    def __init__(
        self,
        spawn: Spawn,
        languages: tuple[str, ...],
        home: Callable[[], str],
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare`: before a Python context asks for a process, where it can wait."""
        self._prepare = prepare
        self._spawn = spawn
        self._languages = languages
        self._home = home
        self._all: dict[str, Context] = {}
        self._standing: list[Context] = []  # for the host
        self._defaults: dict[str, Context] = {}

    def prepare(self) -> None:
        """Make the contexts that are there from the start. Needs no event loop yet."""
        for name in self._languages:
            if LANGUAGES[name].listed:
                context = self.default(name)
                if LANGUAGES[name].ahead and not context.begun:
                    with contextlib.suppress(CannotStart):  # who uses it is told why
                        context.begin()

    def adopt(self, copies: Sequence[Copy], own: Mapping[str, str]) -> None:
        """Have the contexts of another sandbox, under the same ids."""
        for copy in copies:
            context = Context(self._spawn, LANGUAGES[PYTHON], copy.cwd, copy.id, self._prepare)
            with contextlib.suppress(OSError):  # it has ended meanwhile: the context begins anew
                context.take_over(Kernel.adopt(copy.pid, copy.fds, own))
            self._all[context.id] = context
            if copy.default:
                self._defaults[PYTHON] = context

    async def hold(self, wait_s: float, *, now: bool = False) -> dict[str, Any]:
        """As `lifeline.Holder`."""
        held: list[dict[str, Any]] = []
        lost: list[str] = []
        defaults = list(self._defaults.values())

        async def one(context: Context) -> None:
            if context.language != PYTHON:
                if context.kernel is not None:
                    lost.append(f"context {context.id}: {context.language} can't be copied")
                return
            try:
                pid = await context.hold(wait_s, now=now)
            except CannotStart as error:
                lost.append(f"context {context.id}: {error}")
                return
            self._standing.append(context)
            default = context in defaults
            held.append({"id": context.id, "cwd": context.cwd, "default": default, "pid": pid})

        await asyncio.gather(*(one(context) for context in list(self._all.values())))
        return {"held": held, "lost": lost}

    async def rest(self, wait_s: float) -> dict[str, Any]:
        """As `lifeline.Holder`."""
        lost: list[str] = []
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        while not lost and (running := [each for each in self._all.values() if each.language == PYTHON and each.runs]):
            for context in running:  # others may begin meanwhile
                try:
                    await context.rest(end - loop.time())
                except Busy as error:
                    lost.append(f"context {context.id}: {error}")
        return {"held": [], "lost": lost}

    def release(self) -> None:
        standing, self._standing = self._standing, []
        for context in standing:
            context.release()

    async def stand(self, wait_s: float) -> list[str]:
        """Have all of them stand still for a copy of the whole room, until `go_on`; why one does not."""
        lost: list[str] = []

        async def one(context: Context) -> None:
            try:
                await context.stand(wait_s)
            except CannotStart as error:
                lost.append(f"context {context.id}: {error}, so it goes on in the copy with the same random numbers")

        await asyncio.gather(*(one(context) for context in list(self._all.values())))
        return lost

    def go_on(self, own: Mapping[str, str] | None) -> None:
        """After `stand`; `own`: this is the copy, and these are variables of its own."""
        for context in list(self._all.values()):
            context.go_on(own)

    def get(self, context_id: str) -> Context | None:
        return self._all.get(context_id)

    def default(self, language: str) -> Context:
        """Raises CannotStart."""
        context = self._defaults.get(language)
        if context is None:
            context = self._defaults[language] = self.make(language, "")
        return context

    async def create(self, language: str, cwd: str) -> Context:
        """Raises CannotStart."""
        context = self.make(language, cwd)
        try:
            await context.start()
        except BaseException:
            self.remove(context)
            raise
        return context

    def remove(self, context: Context) -> None:
        """Also of one that somebody else has removed meanwhile."""
        self._all.pop(context.id, None)
        for language, default in list(self._defaults.items()):
            if default is context:
                del self._defaults[language]
        context.close()

    async def close(self) -> None:
        """Remove all, and wait until their processes have ended."""
        contexts = list(self._all.values())
        kernels = [context.kernel for context in contexts if context.kernel is not None]
        for context in contexts:
            self.remove(context)
        for kernel in kernels:
            await kernel.ended()

    def describe(self) -> list[Mapping[str, str]]:
        return [describe(context) for context in self._all.values()]

    def make(self, language: str, cwd: str) -> Context:
        """One that has no process yet. Raises CannotStart."""
        if language not in self._languages:
            names = ", ".join(self._languages)
            raise CannotStart(f"there is no kernel for the language {language[:64]!r} here; there are: {names}")
        if len(self._all) >= MAX_CONTEXTS:
            raise CannotStart(f"there are {MAX_CONTEXTS} contexts, and no more can be; remove one first")
        home = self._home()
        place = os.path.join(home, cwd) if cwd else home
        context = Context(self._spawn, LANGUAGES[language], place, "", self._prepare if language == PYTHON else None)
        self._all[context.id] = context
        return context


def describe(context: Context) -> Mapping[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}
