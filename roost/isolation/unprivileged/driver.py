"""The unprivileged driver: rooms of namespaces that a user makes who isn't root. See ARCHITECTURE.md.

What their first process does is the same as in the namespaces driver (`namespaces.enter`), in a user namespace of the
server's where it is root. There are no cgroups, disk images and id ranges: limits are those of processes, layers are
directories, and what those are to hold that isn't held here the driver's capabilities don't name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from roost.isolation import linux, seccomp
from roost.isolation.driver import Capability, Door, Mount, Room, RoomSpec, Template
from roost.isolation.images import storage
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.doors import Doors
from roost.isolation.namespaces.helper import Helper, Standing
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.pool import Pools, Quiet
from roost.isolation.namespaces.room import start_time
from roost.isolation.namespaces.terms import GuestBundle, check, listen, mounts_of, order_of, request_of, setup
from roost.isolation.namespaces.vacant import Shape, WaitingProcess
from roost.isolation.namespaces.within import within
from roost.isolation.namespaces.zygotes import Zygotes
from roost.isolation.unprivileged.folders import NO_SNAPSHOTS, Folders, make_folder, open_folder
from roost.isolation.unprivileged.realm import make_realm, remedy
from roost.isolation.unprivileged.room import UnprivilegedRoom
from roost.model.errors import InvalidArgument, Unavailable
from roost.model.function import Limits

_ROOMS_AHEAD = 1  # of each shape in use
_SHAPES_AHEAD = 4
_PROCESS = "process.json"  # in a room's own folder: what the next server has to end
_KILL_TIMEOUT_S = 10.0
#: What a process may have beyond its room's memory: stacks and buffers that are set aside and seldom used count too.
_DATA_MORE_MB = 256


@dataclass(kw_only=True)
class _Vacant(WaitingProcess):
    """One that waits. `place` is its own folder; `fresh` is where its files are, if they are to last and have no place
    yet."""

    place: Path
    fresh: Path | None

    def claim(self, layer: Path | None) -> None:
        """Its files are at `layer` now. Once it runs: before, it may not have found them. Raises Unavailable."""
        if self.fresh is not None and layer is not None:
            try:
                self.fresh.rename(layer)
            except OSError as error:
                raise Unavailable(f"{layer} can't be made: {error.strerror}.") from error
            self.fresh = None


class UnprivilegedDriver:
    """Rooms of one data directory, all of one user. `run_dir` is what the rooms' own run directories are below."""

    name = "unprivileged"
    capabilities: frozenset[Capability] = frozenset()
    groups: tuple[Path, ...] = ()

    def __init__(
        self,
        data_dir: Path,
        run_dir: Path,
        bundle: GuestBundle,
        *,
        guest: str = "roost.guest.main",
        policy: RoomPolicy | None = None,
    ) -> None:
        self._host = {"data": data_dir.resolve(), "run": run_dir.resolve()}
        self.bundle = bundle
        self.guest = guest
        self._policy = policy
        self._realm = -1
        self._rooms = self._host["data"] / "rooms"
        self._live: dict[str, str] = {}  # ids of this server's rooms, "" of vacant ones, by the names of their folders
        self.disks = Folders(self._host["data"] / "layers", self._remove)
        self._maker = Standing("maker", self._helper)
        self._doors = Doors(self._helper)
        self._quiet = Quiet()
        self._vacant = Pools(
            self._make_vacant, self._discard, ahead=_ROOMS_AHEAD, most=_SHAPES_AHEAD, quiet=self._quiet
        )
        self._zygotes = Zygotes(self._setup, start=self._helper)

    # -- the driver's own life

    def lack(self) -> str:
        """Nothing: without what its rooms need, no server starts."""
        return ""

    async def start(self) -> None:
        """Raises Unavailable if this user cannot make rooms."""
        if self._policy is None:
            self._policy = RoomPolicy(seccomp=seccomp.program(), by_user=True)
        for place in (self._rooms, self._host["run"]):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._realm = make_realm()
        self.disks.sweep()
        try:
            await self._maker.get()
        except Unavailable as error:  # as under AppArmor: the namespace is there, and its root may do nothing
            raise Unavailable(f"This user can't be root of a user namespace: {remedy()}. {error.message}") from error

    async def close(self) -> None:
        await self._vacant.close()
        await self._zygotes.close()
        await self._maker.close()
        await self._doors.close()
        await self.disks.close()
        realm, self._realm = self._realm, -1
        if realm >= 0:
            os.close(realm)

    async def warm(self, template: Template) -> None:
        await self._zygotes.warm(template)

    def _helper(self, module: str, setup: Sequence[dict[str, Any]] = ()) -> Helper:
        return Helper(module, setup, realm=self._realm)

    def _setup(self, template: Template) -> list[dict[str, Any]]:
        assert self._policy is not None
        root, program = setup(template, self.bundle, self.guest, self._policy)
        return [{**root, "host": [[name, str(path)] for name, path in self._host.items()]}, program]

    async def remove_tree(self, path: str, *, keep_open: int | None = None) -> None:
        """Delete what rooms have filled, whatever modes they gave it. `keep_open`: a descriptor `path` goes through."""
        await self._remove([path], () if keep_open is None else (keep_open,))

    async def _remove(self, paths: Sequence[str], keep_open: tuple[int, ...] = ()) -> None:
        process = await asyncio.create_subprocess_exec(
            *within(self._realm, ["rm", "-rf", "--one-file-system", "--", *paths]),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(self._realm, *keep_open),
            env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.defpath},
        )
        await process.wait()

    # -- rooms

    async def create(self, spec: RoomSpec) -> UnprivilegedRoom:
        if self._realm < 0:
            raise Unavailable("The unprivileged driver was not started.")
        check(spec)
        if spec.lower:
            raise Unavailable(NO_SNAPSHOTS)
        await self._zygotes.warm(spec.template)
        with self._quiet:
            return await self._create(spec)

    async def _create(self, spec: RoomSpec) -> UnprivilegedRoom:
        vacant = await self._vacant_for(spec)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._discard, vacant)
            with ExitStack() as opened:
                listeners = listen(spec.run_dir, opened, undo)
                mounts = mounts_of(spec)
                sources = [self._source(mount, opened) for mount in mounts]
                order = order_of(spec, mounts)
                for mount, (_, source) in zip(order["mounts"], sources, strict=True):
                    mount["source"] = source
                await vacant.occupy(order, [*listeners, *(fd for fd, _ in sources)])
            vacant.claim(spec.layer)
            undo.pop_all()
        self._live[vacant.place.name] = spec.id
        return UnprivilegedRoom(
            driver=self.name,
            id=spec.id,
            pid=vacant.pid,
            pidfd=vacant.pidfd,
            place=vacant.place,
            run_dir=spec.run_dir,
            pids=spec.limits.pids,
            on_gone=partial(self._gone, vacant.place),
        )

    def _gone(self, place: Path) -> None:
        """A room is no more."""
        self._live.pop(place.name, None)
        with contextlib.suppress(OSError):  # what can't be removed is tried again by the next server
            self.disks.discard(place)

    async def _vacant_for(self, spec: RoomSpec) -> _Vacant:
        """One that is ready, or one of its own if its layer is there already."""
        shape = replace(Shape.of(spec, None, bare=False), live=False)  # to hold and to copy takes root
        if spec.layer is not None and spec.layer.exists():
            return await self._begin(shape, spec.layer, fresh=False)
        while not (vacant := await self._vacant.take(shape)).alive:
            await self._discard(vacant)
        return vacant

    async def _make_vacant(self, shape: Shape) -> _Vacant:
        return await self._begin(shape, self.disks.fresh() if shape.kept else None, fresh=True)

    async def _begin(self, shape: Shape, layer: Path | None, *, fresh: bool) -> _Vacant:
        """Have its first process forked, over a layer in its own folder if it is given none. A `fresh` one is given
        away, also by a failure. Raises Unavailable."""
        place = self._rooms / secrets.token_hex(8)
        unclaimed = layer if fresh else None
        async with AsyncExitStack() as undo:
            if unclaimed is not None:
                undo.callback(self.disks.discard, unclaimed)
            make_folder(place)
            self._live[place.name] = ""
            undo.callback(self._gone, place)
            if layer is None:
                layer = place / "layer"
                make_folder(layer)
            with ExitStack() as opened:
                maker = await self._maker.get()
                _, made = await maker.request({"base": 0, "ids": 1})
                opened.callback(wire.close_all, made)
                ours, theirs = wire.pair()
                undo.callback(ours.close)
                ours.setblocking(False)
                opened.callback(theirs.close)
                status, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                undo.callback(os.close, status)
                opened.callback(os.close, status_write)
                layer_fd = open_folder(layer)
                opened.callback(os.close, layer_fd)
                request = request_of(shape, base=0, cgroup=False)
                request |= {"source": self._beneath(layer), **_limits(shape.limits)}
                fds = [*made, theirs.fileno(), status_write, layer_fd]
                reply, (pidfd,) = await self._zygotes.fork(shape.template, request, fds)
            undo.callback(os.close, pidfd)
            note = {"pid": reply["pid"], "started": start_time(reply["pid"])}
            with storage(place):
                (place / _PROCESS).write_text(json.dumps(note))
            undo.pop_all()
        return _Vacant(pid=reply["pid"], pidfd=pidfd, order=ours, status=status, place=place, fresh=unclaimed)

    async def _discard(self, vacant: _Vacant) -> None:
        """It is not wanted, or could not be occupied. Raises Unavailable."""
        vacant.let_go()
        try:
            await _end(vacant.pidfd)
        finally:
            os.close(vacant.pidfd)
        if vacant.fresh is not None:
            self.disks.discard(vacant.fresh)
        self._gone(vacant.place)

    def _source(self, mount: Mount, opened: ExitStack) -> tuple[int, tuple[str, str]]:
        """The directory's descriptor, and where rooms find it. Raises Unavailable."""
        fd = open_folder(mount.source)
        opened.callback(os.close, fd)
        return fd, self._beneath(Path(f"/proc/self/fd/{fd}").readlink())

    def _beneath(self, path: Path) -> tuple[str, str]:
        for name, top in self._host.items():
            if path.is_relative_to(top):
                return name, str(path.relative_to(top))
        raise Unavailable(f"{path} is not in the server's directories: rooms of a user have nothing else.")

    async def open_door(self, room: Room) -> Door:
        """Turn what leaves the room to sockets of the caller's; asked again, to others. Raises Unavailable."""
        if not isinstance(room, UnprivilegedRoom):
            raise Unavailable("Transparent egress is for rooms on the host's kernel.")
        netns = room.network()
        try:
            with ExitStack() as opened:
                opened.callback(os.close, realm := linux.owner(netns))
                if os.path.sameopenfile(realm, self._realm):  # noqa: ASYNC240 - of the kernel's memory
                    return await self._doors.open(netns)
                # An earlier server's room: its network is of that one's realm, where this one's doorman has no power.
                doors = Doors(lambda module: Helper(module, realm=realm))
                try:
                    return await doors.open(netns)
                finally:
                    await doors.close()
        finally:
            os.close(netns)

    async def recover(self, handle: Mapping[str, Any]) -> UnprivilegedRoom | None:
        """Raises InvalidArgument if the handle is not one of this driver."""
        try:
            pid, started, pids = int(handle["pid"]), int(handle["started"]), int(handle["pids"])
            id, run_dir, name = str(handle["id"]), Path(handle["run_dir"]), Path(handle["place"]).name
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"This is no handle of a room: {error!r}.") from error
        pidfd = _open_if(pid, started)
        if pidfd is None:
            return None
        place = self._rooms / name
        self._live[name] = id
        return UnprivilegedRoom(
            driver=self.name,
            id=id,
            pid=pid,
            pidfd=pidfd,
            place=place,
            run_dir=run_dir,
            pids=pids,
            on_gone=partial(self._gone, place),
        )

    async def sweep(self, keep: frozenset[str]) -> int:
        """Of folders that a killed server left, each with what it says of its first process."""
        swept = 0
        for place in sorted(self._rooms.iterdir()):
            if self._live.get(place.name) in {"", *keep}:
                continue
            try:
                note = json.loads((place / _PROCESS).read_text())
                pidfd = _open_if(int(note["pid"]), int(note["started"]))
            except (OSError, ValueError, KeyError, TypeError):
                pidfd = None
            if pidfd is not None:
                try:
                    await _end(pidfd)
                finally:
                    os.close(pidfd)
            self._gone(place)
            swept += 1
        return swept


def _limits(limits: Limits) -> dict[str, int]:
    """What a process of the room may have, where no cgroup counts what all of them have together."""
    more = limits.memory_mb + _DATA_MORE_MB
    return {"processes": limits.pids, "data_mb": more, "file_mb": limits.disk_mb}


def _open_if(pid: int, started: int) -> int | None:
    """A pidfd of the process if it still is the one that started then."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # The pidfd is open, so what is read now is of this process, or the process has ended.
    if not started or start_time(pid) != started or linux.has_ended(pidfd):
        os.close(pidfd)
        return None
    return pidfd


async def _end(pidfd: int) -> None:
    """Kill a room's first process, and so the room. Raises Unavailable if it does not end in time."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), _KILL_TIMEOUT_S)
    except TimeoutError:
        raise Unavailable("A room does not end.") from None
    finally:
        loop.remove_reader(pidfd)
