"""Listings, rings and records of sandboxes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model.errors import Conflict, InvalidArgument, StorageFull
from roost.model.instance import StopReason
from roost.model.sandbox import PauseMode, SandboxState, explain
from roost.sandboxes import book as books
from roost.sandboxes.book import SandboxBook
from roost.sandboxes.fleet import Gone, Order
from roost.sandboxes.lines import KEPT_CHARACTERS, KEPT_LINES, LINE_CHARACTERS, Lines
from roost.sandboxes.listing import Listing, page
from roost.sandboxes.samples import KEPT, Samples
from roost.store.sandboxes import CreationKey
from tests.support.sandboxes import MemorySandboxes, record


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4), st.booleans())
def test_pages_together_are_the_whole_list_in_order(times: list[int], limit: int, newest_first: bool) -> None:
    boxes = [record(f"i{number:019d}", created=float(at)) for number, at in enumerate(times)]
    listing = Listing(limit=limit, newest_first=newest_first)
    found, token = [], ""
    while True:
        shown, token = page(boxes, replace(listing, token=token))
        assert len(shown) <= limit
        found += shown
        if not token:
            break
    assert found == sorted(boxes, key=lambda box: (box.created, box.id), reverse=newest_first)


def test_a_page_is_not_lost_with_the_sandbox_it_begins_at() -> None:
    boxes = [record(f"i{number:019d}", created=float(number)) for number in range(5)]
    _, token = page(boxes, Listing(limit=2))
    shown, _ = page([box for box in boxes if box.created != 2], Listing(limit=2, token=token))
    assert [box.created for box in shown] == [1, 0]


@pytest.mark.parametrize("token", ["x", "éé", "AAAA", "bm90IGEgbnVtYmVy"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(InvalidArgument, match="nextToken"):
        page([], Listing(token=token))


def test_filters() -> None:
    box = record(metadata={"a": "1", "b": "2"}, alias="short")
    assert page([box], Listing(metadata={"a": "1"}))[0]
    assert not page([box], Listing(metadata={"a": "2"}))[0]
    assert not page([box], Listing(metadata={"c": ""}))[0]
    assert not page([box], Listing(states=frozenset({SandboxState.PAUSED})))[0]
    assert page([box], Listing(template="short"))[0]
    assert not page([box], Listing(started_after=1000.5))[0]


def test_lines_are_bounded_by_number_and_size() -> None:
    lines = Lines()
    lines.add(1.0, "stdout", "a\n" * (KEPT_LINES + 5))
    assert len(lines.all()) == KEPT_LINES
    lines.add(2.0, "stderr", "\n".join("x" * LINE_CHARACTERS * 2 for _ in range(100)))
    assert sum(len(line.text) for line in lines.all()) <= KEPT_CHARACTERS
    assert lines.all()[-1].stream == "stderr"


def test_samples_tell_cpu_as_a_share_of_all_cpus_and_are_bounded() -> None:
    samples = Samples()
    for second in range(KEPT + 10):
        samples.add(float(second), cpu_us=second * 1_000_000, cpus=2.0, memory_bytes=second, disk_bytes=7)
    found = samples.between(0, float("inf"))
    assert len(found) == KEPT
    assert found[-1].cpu_pct == 50.0
    assert found[-1].memory_bytes == KEPT + 9
    samples.new_room()
    samples.add(1e6, cpu_us=5, cpus=2.0, memory_bytes=0, disk_bytes=0)
    assert samples.between(1e6, 1e6)[0].cpu_pct == 0.0


@pytest.mark.parametrize(
    ("changes", "wakes"),
    [
        ({"pause_mode": PauseMode.FULL, "reason": StopReason.TIMEOUT}, True),
        ({"pause_mode": PauseMode.FILESYSTEM, "reason": StopReason.PAUSED}, False),
        ({"pause_mode": PauseMode.FILESYSTEM, "reason": StopReason.SHUTDOWN}, True),
        ({"pause_mode": PauseMode.FILESYSTEM, "reason": StopReason.LOST}, True),
        ({"pause_mode": PauseMode.FILESYSTEM, "reason": StopReason.OUT_OF_MEMORY}, False),
        ({"pause_mode": PauseMode.FULL, "auto_resume": False}, False),
        ({"state": SandboxState.RUNNING}, False),
    ],
)
def test_what_traffic_may_wake(changes: dict[str, object], wakes: bool) -> None:
    paused = record(state=SandboxState.PAUSED, auto_resume=True)
    assert replace(paused, **changes).wakes is wakes


def test_why_one_is_gone_is_a_sentence() -> None:
    assert explain(StopReason.TIMEOUT) == "its timeout had passed"
    assert explain("something_new") == "something new"
    assert Gone("i1", StopReason.KILLED).sentence == "it was killed by request"
    assert Gone("i1", StopReason.PAUSED, paused=True).sentence == "it is paused"
    assert Gone("i1", StopReason.OUT_OF_MEMORY, paused=True).sentence == "it is paused, as it ran out of memory"
    assert Gone("i1").sentence == ""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_the_book_remembers_ends_and_keys_for_a_while_only() -> None:
    clock, store = Clock(), MemorySandboxes()
    book = SandboxBook(store, clock=clock)
    key = CreationKey(account="acme", key="k", digest="d", sandbox=record().id, at=clock.now)
    await book.create(record(), key)
    assert book.made_by("acme", "k", "d") == record().id
    assert book.made_by("other", "k", "d") is None
    with pytest.raises(Conflict):
        book.made_by("acme", "k", "e")
    await book.end(record(), StopReason.KILLED)
    ended = book.ended(record().id)
    assert ended is not None
    assert ended.reason == StopReason.KILLED
    assert book.find(record().id) is None

    again = SandboxBook(store, clock=clock)
    await again.load()
    assert again.ended(record().id) == ended
    assert again.made_by("acme", "k", "d") == record().id

    clock.now += books.ENDS_KEPT_S + 1
    assert again.made_by("acme", "k", "d") is None
    await again.load()
    assert again.ended(record().id) is None
    assert store.ends == {}
    assert store.keys == {}


async def test_the_book_remembers_so_many_ends_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "ENDS_KEPT", 3)
    store = MemorySandboxes()
    book = SandboxBook(store, clock=Clock())
    for number in range(5):
        await book.end(record(f"i{number:019d}"), StopReason.KILLED)
    assert sorted(store.ends) == [f"i{number:019d}" for number in (2, 3, 4)]


async def test_what_can_not_be_stored_is_not_made_and_not_lost() -> None:
    store = MemorySandboxes()
    book = SandboxBook(store, clock=Clock())
    store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await book.create(record(), None)
    assert book.list() == []
    store.error = None
    await book.create(record(), None)
    store.error = StorageFull("full")
    await book.change(record(ends_at=5000.0))
    found = book.find(record().id)
    assert found is not None
    assert found.ends_at == 5000.0
    with pytest.raises(StorageFull):
        await book.commit(record(ends_at=6000.0))
    assert book.find(record().id) == found
    store.error = None
    await book.commit(record(ends_at=6000.0))
    assert book.list() == [record(ends_at=6000.0)] == list(store.rows.values())
    await book.end(record(), StopReason.TIMEOUT)
    assert book.list() == []
    await book.commit(record(ends_at=7000.0))
    assert book.list() == []


def test_equal_orders_have_equal_digests() -> None:
    order = Order(account="acme", template="base", timeout_s=1, metadata={"b": "1", "a": "2"})
    assert order.digest == replace(order, metadata={"a": "2", "b": "1"}).digest
    assert order.digest != replace(order, timeout_s=2).digest
    assert order.digest != replace(order, environment={"a": "2"}).digest
