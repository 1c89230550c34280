"""Labels of rooms that share what they hold: whatever happens in whatever order, they are wherever data can be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from roost.instances.assembly import holdings_of
from roost.instances.labels import LabelBook, RoomLabels
from roost.model.function import Affinity, EgressRules, FunctionSpec, IsolationMode, Runtime, VolumeMount
from roost.model.session import Session
from roost.model.taint import LABELS, NONE, PRIVATE, Holder, Holdings, Labels, TaintRules, holder_name


class Rows:
    def __init__(self) -> None:
        self.rows: dict[str, Labels] = {}

    async def put(self, labels: Mapping[str, Labels]) -> None:
        await asyncio.sleep(0)  # others go on meanwhile
        self.rows |= labels

    async def delete(self, holders: Iterable[str]) -> None:
        await asyncio.sleep(0)
        for holder in holders:
            self.rows.pop(holder, None)

    async def list_all(self) -> dict[str, Labels]:
        return dict(self.rows)


PLACES = ["a/volume/v", "a/volume/v/x", "a/volume/v/y", "a/volume/w", "a/volume/vx", "b/volume/v"]
HOLDERS = st.lists(st.builds(Holder, name=st.sampled_from(PLACES), writable=st.booleans()), max_size=3)
SOME = st.frozensets(st.sampled_from(sorted(LABELS)), min_size=1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), HOLDERS),
        st.tuples(st.just("grow"), st.lists(st.tuples(st.integers(0, 5), SOME), min_size=1, max_size=3)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=15,
)


@given(STEPS)
def test_they_are_wherever_data_can_be(steps: list[tuple[str, Any]]) -> None:
    async def run() -> None:
        rows = Rows()
        book, rooms, number = LabelBook(rows), list[RoomLabels](), 0
        for step, given_ in steps:
            before = {id(room): room.labels for room in rooms}
            if step == "enter":
                own = Holder(name=f"a/sandbox/{number}")
                number += 1
                rooms.append(await book.enter(Holdings(holders=(own, *given_)), lambda labels, why: None))
            elif step == "grow" and rooms:  # several at once
                await asyncio.gather(*(book.grow(rooms[n % len(rooms)], labels, "a test") for n, labels in given_))
            elif step == "leave" and rooms:
                book.leave(rooms.pop(given_ % len(rooms)))
            elif step == "restart":  # killed: what was stored is all that is left, and the rooms live on
                book = LabelBook(rows)
                await book.load()
                kept = rooms
                rooms = [await book.enter(room.holdings, lambda labels, why: None) for room in kept]
                assert [room.labels for room in rooms] == [room.labels for room in kept]
            _check(rooms, rows, before)

    asyncio.run(run())


def _check(rooms: list[RoomLabels], rows: Rows, before: dict[int, Labels]) -> None:
    for room in rooms:
        assert room.labels >= before.get(id(room), NONE)
        for name in room.written():
            assert rows.rows.get(name, NONE) >= room.labels
        for other in rooms:
            if other.holds(room.written()):
                assert other.labels >= room.labels


def test_holders_are_named_in_one_way() -> None:
    assert holder_name("a", "volume", "v", "/") == "a/volume/v"
    assert holder_name("a", "volume", "v", "/x//./y/") == "a/volume/v/x/y"
    assert not Holder(name="a/volume/v").touches("b/volume/v")


def test_what_a_function_s_room_begins_with() -> None:
    mounts = (
        VolumeMount(volume="notes", path="/{user}/{session}", target="/mnt/notes"),
        VolumeMount(volume="library", path="/", target="/mnt/library", read_only=True),
    )
    spec = FunctionSpec(
        account="a", name="f", version="LATEST", revision="", runtime=Runtime.PYTHON, mounts=mounts,
        egress=EgressRules(taint=TaintRules(mode="block", volumes=("library",))),
        isolation_mode=IsolationMode.SESSION_EXCLUSIVE,
    )  # fmt: skip
    session = Session(
        account="a", function="f", id="s1", user="ann", affinity=Affinity.HEADER_FIELD,
        created=0, modified=0, last_used=0, ttl_s=60, idle_timeout_s=60,
    )  # fmt: skip
    held = holdings_of(spec, session, "c-1")
    assert held.start == {PRIVATE}
    assert held.life == "a/volume/sessions/f/ann/s1"
    assert held.holders == (
        Holder(name="a/volume/notes/ann/s1"),
        Holder(name="a/volume/library", writable=False),
        Holder(name=held.life),
    )
    alone = holdings_of(replace(spec, mounts=(), isolation_mode=IsolationMode.SHARE), None, "c-1")
    assert (alone.holders, alone.start) == ((Holder(name="a/instance/c-1", lasting=False),), NONE)
