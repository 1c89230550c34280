"""Control groups of rooms: limits, usage, freezing and killing, on cgroup v2 or on v1 with a v2 tree beside it.

A machine with v1 controllers keeps a v2 tree too (systemd mounts it at /sys/fs/cgroup/unified); freezing and killing
need no controller there. So limits come from whatever tree has the controller, and the rest from v2: one code path.

In the v2 tree a room's processes are in `in`, a group of its own below the room's. What is frozen is `in`; what is
killed, limited and counted is the room's group, in which shadows of the room's contexts are too (see `tracer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from roost.isolation.driver import Usage
from roost.model.errors import Unavailable
from roost.model.function import Limits

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
#: Of disks, by their names in v1 and v2; used where a limit of them is asked for, as each tree costs every start.
BLOCK, IO = "blkio", "io"
_PERIOD_US = 100_000
_REMOVE_TIMEOUT_S = 5.0
#: What only waits stands still within so much; a timer of the event loop takes ten times as long.
_SOON_S, _SOON_TRIES = 0.00005, 6
_MB = 1 << 20
INSIDE = "in"
#: Beside the rooms: what is held of them when they are gone. It is no room's name.
HELD = "held"
_READ_LIMIT = 4096  # of the files that are read here, none has more


@dataclass(frozen=True, kw_only=True)
class Hierarchies:
    """Where the trees are mounted. `v1` maps a controller to its tree; those missing in it are in `unified`."""

    unified: Path
    v1: Mapping[str, Path]
    disks: bool = False  # whether their bandwidth is limited
    former: tuple[Path, ...] = ()  # trees that rooms of an earlier server, with other settings, may be in

    @property
    def v2_controllers(self) -> tuple[str, ...]:
        """Controllers to switch on in the v2 tree."""
        disks = (IO,) if self.disks and BLOCK not in self.v1 else ()
        return (*(name for name in ("memory", "pids", "cpu") if name not in self.v1), *disks)

    @property
    def trees(self) -> tuple[Path, ...]:
        """Every tree once; v1 may have several controllers in one."""
        return tuple(dict.fromkeys((*self.v1.values(), self.unified)))


def parse_mounts(mounts: str, *, disks: bool = False) -> Hierarchies:
    """Find the trees in the text of /proc/self/mounts. Raises Unavailable if there is no v2 tree."""
    former: tuple[Path, ...] = ()
    unified: Path | None = None
    v1: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, target, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and unified is None:
            unified = Path(target)
        elif kind == "cgroup":
            names = set(options.split(","))
            for name in names & {*CONTROLLERS, *((BLOCK,) if disks else ())}:
                v1.setdefault(name, Path(target))
            if BLOCK in names and not disks and not names & set(CONTROLLERS):
                former = (Path(target),)
    if unified is None:
        raise Unavailable(
            "No cgroup v2 tree is mounted: mkdir -p /sys/fs/cgroup/unified && "
            "mount -t cgroup2 none /sys/fs/cgroup/unified."
        )
    return Hierarchies(unified=unified, v1=v1, disks=disks, former=former)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value to be written into a cgroup. `optional`: not every kernel has the file."""

    controller: str
    file: str
    value: str
    optional: bool = False


def settings(limits: Limits, hierarchies: Hierarchies) -> list[Setting]:
    """The values that hold a room to its limits, in the order in which they must be written."""
    memory = str(limits.memory_mb * _MB)
    quota = str(max(1000, round(limits.cpu * _PERIOD_US)))
    chosen = [Setting(controller="pids", file="pids.max", value=str(limits.pids))]
    if "memory" in hierarchies.v1:
        chosen += [
            Setting(controller="memory", file="memory.limit_in_bytes", value=memory),
            # Memory and swap together; absent without swap accounting.
            Setting(controller="memory", file="memory.memsw.limit_in_bytes", value=memory, optional=True),
        ]
    else:
        chosen += [
            Setting(controller="memory", file="memory.max", value=memory),
            Setting(controller="memory", file="memory.swap.max", value="0", optional=True),
        ]
    if "cpu" in hierarchies.v1:
        chosen += [
            Setting(controller="cpu", file="cpu.cfs_period_us", value=str(_PERIOD_US)),
            Setting(controller="cpu", file="cpu.cfs_quota_us", value=quota),
        ]
    else:
        chosen.append(Setting(controller="cpu", file="cpu.max", value=f"{quota} {_PERIOD_US}"))
    return chosen


def disk_settings(device: int, mb_per_s: int, hierarchies: Hierarchies) -> list[Setting]:
    """That hold a room to so much a second of one disk, in each direction. `device` is as in `st_dev`."""
    name, most = f"{os.major(device)}:{os.minor(device)}", mb_per_s * _MB
    if BLOCK not in hierarchies.v1:
        return [Setting(controller=IO, file="io.max", value=f"{name} rbps={most} wbps={most}")]
    return [
        Setting(controller=BLOCK, file=f"blkio.throttle.{way}_bps_device", value=f"{name} {most}")
        for way in ("read", "write")
    ]


def parse_flat(text: str) -> dict[str, int]:
    """Parse a flat keyed file of a cgroup (`name number` lines)."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _frozen(directory: Path) -> int | None:
    """1: what is in it stands still."""
    return parse_flat((directory / "cgroup.events").read_text()).get("frozen")


def _is_soon(directory: Path, wanted: int) -> bool:
    for _ in range(_SOON_TRIES):
        if _frozen(directory) == wanted:
            return True
        time.sleep(_SOON_S)
    return False


class Cgroup:
    """The cgroups of one room, one directory in each tree, and in the v2 tree one for its own processes below it."""

    def __init__(self, name: str, parent: str, hierarchies: Hierarchies) -> None:
        self.name = name
        self._hierarchies = hierarchies
        self._path = f"{parent}/{name}"

    def write(self, setting: Setting) -> None:
        """Write one value; plain calls, since a room's start waits for it."""
        path = self._file(setting.controller, setting.file)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if setting.optional:
                return
            raise
        try:
            os.write(fd, setting.value.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(fd)

    def limit_disk(self, device: int, mb_per_s: int) -> None:
        """Raises Unavailable."""
        try:
            for setting in disk_settings(device, mb_per_s, self._hierarchies):
                self.write(setting)
        except OSError as error:
            raise Unavailable(f"The room's disk can't be limited ({error.strerror}: {error.filename}).") from error

    def directory(self, controller: str = "") -> Path:
        """The room's directory in the tree that has this controller; the v2 tree without one."""
        return self._hierarchies.v1.get(controller, self._hierarchies.unified) / self._path

    @property
    def inside(self) -> Path:
        """Where the room's own processes are, in the v2 tree."""
        return self.directory() / INSIDE

    @contextlib.contextmanager
    def join_fds(self) -> Iterator[list[int]]:
        """Descriptors: first `inside`, to be forked into; a process that writes `0` to each other has joined.

        Those are the `tasks` files of v1: they move one thread, and spare the wait that moving a thread group takes.
        """
        with self.joining(INSIDE) as fds:
            yield fds

    @contextlib.contextmanager
    def joining(self, part: str) -> Iterator[list[int]]:
        """As `join_fds`, of this part of its group in the v2 tree."""
        fds: list[int] = []
        try:
            fds.append(os.open(self.directory() / part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for tree in set(self._hierarchies.v1.values()):
                fds.append(os.open(tree / self._path / "tasks", os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def contains(self, pid: int) -> bool:
        """Whether the process is one of the room's own."""
        try:
            return str(pid) in (self.inside / "cgroup.procs").read_text().split()
        except OSError:
            return False

    def processes(self) -> list[int]:
        """The room's own."""
        return [int(pid) for pid in (self.inside / "cgroup.procs").read_text().split()]

    async def freeze(self, *, timeout_s: float = 5.0) -> None:
        """Stop every process of the room from running; returns when all have stopped."""
        await self._set_frozen(True, timeout_s)

    async def thaw(self, *, timeout_s: float = 5.0) -> None:
        await self._set_frozen(False, timeout_s)

    def is_frozen(self) -> bool:
        """Whether the room was told to stand still."""
        return self._read("", f"{INSIDE}/cgroup.freeze").strip() == "1"

    async def _set_frozen(self, frozen: bool, timeout_s: float) -> None:
        directory = self.inside
        wanted = int(frozen)
        deadline = time.monotonic() + timeout_s
        try:
            (directory / "cgroup.freeze").write_text(str(wanted))
            if _is_soon(directory, wanted):
                return
            while _frozen(directory) != wanted:
                if time.monotonic() > deadline:
                    raise Unavailable(f"The room {self.name} did not {'freeze' if frozen else 'thaw'} in time.")
                await asyncio.sleep(0.001)
        except FileNotFoundError:
            return  # the room has gone
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def kill(self) -> None:
        """Send SIGKILL to every process of the room."""
        with contextlib.suppress(FileNotFoundError):
            try:
                (self.directory() / "cgroup.kill").write_text("1")
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise

    def usage(self) -> Usage:
        """What the room has used; zeros for what can no longer be read."""
        if "memory" in self._hierarchies.v1:
            memory, peak = self._number("memory", "memory.usage_in_bytes"), "memory.max_usage_in_bytes"
            oom_kills = self._flat("memory", "memory.oom_control").get("oom_kill", 0)
        else:
            memory, peak = self._number("memory", "memory.current"), "memory.peak"
            oom_kills = self._flat("memory", "memory.events").get("oom_kill", 0)
        if "cpuacct" in self._hierarchies.v1:
            cpu_us = self._number("cpuacct", "cpuacct.usage") // 1000
        else:
            cpu_us = self._flat("", "cpu.stat").get("usage_usec", 0)
        return Usage(
            cpu_us=cpu_us,
            memory_bytes=memory,
            memory_peak_bytes=self._number("memory", peak),
            pids=self._number("pids", "pids.current"),
            oom_kills=oom_kills,
        )

    def anonymous(self) -> int:
        """Bytes that are charged to the room and are no cache; 0 for what can no longer be read."""
        name = "rss" if "memory" in self._hierarchies.v1 else "anon"
        return self._flat("memory", "memory.stat").get(name, 0)

    def _file(self, controller: str, name: str) -> str:
        return f"{self._hierarchies.v1.get(controller, self._hierarchies.unified)}/{self._path}/{name}"

    def _read(self, controller: str, file: str) -> str:
        """Plain calls here too: each change of an instance's state reads its usage."""
        try:
            fd = os.open(self._file(controller, file), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            return os.read(fd, _READ_LIMIT).decode()
        except OSError:
            return ""
        finally:
            os.close(fd)

    def _number(self, controller: str, file: str) -> int:
        text = self._read(controller, file).strip()
        return int(text) if text.isdigit() else 0

    def _flat(self, controller: str, file: str) -> dict[str, int]:
        return parse_flat(self._read(controller, file))

    async def remove(self, *, timeout_s: float = _REMOVE_TIMEOUT_S) -> None:
        """Kill what is left in the room and remove its directories. Raises Unavailable if that takes too long."""
        deadline = time.monotonic() + timeout_s
        trees = *self._hierarchies.trees, *self._hierarchies.former
        for directory in (self.inside, *(tree / self._path for tree in trees)):
            while not _remove(directory):
                self.kill()  # each time: one that was being forked may have come late
                if time.monotonic() > deadline:
                    raise Unavailable(f"The cgroup {directory} is still in use.")
                await asyncio.sleep(0.001)


def _remove(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


class Cgroups:
    """The rooms' parent directory in each tree, `roost-<tag>`, one for each data directory."""

    def __init__(self, hierarchies: Hierarchies, tag: str) -> None:
        self._hierarchies = hierarchies
        self._parent = f"roost-{tag}"

    @classmethod
    def detect(cls, tag: str, *, disks: bool = False) -> Cgroups:
        """`disks`: their bandwidth is to be limited. Raises Unavailable with what to do if this machine's cgroups
        cannot hold rooms."""
        found = parse_mounts(Path("/proc/self/mounts").read_text(), disks=disks)
        if disks and BLOCK not in found.v1 and IO not in (found.unified / "cgroup.controllers").read_text().split():
            raise Unavailable(
                "This machine's cgroups can't limit disks: mount the blkio controller, or leave out room_io_mb_per_s."
            )
        return cls(found, tag)

    @property
    def parents(self) -> tuple[Path, ...]:
        """The parent directory in each tree."""
        return tuple(tree / self._parent for tree in self._hierarchies.trees)

    def prepare(self) -> None:
        """Make the parents, with the controllers of a v2 tree switched on. Raises Unavailable."""
        try:
            for tree in self._hierarchies.trees:
                (tree / self._parent).mkdir(exist_ok=True)
                (tree / self._parent / HELD).mkdir(exist_ok=True)
            wanted = " ".join(f"+{name}" for name in self._hierarchies.v2_controllers)
            if wanted:
                for directory in (self._hierarchies.unified, self._hierarchies.unified / self._parent):
                    (directory / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            raise Unavailable(
                f"The cgroups of this machine cannot be used ({error.strerror}: {error.filename}): run Roost as root "
                "on the host, or in a container with a cgroup tree of its own that is writable."
            ) from error

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Make a room's cgroups and write its limits. Raises Unavailable; nothing is left behind then."""
        cgroup = self.get(name)
        made: list[Path] = []
        try:
            for tree in self._hierarchies.trees:
                directory = tree / self._parent / name
                directory.mkdir()
                made.append(directory)
            cgroup.inside.mkdir()
            made.append(cgroup.inside)
            for setting in settings(limits, self._hierarchies):
                cgroup.write(setting)
        except OSError as error:
            for directory in reversed(made):
                directory.rmdir()
            raise Unavailable(f"The cgroup {name} could not be made ({error.strerror}: {error.filename}).") from error
        return cgroup

    def get(self, name: str) -> Cgroup:
        return Cgroup(name, self._parent, self._hierarchies)

    def names(self) -> set[str]:
        """Names of the cgroups that exist in any tree."""
        found: set[str] = set()
        for tree in self._hierarchies.trees:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in (tree / self._parent).iterdir() if entry.is_dir())
        return found - {HELD}

    @contextlib.contextmanager
    def held_fds(self) -> Iterator[list[int]]:
        """As `Cgroup.join_fds`, of where a process outlives the room that it was of. What is charged to that stays
        charged to it."""
        with self.get(HELD).joining("") as fds:
            yield fds

    async def remove_parents(self) -> None:
        """End what is held. Remove the parents if no room is left."""
        with contextlib.suppress(Unavailable):
            await self.get(HELD).remove()
        for tree in (*self._hierarchies.trees, *self._hierarchies.former):
            with contextlib.suppress(OSError):
                (tree / self._parent).rmdir()
