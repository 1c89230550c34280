"""The namespaces driver: rooms made of Linux namespaces, forked from a warm template. See ARCHITECTURE.md, "Rooms"."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Protocol

from roost.isolation import linux, seccomp
from roost.isolation.cgroups import Cgroups
from roost.isolation.disks import Disk, Disks, Nameless
from roost.isolation.driver import MOST_LOWER, ROOT_CAPABILITIES, Capability, Mount, RoomSpec, Template
from roost.isolation.namespaces.helper import Helper
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.pool import Pool, Quiet, Sizes
from roost.isolation.namespaces.room import SOCKETS, NamespacesRoom, start_time
from roost.isolation.namespaces.zygotes import Zygotes
from roost.isolation.usernamespaces import IDS, Identity, Ranges, first_id
from roost.model.errors import InvalidArgument, Unavailable

_ID = re.compile(r"[a-z0-9-]{1,40}")
_CGROUP = re.compile(r"(?P<id>[a-z0-9-]{1,40})\.(?P<range>[0-9]{1,4})")
_BACKLOG = 512  # connections that wait for the guest
_IDENTITIES_AHEAD = 8
_DISKS_AHEAD = 2  # of each size in use
_SIZES_AHEAD = 4
_READY_TIMEOUT_S = 30.0
_STATUS_LIMIT = 4096


class GuestBundle(Protocol):
    """What the driver needs of `roost.isolation.bundle.Bundle`."""

    @property
    def root(self) -> Path: ...

    def command(self, module: str, *args: str) -> list[str]: ...


class NamespacesDriver:
    """Rooms of one data directory. `guest` names the module in the bundle whose `run(guest_fd, app_fd)` is PID 1."""

    name = "namespaces"
    capabilities = frozenset({Capability.FREEZE, Capability.HARD_LIMITS, Capability.SNAPSHOT})

    def __init__(
        self,
        data_dir: Path,
        bundle: GuestBundle,
        *,
        guest: str = "roost.guest.main",
        policy: RoomPolicy | None = None,
    ) -> None:
        self._data_dir = data_dir.resolve()
        self._bundle = bundle
        self._guest = guest
        self._policy = policy
        self._first_id = first_id(self._data_dir)
        self.disks = Disks(self._data_dir / "disks")
        self._cgroups: Cgroups | None = None
        self._ranges = Ranges()
        self._maker = Helper("maker")
        self._mending = asyncio.Lock()
        self._quiet = Quiet()
        self._identities = Pool(self._make_identity, self._release_identity, ahead=_IDENTITIES_AHEAD, quiet=self._quiet)
        self._scratch = Sizes(self.disks.scratch, Disk.close, ahead=_DISKS_AHEAD, most=_SIZES_AHEAD, quiet=self._quiet)
        self._layers = Sizes(
            self.disks.nameless, Nameless.discard, ahead=_DISKS_AHEAD, most=_SIZES_AHEAD, quiet=self._quiet
        )
        self._zygotes = Zygotes(self._setup)

    # -- the driver's own life

    async def start(self) -> None:
        """Raises Unavailable if this machine cannot make rooms."""
        if self._policy is None:
            self._policy = RoomPolicy(seccomp=seccomp.program())
        cgroups = Cgroups.detect(hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:8])
        cgroups.prepare()
        self.disks.sweep()
        for name in cgroups.names():
            if match := _CGROUP.fullmatch(name):
                self._ranges.reserve(int(match["range"]))
        self._cgroups = cgroups
        await self._maker.start()
        self._identities.refill()

    @property
    def groups(self) -> tuple[Path, ...]:
        """Where the rooms' cgroups are, in each tree; known once started."""
        return self._cgroups.parents if self._cgroups is not None else ()

    async def close(self) -> None:
        await self._identities.close()
        await self._scratch.close()
        await self._layers.close()
        self.disks.close()
        await self._zygotes.close()
        await self._maker.close()
        if self._cgroups is not None:
            self._cgroups.remove_parents()

    async def warm(self, template: Template) -> None:
        await self._zygotes.warm(template)

    def _setup(self, template: Template) -> list[dict[str, Any]]:
        """What a template's launcher and zygote are told."""
        assert self._policy is not None
        root = {
            "root": str(template.root),
            "binds": [[str(source), target] for source, target in template.binds],
            "bundle": str(self._bundle.root),
            "command": self._bundle.command("roost.isolation.namespaces.zygote"),
        }
        program = {"guest": self._guest, "preload": list(template.preload), "policy": self._policy.to_json()}
        return [root, program]

    # -- identities

    async def _make_identity(self) -> Identity:
        async with self._mending:  # one for all who find it gone
            if not self._maker.alive:
                await self._maker.close()
                self._maker = Helper("maker")
                await self._maker.start()
            maker = self._maker
        index = self._ranges.take()
        base = self._first_id + index * IDS
        try:
            _, (userns, netns) = await maker.request({"base": base})
        except BaseException:
            self._ranges.give_back(index)
            raise
        return Identity(index=index, base=base, userns=userns, netns=netns)

    def _release_identity(self, identity: Identity) -> None:
        identity.close()
        self._ranges.give_back(identity.index)

    # -- rooms

    async def create(self, spec: RoomSpec) -> NamespacesRoom:
        if self._cgroups is None:
            raise Unavailable("The namespaces driver was not started.")
        _check(spec)
        await self._zygotes.warm(spec.template)
        with self._quiet:
            return await self._create(spec, self._cgroups)

    async def _create(self, spec: RoomSpec, cgroups: Cgroups) -> NamespacesRoom:
        identity = await self._identities.take()
        async with AsyncExitStack() as undo:
            undo.callback(self._ranges.give_back, identity.index)
            with ExitStack() as opened:
                opened.callback(identity.close)
                disk = await self._disk(spec)
                opened.callback(disk.close)
                listeners = _listen(spec.run_dir, opened, undo)
                mounts = _mounts(spec)
                lower = await self._lower(spec, opened)
                trees = await self._trees(mounts, opened)
                cgroup = cgroups.create(f"{spec.id}.{identity.index}", spec.limits)
                undo.push_async_callback(cgroup.remove)
                status_read, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                opened.callback(os.close, status_read)
                with ExitStack() as passed:
                    passed.callback(os.close, status_write)
                    unified, *joins = passed.enter_context(cgroup.join_fds())
                    fds = [
                        unified,
                        identity.userns,
                        identity.netns,
                        disk.mount_fd,
                        *listeners,
                        status_write,
                        *joins,
                        *lower,
                        *trees,
                    ]
                    message = _message(spec, identity.base, mounts, len(joins))
                    reply, (pidfd,) = await self._zygotes.fork(spec.template, message, fds)
                undo_pidfd = undo.enter_context(ExitStack())
                undo_pidfd.callback(os.close, pidfd)
                await _entered(status_read)
            undo_pidfd.pop_all()
            undo.pop_all()
        return NamespacesRoom(
            id=spec.id,
            pid=reply["pid"],
            pidfd=pidfd,
            cgroup=cgroup,
            run_dir=spec.run_dir,
            layer=spec.layer,
            disks=self.disks,
            on_gone=lambda: self._ranges.give_back(identity.index),
        )

    async def _disk(self, spec: RoomSpec) -> Disk:
        size_mb = spec.limits.disk_mb
        if spec.layer is None:
            return await self._scratch.take(size_mb)
        if not spec.layer.exists():
            if self.disks.is_beside(spec.layer):
                return (await self._layers.take(size_mb)).name(spec.layer)
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
        if self._cgroups is None or match is None or match["id"] != room_id:
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
        return NamespacesRoom(
            id=room_id,
            pid=pid,
            pidfd=pidfd,
            cgroup=cgroup,
            run_dir=run_dir,
            layer=layer,
            disks=self.disks,
            on_gone=lambda: self._ranges.give_back(index),
        )

    async def sweep(self, keep: frozenset[str]) -> int:
        if self._cgroups is None:
            raise Unavailable("The namespaces driver was not started.")
        swept = 0
        for name in sorted(self._cgroups.names()):
            match = _CGROUP.fullmatch(name)
            if match is not None and match["id"] in keep:
                continue
            cgroup = self._cgroups.get(name)
            await cgroup.remove()
            if match is not None:
                with contextlib.suppress(ValueError):
                    self._ranges.give_back(int(match["range"]))
            swept += 1
        return swept


def _check(spec: RoomSpec) -> None:
    if not _ID.fullmatch(spec.id):
        raise InvalidArgument(f"{spec.id!r} is no room id: 1 to 40 of a-z, 0-9 and dash.")
    if unknown := spec.capabilities - ROOT_CAPABILITIES:
        raise InvalidArgument(f"A room's root can't have the capability {', '.join(sorted(unknown))}.")
    if len(spec.lower) > MOST_LOWER:
        raise InvalidArgument(f"A room stands on at most {MOST_LOWER} snapshots, not {len(spec.lower)}.")
    for mount in spec.mounts:
        parts = mount.target.split("/")
        if not mount.target.startswith("/") or mount.target == "/" or {".", ".."} & set(parts) or "\0" in mount.target:
            raise InvalidArgument(f"{mount.target!r} is no mount target: an absolute path without dots is needed.")


def _mounts(spec: RoomSpec) -> Sequence[Mount]:
    """All mounts, outer ones before those inside them."""
    mounts = list(spec.mounts)
    if spec.egress_dir is not None:
        mounts.append(Mount(source=spec.egress_dir, target="/run/roost", read_only=True))
    return sorted(mounts, key=lambda mount: mount.target.rstrip("/").count("/"))


def _listen(run_dir: Path, opened: ExitStack, undo: AsyncExitStack) -> list[int]:
    """Bind the room's sockets. Through a descriptor: a socket's path may have 107 bytes only."""
    try:
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"The run directory {run_dir} cannot be used: {error.strerror}.") from error
    opened.callback(os.close, directory)
    listeners = []
    for name in SOCKETS:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        opened.callback(sock.close)
        try:
            sock.bind(f"/proc/self/fd/{directory}/{name}")
        except OSError as error:
            raise Unavailable(f"{run_dir / name} cannot be made: {error.strerror}.") from error
        undo.callback((run_dir / name).unlink, missing_ok=True)
        sock.listen(_BACKLOG)
        listeners.append(sock.fileno())
    return listeners


def _message(spec: RoomSpec, base: int, mounts: Sequence[Mount], joins: int) -> dict[str, Any]:
    return {
        "hostname": spec.id,
        "base": base,
        "kept": spec.layer is not None,
        "binds": [target for _, target in spec.template.binds],
        "mounts": [{"target": mount.target, "read_only": mount.read_only, "idmap": mount.idmap} for mount in mounts],
        "open_files": spec.limits.open_files,
        "shm_mb": max(1, spec.limits.memory_mb // 2),
        "capabilities": sorted(linux.CAPABILITIES[name] for name in spec.capabilities),
        "strict": spec.strict,
        "lower": len(spec.lower),
        "joins": joins,
    }


async def _entered(status: int) -> None:
    """Wait until the room's guest runs: its end of the pipe is closed without a word. Raises Unavailable otherwise."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    said = b""
    loop.add_reader(status, readable.set)
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while True:
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    while part := os.read(status, _STATUS_LIMIT):
                        said = (said + part)[-_STATUS_LIMIT:]
                    break
    except TimeoutError as error:
        raise Unavailable(f"The room did not come up in {_READY_TIMEOUT_S:.0f} s.") from error
    finally:
        loop.remove_reader(status)
    if said:
        raise Unavailable(f"The room could not be made: {said.decode(errors='replace')}.")
