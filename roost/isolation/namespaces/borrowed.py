"""What a room that a user who isn't root makes has of the host: parts, by path, of directories that its zygote has.

Such a user can't pass mounts into another namespace, so the zygote has the server's directories in its own, at
`/.base/<name>`, until the room's first process leaves that root behind. What the server has opened is named by path,
and its descriptor comes along: what is found at the path, without following a link, has to be the same.
"""

from __future__ import annotations

import os
from dataclasses import replace

from roost.isolation import linux
from roost.isolation.namespaces.request import Order, Request
from roost.isolation.namespaces.targets import attach

_STRICT = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def located(request: Request) -> Request:
    """The same with a detached mount as its layer. Raises OSError."""
    if request.source is None:
        return request
    return replace(request, layer=_tree(*request.source, like=request.layer))


def brought(order: Order) -> Order:
    """The same with detached mounts. Raises OSError."""
    pairs = zip(order.mounts, order.mount_fds, strict=True)
    trees = [fd if mount["source"] is None else _tree(*mount["source"], like=fd) for mount, fd in pairs]
    return replace(order, mount_fds=tuple(trees))


def _tree(base: str, path: str, *, like: int) -> int:
    root = os.open(f"/.base/{base}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = linux.open_beneath(root, path, os.O_PATH | os.O_DIRECTORY, _STRICT)
    finally:
        os.close(root)
    try:
        if not os.path.sameopenfile(found, like):
            raise OSError(116, f"{path} is another directory than it was")
        return linux.clone_tree_at(found, "")
    finally:
        os.close(found)
        os.close(like)


def file_for_mount(directory: int, name: str) -> int:
    """A new empty file, opened, for a file to be mounted on."""
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory))
    return os.open(name, _FILE, dir_fd=directory)


def borrow_devices(names: tuple[str, ...], source: str, target: int) -> None:
    """Nodes of `source` in the directory `target`: who isn't root of the host can't make any."""
    for name in names:
        node = linux.clone_tree(f"{source}/{name}")
        linux.set_mount_attributes(node, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC)
        attach(node, file_for_mount(target, name))
