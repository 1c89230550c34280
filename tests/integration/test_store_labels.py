"""Labels at rest, on both backends, and with them what a snapshot knows of its sandbox."""

from __future__ import annotations

from roost.model.sandbox import Foundation
from roost.model.taint import LABELS, PRIVATE, UNTRUSTED, TaintRules
from tests.support.sandboxes import record
from tests.support.stores import Place


async def test_they_come_back_as_they_were_put_last(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.labels.put({"a/sandbox/1": frozenset({PRIVATE}), "a/volume/v/x": frozenset({UNTRUSTED})})
    await store.labels.put({"a/sandbox/1": LABELS, "b/instance/2": frozenset({PRIVATE})})
    await store.labels.delete(["b/instance/2", "b/instance/3"])
    taint = TaintRules(mode="block", trusted=("a.test",), private=("b.test",), volumes=("v",), start=(PRIVATE,))
    box = record(foundation=Foundation(labels=(PRIVATE, UNTRUSTED), taint=taint))
    await store.sandboxes.create(box, None)
    await store.close()
    again = place.store()
    await again.open()
    try:
        assert await again.labels.list_all() == {"a/sandbox/1": LABELS, "a/volume/v/x": {UNTRUSTED}}
        living, _, _ = await again.sandboxes.load()
        assert living == [box]
    finally:
        await again.close()
