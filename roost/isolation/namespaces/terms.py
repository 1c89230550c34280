"""What a driver of rooms tells the helpers: of a template, of a room that is nobody's yet, and of what makes it
somebody's."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Protocol

from roost.isolation import linux
from roost.isolation.driver import MOST_LOWER, ROOT_CAPABILITIES, Mount, RoomSpec, Template
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.room import SOCKETS
from roost.isolation.namespaces.vacant import Shape
from roost.model.errors import InvalidArgument, Unavailable

_ID = re.compile(r"[a-z0-9-]{1,40}")
_BACKLOG = 512  # connections that wait for the guest


class GuestBundle(Protocol):
    """What a driver needs of `roost.isolation.bundle.Bundle`."""

    @property
    def root(self) -> Path: ...

    def command(self, module: str, *args: str) -> list[str]: ...


def check(spec: RoomSpec) -> None:
    """Raises InvalidArgument for what no room can have."""
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


def mounts_of(spec: RoomSpec) -> Sequence[Mount]:
    """All mounts, outer ones before those inside them."""
    mounts = list(spec.mounts)
    if spec.egress_dir is not None:
        mounts.append(Mount(source=spec.egress_dir, target="/run/roost", read_only=True))
    return sorted(mounts, key=lambda mount: mount.target.rstrip("/").count("/"))


def listen(
    run_dir: Path,
    opened: ExitStack,
    undo: AsyncExitStack,
    names: Sequence[str] = SOCKETS,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> list[int]:
    """Bind the room's sockets. Through a descriptor: a socket's path may have 107 bytes only."""
    try:
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"The run directory {run_dir} cannot be used: {error.strerror}.") from error
    opened.callback(os.close, directory)
    listeners = []
    for name in names:
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        opened.callback(sock.close)
        try:
            sock.bind(f"/proc/self/fd/{directory}/{name}")
        except OSError as error:
            raise Unavailable(f"{run_dir / name} cannot be made: {error.strerror}.") from error
        undo.callback((run_dir / name).unlink, missing_ok=True)
        sock.listen(_BACKLOG)
        listeners.append(sock.fileno())
    return listeners


def setup(template: Template, bundle: GuestBundle, guest: str, policy: RoomPolicy) -> list[dict[str, Any]]:
    """What a template's launcher and zygote are told."""
    root = {
        "root": str(template.root),
        "binds": [[str(source), target] for source, target in template.binds],
        "bundle": str(bundle.root),
        "command": bundle.command("roost.isolation.namespaces.zygote"),
        "host": [],
    }
    return [root, {"guest": guest, "preload": list(template.preload), "policy": policy.to_json()}]


def request_of(shape: Shape, *, base: int, cgroup: bool) -> dict[str, Any]:
    """What the zygote is asked for (see `request.Request`)."""
    inner = shape.inner
    return {
        "base": base,
        "kept": shape.kept,
        "bare": shape.bare,
        "binds": [target for _, target in shape.template.binds],
        "open_files": shape.limits.open_files,
        "shm_mb": max(1, shape.limits.memory_mb // 2),
        "capabilities": sorted(linux.CAPABILITIES[name] for name in shape.capabilities),
        "live": shape.live,
        "strict": shape.strict,
        "kernel": None if inner is None else {"flags": list(inner.flags), "command": list(inner.command)},
        "cgroup": cgroup,
        "source": None,
        "processes": None,
        "data_mb": None,
        "file_mb": None,
    }


def order_of(
    spec: RoomSpec, mounts: Sequence[Mount], *, live: bool = False, below: int | None = None
) -> dict[str, Any]:
    """What makes it somebody's (see `request.Order`). `live`: its contexts can be copied; `below`: of a bare room, how
    many layers are below its own."""
    return {
        "live": live,
        "below": below,
        "hostname": spec.id,
        "mounts": [
            {"target": mount.target, "read_only": mount.read_only, "idmap": mount.idmap, "source": None}
            for mount in mounts
        ],
    }
