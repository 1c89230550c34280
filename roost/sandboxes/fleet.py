"""The sandboxes of this server as their owners see them: made, found, paused, resumed, given time, killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from roost.instances.instance import Instance
from roost.model.errors import Conflict, InvalidArgument, NotFound, RoostError
from roost.model.instance import StopReason
from roost.model.sandbox import Sandbox, SandboxState, SandboxVolume, explain
from roost.model.taint import BLOCK, Labels
from roost.sandboxes.entry import Entry
from roost.sandboxes.launcher import Launcher, new_id, new_token
from roost.sandboxes.lives import Lives
from roost.store.sandboxes import CreationKey
from roost.telemetry.metrics import FunctionGauges


class Gone(NotFound):
    """No such sandbox for the data plane; `reason` says why, if that is known."""

    code = "SandboxNotFound"

    def __init__(self, id: str, reason: str = "", *, paused: bool = False) -> None:
        why = f": {explain(reason)}" if reason else ""
        super().__init__(f"Sandbox {id} {'is paused' if paused else 'was not found'}{why}")
        self.sandbox = id
        self.reason = reason
        self.paused = paused

    @property
    def sentence(self) -> str:
        """What became of it, as far as it is known."""
        if not self.paused:
            return explain(self.reason) if self.reason else ""
        return "it is paused" if self.reason in ("", StopReason.PAUSED) else f"it is paused, as {explain(self.reason)}"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What somebody asks for."""

    account: str
    template: str
    timeout_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: bool = False
    internet: bool | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[SandboxVolume, ...] = ()
    public: bool = False

    @property
    def digest(self) -> str:
        """Equal for equal orders."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "volumes"}
        values["volumes"] = [[volume.name, volume.path] for volume in self.volumes]
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=dict).encode()).hexdigest()


class CameBack(StrEnum):
    """In what way a paused one runs again."""

    MEMORY = "memory"
    FILES = "files"  # what ran before is gone


class SandboxFleet:
    """The verbs of an account. Each runs to its end in a task of its own, under the sandbox's lock."""

    def __init__(self, lives: Lives, launcher: Launcher) -> None:
        self._lives = lives
        self._launcher = launcher
        self._making: dict[tuple[str, str], asyncio.Task[Sandbox]] = {}  # by account and Idempotency-Key

    def get(self, account: str, id: str) -> Sandbox:
        """Raises Gone, with the reason while that is remembered."""
        return self._entry(account, id).sandbox

    def of_account(self, account: str) -> list[Sandbox]:
        """All that exist, running and paused."""
        return [sandbox for sandbox in self._lives.book.list() if sandbox.account == account]

    def entry(self, account: str, id: str) -> Entry:
        """For what is observed of it. Raises Gone."""
        return self._entry(account, id)

    def taint(self, account: str, id: str) -> tuple[str, Labels]:
        """What is asked of it by what it has read, and what is known of that. Raises Gone."""
        sandbox, assembly = self._entry(account, id).sandbox, self._lives.assembly
        return assembly.spec(sandbox).egress.taint.mode, assembly.labels(sandbox)

    def note(self, account: str, id: str, text: str) -> None:
        """A line of the server's own in its log. Raises Gone."""
        self._entry(account, id).lines.add(self._lives.now(), "stderr", text)

    def instances(self) -> list[Instance]:
        """Those that have a room, or are getting one."""
        return [entry.instance for entry in self._lives.entries.values() if entry.instance is not None]

    def gauges(self) -> list[FunctionGauges]:
        """What is true of each template's sandboxes now."""
        groups: dict[tuple[str, str], list[Instance]] = {}
        for instance in self.instances():
            groups.setdefault((instance.spec.account, instance.spec.name), []).append(instance)
        return [
            FunctionGauges(
                account=account,
                function=name,
                instances={state: sum(i.state is state for i in group) for state in {i.state for i in group}},
                leases=sum(i.leases for i in group),
                memory_bytes=sum(i.memory_bytes() for i in group),
            )
            for (account, name), group in groups.items()
        ]

    def _entry(self, account: str, id: str) -> Entry:
        entry = self._lives.entries.get(id)
        if entry is None or entry.sandbox.account != account or self._lives.book.find(id) is None:
            ended = self._lives.book.ended(id)
            raise Gone(id, ended.reason if ended is not None and ended.account == account else "")
        return entry

    # --- creating ------------------------------------------------------------------------------------------------

    async def create(self, order: Order, key: str = "") -> Sandbox:
        """A new sandbox that runs; with a `key` that was used before, the one it made then.

        Raises NotFound for the template, InvalidArgument for what its taint policy is against, Throttled when the
        server is full, Conflict for a key of another order or of a sandbox that is gone, or what prevented the start;
        nothing is left behind then.
        """
        if not key:
            return await self._lives.do(self._create(order, None))
        digest = order.digest
        made = self._lives.book.made_by(order.account, key, digest)
        if made is not None:
            sandbox = self._lives.book.find(made)
            if sandbox is None:
                raise Conflict(f"This Idempotency-Key made the sandbox {made}, which has ended.")
            return sandbox
        place = (order.account, key)
        task = self._making.get(place)
        if task is None:
            known = CreationKey(account=order.account, key=key, digest=digest, sandbox="", at=self._lives.now())
            task = self._making[place] = self._lives.background.spawn(self._create(order, known))
            task.add_done_callback(lambda _: self._making.pop(place, None))
            return await asyncio.shield(task)
        sandbox = await asyncio.shield(task)
        self._lives.book.made_by(order.account, key, digest)  # it may have been for another order
        return sandbox

    async def _create(self, order: Order, key: CreationKey | None) -> Sandbox:
        template = self._lives.templates.get(order.template, order.account)
        now = round(self._lives.now(), 3)
        sandbox = Sandbox(
            id=new_id(),
            account=order.account,
            template=template.id,
            alias=order.template,
            foundation=template.foundation,
            created=now,
            ends_at=now + order.timeout_s,
            timeout_s=order.timeout_s,
            limits=template.limits,
            metadata=order.metadata,
            environment=order.environment,
            auto_pause=order.auto_pause,
            auto_pause_memory=order.auto_pause_memory,
            auto_resume=order.auto_resume,
            internet=order.internet,
            network=order.network,
            volumes=order.volumes,
            envd_token=new_token(),
            traffic_token=new_token(),
            public=order.public,
        )
        if sandbox.public and self._lives.assembly.spec(sandbox).egress.taint.mode == BLOCK:
            raise InvalidArgument(
                "network.allowPublicTraffic: strangers would write to this sandbox and read from it, which its taint "
                "policy (block) is against; make it with false."
            )
        return await self._launcher.launch(sandbox, key)

    # --- changing ------------------------------------------------------------------------------------------------

    async def connect(
        self, account: str, id: str, timeout_s: int, *, memory: bool = True
    ) -> tuple[Sandbox, CameBack | None]:
        """The running sandbox, and how it came back if it was paused. Its time is only ever extended."""
        return await self._lives.do(self._connect(self._entry(account, id), timeout_s, memory))

    async def _connect(self, entry: Entry, timeout_s: int, memory: bool) -> tuple[Sandbox, CameBack | None]:
        async with entry.lock:
            self.check_exists(entry)
            if entry.sandbox.state is SandboxState.PAUSED:
                return await self._resumed(entry, timeout_s, memory)
            ends_at = self._lives.after(timeout_s)
            if ends_at <= entry.sandbox.ends_at:
                return entry.sandbox, None
            return await self._lives.change(entry, ends_at=ends_at), None

    async def _resumed(self, entry: Entry, timeout_s: int, memory: bool) -> tuple[Sandbox, CameBack]:
        sandbox = await self._lives.resume(entry, timeout_s, memory=memory)
        return sandbox, CameBack.FILES if entry.restored else CameBack.MEMORY

    async def resume(
        self, account: str, id: str, timeout_s: int, *, auto_pause: bool | None = None, memory: bool = True
    ) -> tuple[Sandbox, CameBack]:
        """Raises Conflict when it runs."""
        return await self._lives.do(self._resume_paused(self._entry(account, id), timeout_s, auto_pause, memory))

    async def _resume_paused(
        self, entry: Entry, timeout_s: int, auto_pause: bool | None, memory: bool
    ) -> tuple[Sandbox, CameBack]:
        async with entry.lock:
            self.check_exists(entry)
            if entry.sandbox.state is SandboxState.RUNNING:
                raise Conflict(f"Sandbox {entry.sandbox.id} is already running")
            if auto_pause is not None:
                await self._lives.change(entry, auto_pause=auto_pause)
            return await self._resumed(entry, timeout_s, memory)

    async def pause(self, account: str, id: str, *, memory: bool = True) -> Sandbox:
        """Keep its memory (the room stands still) or its files alone (the room goes). Raises Conflict when paused."""
        return await self._lives.do(self._pause_running(self._entry(account, id), memory))

    async def _pause_running(self, entry: Entry, memory: bool) -> Sandbox:
        async with entry.lock:
            self.check_exists(entry)
            if entry.sandbox.state is SandboxState.PAUSED:
                raise Conflict(f"Sandbox {entry.sandbox.id} is already paused")
            return await self._lives.pause(entry, memory=memory, reason=StopReason.PAUSED)

    async def kill(self, account: str, id: str, reason: StopReason = StopReason.KILLED) -> None:
        """End it; its files go too."""
        await self._lives.do(self._lives.kill(self._entry(account, id), reason))

    async def set_timeout(self, account: str, id: str, timeout_s: int, *, extend: bool = False) -> Sandbox:
        """It ends `timeout_s` from now; `extend`: but no sooner than it would have. A paused one is left alone."""
        entry = self._entry(account, id)
        ends_at = self._lives.after(timeout_s)
        if extend:
            ends_at = max(ends_at, entry.sandbox.ends_at)
        timeout = entry.sandbox.timeout_s if extend else timeout_s
        return await self._lives.change(entry, ends_at=ends_at, timeout_s=max(1, timeout))

    async def set_network(self, account: str, id: str, network: Mapping[str, Any], internet: bool | None) -> Sandbox:
        """Replace what is said of its network. When this returns, it holds for every room that it has, gets and
        leaves. It waits for no other change."""
        entry = self._entry(account, id)
        sandbox = await self._lives.change(entry, network=network, internet=internet)
        errors: list[RoostError] = []
        for place in list(entry.places):
            try:
                # As it is now: of two changes at once the last one holds.
                await self._lives.assembly.network_changed(entry.sandbox, place)
            except RoostError as error:  # it holds for the others all the same
                errors.append(error)
        if errors:
            raise errors[0]
        return sandbox

    @staticmethod
    def check_exists(entry: Entry) -> None:
        """With its lock held: raises Gone when it is about to end."""
        if entry.ending:
            raise Gone(entry.sandbox.id, entry.ending)
