"""Checkpoints of contexts that are removed meanwhile, of what a host gives out and takes back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from roost.guest.sandbox.interpreter.branches import Branches
from roost.guest.sandbox.interpreter.contexts import CannotStart, Context, Contexts
from roost.guest.sandbox.interpreter.languages import LANGUAGES
from roost.guest.sandbox.interpreter.lifeline import STILL_RUNS, NotCopied


class Host:
    """Numbers branches, and takes its time."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.dropping = asyncio.Event()
        self.go_on = asyncio.Event()

    async def ask(self, what: str, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        if what == "drop":
            self.dropping.set()
            await self.go_on.wait()
            self.held.discard(fields["branch"])
            return {}, []
        branch = len(self.held) + 1
        self.held.add(branch)
        await asyncio.sleep(0)
        return {"branch": branch}, []


class Held:
    """A context that stands still whenever it is asked to."""

    id = "c"

    async def hold(self, wait_s: float, *, now: bool = False) -> int:
        return 7

    def release(self) -> None:
        pass


@pytest.fixture
async def host() -> Host:
    return Host()


async def test_a_checkpoint_of_what_was_removed_meanwhile_is_given_back(host: Host) -> None:
    context: Any = Held()
    known = {"c": context}
    contexts: Any = SimpleNamespace(get=known.get)
    branches = Branches(contexts, host)  # type: ignore[arg-type]
    host.go_on.set()
    await branches.checkpoint(context, "")  # the positive control
    assert (len(branches.of(context)), len(host.held)) == (1, 1)
    making = asyncio.ensure_future(branches.checkpoint(context, ""))
    await asyncio.sleep(0)
    known.clear()
    await branches.forget(context)
    with pytest.raises(NotCopied, match="it was removed"):
        await making
    assert not branches.of(context)
    assert not host.held


async def test_all_checkpoints_go_with_their_context_though_nobody_waits(host: Host) -> None:
    context: Any = Held()
    contexts: Any = SimpleNamespace(get={"c": context}.get)
    branches = Branches(contexts, host)  # type: ignore[arg-type]
    for _ in range(3):
        await branches.checkpoint(context, "")
    forgetting = asyncio.ensure_future(branches.forget(context))
    await host.dropping.wait()
    forgetting.cancel()
    await asyncio.gather(forgetting, return_exceptions=True)
    assert not branches.of(context)
    host.go_on.set()
    async with asyncio.timeout(10):
        while host.held:
            await asyncio.sleep(0)


async def test_what_a_removed_context_was_to_have_is_closed() -> None:
    closed: list[bool] = []
    kernel: Any = SimpleNamespace(close=lambda: closed.append(True))
    context = Context(lambda *_: pytest.fail("it asks for a process"), LANGUAGES["python"], "/")

    async def make() -> Any:
        context.close()
        return kernel

    with pytest.raises(CannotStart, match="the context was removed"):
        await context.replace(make, 1.0)
    assert closed == [True]


async def test_no_cell_runs_when_all_are_at_rest_at_once() -> None:
    def none(*_: object) -> Any:
        raise OSError

    contexts = Contexts(none, ("python",), lambda: "/")
    first, second = (contexts.make("python", "") for _ in range(2))
    await first._turn.acquire()
    await second._turn.acquire()
    resting = asyncio.create_task(contexts.rest(5.0))
    await asyncio.sleep(0)
    first._turn.release()
    await asyncio.sleep(0.01)
    await first._turn.acquire()  # another cell, while that of the second still runs
    second._turn.release()
    await asyncio.sleep(0.01)
    assert not resting.done()
    queued = asyncio.create_task(first._turn.acquire())  # behind who waits for its rest
    first._waiting.add(queued)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    first._turn.release()
    await queued
    first._waiting.clear()
    await asyncio.sleep(0.01)
    assert not resting.done()
    first._turn.release()
    assert await resting == {"held": [], "lost": []}
    await second._turn.acquire()
    [lost] = (await contexts.rest(0.01))["lost"]
    assert lost.endswith(STILL_RUNS)
