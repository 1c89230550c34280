"""Joins a user namespace of the server's, and becomes another program as root of that namespace.

python -m roost.isolation.namespaces.within USERNS_FD PROGRAM ARGUMENT...
The program is executed anew, so that its memory belongs to the namespace; it has a network of its own, without an
interface, so that it can come back to it from a room's.
"""

from __future__ import annotations

import os
import sys

from roost.isolation import linux

_PYTHON = (sys.executable, "-P", "-S", "-s", "-B", "-m")


def python(module: str, *arguments: str) -> list[str]:
    """The command that has this interpreter run the module, without more than it needs."""
    return [*_PYTHON, module, *arguments]


def within(userns: int | None, command: list[str]) -> list[str]:
    """The command that has another run there; None: here."""
    return command if userns is None else python("roost.isolation.namespaces.within", str(userns), *command)


def main() -> None:
    userns, *command = sys.argv[1:]
    linux.setns(int(userns), linux.CLONE_NEWUSER)
    os.close(int(userns))
    linux.unshare(linux.CLONE_NEWNET)
    os.execvp(command[0], command)  # noqa: S606 - there is no shell, on purpose


if __name__ == "__main__":
    main()
