"""Which file a client means by a path. Pure."""

from __future__ import annotations

import posixpath

from roost.guest.sandbox.identities import User


class BadPath(ValueError):
    """The path names nothing that could exist."""


def resolve(path: str, user: User, workdir: str) -> str:
    """Absolute: `~` is the user's home, and so is where relative paths start. An empty path is `workdir`, else home.

    What is absolute already stays as it is, as envd leaves it. Raises BadPath.
    """
    if "\0" in path:
        raise BadPath("path contains a NUL")
    path = path or workdir
    if path.startswith("~"):
        if path[1:2] not in ("", "/", "\\"):
            raise BadPath(
                f"failed to expand path '{path}' for user '{user.name}': cannot expand user-specific home dir"
            )
        path = posixpath.normpath(posixpath.join(user.home, path[1:].lstrip("/")))
    if path.startswith("/"):
        return path
    return posixpath.normpath(posixpath.join(user.home, path))
