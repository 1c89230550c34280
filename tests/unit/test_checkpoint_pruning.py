"""Which checkpoints go, which lose their memory, and what the tree is then."""

from __future__ import annotations

from roost.model.sandbox import Checkpoint, Foundation
from roost.sandboxes.checkpoints import LOST, why_dropped
from roost.sandboxes.copies import CONTEXTS
from roost.sandboxes.pruning import Bounds, Share, ancestor, least_used, surplus, without


def checkpoint(id: str, parent: str = "", created: float = 0.0) -> Checkpoint:
    return Checkpoint(id=id, parent=parent, created=created, foundation=Foundation())


TREE = (
    checkpoint("a", created=1),
    checkpoint("b", "a", created=2),
    checkpoint("c", "b", created=3),
    checkpoint("d", "a", created=4),
)


def test_the_oldest_of_too_many_go_and_those_that_are_too_old() -> None:
    assert surplus(TREE, Bounds(most=4, age_s=10), now=5) == []
    assert surplus(TREE, Bounds(most=3, age_s=10), now=5) == ["a"]
    assert surplus(TREE, Bounds(most=4, age_s=2.5), now=5) == ["a", "b"]
    assert surplus(TREE, Bounds(most=1, age_s=2.5), now=5) == ["a", "b", "c"]
    assert surplus(TREE, Bounds(most=4, age_s=1), now=50) == ["a", "b", "c", "d"]
    assert surplus((), Bounds(), now=5) == []


def test_the_least_used_are_dropped_until_it_is_enough() -> None:
    shares = [Share(id="new", used=9, bytes=10), Share(id="old", used=1, bytes=10), Share(id="mid", used=5, bytes=10)]
    assert least_used(shares, 0) == least_used(shares, -5) == []
    assert least_used(shares, 1) == least_used(shares, 10) == ["old"]
    assert least_used(shares, 11) == ["old", "mid"]
    assert least_used(shares, 1000) == ["old", "mid", "new"]


def test_what_came_from_one_that_goes_comes_from_its_parent() -> None:
    assert [(one.id, one.parent) for one in without(TREE, ["b"])] == [("a", ""), ("c", "a"), ("d", "a")]
    assert [(one.id, one.parent) for one in without(TREE, ["a", "b"])] == [("c", ""), ("d", "")]
    assert without(TREE, ["nothing"]) == TREE
    assert ancestor(TREE, "c", ["c", "b"]) == "a"
    assert ancestor(TREE, "c", ["a"]) == "c"
    assert ancestor(TREE, "b", ["a", "b"]) == ancestor(TREE, "", ["a"]) == ""


def test_why_there_is_no_memory() -> None:
    plain = Checkpoint(id="a", created=0.0, foundation=Foundation())
    assert why_dropped(plain) == "no Python context ran"
    assert why_dropped(Checkpoint(id="a", created=0, foundation=Foundation(), lost=("x", "y"))) == "x; y"
    assert why_dropped(Checkpoint(id="a", created=0, foundation=Foundation(), memory=CONTEXTS, contexts=("c",))) == LOST
    kept = Checkpoint(id="a", created=0, foundation=Foundation(), contexts=("c",), dropped="full")
    assert why_dropped(kept) == "full"
