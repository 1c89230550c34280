"""What every kind of room offers, and what it needs to be told. One interface, several drivers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from roost.model.errors import Unavailable
from roost.model.function import NAMESPACES, Limits


class Capability(StrEnum):
    """Abilities a driver may lack. Asked for and absent: refused, never emulated silently."""

    FREEZE = "freeze"
    HARD_LIMITS = "hard_limits"
    PAUSE_MEMORY = "pause_memory"
    FORK = "fork"
    SNAPSHOT = "snapshot"  # of a room's files: `Room.snapshot`, and `RoomSpec.lower` to stand on one


#: What a room's root may keep of its power over the room's own files and processes. None of it reaches the host.
ROOT_CAPABILITIES = frozenset({"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"})
#: Each layer below takes part in every look-up of a file.
MOST_LOWER = 16


@dataclass(frozen=True, kw_only=True)
class Template:
    """A root file system that rooms are made from. `root` is never written."""

    name: str
    root: Path  # a directory; for "host" a generated one whose entries are bind mounts of the host's /usr and links
    binds: tuple[tuple[Path, str], ...] = ()  # (host directory, absolute target in the room), read-only
    preload: tuple[str, ...] = ()  # modules the template's zygote imports ahead
    environment: tuple[tuple[str, str], ...] = ()  # variables that its image sets
    command: tuple[str, ...] = ()  # what its image starts


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A host directory in the room, or a disk image (a regular file), attached once for all rooms that have it.

    The host opened it safely already (openat2, no links). A room's root can leave files of any id 0..65535 in a
    directory, setuid ones too: the folder above it must be closed to the host's other users.
    """

    source: Path
    target: str
    read_only: bool = False
    #: True: files keep ids 0..65535 on the disk whatever host range the room has (idmapped mount).
    idmap: bool = True


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a process had that its copy has not: `files` are descriptors beside its standard ones, by their names."""

    threads: int
    processes: int
    files: tuple[str, ...]


class MemoryLost(Unavailable):
    """What was written to a file can't be had again. The text says why."""


@dataclass(kw_only=True)
class LiveCopy:
    """The memory of one context, as it was at one moment, held by the driver until it is dropped."""

    held: object  # the driver's
    drop: Callable[[], Awaitable[None]]
    id: str
    cwd: str
    default: bool
    left: Left
    alive: Callable[[], Awaitable[bool]]  # whether it is still there
    #: Bytes that it takes, each page shared among those who have it; 0 once it is gone. That takes a while to count.
    measure: Callable[[], Awaitable[int]]
    most: int = 0  # bytes that it takes at most when it has just been made
    #: Write its memory to a file without a name in a directory, of at most so many bytes, and give it back: the bytes
    #: that the file takes. Raises StorageFull, Unavailable with why; it stays as it was then.
    spill: Callable[[Path, int], Awaitable[int]] | None = None  # None: it can't be
    #: Have it in memory again, if it is not. Raises MemoryLost, or Unavailable; it is on disk still then.
    recall: Callable[[], Awaitable[None]] | None = None
    uses: int = 1  # rooms that are going to be made with it
    kept: bool = False  # whatever rooms are made with it; it outlives the room that it was copied of

    def use(self) -> bool:
        """For one of them; whether it is the last."""
        self.uses -= 1
        return self.uses <= 0 and not self.kept


@dataclass(frozen=True, kw_only=True)
class WholeCopy:
    """All of a room but its files, as it was at one moment: processes, threads, memory. It is on disk."""

    held: object  # the driver's
    drop: Callable[[], Awaitable[None]]
    disk_bytes: Callable[[], int]  # that it takes there by now; 0 once it is gone


@dataclass(kw_only=True)
class Branch:
    """What was copied of a room's memory at one moment, and why the rest was not. Who asks for one closes it."""

    copies: tuple[LiveCopy, ...] = ()
    whole: WholeCopy | None = None  # instead of single contexts
    lost: tuple[str, ...] = ()
    busy: bool = False  # one was lost because a cell still ran
    files: asyncio.Future[Any] | None = None  # see `last`

    async def last(self) -> None:
        """Return when the files that were copied with it outlast a power failure: before that, nothing is recorded that
        needs them. Raises StorageFull, Unavailable, and they are gone then."""
        if self.files is not None:
            await asyncio.shield(self.files)  # several may wait, and one of them go away

    async def alive(self) -> bool:
        """Whether all copies are still there."""
        return all([await copy.alive() for copy in self.copies])

    async def measure(self) -> int:
        """Bytes of all copies."""
        return sum([await copy.measure() for copy in self.copies])

    @property
    def most(self) -> int:
        """Bytes that all copies take at most when they have just been made."""
        return sum(copy.most for copy in self.copies)

    @property
    def disk_bytes(self) -> int:
        """Of what is on disk from the start."""
        return 0 if self.whole is None else self.whole.disk_bytes()

    @property
    def spills(self) -> bool:
        """Whether it can go to disk, and come back."""
        return self.whole is None and all(copy.spill is not None for copy in self.copies)

    async def spill(self, directory: Path, most: int) -> int:
        """Have its memory in files without a name, of at most so many bytes together: what they take. All of it, or
        none. Who asks sees to it that nobody makes rooms with it meanwhile, and before it is recalled.

        Raises StorageFull, Unavailable with why.
        """
        taken = 0
        try:
            for copy in self.copies:
                assert copy.spill is not None
                taken += await copy.spill(directory, most - taken)
        except BaseException:
            await self.recall()
            raise
        return taken

    async def recall(self) -> None:
        """Have it in memory. Raises MemoryLost, or Unavailable; what is not yet is on disk then."""
        for copy in self.copies:
            if copy.recall is not None:
                await copy.recall()

    def share(self, rooms: int) -> None:
        """So many rooms are going to be made with it."""
        for copy in self.copies:
            copy.uses = rooms

    async def close(self) -> None:
        """Idempotent. Rooms made with it live on."""
        copies, self.copies = self.copies, ()
        whole, self.whole = self.whole, None
        for copy in copies:
            await copy.drop()
        if whole is not None:
            await whole.drop()


@dataclass(frozen=True, kw_only=True)
class RoomSpec:
    """All that a room is made from."""

    id: str  # [a-z0-9-]{1,40}; names the run directory and, in the room, the host
    template: Template
    limits: Limits
    run_dir: Path  # made by the driver's caller, mode 0700; holds guest.sock, app.sock, handle.json
    #: Disk image of the writable layer, made when there is none; None: a fresh one that goes with the room.
    layer: Path | None = None
    #: Images of snapshots, newest first, at most MOST_LOWER: above the template, below the layer, never written.
    lower: tuple[Path, ...] = ()
    capabilities: frozenset[str] = frozenset()  # of ROOT_CAPABILITIES: kept by the room's root, none reaches the host
    mounts: tuple[Mount, ...] = ()
    #: One of ISOLATIONS. STRICT: a process of its own from the start, instead of a fork of the template's: it shares no
    #: layout of memory and no hash seed with other rooms, and takes the time of an interpreter's start.
    isolation: str = NAMESPACES
    #: Contexts of the code interpreter can be copied with their memory, where driver, machine and template allow it.
    live: bool = False
    branch: Branch | None = None  # copies to be contexts of the new room, which is `live`, or to be the new room
    egress_dir: Path | None = None  # mounted at /run/roost: sockets of the host's proxies


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a room used since it was made. `memory_bytes` is now."""

    cpu_us: int
    memory_bytes: int
    memory_peak_bytes: int
    pids: int
    oom_kills: int


@dataclass(frozen=True, kw_only=True)
class Door:
    """Sockets in a room's network to which all that leaves it is turned: lookups of names (DNS over UDP), and TCP
    connections, of which the kernel knows where they were meant to go. Who asks for one closes them."""

    names: socket.socket
    connections: tuple[socket.socket, ...]

    def close(self) -> None:
        """Idempotent."""
        for one in (self.names, *self.connections):
            one.close()


class Room(Protocol):
    """A live room. Every method may be called again after it has succeeded; all are safe after the room's death."""

    id: str
    pid: int  # of the room's init, on the host

    @property
    def lets_go(self) -> bool:
        """Whether a branch may cost the connections into the room."""
        ...

    @property
    def handle(self) -> Mapping[str, Any]:
        """JSON-serialisable; a restarted server passes it to `Driver.recover`."""
        ...

    async def wait(self) -> None:
        """Return when the room's init has ended."""
        ...

    async def made(self) -> None:
        """Return when its guest runs. Raises Unavailable with the failed step if it could not be made: it is to be
        destroyed then."""
        ...

    async def settled(self) -> None:
        """Return when it is made, and all is in it that it was made with, for which its guest waits.

        Raises Unavailable too if a copy of the spec's `branch` could not be settled in it.
        """
        ...

    async def freeze(self) -> None: ...

    async def thaw(self) -> None: ...

    async def snapshot(self, target: Path, beside: Mapping[Path, Path] | None = None) -> None:
        """Copy the room's writable layer to a new image at `target`, as it is at one moment; the room stands still
        meanwhile. Rooms made with `lower=(target, *lower of this room)` have its files. `beside`: images of volumes
        that it alone writes to, copied at that moment too, and where to.

        Raises FileExistsError, StorageFull, InvalidArgument if the room has no layer of its own, Unavailable; nothing
        is left behind then.
        """
        ...

    async def branch(
        self,
        target: Path,
        beside: Mapping[Path, Path] | None = None,
        *,
        keep: bool = False,
        now: bool = False,
    ) -> Branch:
        """As `snapshot`, and copy the memory of its contexts as it is at the same moment, as far as that can be.

        Waits for cells that run, up to a bound; `now`: interrupts them. `keep`: the copies outlive the room, and any
        number of rooms may be made with them. Where `lets_go`, connections into the room may break, its control
        connection too.
        """
        ...

    async def tied(self) -> str:
        """Why `leave` would refuse, as far as that can be told of one that stands still; "" if nothing is known."""
        ...

    async def leave(self) -> Branch:
        """The memory of its contexts, kept, for another room over its files to go on with; its caller ends this one.

        Raises Unavailable with the reason if that would lose anything else that it has, or is not possible.
        """
        ...

    async def rest(self) -> bool:
        """Wait until no cell runs, up to a bound. Whether that is so; also where it can't be told."""
        ...

    def anonymous(self) -> int:
        """Bytes charged to it that are no cache, of what was copied too; 0 where that is not known."""
        ...

    def usage(self) -> Usage: ...

    async def destroy(self) -> None:
        """End every process of the room and release everything it holds; the layer image stays if it was given."""
        ...


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What `roost doctor` shows of a driver."""

    usable: bool
    level: str  # one phrase: what isolates
    problems: tuple[str, ...] = field(default=())  # each with the command that mends it


class Driver(Protocol):
    """Makes rooms of one kind."""

    name: str
    capabilities: frozenset[Capability]

    def lack(self) -> str:
        """What this machine lacks for its rooms, as a sentence with what mends it; empty if nothing is seen."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Release the driver's own helpers. Rooms are the callers' to destroy."""
        ...

    async def warm(self, template: Template) -> None:
        """Have the template ready, so that the next `create` is fast."""
        ...

    async def create(self, spec: RoomSpec) -> Room:
        """Begin a room, whose guest starts when it is made: see `Room.made`.

        The guest holds two listening unix sockets that the driver bound at `run_dir/guest.sock` (control and port
        relay) and `run_dir/app.sock` (the function's requests); both can be connected to at once.

        Raises Unavailable with the failed step when the room cannot be made; nothing is left behind then.
        """
        ...

    async def recover(self, handle: Mapping[str, Any]) -> Room | None:
        """The room of a handle written before a restart of the server, or None if it no longer lives."""
        ...

    async def sweep(self, keep: frozenset[str]) -> int:
        """Release what rooms of this data directory left behind, except those in `keep`; how many were swept."""
        ...
