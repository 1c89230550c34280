"""Branches of contexts within their sandbox: another context with the same memory, and checkpoints to go back to.

Memory alone: files, other processes and connections are as they are.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from roost.guest.reaping import arriving
from roost.guest.sandbox.interpreter.contexts import Busy, CannotStart, Context, Contexts
from roost.guest.sandbox.interpreter.kernel import Kernel, born
from roost.guest.sandbox.interpreter.lifeline import Lifeline, NotCopied
from roost.guest.sandbox.interpreter.requests import PYTHON

MOST_CHECKPOINTS = 32  # of a sandbox
_ENDS = 3  # of a process: its socket and its outputs
_WAIT_S = 30.0  # for the cell that runs
_BORN = born({}).decode()


class NoCheckpoint(LookupError):
    """There is none of that name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The memory of a context at one moment, held by the host. `parent`: the one that it came from, or ""."""

    id: str
    label: str
    context: str
    parent: str
    created: float
    branch: int

    def describe(self) -> Mapping[str, Any]:
        named = {"id": self.id, "label": self.label, "context_id": self.context}
        return {**named, "parent": self.parent or None, "created": round(self.created, 3)}


class Branches:
    """Of one sandbox's contexts. Everything raises NotCopied where a context can't be copied. A cell that runs is
    waited for, up to a bound; `now`: it is interrupted."""

    def __init__(self, contexts: Contexts, live: Lifeline | None) -> None:
        self._contexts = contexts
        self._live = live
        self._checkpoints: dict[str, Checkpoint] = {}
        self._last: dict[str, str] = {}  # by context: the checkpoint that its memory comes from

    def of(self, context: Context) -> list[Checkpoint]:
        """In the order in which they were made."""
        return [one for one in self._checkpoints.values() if one.context == context.id]

    async def fork(self, context: Context, *, now: bool = False) -> Context:
        """A new context with the variables of this one. Raises CannotStart too."""
        async with self._held(context, now=now) as (host, pid):
            with arriving():
                kernel = _kernel(*await host.ask("fork", pid=pid, said=_BORN))
        try:
            made = self._contexts.make(PYTHON, context.cwd)
        except CannotStart:
            kernel.close()
            raise
        made.take_over(kernel)  # before anybody else sees it without one
        try:
            await made.start()
        except BaseException:
            self._contexts.remove(made)
            raise
        return made

    async def checkpoint(self, context: Context, label: str, *, now: bool = False) -> Checkpoint:
        """Keep its memory as it is between two cells."""
        if len(self._checkpoints) >= MOST_CHECKPOINTS:
            raise NotCopied(f"there are {MOST_CHECKPOINTS} checkpoints, and no more can be; remove one first")
        async with self._held(context, now=now) as (host, pid):
            branch = int((await host.ask("branch", pid=pid))[0]["branch"])
        if self._contexts.get(context.id) is not context:
            await self._drop(branch)
            raise NotCopied("it was removed")
        made = Checkpoint(
            id=os.urandom(8).hex(),
            label=label,
            context=context.id,
            parent=self._last.get(context.id, ""),
            created=time.time(),
            branch=branch,
        )
        self._checkpoints[made.id] = made
        self._last[context.id] = made.id
        return made

    async def rollback(self, context: Context, id: str, *, now: bool = False) -> Checkpoint:
        """Its memory is what it was at the checkpoint, which stays. Raises NoCheckpoint, CannotStart."""
        found = self._find(context, id)

        async def settled() -> Kernel:
            with arriving():
                return _kernel(*await self._host.ask("settle", branch=found.branch, said=_BORN))

        try:
            await context.replace(settled, _WAIT_S, now=now)
        except Busy as error:
            raise NotCopied(str(error)) from None
        self._last[context.id] = found.id
        return found

    async def remove(self, context: Context, id: str) -> None:
        """Raises NoCheckpoint."""
        found = self._find(context, id)
        del self._checkpoints[found.id]
        await self._drop(found.branch)

    async def forget(self, context: Context) -> None:
        """It was removed: what was kept of it is no use."""
        self._last.pop(context.id, None)
        gone = self.of(context)
        for one in gone:
            del self._checkpoints[one.id]
        # Also when nobody waits for that any more.
        await asyncio.shield(asyncio.gather(*(self._drop(one.branch) for one in gone)))

    def _find(self, context: Context, id: str) -> Checkpoint:
        found = self._checkpoints.get(id)
        if found is None or found.context != context.id:
            raise NoCheckpoint(id)
        return found

    @property
    def _host(self) -> Lifeline:
        if self._live is None:
            raise NotCopied("contexts can't be copied in this sandbox")
        return self._live

    @asynccontextmanager
    async def _held(self, context: Context, *, now: bool) -> AsyncIterator[tuple[Lifeline, int]]:
        """Whom to ask for a copy, and the number of its process, which stands still."""
        host = self._host
        try:
            pid = await context.hold(_WAIT_S, now=now)
        except CannotStart as error:
            raise NotCopied(str(error)) from None
        try:
            yield host, pid
        finally:
            context.release()

    async def _drop(self, branch: int) -> None:
        try:
            await self._host.ask("drop", branch=branch)
        except NotCopied:
            return  # it is gone already


def _kernel(handed_over: Mapping[str, Any], fds: Sequence[int]) -> Kernel:
    """The process that the host has made, and that may have ended by now. Raises NotCopied."""
    if len(fds) < _ENDS:
        raise NotCopied("there are too many open files")
    try:
        return Kernel.adopt(handed_over["pid"], (fds[0], fds[1], fds[2]))
    except OSError as error:
        raise NotCopied(f"the copy can't be had: {error.strerror}") from error
