"""The warm processes that rooms are forked from, one for each template."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from roost.isolation.driver import Template
from roost.isolation.namespaces.helper import Helper, Reply
from roost.model.errors import Unavailable

_MOST = 16  # templates that are kept warm
#: Rooms of one zygote have the same memory layout; a successor has another.
_ROOMS_EACH = 1000
AGE_S = 3600.0

Setup = Callable[[Template], Sequence[dict[str, Any]]]


@dataclass
class _Warm:
    """A template's present zygote."""

    helper: Helper | None = None
    rooms: int = 0
    born: float = 0.0
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    in_use: int = 0


class Zygotes:
    """Starts them when they are needed, replaces those that ended, made many rooms or are old, and ends those unused
    longest.

    `setup` gives the messages that tell a new one what it is.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        start: Callable[[str, Sequence[dict[str, Any]]], Helper] = Helper,
        most: int = _MOST,
        rooms_each: int = _ROOMS_EACH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._setup = setup
        self._new = start
        self._most = most
        self._rooms_each = rooms_each
        self._warm: OrderedDict[Template, _Warm] = OrderedDict()
        self._background: set[asyncio.Task[None]] = set()

    async def warm(self, template: Template) -> None:
        """Have the template's zygote running. Raises Unavailable with what it said."""
        await self._helper(self._entry(template), template)
        await self._end_unused()

    async def fork(self, template: Template, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Ask for a room: the reply and the room's pidfd. Raises Unavailable with the reason."""
        entry = self._entry(template)
        entry.in_use += 1
        try:
            helper = await self._helper(entry, template)
            reply = await helper.request(message, fds)
        finally:
            entry.in_use -= 1
        entry.rooms += 1
        old = entry.rooms >= self._rooms_each or self._clock() - entry.born >= AGE_S
        if old and entry.helper is helper:
            entry.rooms, entry.born = 0, self._clock()
            self._run(self._renew(entry, template, helper))
        return reply

    def _entry(self, template: Template) -> _Warm:
        entry = self._warm.setdefault(template, _Warm())
        self._warm.move_to_end(template)
        return entry

    async def _helper(self, entry: _Warm, template: Template) -> Helper:
        async with entry.starting:
            if entry.helper is not None and not entry.helper.alive:
                await entry.helper.close()
                entry.helper = None
            if entry.helper is None:
                entry.helper = await self._start(template)
                entry.rooms, entry.born = 0, self._clock()
            return entry.helper

    async def _start(self, template: Template) -> Helper:
        helper = self._new("launcher", self._setup(template))
        await helper.start()
        return helper

    async def _renew(self, entry: _Warm, template: Template, old: Helper) -> None:
        """Put a fresh one in its place; the old one ends when it has answered what it was asked."""
        try:
            fresh = await self._start(template)
        except Unavailable:
            return  # the old one goes on, and is tried to be replaced after as many rooms or as long again
        if self._warm.get(template) is not entry or entry.helper is not old:
            await fresh.close()
            return
        entry.helper = fresh
        await old.drain()
        await old.close()

    async def _end_unused(self) -> None:
        for template in list(self._warm):
            if len(self._warm) <= self._most:
                return
            entry = self._warm[template]
            if not entry.in_use and not entry.starting.locked():
                del self._warm[template]
                if entry.helper is not None:
                    await entry.helper.close()

    def _run(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """End all of them. Rooms live on."""
        await asyncio.gather(*self._background, return_exceptions=True)
        warm, self._warm = self._warm, OrderedDict()
        for entry in warm.values():
            if entry.helper is not None:
                await entry.helper.close()
