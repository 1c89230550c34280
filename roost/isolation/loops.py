"""Loop devices: a file as a block device, which the kernel releases with the last mount of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from roost.model.errors import Unavailable

_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
_TRIES = 50


def configure(image_fd: int) -> tuple[str, int]:
    """A loop device over the image, and a descriptor of it that keeps it until it is mounted.

    It can be written if the image's descriptor can. Raises OSError, or Unavailable.
    """
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"This machine has no loop devices ({error.strerror}): modprobe loop.") from error
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _GET_FREE)
            device = f"/dev/loop{number}"
            device_fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device_fd, _CONFIGURE, _configuration(image_fd))
                return device, device_fd
            except OSError as error:
                os.close(device_fd)
                if error.errno != errno.EBUSY:  # another process took this number meanwhile
                    raise
    finally:
        os.close(control)
    raise Unavailable(f"No loop device was free in {_TRIES} tries.")


def device_of(path: Path) -> str | None:
    """The loop device that has this image."""
    wanted = str(path.resolve())
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text().rstrip("\n") == wanted:
                return f"/dev/{file.parents[1].name}"
    return None


def _configuration(image_fd: int) -> bytes:
    """`struct loop_config`: fd, block size, `struct loop_info64` of which only the flags are set, reserved."""
    info = struct.pack("QQQQQIIII64s64s32sQQ", 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0)
    return struct.pack("II", image_fd, 0) + info + bytes(64)
