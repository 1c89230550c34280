"""A fork that writes to as little as possible of the memory that it shares."""

from __future__ import annotations

import ctypes
import os
import random
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
