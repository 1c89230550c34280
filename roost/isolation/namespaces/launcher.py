"""Builds a zygote's root file system in a mount namespace of its own, then becomes the zygote.

Runs as root: python -m roost.isolation.namespaces.launcher SOCKET_FD
The first message on the socket is `{"root", "binds": [[source, target]], "bundle", "command": [...]}`.

    /.roost          the guest bundle
    /.base/root      the template's root, /.base/0, /.base/1 ... its binds: what rooms clone
    /.room/...       empty directories where a room's own mounts are put together, in the room's namespace only
    everything else  the template, so that the zygote can import modules of it ahead
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from roost.isolation import linux
from roost.isolation.namespaces import wire

READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


def build_root(root: str, binds: list[list[str]], bundle: str) -> None:
    """Make the root described above and pivot into it."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.make_mounts_private()
    # All sources are opened before anything is covered: they may lie anywhere.
    template = linux.clone_tree(root)
    sources = [linux.clone_tree(source) for source, _ in binds]
    bundle_fd = linux.clone_tree(bundle)
    for fd in (template, *sources, bundle_fd):
        linux.set_mount_attributes(fd, READ_ONLY)
    stage = Path(bundle)  # any directory would do: it is covered in this namespace only
    _attach(linux.new_mount("tmpfs", {"size": "1m", "mode": "755"}, linux.MOUNT_ATTR_NODEV), stage)
    for name in ("base/root", *(f"base/{number}" for number in range(len(sources))), "upper", "work", "merged"):
        (stage / name).mkdir(parents=True)
    _attach(template, stage / "base/root")
    for number, source in enumerate(sources):
        _attach(source, stage / "base" / str(number))
    merged = stage / "merged"
    layers: dict[str, str | None] = {
        "lowerdir": f"{stage}/base/root",
        "upperdir": f"{stage}/upper",
        "workdir": f"{stage}/work",
    }
    _attach(linux.new_mount("overlay", layers), merged)
    for number, (_, target) in enumerate(binds):
        _attach(linux.clone_tree(f"{stage}/base/{number}"), _directory(merged, target), READ_ONLY)
    for name in ("root", *map(str, range(len(sources)))):
        _attach(linux.clone_tree(f"{stage}/base/{name}"), _directory(merged, f".base/{name}"), READ_ONLY)
        _directory(merged, f".room/lower/{name}")
    _attach(bundle_fd, _directory(merged, ".roost"))
    for name in (".room/layer", ".room/root"):
        _directory(merged, name)
    _attach(linux.new_mount("proc", {}), _directory(merged, "proc"))
    _attach(linux.clone_tree("/dev/null"), _null(merged))
    os.chdir(merged)
    linux.pivot_root(b".", b".")
    linux.unmount(b".")
    os.chdir("/")


def _directory(root: Path, target: str) -> Path:
    path = root / target.lstrip("/")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _null(root: Path) -> Path:
    path = _directory(root, "dev") / "null"
    path.touch()
    return path


def _attach(mount_fd: int, target: Path, attributes: int = 0) -> None:
    if attributes:
        linux.set_mount_attributes(mount_fd, attributes)
    target_fd = os.open(target, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    linux.move_mount(mount_fd, target_fd)
    os.close(target_fd)
    os.close(mount_fd)


def main() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    sock = socket.socket(fileno=int(sys.argv[1]))
    received = wire.receive(sock)
    if received is None:
        return
    request: dict[str, Any] = received[0]
    try:
        build_root(request["root"], request["binds"], request["bundle"])
        sock.set_inheritable(True)
        command = [*request["command"], str(sock.fileno())]
        os.execve(command[0], command, {})  # noqa: S606 - there is no shell, on purpose
    except OSError as error:
        with contextlib.suppress(OSError):
            wire.send(sock, {"error": f"{error.strerror} ({error.filename})" if error.filename else error.strerror})
        sys.exit(1)


if __name__ == "__main__":
    main()
