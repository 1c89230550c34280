"""What the parts of the catalog share: the entries in memory, the store, the order of changes, who wants to know."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from roost.functions.entry import FunctionEntry
from roost.functions.packages import PackageStore
from roost.model.errors import NotFound
from roost.model.function import FunctionSpec
from roost.store.layers import LayerName, LayerRecord
from roost.store.store import Store
from roost.store.tags import TagOwner

#: Called with (account, function name) after a change or deletion has taken effect. Must not block or raise.
Listener = Callable[[str, str], None]

logger = logging.getLogger("roost.functions")


@dataclass
class CatalogState:
    """`lock` is held around "check, write to the store, change memory"; reads take no lock and never wait."""

    store: Store
    packages: PackageStore
    region: str
    clock: Callable[[], float]
    choose: random.Random
    admit: Callable[[FunctionSpec], None]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    entries: dict[tuple[str, str], FunctionEntry] = field(default_factory=dict)
    layer_names: dict[tuple[str, str], LayerName] = field(default_factory=dict)
    layers: dict[tuple[str, str], dict[int, LayerRecord]] = field(default_factory=dict)
    tags: dict[TagOwner, dict[str, str]] = field(default_factory=dict)
    listeners: list[Listener] = field(default_factory=list)

    def entry(self, account: str, name: str) -> FunctionEntry:
        """Raises NotFound."""
        found = self.entries.get((account, name))
        if found is None:
            raise NotFound(f"There is no function {name[:80]!r}.", code="FunctionNotFound")
        return found

    def changed(self, account: str, name: str) -> None:
        """Build the function's specs anew and tell everyone."""
        entry = self.entries.get((account, name))
        if entry is not None:
            entry.rebuild()
        for listener in list(self.listeners):
            try:
                listener(account, name)
            except Exception:
                # One listener's bug must not undo a change that is already durable, nor keep it from the others.
                logger.exception("A listener failed on a change of %s/%s", account, name)
