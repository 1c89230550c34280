"""A fork that writes to as little as possible of the memory that it shares."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import select
import struct
import threading

#: The C library's own, with the interpreter's lock held.
_libc = ctypes.PyDLL(None, use_errno=True)


def fork() -> int:
    """`os.fork` for a process that has one thread and holds no lock, as the guest's own are. Raises OSError.

    Python's own calls every hook that a library has registered, which make locks anew that nobody can hold and clear
    caches: each new process would copy half a megabyte for that, and take a millisecond more. What matters of them is
    done here: the child has random numbers of its own.
    """
    if threading.active_count() != 1:
        return os.fork()
    pid: int = _libc.fork()
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if pid == 0:
        random.seed()
    return pid


def sleeps(pid: int) -> bool:
    """Whether a process waits for something."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as about:  # noqa: PTH123 - a path object costs more than the look
            return about.read(512).rpartition(b")")[2].split()[0] == b"S"
    except (OSError, IndexError):
        return False


def wait_for_input(fd: int) -> bool:
    """Until something can be read, or the end of it. False if the wait was broken off, as it is in a copy of this
    process. The interpreter's lock is held all the time. Raises OSError.
    """
    wanted = ctypes.create_string_buffer(struct.pack("ihh", fd, select.POLLIN, 0), 8)
    if _libc.poll(wanted, ctypes.c_ulong(1), ctypes.c_int(-1)) >= 0:
        return True
    number = ctypes.get_errno()
    if number != errno.EINTR:
        raise OSError(number, os.strerror(number))
    return False
