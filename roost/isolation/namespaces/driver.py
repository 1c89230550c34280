"""The namespaces driver: rooms made of Linux namespaces, forked from a warm template. See ARCHITECTURE.md, "Rooms"."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from roost.isolation import linux, seccomp
from roost.isolation.cgroups import Cgroups
from roost.isolation.disks import Disk, Disks, Nameless
from roost.isolation.driver import Capability, Door, Mount, Room, RoomSpec, Template
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.doors import Doors
from roost.isolation.namespaces.helper import Helper, Standing
from roost.isolation.namespaces.live import Contexts, Settling
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.pool import Pool, Pools, Quiet
from roost.isolation.namespaces.room import COPIES, NamespacesRoom, start_time
from roost.isolation.namespaces.seeds import Seeds
from roost.isolation.namespaces.spills import Spills
from roost.isolation.namespaces.terms import GuestBundle, check, listen, mounts_of, order_of, request_of, setup
from roost.isolation.namespaces.vacant import Inner, Shape, VacantRoom
from roost.isolation.namespaces.zygotes import Zygotes
from roost.isolation.usernamespaces import IDS, Identity, Ranges, first_id
from roost.model.errors import InvalidArgument, Unavailable

_CGROUP = re.compile(r"[a-z0-9-]{1,40}\.(?P<range>[0-9]{1,4})")
_IDENTITIES_AHEAD = 8
_DISKS_AHEAD = 2  # of each size in use
_SIZES_AHEAD = 4
_ROOMS_AHEAD = 1  # of each shape in use
_SHAPES_AHEAD = 4


class NamespacesDriver:
    """Rooms of one data directory. `guest` names the module in the bundle whose `run(guest_fd, app_fd)` is PID 1;
    `io_mb_per_s` is what each room may read and write of its disk in a second, 0 for no limit."""

    name = "namespaces"
    capabilities = frozenset({Capability.FREEZE, Capability.HARD_LIMITS, Capability.SNAPSHOT})

    def __init__(
        self,
        data_dir: Path,
        bundle: GuestBundle,
        *,
        guest: str = "roost.guest.main",
        policy: RoomPolicy | None = None,
        io_mb_per_s: int = 0,
    ) -> None:
        self._io_mb_per_s = io_mb_per_s
        self._data_dir = data_dir.resolve()
        self.bundle = bundle
        self.guest = guest
        self._policy = policy
        self._first_id = first_id(self._data_dir)
        self.disks = Disks(self._data_dir / "disks")
        self._cgroups: Cgroups | None = None
        self._spills: Spills | None = None
        self._ranges = Ranges()
        self._ids: dict[str, str] = {}  # of rooms, by the names of their cgroups, which are made before
        self._maker = Standing("maker")
        self._doors = Doors()
        self._tracer = Standing("tracer", lambda module: Helper(module, self._tracing()))
        self._quiet = Quiet()
        self._identities = Pool(self._make_identity, self._release_identity, ahead=_IDENTITIES_AHEAD, quiet=self._quiet)
        self._scratch = Pools(self.disks.scratch, Disk.close, ahead=_DISKS_AHEAD, most=_SIZES_AHEAD, quiet=self._quiet)
        self._layers = Pools(
            self.disks.nameless, Nameless.discard, ahead=_DISKS_AHEAD, most=_SIZES_AHEAD, quiet=self._quiet
        )
        self._vacant = Pools(
            self._make_vacant, VacantRoom.discard, ahead=_ROOMS_AHEAD, most=_SHAPES_AHEAD, quiet=self._quiet
        )
        self._zygotes = Zygotes(self._setup)
        self._seeds = Seeds(self._tracer, self._zygotes.fork)

    # -- the driver's own life

    def lack(self) -> str:
        """Nothing: without what its rooms need, no server starts."""
        return ""

    async def start(self) -> None:
        """Raises Unavailable if this machine cannot make rooms."""
        if self._policy is None:
            self._policy = RoomPolicy(seccomp=seccomp.program())
        tag = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:8]
        cgroups = Cgroups.detect(tag, disks=bool(self._io_mb_per_s))
        cgroups.prepare()
        self.disks.sweep()
        for name in cgroups.names():
            if match := _CGROUP.fullmatch(name):
                self._ranges.reserve(int(match["range"]))
        self._cgroups = cgroups
        self._spills = Spills(cgroups.held_fds)
        await self._maker.get()
        self._identities.refill()

    @property
    def data_dir(self) -> Path:
        """What it keeps is below this."""
        return self._data_dir

    @property
    def groups(self) -> tuple[Path, ...]:
        """Where the rooms' cgroups are, in each tree; known once started."""
        return self._cgroups.parents if self._cgroups is not None else ()

    async def close(self) -> None:
        await self._vacant.close()
        await self._identities.close()
        await self._scratch.close()
        await self._layers.close()
        self.disks.close()
        await self._zygotes.close()
        await self._maker.close()
        await self._doors.close()
        if self._spills is not None:
            self._spills.close()
        await self._tracer.close()
        if self._cgroups is not None:
            await self._cgroups.remove_parents()

    async def warm(self, template: Template) -> None:
        await self._zygotes.warm(template)

    def _setup(self, template: Template) -> list[dict[str, Any]]:
        assert self._policy is not None
        return setup(template, self.bundle, self.guest, self._policy)

    def _tracing(self) -> list[dict[str, Any]]:
        """What the tracer is told."""
        assert self._policy is not None
        return [self._policy.to_json()]

    # -- identities

    async def _make_identity(self) -> Identity:
        maker = await self._maker.get()
        index = self._ranges.take()
        base = self._first_id + index * IDS
        try:
            _, (userns, netns) = await maker.request({"base": base, "ids": IDS})
        except BaseException:
            self._ranges.give_back(index)
            raise
        return Identity(index=index, base=base, userns=userns, netns=netns)

    def _release_identity(self, identity: Identity) -> None:
        identity.close()
        self._ranges.give_back(identity.index)

    # -- rooms

    async def create(self, spec: RoomSpec, inner: Inner | None = None, image: int = -1) -> NamespacesRoom:
        """`inner`: what the guest runs on instead of the host's kernel, within the same room; `image`: the copy of
        another such room, in a detached mount, which this one is to go on as."""
        if self._cgroups is None:
            raise Unavailable("The namespaces driver was not started.")
        check(spec)
        await self._zygotes.warm(spec.template)
        with self._quiet:
            return await self._create(spec, inner, image)

    async def _create(self, spec: RoomSpec, inner: Inner | None, image: int) -> NamespacesRoom:
        shape = Shape.of(spec, inner, bare=bool(spec.lower) or not self._is_fresh(spec))
        while not (vacant := await self._vacant.take(shape)).alive:
            await vacant.discard()
        async with AsyncExitStack() as undo:
            undo.push_async_callback(vacant.discard)
            with ExitStack() as opened:
                below: list[int] = []
                if shape.bare:
                    vacant.disk = await self._disk(spec)
                    below = [vacant.disk.mount_fd, *await self._lower(spec, opened)]
                if self._io_mb_per_s and vacant.disk is not None:
                    vacant.cgroup.limit_disk(os.fstat(vacant.disk.mount_fd).st_dev, self._io_mb_per_s)
                vacant.claim(spec.layer)
                listeners = listen(spec.run_dir, opened, undo)
                mounts = mounts_of(spec)
                trees = await self._trees(mounts, opened)
                contexts, lifeline = self._contexts(shape, vacant, opened, undo)
                if inner is not None:
                    lifeline = listen(spec.run_dir, opened, undo, (COPIES,), socket.SOCK_SEQPACKET)
                    trees.append(_program(inner, opened))
                    trees += [image] if image >= 0 else []
                order = order_of(spec, mounts, live=bool(lifeline), below=len(below) - 1 if below else None)
                copies = spec.branch.copies if spec.branch is not None else ()
                if contexts is not None and copies:
                    contexts.adopt(copies)
                vacant.give(order, [*listeners, *lifeline, *below, *trees])
            if contexts is not None and not copies:
                contexts.begin()
            undo.pop_all()
        self._ids[vacant.cgroup.name] = spec.id
        room = NamespacesRoom(
            driver=self.name if inner is None else inner.driver,
            id=spec.id,
            pid=vacant.pid,
            pidfd=vacant.pidfd,
            cgroup=vacant.cgroup,
            run_dir=spec.run_dir,
            layer=spec.layer,
            disks=self.disks,
            on_gone=partial(self._gone, vacant.cgroup.name, vacant.index),
            contexts=contexts,
            waiting=vacant,
        )
        if inner is not None:  # a kernel takes long to start, and the bounds of who goes on are for its guest
            try:
                await room.settled()
            except BaseException:
                await room.destroy()
                raise
        return room

    def _contexts(
        self, shape: Shape, vacant: VacantRoom, opened: ExitStack, undo: AsyncExitStack
    ) -> tuple[Contexts | None, list[int]]:
        """Those of a live room, and the daemon's end of their lifeline."""
        if not shape.live:
            return None, []
        ours, theirs = wire.pair()
        opened.callback(theirs.close)
        ours.setblocking(False)
        place = Settling(
            pid=vacant.pid,
            pidfd=os.dup(vacant.pidfd),
            cgroup=vacant.cgroup,
            base=vacant.base,
            capabilities=vacant.capabilities,
            open_files=shape.limits.open_files,
            entered=vacant.entered,
        )
        assert self._spills is not None
        contexts = Contexts(ours, place, partial(self._seeds.get, shape.template), self._spills)
        undo.push_async_callback(contexts.close)
        return contexts, [theirs.fileno()]

    def _gone(self, cgroup: str, index: int) -> None:
        """A room is no more."""
        self._ids.pop(cgroup, None)
        self._ranges.give_back(index)

    def _is_fresh(self, spec: RoomSpec) -> bool:
        """Whether its layer is still to be made, or it has none."""
        return spec.layer is None or (not spec.layer.exists() and self.disks.is_beside(spec.layer))

    async def _make_vacant(self, shape: Shape) -> VacantRoom:
        disks = self._layers if shape.kept else self._scratch
        return await self._begin(shape, None if shape.bare else await disks.take(shape.limits.disk_mb))

    async def _begin(self, shape: Shape, disk: Disk | Nameless | None) -> VacantRoom:
        """Have its first process forked. The disk is given away, also by a failure. Raises Unavailable."""
        assert self._cgroups is not None
        async with AsyncExitStack() as undo:
            if disk is not None:
                undo.callback(disk.discard if isinstance(disk, Nameless) else disk.close)
            identity = await self._identities.take()
            undo.callback(self._ranges.give_back, identity.index)
            with ExitStack() as opened:
                opened.callback(identity.close)
                cgroup = self._cgroups.create(f"{secrets.token_hex(8)}.{identity.index}", shape.limits)
                undo.push_async_callback(cgroup.remove)
                ours, theirs = wire.pair()
                undo.callback(ours.close)
                ours.setblocking(False)
                opened.callback(theirs.close)
                status, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                undo.callback(os.close, status)
                opened.callback(os.close, status_write)
                unified, *joins = opened.enter_context(cgroup.join_fds())
                layer = [] if disk is None else [disk.mount_fd]
                fds = [identity.userns, identity.netns, theirs.fileno(), status_write, *layer, unified, *joins]
                request = request_of(shape, base=identity.base, cgroup=True)
                reply, (pidfd,) = await self._zygotes.fork(shape.template, request, fds)
            undo.pop_all()
        return VacantRoom(
            index=identity.index,
            pid=reply["pid"],
            pidfd=pidfd,
            cgroup=cgroup,
            disk=disk,
            order=ours,
            status=status,
            give_back=self._ranges.give_back,
            base=identity.base,
            capabilities=self._mask(shape),
        )

    def _mask(self, shape: Shape) -> int:
        """What a room's root has."""
        assert self._policy is not None
        kept = self._policy.capabilities | {linux.CAPABILITIES[name] for name in shape.capabilities}
        return sum(1 << number for number in kept)

    async def _disk(self, spec: RoomSpec) -> Disk | Nameless:
        size_mb = spec.limits.disk_mb
        if spec.layer is None:
            return await self._scratch.take(size_mb)
        if not spec.layer.exists():
            if self.disks.is_beside(spec.layer):
                return await self._layers.take(size_mb)
            await self.disks.create(spec.layer, size_mb)
        return await self.disks.attach(spec.layer)

    async def _lower(self, spec: RoomSpec, opened: ExitStack) -> list[int]:
        layers = []
        for path in spec.lower:
            layers.append(await self.disks.lower(path))
            opened.callback(os.close, layers[-1])
        return layers

    async def _trees(self, mounts: Sequence[Mount], opened: ExitStack) -> list[int]:
        """A detached mount for each: of the directory, or of the disk image."""
        trees = []
        for mount in mounts:
            try:
                is_image = stat.S_ISREG(os.stat(mount.source).st_mode)  # noqa: PTH116
                tree = await self.disks.mount(mount.source) if is_image else linux.clone_tree(str(mount.source))
            except OSError as error:
                raise Unavailable(f"{mount.target} cannot be mounted: {error.strerror}.") from error
            opened.callback(os.close, tree)
            trees.append(tree)
        return trees

    async def open_door(self, room: Room) -> Door:
        """Turn what leaves the room to sockets of the caller's; asked again, to others. Raises Unavailable."""
        if not isinstance(room, NamespacesRoom) or room.handle["driver"] != self.name:
            raise Unavailable("Transparent egress is for rooms of the namespaces driver.")
        await room.made()  # before, its first process may not be in its network
        netns = room.network()
        try:
            return await self._doors.open(netns)
        finally:
            os.close(netns)

    async def recover(self, handle: Mapping[str, Any]) -> NamespacesRoom | None:
        """Raises InvalidArgument if the handle is not one of this driver."""
        try:
            pid, name = int(handle["pid"]), str(handle["cgroup"])
            room_id, run_dir = str(handle["id"]), Path(handle["run_dir"])
            layer = None if handle["layer"] is None else Path(handle["layer"])
            started = int(handle["started"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"This is no handle of a room: {error!r}.") from error
        match = _CGROUP.fullmatch(name)
        if self._cgroups is None or match is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        cgroup = self._cgroups.get(name)
        # The pidfd is open, so what is read now is of this process, or the process has ended.
        if start_time(pid) != started or not cgroup.contains(pid):
            os.close(pidfd)
            return None
        index = int(match["range"])
        self._ranges.reserve(index)
        self._ids[name] = room_id
        return NamespacesRoom(
            driver=str(handle.get("driver", self.name)),
            id=room_id,
            pid=pid,
            pidfd=pidfd,
            cgroup=cgroup,
            run_dir=run_dir,
            layer=layer,
            disks=self.disks,
            on_gone=partial(self._gone, name, index),
        )

    async def sweep(self, keep: frozenset[str]) -> int:
        if self._cgroups is None:
            raise Unavailable("The namespaces driver was not started.")
        swept = 0
        for name in sorted(self._cgroups.names()):
            if self._ids.get(name) in keep:
                continue
            cgroup = self._cgroups.get(name)
            await cgroup.remove()
            if match := _CGROUP.fullmatch(name):
                with contextlib.suppress(ValueError):
                    self._ranges.give_back(int(match["range"]))
            swept += 1
        return swept


def _program(inner: Inner, opened: ExitStack) -> int:
    """A detached, read-only mount of the kernel's program alone."""
    try:
        tree = linux.clone_tree(str(inner.program))
        opened.callback(os.close, tree)
        linux.set_mount_attributes(tree, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    except OSError as error:
        raise Unavailable(f"{inner.program} cannot be used: {error.strerror}.") from error
    return tree
