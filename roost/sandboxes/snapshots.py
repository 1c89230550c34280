"""Copies of a sandbox's files, to make others from: kept under a name, or for forks alone.

A copy is of one moment: the room stands still while it is made, then goes on. Memory and processes are not in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from roost.model.errors import RoostError, Throttled, Unavailable
from roost.model.sandbox import Foundation, Sandbox
from roost.model.template import DEFAULT_TAG, TemplateBuild, TemplateKind, TemplateRecord
from roost.sandboxes.entry import Entry
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.image_shelf import below
from roost.sandboxes.launcher import Launcher, fork_of
from roost.sandboxes.listing import parse_place, place_token
from roost.sandboxes.lives import Lives
from roost.sandboxes.registry import TemplateRegistry, split_name
from roost.sandboxes.templates import TemplateShelf, new_id

MOST_FORKS = 100
#: Rooms that one request to fork makes at the same time.
_AT_ONCE = 8
#: What a copy of a sandbox that has a room lacks.
LIVE_STATE = ("memory", "processes")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One kept copy. `id` makes sandboxes from it; `names` are all it goes by."""

    id: str
    names: tuple[str, ...]
    sandbox: str
    created: float
    build: str


@dataclass(frozen=True, kw_only=True)
class Copied:
    """`left_behind`: what the sandbox has, and the copy has not."""

    foundation: Foundation
    left_behind: tuple[str, ...]


class Snapshots:
    """`most`: of one account."""

    def __init__(
        self,
        *,
        lives: Lives,
        fleet: SandboxFleet,
        launcher: Launcher,
        shelf: TemplateShelf,
        registry: TemplateRegistry,
        most: int,
    ) -> None:
        self._lives = lives
        self._images = lives.assembly.images
        self._fleet = fleet
        self._launcher = launcher
        self._shelf = shelf
        self._registry = registry
        self._most = most

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
        if len(self.of_account(account)) >= self._most:
            raise Throttled(f"This account has {self._most} snapshots already (max_snapshots); delete some.")
        with self._new_image() as image:
            copied = await self._copy(entry, image)
            sandbox = entry.sandbox
            build = TemplateBuild(
                id=str(uuid.uuid4()),
                template=new_id(),
                foundation=replace(copied.foundation, environment=sandbox.variables),
                limits=sandbox.limits,
                created=round(self._lives.now(), 3),
                sandbox=sandbox.id,
            )
            record, build = await self._registry.register(account, plain, TemplateKind.SNAPSHOT, build, [tag])
        return self._shown(record, build), copied

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
        self, account: str, id: str, *, count: int, timeout_s: int
    ) -> tuple[list[Sandbox | RoostError], Copied]:
        """New sandboxes with the files of this one, each up or with what prevented it. Raises what prevented all."""
        return await self._lives.do(self._fork(self._fleet.entry(account, id), count, timeout_s))

    async def _fork(self, entry: Entry, count: int, timeout_s: int) -> tuple[list[Sandbox | RoostError], Copied]:
        self._lives.check_room(entry.sandbox)
        with self._new_image() as image:
            copied = await self._copy(entry, image)
            now = round(self._lives.now(), 3)
            forks = [fork_of(entry.sandbox, copied.foundation, timeout_s=timeout_s, now=now) for _ in range(count)]
            slots = asyncio.Semaphore(_AT_ONCE)
            return list(await asyncio.gather(*(self._launched(fork, slots) for fork in forks))), copied

    async def _launched(self, fork: Sandbox, slots: asyncio.Semaphore) -> Sandbox | RoostError:
        async with slots:
            try:
                return await self._launcher.launch(fork)
            except RoostError as error:
                return error

    # --- the copy ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _new_image(self) -> Iterator[str]:
        """The name of an image to be made. After the block it stays if something stands on it."""
        image = ""
        try:
            with self._images.making() as image:
                yield image
        finally:
            self._lives.release((image,))

    async def _copy(self, entry: Entry, image: str) -> Copied:
        """The sandbox's files as they are now: what stands on the image has them."""
        async with entry.lock:
            self._fleet.check_exists(entry)
            sandbox, instance = entry.sandbox, entry.instance
            self._images.check_space(self._lives.assembly.used_bytes(sandbox.id))
            if instance is None:
                await self._lives.assembly.copy(sandbox.id, self._images.path(image))
            else:
                try:
                    await instance.up()
                except RoostError as error:
                    raise Unavailable(f"The room of sandbox {sandbox.id} has ended.", retry_after=1) from error
                if instance.room is None:
                    raise Unavailable(f"The room of sandbox {sandbox.id} has ended.", retry_after=1)
                await instance.room.snapshot(self._images.path(image))
            foundation = replace(sandbox.foundation, layers=(image, *below(sandbox.foundation.layers)))
            return Copied(foundation=foundation, left_behind=LIVE_STATE if instance is not None else ())


def page(snapshots: Sequence[Snapshot], limit: int, token: str) -> tuple[list[Snapshot], str]:
    """One page of a list, the newest first, and the token of the next one, "" at the end. Raises InvalidArgument."""
    if token:
        after = parse_place(token)
        snapshots = [snapshot for snapshot in snapshots if (snapshot.created, snapshot.build) < after]
    shown = list(snapshots[:limit])
    return shown, place_token(shown[-1].created, shown[-1].build) if len(snapshots) > len(shown) else ""
