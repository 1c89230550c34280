"""Loop devices: a file as a block device, which the kernel releases with the last mount of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from itertools import chain
from pathlib import Path

from roost.model.errors import Unavailable

_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
_TRIES = 50
#: Bytes of one device that may wait to be written. The kernel writes them back at nobody's expense: a room that filled
#: its disk again and again had others wait for a processor. So it has half a gigabyte a second, not two.
_MOST_WAITING = 8 << 20
#: Device and inode of the image that a device had when it was last looked at. There can be a thousand of them.
_images: dict[str, tuple[int, int]] = {}


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
                _images[device] = _identity(os.fstat(image_fd))
                _bound(Path(f"/sys/block/loop{number}/bdi"))
                return device, device_fd
            except OSError as error:
                os.close(device_fd)
                if error.errno != errno.EBUSY:  # another process took this number meanwhile
                    raise
    finally:
        os.close(control)
    raise Unavailable(f"No loop device was free in {_TRIES} tries.")


def device_of(path: Path) -> str | None:
    """The loop device that has this image; None if it is not attached."""
    try:
        wanted, image = str(path.resolve()), _identity(path.stat())
    except FileNotFoundError:
        return None
    known = [device for device, had in list(_images.items()) if had == image]
    for device in chain(known, (f"/dev/{block.name}" for block in Path("/sys/block").glob("loop*"))):
        with contextlib.suppress(OSError):
            if Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().rstrip("\n") == wanted:
                _images[device] = image
                return device
    return None


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def _bound(bdi: Path) -> None:
    """It stays when the image goes. Linux 6.2 has it, and it takes root."""
    with contextlib.suppress(OSError):
        (bdi / "strict_limit").write_text("1")
        (bdi / "max_bytes").write_text(str(_MOST_WAITING))


def unbound() -> None:
    """Have those that are free as the machine's other programs expect them."""
    for bdi in Path("/sys/block").glob("loop*/bdi"):
        with contextlib.suppress(OSError):
            if not (bdi.parent / "loop").exists() and (bdi / "strict_limit").read_text().strip() == "1":
                (bdi / "max_ratio").write_text("100")
                (bdi / "strict_limit").write_text("0")


def _configuration(image_fd: int) -> bytes:
    """`struct loop_config`: fd, block size, `struct loop_info64` of which only the flags are set, reserved."""
    info = struct.pack("QQQQQIIII64s64s32sQQ", 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0)
    return struct.pack("II", image_fd, 0) + info + bytes(64)
