"""One room, as the zygote is asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """Descriptors are sent in the order of `FDS`, then `joins`, `lower` and `mount_fds`."""

    hostname: str
    base: int  # host id of the room's id 0
    kept: bool  # the layer outlives the room
    binds: tuple[str, ...]  # targets of the template's binds
    mounts: tuple[dict[str, Any], ...]  # target, read_only, idmap; in the order of `mount_fds`
    open_files: int
    shm_mb: int
    capabilities: frozenset[int]  # that the room's root keeps
    strict: bool  # the guest is executed, and nothing of the zygote is left
    cgroup: int  # of the v2 tree
    userns: int
    netns: int
    layer: int
    guest: int
    app: int
    status: int
    joins: tuple[int, ...]
    lower: tuple[int, ...]  # mounts of the layers below the room's own, newest first
    mount_fds: tuple[int, ...]

    FDS = ("cgroup", "userns", "netns", "layer", "guest", "app", "status")

    @classmethod
    def parse(cls, message: dict[str, Any], fds: list[int]) -> Request:
        fixed = dict(zip(cls.FDS, fds, strict=False))
        joined = len(cls.FDS) + message["joins"]
        after = joined + message["lower"]
        return cls(
            hostname=message["hostname"],
            base=message["base"],
            kept=message["kept"],
            binds=tuple(message["binds"]),
            mounts=tuple(message["mounts"]),
            open_files=message["open_files"],
            shm_mb=message["shm_mb"],
            capabilities=frozenset(message["capabilities"]),
            strict=message["strict"],
            joins=tuple(fds[len(cls.FDS) : joined]),
            lower=tuple(fds[joined:after]),
            mount_fds=tuple(fds[after:]),
            **fixed,
        )
