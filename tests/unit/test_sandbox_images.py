"""Which images are needed, and what a template's builds and tags mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.isolation.driver import MOST_LOWER
from roost.model.errors import InvalidArgument, StorageFull, Throttled
from roost.model.function import Limits
from roost.model.sandbox import Foundation
from roost.model.template import TemplateBuild, TemplateKind, TemplateRecord
from roost.sandboxes import template_book
from roost.sandboxes.image_shelf import ImageShelf, below, unused
from roost.sandboxes.registry import split_name
from roost.sandboxes.template_book import TemplateBook, superseded
from tests.support.sandboxes import MemoryTemplates

NAMES = st.text("abcd", min_size=1, max_size=2)
RECORD = TemplateRecord(id="t1", account="acme", kind=TemplateKind.SNAPSHOT, name="snap", created=1.0)


class Attached:
    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def forget(self, path: Path) -> None:
        self.forgotten.append(path.stem)


@given(st.lists(NAMES), st.lists(st.lists(NAMES)), st.lists(NAMES))
def test_an_image_is_unused_when_nothing_stands_on_it_and_nobody_holds_it(
    candidates: list[str], standing: list[list[str]], held: list[str]
) -> None:
    needed = {name for layers in standing for name in layers} | set(held)
    assert unused(candidates, standing, held) == set(candidates) - needed


@pytest.mark.parametrize("count", [0, 1, MOST_LOWER, MOST_LOWER + 1])
def test_a_stack_never_grows_over_what_a_room_can_stand_on(count: int) -> None:
    layers = tuple(str(number) for number in range(count))
    left = below(layers)
    assert len(left) == min(count, MOST_LOWER)
    assert layers[len(layers) - len(left) :] == left
    assert len(("new", *left)) <= MOST_LOWER + 1


async def test_what_is_held_or_stood_on_stays(tmp_path: Path) -> None:
    attached = Attached()
    shelf = ImageShelf(tmp_path / "images", attached, most_bytes=1 << 20)
    with shelf.making() as name:
        shelf.path(name).touch()
        with shelf.holding((name, "other")):
            shelf.release((name,), ())
        shelf.release((name,), ())
        assert shelf.names() == {name}
    shelf.release((name,), [("x", name)])
    assert shelf.names() == {name}
    assert attached.forgotten == []
    shelf.release((name, "never-made"), [("x",)])
    assert shelf.names() == frozenset()
    assert name in attached.forgotten


def test_images_have_a_quota_of_the_disk(tmp_path: Path) -> None:
    shelf = ImageShelf(tmp_path, Attached(), most_bytes=1 << 20)
    shelf.path("one").write_bytes(os.urandom(512 << 10))
    with shelf.making() as name:
        with pytest.raises(StorageFull, match="snapshots_disk_mb"):
            shelf.reserve(name, 600 << 10)
        shelf.reserve(name, 400 << 10)


def test_what_is_being_made_has_its_place_once(tmp_path: Path) -> None:
    shelf = ImageShelf(tmp_path, Attached(), most_bytes=1 << 20)
    with shelf.making() as first, shelf.making() as second:
        shelf.reserve(first, 600 << 10)
        with pytest.raises(StorageFull):
            shelf.reserve(second, 600 << 10)
        shelf.path(first).write_bytes(os.urandom(500 << 10))
        with pytest.raises(StorageFull):
            shelf.reserve(second, 500 << 10)
        shelf.reserve(second, 400 << 10)
    with shelf.making() as third:
        shelf.reserve(third, 500 << 10)  # the second was not made


def build(id: str, at: float = 1.0) -> TemplateBuild:
    return TemplateBuild(
        id=id, template="t1", foundation=Foundation(layers=(f"image-{id}",)), limits=Limits(), created=at
    )


def test_builds_without_a_name_go_but_for_the_last() -> None:
    one, two, three = build("1"), build("2"), build("3")
    assert superseded([one, two, three], ["2"]) == (one, three)
    assert superseded([one, two, three], []) == (one, two)
    assert superseded([one], []) == ()
    assert superseded([one, two], ["1", "2"]) == ()


async def test_a_book_of_templates_survives_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryTemplates()
    book = TemplateBook(store, store, clock=lambda: 5.0)
    assert await book.add(RECORD, build("1"), ["default"]) == ()
    assert await book.add(RECORD, build("2", 2.0), ["v2"]) == ()
    assert [gone.id for gone in await book.add(RECORD, build("3", 3.0), ["default"])] == ["1"]
    assert book.find("other", "snap") is book.find("other", "t1") is None

    book = TemplateBook(store, store, clock=lambda: 5.0)
    await book.load()
    record = book.find("acme", "snap")
    assert record == RECORD == book.find("acme", "t1")
    assert record is not None
    meant = {tag: book.resolve(record, tag) for tag in ("", "default", "v2", "v9")}
    assert meant == {"": build("3", 3.0), "default": build("3", 3.0), "v2": build("2", 2.0), "v9": None}
    assert set(book.layers()) == {("image-2",), ("image-3",)}
    assert [gone.id for gone in await book.unassign("acme", "t1", ["default"])] == ["3"]
    assert book.resolve(record, "") == build("2", 2.0)
    monkeypatch.setattr(template_book, "MOST_TAGS", 2)
    with pytest.raises(Throttled):
        await book.assign("acme", "t1", "2", ["a", "b"])
    assert [gone.id for gone in await book.remove(record)] == ["2"]
    assert (store.records, store.builds, store.tags) == ({}, {}, {})


@pytest.mark.parametrize(("name", "parts"), [("a", ("a", "default")), ("a:V1", ("a", "v1")), ("", ("", "default"))])
def test_names_with_tags(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["a:", "a:b c", "a:b:c", "a:/"])
def test_tags_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgument, match="tag"):
        split_name(name)
