"""The contexts of a live room, on the server's side: what a daemon asks for, whatever it does, is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from roost.isolation.namespaces import live, wire
from roost.isolation.namespaces.held import Held
from roost.isolation.namespaces.live import Contexts
from roost.model.errors import Unavailable

pytestmark = pytest.mark.asyncio


@dataclass(eq=False)
class Tracer:
    """As a `Helper`, and as a `Settling` that makes contexts by it."""

    alive: bool = True
    living: set[int] = field(default_factory=set)
    broken: bool = False
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, message: dict[str, Any], fds: Any = (), **_: Any) -> Any:
        if self.broken:
            raise Unavailable("The tracer can't be asked.")
        assert message["op"] == "alive" and len(json.dumps(message)) < 4096
        return {"shadows": [number for number in message["shadows"] if number in self.living]}, []

    async def settle(self, *_: Any, **__: Any) -> tuple[Held, int]:
        made = next(self.numbers)
        self.living.add(made)
        return Held(self, made), made + 1000  # type: ignore[arg-type]

    fork = settle

    def close(self) -> None: ...


@dataclass
class Room:
    tracer: Tracer
    contexts: Contexts
    daemon: Any

    async def ask(self, **message: Any) -> dict[str, Any]:
        """As its daemon does: the reply, of whose descriptors nothing is kept."""
        wire.send(self.daemon, {**message, "number": 1})
        received = await asyncio.to_thread(wire.receive, self.daemon)
        assert received is not None
        wire.close_all(received[1])
        return received[0]


@contextlib.asynccontextmanager
async def _still(*, anew: bool = False) -> AsyncIterator[None]:
    yield


@pytest_asyncio.fixture
async def room() -> AsyncIterator[Room]:
    """With one context, 1, and one branch, 1."""
    ours, theirs = wire.pair()
    ours.setblocking(False)
    tracer = Tracer()
    tracer.entered.set()

    async def seed(_: Held | None) -> Held:
        return Held(tracer, 0)  # type: ignore[arg-type]

    contexts = Contexts(ours, tracer, seed, None, _still)  # type: ignore[arg-type]
    contexts._held[1] = (await tracer.settle())[0]
    contexts._branches[1] = Held(tracer, 0)  # type: ignore[arg-type]
    contexts._listen()
    with theirs:
        yield Room(tracer, contexts, theirs)
        await contexts.close()


@pytest.mark.parametrize("asked", [{"ask": "fork", "pid": 1}, {"ask": "settle", "branch": 1}])
async def test_who_forks_or_rolls_back_for_ever_has_as_many_contexts_as_may_be(
    room: Room, asked: dict[str, Any]
) -> None:
    for _ in range(3 * live._MOST_CONTEXTS):
        assert "pid" in await room.ask(**asked)
        room.tracer.living &= {1}  # each ends at once, the first one excepted
        assert len(room.contexts._held) <= live._MOST_CONTEXTS + 1
    while "error" not in (reply := await room.ask(**asked)):
        assert len(room.tracer.living) <= live._MOST_CONTEXTS + 1
    assert reply["error"] == "a room has 128 contexts with shadows at most"
    assert await room.ask(ask="another") == {"op": "reply", "number": 1, "pid": 0}


async def test_contexts_of_which_nothing_is_known_are_not_forgotten(room: Room) -> None:
    held = room.contexts._held[1]
    room.tracer.broken = True
    await room.contexts._forget_ended()
    assert (list(room.contexts._held), await held.alive()) == ([1], True)
    room.tracer.alive = False  # all that it held has ended with it
    await room.contexts._forget_ended()
    assert (list(room.contexts._held), await held.alive()) == ([], False)
