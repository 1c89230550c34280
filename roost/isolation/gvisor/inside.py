"""What runsc sees of the machine: a file system of its own, with the room's put together in it, and nothing else.

    /runsc            the program
    /bundle           config.json
    /room             the room's root file system
    /state, /tmp      for runsc
    /proc, /dev/null  of the room

Runs in the room's first process, as root of the host in the room's own mount namespace.
"""

from __future__ import annotations

import json
import os
import stat

from roost.isolation import linux
from roost.isolation.gvisor.oci import Kernel, configuration
from roost.isolation.namespaces.filesystem import RUN_MB
from roost.isolation.namespaces.request import Order, Request
from roost.isolation.namespaces.targets import DIRECTORY, attach, open_directory

_PLACE = "/.room/kernel"
_NAMES = {number: name for name, number in linux.CAPABILITIES.items()}


def surround(room: int, request: Request, order: Order) -> None:
    """Make that file system around the room's root, and work in it. Raises OSError."""
    options: dict[str, str | None] = {"size": "4m", "mode": "755", "nr_inodes": "256"}
    options |= {"uid": str(request.base), "gid": str(request.base)}
    made = linux.new_mount("tmpfs", options, linux.MOUNT_ATTR_NOSUID)
    root = os.open(".", DIRECTORY, dir_fd=made)
    attach(made, os.open(_PLACE, DIRECTORY))
    # Where it is empty, gVisor puts a file system in memory, without a limit and gone with the room. The guest, which
    # is the first that runs, takes this away.
    os.close(open_directory(room, "tmp/.roost-occupied"))
    attach(room, open_directory(root, "room"))
    attach(linux.new_mount("proc", {}, linux.MOUNT_ATTR_NOSUID), open_directory(root, "proc"))
    _write(root, "runsc", b"")
    attach(order.program, os.open("runsc", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root))
    for name in ("state", "tmp", "etc", "dev"):
        os.close(open_directory(root, name))
    os.umask(0)
    os.mknod("dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=root)
    os.umask(0o022)
    if order.image >= 0:
        safe = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC | linux.MOUNT_ATTR_RDONLY
        linux.set_mount_attributes(order.image, safe, request.userns)
    bundle = open_directory(root, "bundle")
    os.close(bundle)
    _write(root, "bundle/config.json", json.dumps(_configuration(request, order)).encode())
    os.fchdir(root)


def _configuration(request: Request, order: Order) -> object:
    assert request.kernel is not None
    return configuration(
        Kernel(flags=tuple(request.kernel["flags"]), command=tuple(request.kernel["command"])),
        hostname=order.hostname,
        capabilities=[_NAMES[number] for number in request.capabilities],
        open_files=request.open_files,
        shm_mb=request.shm_mb,
        run_mb=RUN_MB,
        mounts=[(mount["target"], mount["read_only"]) for mount in order.mounts],
    )


def _write(root: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=root)
    os.write(fd, data)
    os.close(fd)
