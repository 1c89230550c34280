"""Contexts: one by one, and all of a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from roost.guest.async_server import Exchange
from roost.guest.framing import Fields
from roost.guest.sandbox.interpreter.kernel import Kernel, KernelEnded
from roost.guest.sandbox.interpreter.languages import LANGUAGES, Language
from roost.guest.sandbox.interpreter.processes import Spawn
from roost.guest.sandbox.interpreter.requests import Execute
from roost.guest.sandbox.interpreter.sink import Sink

MAX_CONTEXTS = 128
#: A cell whose client has gone is interrupted at these intervals. If it goes on for as long as `_PATIENCE_S` and
#: somebody waits for the context, its process is ended.
_INSIST_S = (0.5, 1.0, 2.0, 3.0)
_PATIENCE_S = 10.0


class CannotStart(Exception):
    """There is no process for the context; the text says why."""


class Context:
    """Variables that live from cell to cell. Cells run one after another, in the order in which they came."""

    def __init__(self, spawn: Spawn, language: Language, cwd: str) -> None:
        raw = os.urandom(16).hex()
        self.id = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
        self.language = language.name
        self.cwd = cwd
        self._start_s = language.start_s
        self._encode = language.encode
        self._ends_apart = language.ends_apart
        self._spawn = partial(spawn, {"language": language.name, "cwd": cwd})
        self._turn = asyncio.Lock()
        self._waiting: set[Sink] = set()
        self._kernel: Kernel | None = None
        self._running: Sink | None = None
        self._lost = ""  # why the variables of the cells before are gone, until that has been said
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
                return await self._live()  # it had waited, and ended before anybody had anything in it
            except BaseException:
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

    def __init__(self, spawn: Spawn, languages: tuple[str, ...], home: Callable[[], str]) -> None:
        self._spawn = spawn
        self._languages = languages
        self._home = home
        self._all: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}

    def prepare(self) -> None:
        """Make the contexts that are there from the start. Needs no event loop yet."""
        for name in self._languages:
            if LANGUAGES[name].listed:
                context = self.default(name)
                if LANGUAGES[name].ahead:
                    with contextlib.suppress(CannotStart):  # who uses it is told why
                        context.begin()

    def get(self, context_id: str) -> Context | None:
        return self._all.get(context_id)

    def default(self, language: str) -> Context:
        """Raises CannotStart."""
        context = self._defaults.get(language)
        if context is None:
            context = self._defaults[language] = self._make(language, "")
        return context

    async def create(self, language: str, cwd: str) -> Context:
        """Raises CannotStart."""
        context = self._make(language, cwd)
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

    def _make(self, language: str, cwd: str) -> Context:
        if language not in self._languages:
            names = ", ".join(self._languages)
            raise CannotStart(f"there is no kernel for the language {language[:64]!r} here; there are: {names}")
        if len(self._all) >= MAX_CONTEXTS:
            raise CannotStart(f"there are {MAX_CONTEXTS} contexts, and no more can be; remove one first")
        home = self._home()
        place = os.path.join(home, cwd) if cwd else home
        context = Context(self._spawn, LANGUAGES[language], place)
        self._all[context.id] = context
        return context


def describe(context: Context) -> Mapping[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}
