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

from roost.isolation.driver import Left, LiveCopy
from roost.isolation.namespaces import live, wire
from roost.isolation.namespaces.held import Held
from roost.isolation.namespaces.helper import unnoted
from roost.isolation.namespaces.live import Contexts
from roost.isolation.namespaces.room import NamespacesRoom
from roost.model.errors import Unavailable

pytestmark = pytest.mark.asyncio


@dataclass(eq=False)
class Tracer:
    """As a `Helper`, and as a `Settling` that makes contexts by it."""

    alive: bool = True
    living: set[int] = field(default_factory=set)
    broken: bool = False
    took_s: float = 0.0  # to make one
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, message: dict[str, Any], fds: Any = (), spent: Any = unnoted) -> Any:
        if self.broken:
            raise Unavailable("The tracer can't be asked.")
        if message["op"] == "drop":
            return {}, []
        assert message["op"] == "alive" and len(json.dumps(message)) < 4096
        return {"shadows": [number for number in message["shadows"] if number in self.living]}, []

    async def settle(self, held: Held, fds: Any, spent: Any, **_: Any) -> tuple[Held, int]:
        spent(self.took_s)
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
    contexts._branches[1] = held = Held(tracer, 0)  # type: ignore[arg-type]
    contexts._held[1] = (await tracer.settle(held, [], unnoted))[0]
    contexts._listen()
    theirs.settimeout(5)
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


async def test_what_a_daemon_asks_for_far_too_early_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MOST_PAUSE_S", 0.1)
    settle = {"ask": "settle", "branch": 1}
    room.tracer.took_s = 4.0
    assert "pid" in await room.ask(**settle)
    for asked in (settle, {"ask": "fork", "pid": 1}, {"ask": "branch", "pid": 1}, {"ask": "another"}):
        assert (await room.ask(**asked))["error"] == "the room has asked for too much; again in 8 s"
    assert "error" not in await room.ask(ask="drop", branch=1)  # which gives back
    assert room.contexts._branches == {}


async def test_who_is_a_little_too_early_waits(room: Room) -> None:
    room.tracer.took_s = live._AHEAD_S + 0.5 * live._SHARE
    for at_least in (0.0, 0.4):
        began = asyncio.get_running_loop().time()
        assert "pid" in await room.ask(ask="fork", pid=1)
        assert at_least <= asyncio.get_running_loop().time() - began < 2.0
        room.tracer.took_s = 0.0


@pytest.mark.parametrize("held", [[], 1, "what can't be read"])
async def test_whatever_a_daemon_answers_contexts_are_told_to_go_on(
    room: Room, monkeypatch: pytest.MonkeyPatch, held: Any
) -> None:
    def unreadable(_: Any) -> Any:
        raise RecursionError

    if isinstance(held, str):
        monkeypatch.setattr(live, "parse_hold", unreadable)

    async def daemon() -> list[str]:
        told = []
        while not told or told[-1] != "release":
            received = await asyncio.to_thread(wire.receive, room.daemon)
            assert received is not None
            told.append(received[0]["op"])
            if told == ["hold"]:
                wire.send(room.daemon, {"held": held, "lost": [], "number": received[0]["number"]})
        return told

    answering = asyncio.create_task(daemon())
    with contextlib.suppress(RecursionError):
        async with room.contexts.standing_still() as (still, _):
            assert still == []
    assert await answering == ["hold", "release"]


async def test_contexts_of_which_nobody_waits_any_more_are_told_to_go_on(room: Room) -> None:
    async def stand_still() -> None:
        async with room.contexts.standing_still():
            raise AssertionError

    waiting = asyncio.create_task(stand_still())
    told = await asyncio.to_thread(wire.receive, room.daemon)
    waiting.cancel()
    await asyncio.wait([waiting])
    released = await asyncio.to_thread(wire.receive, room.daemon)
    assert told is not None and released is not None
    assert (told[0]["op"], released[0]["op"]) == ("hold", "release")


class _Leaving(NamespacesRoom):
    """A room that is copied, and does not go on."""

    def __init__(self, dropped: list[str]) -> None:
        self._dropped = dropped
        self._contexts, self._cgroup, self._stilling = self, self, asyncio.Lock()  # type: ignore[assignment]

    @contextlib.asynccontextmanager
    async def standing_still(self, wait_s: float) -> AsyncIterator[Any]:
        yield [], []

    async def tied(self) -> str:
        return ""

    async def copied(self, contexts: Any, *, keep: bool) -> tuple[list[LiveCopy], list[str]]:
        async def drop() -> None:
            self._dropped.append("a")

        left = Left(threads=0, processes=0, files=())
        rest: dict[str, Any] = {"alive": None, "measure": None}
        return [LiveCopy(held=None, drop=drop, id="a", cwd="/", default=True, left=left, kept=keep, **rest)], []

    def is_frozen(self) -> bool:
        return False

    async def freeze(self) -> None: ...

    async def thaw(self) -> None:
        raise Unavailable("The room does not go on.")


async def test_what_was_kept_of_a_room_that_does_not_go_on_is_dropped() -> None:
    dropped: list[str] = []
    with pytest.raises(Unavailable, match="does not go on"):
        await _Leaving(dropped).leave()
    assert dropped == ["a"]


async def test_whether_cells_run_is_asked_without_holding_anything(room: Room) -> None:
    async def answer(lost: list[str]) -> str:
        received = await asyncio.to_thread(wire.receive, room.daemon)
        assert received is not None
        wire.send(room.daemon, {"held": [], "lost": lost, "number": received[0]["number"]})
        return str(received[0]["op"])

    for lost, rests in (
        ([], True),
        (["context a: it is not Python"], True),
        (["context a: a cell of it still runs"], False),
    ):
        answering = asyncio.create_task(answer(lost))
        assert await room.contexts.at_rest() is rests
        assert await answering == "rest"
    room.daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.receive(room.daemon)
