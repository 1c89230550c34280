"""What new contexts are copies of: one process for each template, forked from its zygote and held by the tracer.

It has run no code of anybody's. A context made of it costs the copy of its page tables, as a fork of the zygote does,
and is made outside of the room's own time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from roost.isolation.driver import Template
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.held import Held
from roost.isolation.namespaces.helper import Reply, Standing
from roost.isolation.namespaces.zygotes import AGE_S
from roost.model.errors import Unavailable

log = logging.getLogger(__name__)

_MOST = 16  # templates that have one
#: As rooms of one zygote: its contexts have the same memory layout, those of its successor another.
_CONTEXTS_EACH = 1000


class Fork(Protocol):
    """As `zygotes.Zygotes.fork`."""

    async def __call__(self, template: Template, message: dict[str, Any], fds: Sequence[int]) -> Reply: ...


@dataclass
class _Seed:
    held: Held | None = None
    uses: int = 0
    born: float = 0.0
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


class Seeds:
    """Makes them when they are wanted, and anew when the tracer has ended, many contexts were made of one, or it is
    old."""

    def __init__(self, tracer: Standing, fork: Fork, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tracer = tracer
        self._fork = fork
        self._seeds: OrderedDict[Template, _Seed] = OrderedDict()

    async def get(self, template: Template, dead: Held | None = None) -> Held | None:
        """Another than `dead`. None where the template has no contexts, or they can't be copied on this machine."""
        seed = self._seeds.setdefault(template, _Seed())
        self._seeds.move_to_end(template)
        async with seed.making:
            old = seed.held
            if old in (None, dead) or not old.helper.alive or seed.uses >= _CONTEXTS_EACH or self._old(seed):
                try:
                    seed.held, seed.uses, seed.born = await self._make(template), 0, self._clock()
                except Unavailable as error:
                    log.info("contexts of the template %s can't be copied: %s", template.name, error.message)
                    seed.held = None
                if old is not None:
                    await old.drop()
            seed.uses += 1
        held = seed.held
        for unused in [one for one, its in self._seeds.items() if not its.making.locked()]:
            if len(self._seeds) <= _MOST:
                break
            dropped = self._seeds.pop(unused, None)
            if dropped is not None and dropped.held is not None:
                await dropped.held.drop()
        return held

    def _old(self, seed: _Seed) -> bool:
        return self._clock() - seed.born >= AGE_S

    async def _make(self, template: Template) -> Held:
        helper = await self._tracer.get()
        ours, theirs = wire.pair()
        with ours, theirs:  # it ends when nobody has our end any more, unless it is held by then
            made, (pidfd,) = await self._fork(template, {"shadow": True}, [theirs.fileno()])
            try:
                reply, _ = await helper.request({"op": "hold", **_addresses(made)}, [pidfd])
            finally:
                os.close(pidfd)
        return Held(helper, reply["shadow"])


def _addresses(made: dict[str, Any]) -> dict[str, Any]:
    return {name: made[name] for name in ("pid", "tid", "robust")}
