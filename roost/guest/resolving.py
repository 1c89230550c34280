"""Tells programs of the room whom to ask for names, where there is somebody who answers."""

from __future__ import annotations

import contextlib
import os

_FILE = "/etc/resolv.conf"


def name_resolver(address: str, file: str = _FILE) -> None:
    """Write what name resolution reads. A layer that prevents it hurts itself only."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        fd = os.open(file, flags, 0o644)
        try:
            os.write(fd, f"nameserver {address}\n".encode())
        finally:
            os.close(fd)
