"""What is made ahead and what is asked of helpers, where several want it at once: nobody's things are left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.isolation.driver import Template
from roost.isolation.namespaces import helper as helpers
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.helper import Helper
from roost.isolation.namespaces.pool import Pools, Quiet
from roost.isolation.namespaces.seeds import _MOST, Seeds
from roost.model.errors import Unavailable

pytestmark = pytest.mark.asyncio


async def test_two_who_want_a_new_kind_at_once_have_one_pool() -> None:
    made: list[str] = []
    released: list[str] = []

    async def make(kind: str) -> str:
        await asyncio.sleep(0)
        made.append(f"{kind}{len(made)}")
        return made[-1]

    async def release(thing: str) -> None:
        await asyncio.sleep(0.02)
        released.append(thing)

    pools = Pools(make, release, ahead=1, most=1, quiet=Quiet())
    taken = [await pools.take("old")]
    await asyncio.sleep(0.1)
    taken += await asyncio.gather(pools.take("new"), pools.take("new"))
    await asyncio.sleep(0.1)
    await pools.close()
    assert sorted(taken + released) == sorted(made)


@contextlib.contextmanager
def _helper() -> Iterator[tuple[Helper, socket.socket]]:
    """One whose process is the test: with the other end of its socket."""
    ours, theirs = wire.pair()
    ours.setblocking(False)
    helper = Helper("launcher")
    helper._sock = ours
    helper._ready = asyncio.get_running_loop().create_future()
    helper._ready.set_result(({}, []))
    asyncio.get_running_loop().add_reader(ours, helper._receive)
    with theirs:
        yield helper, theirs
        helper._lost()


async def _answer(theirs: socket.socket) -> None:
    received = await asyncio.to_thread(wire.receive, theirs)
    assert received is not None
    wire.send(theirs, {"id": received[0]["id"]})


async def test_a_helper_is_drained_when_those_who_wait_for_their_turn_are_answered_too() -> None:
    with _helper() as (helper, theirs):
        asked = [asyncio.create_task(helper.request({"n": number})) for number in range(20)]
        await asyncio.sleep(0.01)

        async def renew() -> None:
            await helper.drain()
            await helper.close()

        renewing = asyncio.create_task(renew())
        for _ in asked:
            await _answer(theirs)
        assert len(await asyncio.gather(*asked)) == 20
        await renewing


async def test_who_leaves_as_the_answer_comes_leaves_no_descriptor() -> None:
    with _helper() as (helper, theirs), open(os.devnull) as null:
        asking = asyncio.create_task(helper.request({}))
        received = await asyncio.to_thread(wire.receive, theirs)
        assert received is not None
        before = os.listdir("/proc/self/fd")
        wire.send(theirs, {"id": received[0]["id"]}, [null.fileno()])
        helper._receive()
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_a_request_that_can_not_be_sent_fails_alone() -> None:
    with _helper() as (helper, theirs):
        with pytest.raises(Unavailable, match="can't be asked"):
            await helper.request({"too much": "x" * wire.MAX_MESSAGE})
        full = {"much": "x" * (wire.MAX_MESSAGE - 100)}
        asked = [asyncio.create_task(helper.request(full)) for _ in range(8)]
        await asyncio.sleep(0.01)
        unsent = [one for one in asked if one.done()]
        assert 0 < len(unsent) < len(asked)  # its socket has place for some
        for one in unsent:
            with pytest.raises(Unavailable, match="can't be asked"):
                await one
        for _ in range(len(asked) - len(unsent)):
            await _answer(theirs)
        await asyncio.gather(*(one for one in asked if one not in unsent))
        assert helper.alive


async def test_the_time_of_a_request_runs_from_when_the_helper_gets_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slow ones, each within its time, are no reason to give it up; one that it does not answer is."""
    monkeypatch.setattr(helpers, "_REPLY_TIMEOUT_S", 0.5)
    with _helper() as (helper, theirs):
        spent: list[float] = []
        left = asyncio.create_task(helper.request({}))
        asked = [asyncio.create_task(helper.request({}, spent=spent.append)) for _ in range(4)]
        await asyncio.sleep(0)
        left.cancel()  # what nobody waits for any more takes time all the same
        for _ in (left, *asked):
            await asyncio.sleep(0.3)
            await _answer(theirs)
        await asyncio.gather(*asked)
        assert all(0.2 < one < 0.5 for one in spent), spent
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="does not answer"):
            await helper.request({})
        assert asyncio.get_running_loop().time() - began < 1.0
        assert not helper.alive


class _Held:
    alive = True  # its helper

    def __init__(self, held: set[_Held]) -> None:
        self.helper = self
        self._all = held
        held.add(self)

    async def drop(self) -> None:
        self._all.remove(self)


async def test_a_seed_that_is_just_being_made_is_not_forgotten() -> None:
    held: set[_Held] = set()

    class Slow(Seeds):
        async def _make(self, template: Template) -> Any:
            await asyncio.sleep(0.05 if template.name == "slow" else 0)
            return _Held(held)

    seeds = Slow(None, None)  # type: ignore[arg-type]
    slow = asyncio.create_task(seeds.get(Template(name="slow", root=Path("/"))))
    await asyncio.sleep(0)
    for number in range(_MOST):
        await seeds.get(Template(name=str(number), root=Path("/")))
    await slow
    assert held == {one.held for one in seeds._seeds.values()}
    assert len(held) == _MOST
