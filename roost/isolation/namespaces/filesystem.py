"""A room's file system, put together from its template, its layer and what the host passed in.

Every mount is attached to a descriptor that was reached without following links, since a kept layer may have been
prepared by hostile code. Runs in the room's first process, as root of the host in the room's own mount namespace.
"""

from __future__ import annotations

import contextlib
import os
import stat

from roost.isolation import linux
from roost.isolation.namespaces import spare
from roost.isolation.namespaces.borrowed import borrow_devices
from roost.isolation.namespaces.overlays import LAYER, Overlays
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.request import Order, Request
from roost.isolation.namespaces.targets import DIRECTORY, attach, open_directory

_SAFE = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_OTHERS = 0o007  # permission bits for everyone else
_TTY_GROUP = 5
_PTYS = 64
RUN_MB = 16
_PARTS = "/.room/parts"
PARTS = ("dev", "proc", "run")
_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def make_parts(request: Request, policy: RoomPolicy) -> None:
    """Put together what a room has of its own whatever its root stands on: `make_root` moves it there. A kernel of its
    own provides that itself."""
    owner = request.base if policy.user_namespace else 0
    # Files made from here on belong to the room's root; capabilities stay, for the overlay works with this
    # process' credentials as they are when it is mounted.
    linux.prctl(linux.PR_SET_SECUREBITS, linux.SECBIT_NO_SETUID_FIXUP)
    linux.set_fs_ids(owner, owner)
    os.umask(0o022)
    if request.kernel is not None:
        return
    parts = os.open(_PARTS, DIRECTORY)
    _proc(parts, policy, _devices(parts, request, owner, policy))
    os.close(_tmpfs(parts, "run", size=f"{RUN_MB}m", mode="755", inodes=4096, owner=owner))
    os.close(parts)


def make_root(request: Request, policy: RoomPolicy, lower: tuple[int, ...] = ()) -> None:
    """After `make_parts`. Put together at /.room/root what the room's file system has whoever it is for; it is the
    working directory then."""
    userns = request.userns if policy.idmapped else None
    safe = linux.MOUNT_ATTR_NODEV | (linux.MOUNT_ATTR_NOSUID if policy.no_setuid else 0)
    overlays = Overlays(request.layer, lower, userns, safe, by_user=policy.by_user)
    if request.kept:
        spare.release(LAYER)
    root = overlays.root()
    for number, target in enumerate(request.binds):
        overlays.bind(root, number, target)
    if request.kernel is None:
        for name in PARTS:
            attach(os.open(f"{_PARTS}/{name}", DIRECTORY), open_directory(root, name))
    else:
        for name in ("sys", *PARTS):
            os.close(open_directory(root, name))
    _sticky(root, "tmp")
    _bundle(root, userns)
    os.fchdir(root)


def furnish(request: Request, order: Order, policy: RoomPolicy) -> int:
    """Put in what is this room's own; the working directory is its root, which is returned, opened."""
    userns = request.userns if policy.idmapped else None
    root = os.open(".", DIRECTORY)
    safe = linux.MOUNT_ATTR_NODEV | (linux.MOUNT_ATTR_NOSUID if policy.no_setuid else 0)
    for mount_fd, mount in zip(order.mount_fds, order.mounts, strict=True):
        attributes = safe | (linux.MOUNT_ATTR_RDONLY if mount["read_only"] else 0)
        linux.set_mount_attributes(mount_fd, attributes, userns if mount["idmap"] else None)
        attach(mount_fd, open_directory(root, mount["target"]))
    _network_files(root, order.hostname)
    if request.kept:
        spare.keep(LAYER)
    return root


def _tmpfs(root: int, target: str, *, size: str, mode: str, inodes: int, owner: int, devices: bool = False) -> int:
    options = {"size": size, "mode": mode, "nr_inodes": str(inodes), "uid": str(owner), "gid": str(owner)}
    attributes = linux.MOUNT_ATTR_NOSUID | (0 if devices else linux.MOUNT_ATTR_NODEV)
    mount = linux.new_mount("tmpfs", {**options}, attributes)
    opened = os.open(".", DIRECTORY, dir_fd=mount)
    attach(mount, open_directory(root, target))
    return opened


def _devices(root: int, request: Request, owner: int, policy: RoomPolicy) -> int:
    """A /dev of the room's own; it returns /dev, opened."""
    dev = _tmpfs(root, "dev", size="64k", mode="755", inodes=64, owner=owner, devices=True)
    if policy.by_user:
        borrow_devices(tuple(DEVICES), "/dev", dev)
    else:
        os.umask(0)
        for name, (major, minor) in DEVICES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
        os.umask(0o022)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, name, dir_fd=dev)
    group = owner if policy.by_user else owner + _TTY_GROUP  # who has few ids has no such group
    terminals = {"ptmxmode": "666", "mode": "620", "gid": str(group), "max": str(_PTYS)}
    attach(linux.new_mount("devpts", {**terminals}, linux.MOUNT_ATTR_NOSUID), open_directory(dev, "pts"))
    _tmpfs(dev, "shm", size=f"{request.shm_mb}m", mode="1777", inodes=4096, owner=owner)
    return dev


def _proc(root: int, policy: RoomPolicy, dev: int) -> None:
    """/proc of the room's pid namespace, without what tells of the host."""
    attributes = _SAFE | linux.MOUNT_ATTR_NOEXEC | (linux.MOUNT_ATTR_RDONLY if policy.proc_read_only else 0)
    mount = linux.new_mount("proc", {}, attributes)
    proc = os.open(".", DIRECTORY, dir_fd=mount)
    attach(mount, open_directory(root, "proc"))
    for name in policy.masked:
        try:
            entry = os.open(name, _ANY, dir_fd=proc)
        except FileNotFoundError:
            continue
        _cover(entry, dev, only_open=policy.user_namespace)
    if policy.hide_boot_id:
        _own_boot_id(proc, dev)
    os.close(proc)
    os.close(dev)


def _cover(target: int, dev: int, *, only_open: bool) -> None:
    """Put an empty directory or the null device over an entry of /proc."""
    mode = os.fstat(target).st_mode
    if only_open and not mode & _OTHERS:
        os.close(target)
    elif stat.S_ISDIR(mode):
        attach(linux.clone_tree("/.base/empty"), target)
    else:
        attach(linux.clone_tree_at(dev, "null"), target)


def _own_boot_id(proc: int, dev: int) -> None:
    """The host's boot id would link rooms of one machine: each room has its own."""
    raw = os.urandom(16).hex()
    text = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
    name = ".boot-id"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=dev)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)
    cover = linux.clone_tree_at(dev, name)
    linux.set_mount_attributes(cover, _SAFE | linux.MOUNT_ATTR_NOEXEC | linux.MOUNT_ATTR_RDONLY)
    attach(cover, os.open("sys/kernel/random/boot_id", _ANY, dir_fd=proc))
    os.unlink(name, dir_fd=dev)


def _sticky(root: int, name: str) -> None:
    directory = open_directory(root, name)
    os.chmod(f"/proc/self/fd/{directory}", 0o1777)  # noqa: PTH101, S103
    os.close(directory)


def _bundle(root: int, userns: int | None) -> None:
    bundle = linux.clone_tree("/.roost")
    linux.set_mount_attributes(bundle, _SAFE | linux.MOUNT_ATTR_RDONLY, userns)
    attach(bundle, open_directory(root, ".roost"))


def _network_files(root: int, hostname: str) -> None:
    """Files that name resolution reads; the room may change them later. A layer that prevents it hurts itself only."""
    etc = open_directory(root, "etc")
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.0.1\t{hostname}\n"
    for name, text in (("hosts", hosts), ("resolv.conf", ""), ("hostname", f"{hostname}\n")):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=etc)
        with contextlib.suppress(IsADirectoryError, FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o644, dir_fd=etc)
            os.write(fd, text.encode())
            os.close(fd)
    os.close(etc)
