"""What requests to sandboxes see of them: found by id, a place in one that runs, why one is gone."""

from __future__ import annotations

import asyncio
import contextlib

from roost.model.errors import Throttled, Unavailable
from roost.model.instance import State
from roost.model.sandbox import Sandbox, SandboxState
from roost.sandboxes.assembly import SLOTS
from roost.sandboxes.entry import Entry, SandboxLease
from roost.sandboxes.fleet import Gone
from roost.sandboxes.lives import Lives

#: How long a request for a sandbox on its way to another state waits for it.
_SETTLE_S = 60.0


class SandboxTraffic:
    """The warm path takes no await: `find`, then `try_lease`."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives

    def now(self) -> float:
        """Unix seconds."""
        return self._lives.now()

    def find(self, id: str) -> Sandbox | None:
        """A sandbox that exists, whoever's it is: its tokens say who may."""
        return self._lives.book.find(id)

    def known(self) -> list[Sandbox]:
        """All of them."""
        return self._lives.book.list()

    def why_gone(self, id: str) -> Gone:
        """For the answer to a request that can't be served."""
        sandbox, ended = self._lives.book.find(id), self._lives.book.ended(id)
        if sandbox is not None and sandbox.state is SandboxState.PAUSED:
            return Gone(id, sandbox.reason, paused=True)
        return Gone(id, ended.reason if ended is not None else "")

    def try_lease(self, id: str) -> SandboxLease | None:
        """A place in a sandbox that runs, at once; None when there is anything to wait for, or no such sandbox."""
        entry = self._lives.entries.get(id)
        instance = entry.at_once() if entry is not None else None
        return SandboxLease(entry, instance) if entry is not None and instance is not None else None

    async def lease(self, id: str) -> SandboxLease:
        """The same, after a change that is under way; wakes one that wants to be woken by traffic.

        Raises Gone, Throttled when it serves too many requests, or what prevented its start.
        """
        restored = False
        try:
            async with asyncio.timeout(_SETTLE_S):
                sandbox = await self._settled(id)
                if sandbox is not None and sandbox.wakes:
                    woken = self._lives.entries[id]
                    await self._woken(woken)
                    restored = woken.restored
        except TimeoutError:
            raise Unavailable(f"Sandbox {id} is still on its way to another state.", retry_after=1) from None
        entry = self._lives.entries.get(id)
        if entry is None or entry.sandbox.state is not SandboxState.RUNNING:
            raise self.why_gone(id)
        instance = entry.at_once()
        if instance is None:
            raise Throttled(f"Sandbox {id} serves {SLOTS} requests already.", retry_after=1)
        return SandboxLease(entry, instance, restored=restored)

    async def _settled(self, id: str) -> Sandbox | None:
        """The sandbox once no change of it is under way."""
        entry = self._lives.entries.get(id)
        if entry is None:
            return None
        async with entry.lock:
            if entry.instance is not None and entry.instance.state is State.STARTING:  # adopted a moment ago
                await entry.instance.up()
        return self._lives.book.find(id)

    async def mourn(self, lease: SandboxLease) -> None:
        """After the room of a lease ended: returns when the sandbox's record tells of it, or after a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await lease.instance.stopped.wait()
                entry = self._lives.entries.get(lease.sandbox.id)
                if entry is not None:
                    await self._lives.died(entry, lease.instance)

    async def _woken(self, entry: Entry) -> None:
        """One attempt for all who wait. Raises what prevented it."""
        if entry.waking is None:
            entry.waking = self._lives.background.spawn(self._wake(entry))
        await asyncio.shield(entry.waking)

    async def _wake(self, entry: Entry) -> None:
        try:
            await self._wake_locked(entry)
        finally:
            entry.waking = None

    async def _wake_locked(self, entry: Entry) -> None:
        async with entry.lock:
            if entry.sandbox.wakes and not entry.ending:
                await self._lives.resume(entry, entry.sandbox.timeout_s, memory=True)
