"""Copies of a sandbox's files, to make others from: kept under a name, or for forks alone.

A copy is of one moment: the room stands still while it is made, then goes on. A fork has the memory of the code
interpreter's contexts too, as far as that can be copied, or all of the room where its kernel can write that down; a
snapshot has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from roost.model.errors import RoostError, Throttled
from roost.model.sandbox import Sandbox
from roost.model.template import DEFAULT_TAG, TemplateBuild, TemplateKind, TemplateRecord
from roost.sandboxes.checkpoints import Checkpoints
from roost.sandboxes.copies import Copied, Copies
from roost.sandboxes.entry import Entry
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.launcher import Launcher, fork_of
from roost.sandboxes.listing import parse_place, place_token
from roost.sandboxes.lives import Lives
from roost.sandboxes.registry import TemplateRegistry, split_name
from roost.sandboxes.templates import TemplateShelf, new_id

MOST_FORKS = 100
#: Rooms that one request to fork makes at the same time.
_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One kept copy. `id` makes sandboxes from it; `names` are all it goes by."""

    id: str
    names: tuple[str, ...]
    sandbox: str
    created: float
    build: str


class Snapshots:
    """`most`: of one account."""

    def __init__(
        self,
        *,
        lives: Lives,
        fleet: SandboxFleet,
        launcher: Launcher,
        copies: Copies,
        checkpoints: Checkpoints,
        shelf: TemplateShelf,
        registry: TemplateRegistry,
        most: int,
    ) -> None:
        self._lives = lives
        self._copies = copies
        self._checkpoints = checkpoints
        self._fleet = fleet
        self._launcher = launcher
        self._shelf = shelf
        self._registry = registry
        self._most = most
        self._making: dict[str, str] = {}  # the account of each build that is not registered yet

    def of_account(self, account: str, *, sandbox: str = "", name: str = "") -> list[Snapshot]:
        """Those of one sandbox, or of a name or id with or without a tag, or all; the newest first."""
        plain, _, tag = name.removeprefix(f"{account}/").partition(":")
        found = [
            self._shown(record, build)
            for record in self._shelf.book.of_kind(account, TemplateKind.SNAPSHOT)
            if plain in ("", record.id, record.name)
            for build in self._shelf.book.builds(record)
            if sandbox in ("", build.sandbox) and (not tag or build == self._shelf.book.resolve(record, tag))
        ]
        return sorted(found, key=lambda snapshot: (snapshot.created, snapshot.build), reverse=True)

    # --- snapshots -----------------------------------------------------------------------------------------------

    async def take(self, account: str, id: str, name: str = "") -> tuple[Snapshot, Copied]:
        """Keep a copy, under `name`, which may have a tag, or without one. A name that had another means this one now.

        Raises Gone, InvalidArgument or Conflict for the name, Throttled, StorageFull, Unavailable.
        """
        return await self._lives.do(self._take(account, self._fleet.entry(account, id), name))

    async def _take(self, account: str, entry: Entry, name: str) -> tuple[Snapshot, Copied]:
        plain, tag = split_name(name)
        if name:
            self._shelf.record_for(account, plain, TemplateKind.SNAPSHOT, "", 0)  # refused before anything is done
        with self._new_build(account) as id, self._copies.new_image() as image:
            async with entry.lock:
                copied = await self._copies.copy(entry, image)
            sandbox = entry.sandbox
            build = TemplateBuild(
                id=id,
                template=new_id(),
                foundation=replace(copied.foundation, environment=sandbox.variables),
                limits=sandbox.limits,
                created=round(self._lives.now(), 3),
                sandbox=sandbox.id,
            )
            record, build = await self._registry.register(account, plain, TemplateKind.SNAPSHOT, build, [tag])
        return self._shown(record, build), copied

    @contextlib.contextmanager
    def _new_build(self, account: str) -> Iterator[str]:
        """The id of a build to be made, which counts from now on. Raises Throttled if it is one too many."""
        known = {snapshot.build for snapshot in self.of_account(account)}
        known |= {id for id, whose in self._making.items() if whose == account}
        if len(known) >= self._most:
            raise Throttled(f"This account has {self._most} snapshots already (max_snapshots); delete some.")
        id = str(uuid.uuid4())
        self._making[id] = account
        try:
            yield id
        finally:
            del self._making[id]

    def _shown(self, record: TemplateRecord, build: TemplateBuild) -> Snapshot:
        tags = [tag.tag for tag in self._shelf.book.tags(record.account, record.id).values() if tag.build == build.id]
        tags.sort(key=lambda tag: (tag != DEFAULT_TAG, tag))
        name = record.name or record.id
        return Snapshot(
            id=":".join([name, *tags[:1]]),
            names=tuple(f"{record.name}:{tag}" for tag in tags) if record.name else (),
            sandbox=build.sandbox,
            created=build.created,
            build=build.id,
        )

    # --- forks ---------------------------------------------------------------------------------------------------

    async def fork(
        self, account: str, id: str, *, count: int, timeout_s: int, checkpoint: str = "", now: bool = False
    ) -> tuple[list[Sandbox | RoostError], Copied]:
        """New sandboxes with the files of this one, and the memory of its contexts as far as that can be copied, each
        up or with what prevented it; as they were at a `checkpoint`, if one is named. Cells that run are waited
        for, up to a bound; `now`: they are interrupted. Raises what prevented all."""
        entry = self._fleet.entry(account, id)
        if checkpoint:
            return await self._lives.do(self._fork_checkpoint(entry, checkpoint, count, timeout_s))
        return await self._lives.do(self._fork(entry, count, timeout_s, now=now))

    async def _fork(
        self, entry: Entry, count: int, timeout_s: int, *, now: bool
    ) -> tuple[list[Sandbox | RoostError], Copied]:
        self._lives.check_room(entry.sandbox)
        with self._copies.new_image() as image:
            async with entry.lock:
                # Of what is kept, beside the rooms, the page tables of many copies are not this sandbox's memory.
                copied = await self._copies.copy(entry, image, memory=True, keep=count > 1, now=now)
            copied.branch.share(count)
            try:
                return await self._launch_all(entry, copied, count, timeout_s), copied
            finally:
                await copied.branch.close()

    async def _fork_checkpoint(
        self, entry: Entry, checkpoint: str, count: int, timeout_s: int
    ) -> tuple[list[Sandbox | RoostError], Copied]:
        self._lives.check_room(entry.sandbox)
        async with self._checkpoints.using(entry, checkpoint) as copied:
            return await self._launch_all(entry, copied, count, timeout_s), copied

    async def _launch_all(self, entry: Entry, copied: Copied, count: int, timeout_s: int) -> list[Sandbox | RoostError]:
        at = round(self._lives.now(), 3)
        forks = [fork_of(entry.sandbox, copied.foundation, timeout_s=timeout_s, now=at) for _ in range(count)]
        slots = asyncio.Semaphore(_AT_ONCE)
        return list(await asyncio.gather(*(self._launched(fork, copied, slots) for fork in forks)))

    async def _launched(self, fork: Sandbox, copied: Copied, slots: asyncio.Semaphore) -> Sandbox | RoostError:
        async with slots:
            try:
                return await self._launcher.launch(fork, branch=copied.branch)
            except RoostError as error:
                return error


def page(snapshots: Sequence[Snapshot], limit: int, token: str) -> tuple[list[Snapshot], str]:
    """One page of a list, the newest first, and the token of the next one, "" at the end. Raises InvalidArgument."""
    if token:
        after = parse_place(token)
        snapshots = [snapshot for snapshot in snapshots if (snapshot.created, snapshot.build) < after]
    shown = list(snapshots[:limit])
    return shown, place_token(shown[-1].created, shown[-1].build) if len(snapshots) > len(shown) else ""
