"""Builds a zygote's root file system in a mount namespace of its own, then becomes the zygote.

Runs as root: python -m roost.isolation.namespaces.launcher SOCKET_FD
The first message on the socket is `{"root", "binds": [[source, target]], "bundle", "command": [...], "host": [[name,
source]]}`. Where it has a `host`, its root is that of a user namespace alone (see `unprivileged.realm`).

    /.roost          the guest bundle
    /.base/root      the template's root, /.base/0, /.base/1 ... its binds: what rooms clone
    /.room/...       empty directories where a room's own mounts are put together, in the room's namespace only
    /.base/<name>    directories of the host, of which rooms take parts by path; where there is a `host` only
    everything else  the template, so that the zygote can import modules of it ahead
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

from roost.isolation import linux
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.borrowed import file_for_mount
from roost.isolation.namespaces.filesystem import DEVICES, PARTS
from roost.isolation.namespaces.memory_file import MALLOC
from roost.isolation.namespaces.overlays import options
from roost.isolation.namespaces.targets import DIRECTORY, attach, open_directory

READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


def build_root(root: str, binds: list[list[str]], bundle: str, host: list[list[str]]) -> None:
    """Make the root described above and pivot into it."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.make_mounts_private()
    # All sources are opened before anything is covered: they may lie anywhere.
    template = linux.clone_tree(root)
    sources = [linux.clone_tree(source) for source, _ in binds]
    bundle_fd = linux.clone_tree(bundle)
    for fd in (template, *sources, bundle_fd):
        linux.set_mount_attributes(fd, READ_ONLY)
    given = [(name, linux.clone_tree(source)) for name, source in host]
    for _, fd in given:
        linux.set_mount_attributes(fd, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    borrowed = {name: linux.clone_tree(f"/dev/{name}") for name in DEVICES} if host else {}
    proc = linux.clone_whole_tree("/proc") if host else linux.new_mount("proc", {})
    stage = Path(bundle)  # any directory would do: it is covered in this namespace only
    attach(linux.new_mount("tmpfs", {"size": "1m", "mode": "755"}, linux.MOUNT_ATTR_NODEV), _open(stage))
    bases = ["root", *map(str, range(len(sources)))]
    for name in (*(f"base/{base}" for base in bases), "upper", "work", "merged", "empty"):
        (stage / name).mkdir(parents=True)
    for base, tree in zip(bases, (template, *sources), strict=True):
        attach(tree, _open(stage / "base" / base))
    layers = {"lowerdir": f"{stage}/base/root", "upperdir": f"{stage}/upper", "workdir": f"{stage}/work"}
    overlay = linux.new_mount("overlay", {**layers, **(options(by_user=True) if host else {})})
    merged = os.open(".", DIRECTORY, dir_fd=overlay)
    attach(overlay, _open(stage / "merged"))
    for base, (_, target) in zip(bases[1:], binds, strict=True):
        _clone(stage / "base" / base, merged, target)
    for base in bases:
        _clone(stage / "base" / base, merged, f".base/{base}")
        os.close(open_directory(merged, f".room/lower/{base}"))
    _clone(stage / "empty", merged, ".base/empty")
    for name in ("layer", "below", "root", "kernel", *(f"parts/{part}" for part in PARTS)):
        os.close(open_directory(merged, f".room/{name}"))
    attach(bundle_fd, open_directory(merged, ".roost"))
    for name, fd in given:
        attach(fd, open_directory(merged, f".base/{name}"))
    attach(proc, open_directory(merged, "proc"))
    _devices(merged, borrowed)
    os.fchdir(merged)
    linux.pivot_root(b".", b".")
    linux.unmount(b".")
    os.chdir("/")
    os.close(merged)


def _open(path: Path) -> int:
    return os.open(path, DIRECTORY)


def _clone(source: Path, root: int, target: str) -> None:
    tree = linux.clone_tree(str(source))
    linux.set_mount_attributes(tree, READ_ONLY)
    attach(tree, open_directory(root, target))


def _devices(root: int, borrowed: dict[str, int]) -> None:
    """The one device that the zygote needs, or those that rooms borrow, on a file system of its own: the template's
    /dev may be anything."""
    device = linux.new_mount("tmpfs", {"size": "64k", "mode": "755"}, linux.MOUNT_ATTR_NOSUID)
    opened = os.open(".", DIRECTORY, dir_fd=device)
    attach(device, open_directory(root, "dev"))
    for name, fd in borrowed.items():
        attach(fd, file_for_mount(opened, name))
    if not borrowed:
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=opened)
    os.close(opened)


def main() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    sock = socket.socket(fileno=int(sys.argv[1]))
    received = wire.receive(sock)
    if received is None:
        return
    request: dict[str, Any] = received[0]
    try:
        build_root(request["root"], request["binds"], request["bundle"], request["host"])
        sock.set_inheritable(True)
        command = [*request["command"], str(sock.fileno())]
        os.execve(command[0], command, MALLOC)  # noqa: S606 - there is no shell, on purpose
    except OSError as error:
        with contextlib.suppress(OSError):
            wire.send(sock, {"error": f"{error.strerror} ({error.filename})" if error.filename else error.strerror})
        sys.exit(1)


if __name__ == "__main__":
    main()
