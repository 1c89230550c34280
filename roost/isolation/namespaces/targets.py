"""Places where mounts go, opened without following a link: templates and kept layers may have been made to mislead."""

from __future__ import annotations

import os

from roost.isolation import linux

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def attach(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount on what `target_fd` refers to; both descriptors are closed."""
    try:
        linux.move_mount(mount_fd, target_fd)
    finally:
        os.close(target_fd)
        os.close(mount_fd)


def open_directory(root: int, target: str) -> int:
    """Open a directory of the room, making what is missing and following no link.

    What stands where the last part belongs, and is no directory, is replaced in the room's layer: a kept layer must not
    be able to prevent its own mounts. In the way there, it is an error.
    """
    parts = [part for part in target.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise OSError(22, f"{target} is no mount target")
    current = os.dup(root)
    for number, part in enumerate(parts):
        try:
            following = _enter_directory(current, part, replace=number == len(parts) - 1)
        except NotADirectoryError:
            raise OSError(20, f"{target}: {part} is a link or a file") from None
        finally:
            os.close(current)
        current = following
    return current


def _enter_directory(parent: int, name: str, *, replace: bool) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, dir_fd=parent)
    except NotADirectoryError:
        if not replace:
            raise
        os.unlink(name, dir_fd=parent)
        os.mkdir(name, dir_fd=parent)
    return os.open(name, DIRECTORY, dir_fd=parent)
