"""One room, as the zygote is asked for it, and as its first process is told the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: On the status pipe: the guest runs. Anything else is why it does not.
ENTERED = b"."


@dataclass(frozen=True, kw_only=True)
class Request:
    """A room that is nobody's yet. Descriptors are sent in the order of `FDS`, then `layer` unless it is bare, `cgroup`
    and `joins`."""

    base: int  # host id of the room's id 0
    kept: bool  # the layer outlives the room
    bare: bool  # what its root stands on comes with the order
    binds: tuple[str, ...]  # targets of the template's binds
    open_files: int
    shm_mb: int
    capabilities: frozenset[int]  # that the room's root keeps
    live: bool  # its contexts can be copied
    strict: bool  # the guest is executed, and nothing of the zygote is left
    kernel: dict[str, Any] | None  # that the guest runs on (see `gvisor.inside`); None: the host's
    #: Where `layer` is below what the zygote has of the host (see `borrowed`), which is a directory then;
    #: None: `layer` is a detached mount.
    source: tuple[str, str] | None
    processes: int | None  # limits that a room without cgroups has instead
    data_mb: int | None
    file_mb: int | None
    cgroup: int | None  # of the v2 tree
    userns: int
    netns: int
    layer: int  # -1 if it is bare
    order: int  # a socket on which the rest comes
    status: int
    joins: tuple[int, ...]

    FDS = ("userns", "netns", "order", "status")

    @classmethod
    def parse(cls, message: dict[str, Any], fds: list[int]) -> Request:
        fixed = dict(zip(cls.FDS, fds, strict=False))
        rest = fds[len(cls.FDS) :]
        layer = -1 if message["bare"] else rest.pop(0)
        cgroup = rest.pop(0) if message["cgroup"] else None
        return cls(
            base=message["base"],
            kept=message["kept"],
            bare=message["bare"],
            layer=layer,
            binds=tuple(message["binds"]),
            open_files=message["open_files"],
            shm_mb=message["shm_mb"],
            capabilities=frozenset(message["capabilities"]),
            live=message["live"],
            strict=message["strict"],
            kernel=message["kernel"],
            source=None if message["source"] is None else tuple(message["source"]),
            processes=message["processes"],
            data_mb=message["data_mb"],
            file_mb=message["file_mb"],
            cgroup=cgroup,
            joins=tuple(rest),
            **fixed,
        )


@dataclass(frozen=True, kw_only=True)
class ShadowRequest:
    """A process that waits to be held, and copied into rooms."""

    waits: int  # a socket; it ends when nobody has the other end
    open_files: int
    kernel: None = None
    processes: None = None
    data_mb: None = None
    file_mb: None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """What makes it somebody's. Descriptors are sent in the order `guest`, `app`, `live` if it has that, `layer` and
    `lower` if it is bare, `mount_fds`, then the kernel's program, and the memory that it begins with."""

    hostname: str
    mounts: tuple[dict[str, Any], ...]  # target, read_only, idmap, source as above; in the order of `mount_fds`
    guest: int
    app: int
    live: int  # a socket by which contexts are handed over, or a kernel is asked for copies; -1 without
    layer: int  # of a bare room; else -1
    lower: tuple[int, ...]  # mounts of the layers below its own, newest first
    mount_fds: tuple[int, ...]
    program: int  # a detached mount of it; -1 without one
    image: int = -1  # a detached mount with a copy of another room, which this one is to go on as

    @classmethod
    def parse(cls, message: dict[str, Any], fds: list[int]) -> Order:
        guest, app, *rest = fds
        live = rest.pop(0) if message["live"] else -1
        below = message["below"]
        layer = -1 if below is None else rest.pop(0)
        lower, rest = tuple(rest[: below or 0]), rest[below or 0 :]
        count = len(message["mounts"])
        return cls(
            hostname=message["hostname"],
            mounts=tuple(message["mounts"]),
            guest=guest,
            app=app,
            live=live,
            layer=layer,
            lower=lower,
            mount_fds=tuple(rest[:count]),
            program=rest[count] if len(rest) > count else -1,
            image=rest[count + 1] if len(rest) > count + 1 else -1,
        )
