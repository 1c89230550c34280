"""How a sandbox comes to be: from a template, or from another sandbox; up and recorded, or nothing of it is left."""

from __future__ import annotations

import asyncio
import secrets
import string
from dataclasses import replace

from roost.isolation.driver import Branch
from roost.model.instance import StopReason
from roost.model.sandbox import Foundation, Sandbox, SandboxState
from roost.sandboxes.entry import Entry
from roost.sandboxes.lives import Lives
from roost.store.sandboxes import CreationKey

_ALPHABET = string.ascii_lowercase + string.digits


def new_id() -> str:
    return "i" + "".join(secrets.choice(_ALPHABET) for _ in range(19))


def new_token() -> str:
    return secrets.token_hex(32)


def fork_of(sandbox: Sandbox, foundation: Foundation, *, timeout_s: int, now: float) -> Sandbox:
    """A sandbox as its owner set this one up, under tokens of its own."""
    return replace(
        sandbox,
        id=new_id(),
        created=now,
        ends_at=now + timeout_s,
        timeout_s=timeout_s,
        foundation=foundation,
        state=SandboxState.RUNNING,
        pause_mode=None,
        reason="",
        envd_token=new_token(),
        traffic_token=new_token(),
        checkpoints=(),
        at="",
        rollbacks=0,
    )


class Launcher:
    """Starts what is new."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives

    async def launch(self, sandbox: Sandbox, key: CreationKey | None = None, branch: Branch | None = None) -> Sandbox:
        """It runs, and its record is written; its time begins when it is up. Raises Throttled when the server is full,
        or what prevented the start; nothing is left behind then."""
        self._lives.check_room(sandbox)
        entry = self._lives.entries[sandbox.id] = Entry(sandbox)
        try:
            async with entry.lock:
                await self._lives.boot(entry, branch)
                if branch is not None:
                    await branch.last()
                ends_at = round(self._lives.now(), 3) + sandbox.timeout_s
                sandbox = entry.sandbox = replace(sandbox, ends_at=ends_at)
                await self._lives.book.create(sandbox, None if key is None else replace(key, sandbox=sandbox.id))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._undo(entry)))
            raise
        self._lives.set_timer(entry)
        self._lives.census.started(sandbox.account)
        return sandbox

    async def _undo(self, entry: Entry) -> None:
        await self._lives.take_down(entry, StopReason.START_FAILED)
        self._lives.forget(entry)
        await self._lives.assembly.forget_labels(entry.sandbox)
