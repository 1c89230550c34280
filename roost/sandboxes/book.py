"""Records of sandboxes: those that exist, why others are gone, which request made which. In memory, and durable."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from roost.model.errors import Conflict, RoostError
from roost.model.sandbox import EndedSandbox, Sandbox
from roost.store.sandboxes import CreationKey

log = logging.getLogger(__name__)

#: How long, and of how many, it is known why a sandbox is gone.
ENDS_KEPT_S = 7 * 24 * 3600.0
ENDS_KEPT = 10_000
KEYS_KEPT_S = 24 * 3600.0
KEYS_KEPT = 10_000


class SandboxStore(Protocol):
    """Where they are durable. Methods raise RoostError, and have no effect then."""

    async def create(self, sandbox: Sandbox, key: CreationKey | None) -> None: ...

    async def update(self, sandbox: Sandbox) -> None: ...

    async def end(self, ended: EndedSandbox) -> None: ...

    async def forget(self, ends: list[str], keys: list[tuple[str, str]]) -> None: ...

    async def load(self) -> tuple[list[Sandbox], list[EndedSandbox], list[CreationKey]]: ...


class SandboxBook:
    """One writer: the fleet. A change that can't be stored is kept in memory and logged: the next server finds out
    what is true from the rooms and files that there are."""

    def __init__(self, store: SandboxStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._living: dict[str, Sandbox] = {}
        self._ends: OrderedDict[str, EndedSandbox] = OrderedDict()
        self._keys: OrderedDict[tuple[str, str], CreationKey] = OrderedDict()

    async def load(self) -> None:
        living, ends, keys = await self._store.load()
        self._living = {sandbox.id: sandbox for sandbox in living}
        self._ends = OrderedDict((ended.id, ended) for ended in ends)
        self._keys = OrderedDict(((key.account, key.key), key) for key in keys)
        await self._forget_old()

    def find(self, id: str) -> Sandbox | None:
        return self._living.get(id)

    def list(self) -> list[Sandbox]:
        return list(self._living.values())

    def ended(self, id: str) -> EndedSandbox | None:
        """What is remembered of one that is gone."""
        return self._ends.get(id)

    def made_by(self, account: str, key: str, digest: str) -> str | None:
        """The id of the sandbox that this key made. Raises Conflict when it was for another request."""
        known = self._keys.get((account, key))
        if known is None or known.at < self._clock() - KEYS_KEPT_S:
            return None
        if known.digest != digest:
            raise Conflict("This Idempotency-Key was used for another request.", code="IdempotencyKeyReused")
        return known.sandbox

    async def create(self, sandbox: Sandbox, key: CreationKey | None) -> None:
        """It exists from now on. Raises RoostError when that can't be stored."""
        await self._store.create(sandbox, key)
        self._living[sandbox.id] = sandbox
        if key is not None:
            self._keys[key.account, key.key] = key
            await self._forget_old()

    async def change(self, sandbox: Sandbox) -> Sandbox:
        """Replace the record of one that exists."""
        if sandbox.id in self._living:
            self._living[sandbox.id] = sandbox
            try:
                await self._store.update(sandbox)
            except RoostError as error:
                log.warning("sandbox %s: its record is not stored: %s", sandbox.id, error.message)
        return sandbox

    async def commit(self, sandbox: Sandbox) -> None:
        """As `change`, where it must be stored first. Raises RoostError, and nothing has changed then."""
        await self._store.update(sandbox)
        if sandbox.id in self._living:
            self._living[sandbox.id] = sandbox

    async def end(self, sandbox: Sandbox, reason: str) -> None:
        """It is gone."""
        ended = EndedSandbox(id=sandbox.id, account=sandbox.account, reason=reason, at=self._clock())
        self._living.pop(sandbox.id, None)
        self._ends[sandbox.id] = ended
        try:
            await self._store.end(ended)
            await self._forget_old()
        except RoostError as error:
            log.warning("sandbox %s: its end is not stored: %s", sandbox.id, error.message)

    async def _forget_old(self) -> None:
        now = self._clock()
        ends = [id for id, _ in _surplus(self._ends, ENDS_KEPT, lambda ended: ended.at < now - ENDS_KEPT_S)]
        keys = [key for key, _ in _surplus(self._keys, KEYS_KEPT, lambda known: known.at < now - KEYS_KEPT_S)]
        for id in ends:
            del self._ends[id]
        for key in keys:
            del self._keys[key]
        if ends or keys:
            await self._store.forget(ends, keys)


K = TypeVar("K")
V = TypeVar("V")


def _surplus(known: OrderedDict[K, V], most: int, old: Callable[[V], bool]) -> list[tuple[K, V]]:
    """The oldest, as long as there are too many or they are too old."""
    found: list[tuple[K, V]] = []
    for key, value in known.items():
        if len(known) - len(found) <= most and not old(value):
            break
        found.append((key, value))
    return found
