"""Room kept free on a layer that lasts, so that a room which filled its disk can be started again, and tidied up.

Making a room takes a few blocks and inodes. The blocks that ext4 keeps for root are no help: the host's root may lack
CAP_SYS_RESOURCE. What is kept lies outside the overlay's upper directory, where the room never sees it.
"""

from __future__ import annotations

import contextlib
import os

_INODES = 8
_SIZES = (1 << 20, 1 << 19, 1 << 18, 1 << 17)  # bytes; the first that there is room for


def release(layer: str) -> None:
    """Make what is kept available."""
    with contextlib.suppress(FileNotFoundError):
        for number in range(_INODES):
            os.unlink(f"{layer}/spare/{number}")  # noqa: PTH108 - pathlib costs the zygote's rooms time


def keep(layer: str) -> None:
    """Keep some again, as much as there still is."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{layer}/spare", 0o700)  # noqa: PTH102
        for number in range(_INODES):
            fd = os.open(f"{layer}/spare/{number}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if number == 0:
                    _allocate(fd)
            finally:
                os.close(fd)


def _allocate(fd: int) -> None:
    for size in _SIZES:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            os.ftruncate(fd, 0)
        else:
            return
