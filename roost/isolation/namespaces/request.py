"""One room, as the zygote is asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """Descriptors are sent in the order of `FDS`, then `joins`, then `mount_fds`."""

    hostname: str
    base: int  # host id of the room's id 0
    kept: bool  # the layer outlives the room
    binds: tuple[str, ...]  # targets of the template's binds
    mounts: tuple[dict[str, Any], ...]  # target, read_only, idmap; in the order of `mount_fds`
    open_files: int
    shm_mb: int
    cgroup: int  # of the v2 tree
    userns: int
    netns: int
    layer: int
    guest: int
    app: int
    status: int
    joins: tuple[int, ...]
    mount_fds: tuple[int, ...]

    FDS = ("cgroup", "userns", "netns", "layer", "guest", "app", "status")

    @classmethod
    def parse(cls, message: dict[str, Any], fds: list[int]) -> Request:
        fixed = dict(zip(cls.FDS, fds, strict=False))
        after = len(cls.FDS) + message["joins"]
        return cls(
            hostname=message["hostname"],
            base=message["base"],
            kept=message["kept"],
            binds=tuple(message["binds"]),
            mounts=tuple(message["mounts"]),
            open_files=message["open_files"],
            shm_mb=message["shm_mb"],
            joins=tuple(fds[len(cls.FDS) : after]),
            mount_fds=tuple(fds[after:]),
            **fixed,
        )
