"""Snapshots of sessions: the files of one, and what its instance had in memory, for sessions that begin with them.

Files are copied to images of their own. Memory is a held copy of the instance's process, which is charged to that
instance's room and ends with it; then files are what is left. Snapshots live in this server: the next one finds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from roost.instances.background import Background
from roost.instances.instance import Instance
from roost.instances.lease import Lease, SessionRef
from roost.instances.sessions import Key, SessionBook
from roost.isolation.driver import Branch
from roost.model.errors import Conflict, NotFound, RoostError, StorageFull, Throttled, Unavailable
from roost.model.function import FunctionSpec
from roost.model.session import Session, SessionState
from roost.model.taint import Labels

log = logging.getLogger(__name__)

#: For as long as a snapshot is kept, in seconds.
LIFETIME_S = 24 * 3600.0
#: Of one session: each holds memory within the limit of its instance.
MOST_OF_SESSION = 8
_MOST_HELD = 512  # with memory, of all accounts: the tracer holds other copies too
_LEASE_S = 60.0
_ALWAYS = 1 << 30  # rooms that may be made of one


class Leases(Protocol):
    """As `fleet.InstanceFleet`."""

    async def lease(
        self, spec: FunctionSpec, session: SessionRef | None = None, *, timeout_s: float = 60.0
    ) -> Lease: ...


class Rooms(Protocol):
    """As `assembly.Assembly`."""

    def begin_with(self, session: Session, branch: Branch | None) -> None: ...

    def disks_of(self, spec: FunctionSpec, session: Session) -> tuple[Path, Path]: ...

    def labels_of(self, spec: FunctionSpec | None, session: Session) -> Labels: ...


class Images(Protocol):
    """As `disks.Disks`."""

    async def snapshot(self, layer: Path, target: Path) -> None: ...


@dataclass(kw_only=True)
class SessionSnapshot:
    """`lost`: why there is no memory, or what of it did not come along. `source` is the session as it was."""

    id: str
    source: Session
    spec: FunctionSpec
    description: str
    created: float
    expires: float
    layer: Path
    folder: Path
    lost: tuple[str, ...]
    branch: Branch
    labels: Labels
    memory_bytes: int
    restoring: asyncio.Lock = field(default_factory=asyncio.Lock)
    timer: asyncio.TimerHandle | None = None

    @property
    def disk_bytes(self) -> int:
        """On the host's disk."""
        return sum(_used(path) for path in (self.layer, self.folder))

    @property
    def has_memory(self) -> bool:
        return bool(self.branch.copies)

    def begun(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a session that begins with it is configured as: as its source was, but for what is said otherwise. It
        keeps the labels that the data has."""
        return {**self.source.config, **config, "labels": sorted(self.labels)}


def _used(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


class SessionSnapshots:
    """`most`: of an account; `most_bytes`: what the files of all may take of the host's disk."""

    def __init__(
        self,
        directory: Path,
        *,
        book: SessionBook,
        pinned: Callable[[Key], Instance | None],
        leases: Leases,
        rooms: Rooms,
        images: Images,
        background: Background,
        clock: Callable[[], float],
        most: int,
        most_bytes: int,
    ) -> None:
        self._directory = directory
        self._book = book
        self._pinned = pinned
        self._leases = leases
        self._rooms = rooms
        self._images = images
        self._background = background
        self._clock = clock
        self._most = most
        self._most_bytes = most_bytes
        self._snapshots: dict[str, SessionSnapshot] = {}
        self._making: list[Key] = []  # sessions

    def open(self) -> None:
        """What an earlier server had is gone."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, mode=0o700)

    # --- what there is -----------------------------------------------------------------------------------------

    def get(self, account: str, function: str, id: str) -> SessionSnapshot:
        """Raises NotFound."""
        found = self._snapshots.get(id)
        if found is None or (found.source.account, found.source.function) != (account, function):
            raise NotFound(f"Snapshot {id} of function {function} does not exist.", code="SnapshotNotFound")
        return found

    def list(self, account: str) -> Sequence[SessionSnapshot]:
        """Of an account."""
        return [one for one in self._snapshots.values() if one.source.account == account]

    # --- making one --------------------------------------------------------------------------------------------

    async def create(self, spec: FunctionSpec, session: Session, description: str) -> SessionSnapshot:
        """Waits for the session's requests to end, for a minute at most.

        Raises Conflict, Throttled, StorageFull, Unavailable, and what prevents the session's instance to start.
        """
        if not spec.exclusive:
            raise Conflict("A session that shares its instance has no snapshots; use SESSION_EXCLUSIVE isolation.")
        if session.state is not SessionState.ACTIVE:
            raise Conflict(f"Session {session.id} is {session.state.value}.", code="SessionStatusConflict")
        mine = self.list(spec.account)
        if len(mine) + sum(key[0] == spec.account for key in self._making) >= self._most:
            raise Throttled(f"There are {self._most} snapshots of sessions at most (max_snapshots); delete some.")
        if sum(one.source.key == session.key for one in mine) + self._making.count(session.key) >= MOST_OF_SESSION:
            raise Throttled(f"A session has at most {MOST_OF_SESSION} snapshots; delete some.")
        used = sum(one.disk_bytes for one in self._snapshots.values())
        if used >= self._most_bytes:
            raise StorageFull(f"Snapshots of sessions take {used >> 20} MB already (snapshots_disk_mb); delete some.")
        self._making.append(session.key)
        return await asyncio.shield(self._background.spawn(self._create(spec, session, description)))

    async def _create(self, spec: FunctionSpec, session: Session, description: str) -> SessionSnapshot:
        id = str(uuid.uuid4())
        layer, folder = (self._directory / f"{id}.{kind}.img" for kind in ("layer", "folder"))
        try:
            lease = await self._leases.lease(spec, SessionRef(id=session.id), timeout_s=_LEASE_S)
            try:
                instance = self._pinned(session.key)
                if instance is None or instance.room is None or instance.id != lease.instance_id:
                    raise Unavailable("The session's instance has ended.", retry_after=1)
                labels = self._rooms.labels_of(instance.spec, session)
                _, own = self._rooms.disks_of(instance.spec, session)
                branch = Branch()
                if instance.spec.live:
                    branch = await instance.branch(layer, {own: folder})
                    try:
                        await branch.last()
                    except BaseException:
                        await branch.close()
                        raise
                else:
                    await instance.room.snapshot(layer, {own: folder})
                labels |= self._rooms.labels_of(instance.spec, session)
                memory = instance.memory_bytes() if branch.copies else 0
                spec = instance.spec
            finally:
                lease.release()
        finally:
            self._making.remove(session.key)
        if sum(one.has_memory for one in self._snapshots.values()) >= _MOST_HELD:
            await branch.close()
            branch.lost = (f"this server holds the memory of {_MOST_HELD} snapshots already",)
        branch.share(_ALWAYS)
        now = self._clock()
        made = SessionSnapshot(
            id=id,
            source=session,
            spec=spec,
            description=description,
            created=now,
            expires=now + LIFETIME_S,
            layer=layer,
            folder=folder,
            lost=_lost(branch, spec),
            branch=branch,
            labels=labels,
            memory_bytes=memory,
        )
        self._snapshots[id] = made
        made.timer = asyncio.get_running_loop().call_later(
            LIFETIME_S, lambda: self._background.spawn(self._remove(made))
        )
        if not self._book.remembers(session):  # it was deleted meanwhile, perhaps with its function
            await self._remove(made)
            raise NotFound(f"Session {session.id} has ended.", code="SessionNotFound")
        return made

    # --- beginning with one ------------------------------------------------------------------------------------

    async def restore(self, id: str, spec: FunctionSpec, session: Session) -> tuple[Session, bool, tuple[str, ...]]:
        """Have a session, just created, begin with a snapshot; its instance is up when this returns. The session,
        whether it has the memory, and what did not come along. Raises RoostError; the session is gone then. What
        is kept of one that had its id before stays, for who comes back with that id."""
        return await asyncio.shield(self._background.spawn(self._restore(id, spec, session)))

    async def _restore(self, id: str, spec: FunctionSpec, session: Session) -> tuple[Session, bool, tuple[str, ...]]:
        kept = True  # the folder, for all that is known so far, is of one before
        try:
            layer, folder = self._rooms.disks_of(spec, session)
            kept = folder.exists()
            snapshot = self.get(session.account, session.function, id)
            async with snapshot.restoring:
                if snapshot.id not in self._snapshots:
                    raise NotFound(f"Snapshot {snapshot.id} was deleted.", code="SnapshotNotFound")
                try:
                    await self._images.snapshot(snapshot.layer, layer)
                    await self._images.snapshot(snapshot.folder, folder)
                except FileExistsError:
                    kept = True
                    text = f"Session ID {session.id} was used before, and its folder is kept; use another."
                    raise Conflict(text, code="SessionAlreadyExists") from None
            memory, lost = await self._begin(snapshot, spec, session)
        except BaseException:
            with contextlib.suppress(RoostError):
                # A refusal doesn't use the id up: what is kept under it is somebody's.
                await self._book.end(replace(session, disable_id_reuse=False), forget=not kept)
            raise
        return self._book.get(*session.key), memory, lost

    async def _begin(
        self, snapshot: SessionSnapshot, spec: FunctionSpec, session: Session
    ) -> tuple[bool, tuple[str, ...]]:
        lost = snapshot.lost
        if snapshot.has_memory and spec.revision != snapshot.spec.revision:
            lost = ("memory: the function has changed since",)
        elif snapshot.has_memory:
            self._rooms.begin_with(session, snapshot.branch)
            try:
                (await self._leases.lease(spec, SessionRef(id=session.id), timeout_s=_LEASE_S)).release()
            except RoostError as error:
                log.info("session %s begins without memory: %s", session.id, error.message)
                lost = (f"memory: {error.message}",)
            else:
                return True, lost
            finally:
                self._rooms.begin_with(session, None)
        (await self._leases.lease(spec, SessionRef(id=session.id), timeout_s=_LEASE_S)).release()
        return False, lost

    # --- its end -----------------------------------------------------------------------------------------------

    async def delete(self, account: str, function: str, id: str) -> None:
        """Sessions that began with it live on. Raises NotFound."""
        await self._remove(self.get(account, function, id))

    async def forget_function(self, account: str, function: str) -> None:
        """The function is gone."""
        for one in self.list(account):
            if one.source.function == function:
                await self._remove(one)

    async def close(self) -> None:
        for one in list(self._snapshots.values()):
            await self._remove(one)

    async def _remove(self, snapshot: SessionSnapshot) -> None:
        self._snapshots.pop(snapshot.id, None)
        if snapshot.timer is not None:
            snapshot.timer.cancel()
        async with snapshot.restoring:
            for path in (snapshot.layer, snapshot.folder):
                path.unlink(missing_ok=True)
        await snapshot.branch.close()


def _lost(branch: Branch, spec: FunctionSpec) -> tuple[str, ...]:
    """In words, for who is going to begin with it."""
    if not spec.live:
        return ("memory: its function does not have roost.live",)
    if not branch.copies:
        return tuple(f"memory: {reason}" for reason in branch.lost)
    left = branch.copies[0].left
    found = ["connections"]  # always: those of requests, and whatever else there was
    if left.threads > 1:  # one is the guest's own
        found.append(f"threads: {left.threads - 1}")
    if left.processes:
        found.append(f"processes: {left.processes}")
    return tuple(found)
