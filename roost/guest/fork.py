"""A fork that writes to as little as possible of the memory that it shares, and the wait in which the host copies."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import operator
import os
import random
import select
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

#: What `poll` of one descriptor never returns by itself: the host's word for it that this is a copy.
COPIED = 2
#: The C library's own, with the interpreter's lock held.
_libc = ctypes.PyDLL(None, use_errno=True)
_readable, _nothing = partial(bool, True), type(None)
#: Makes the interpreter's lock anew, among other things; see CPython's `os.fork`.
after_fork_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
after_fork_in_child.restype = None


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


def report() -> None:
    """Print what user code has raised where nobody waits for it."""
    with contextlib.suppress(Exception):
        traceback.print_exc()


def sleeps(pid: int) -> bool:
    """Whether a process waits for something."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as about:  # noqa: PTH123 - a path object costs more than the look
            return about.read(512).rpartition(b")")[2].split()[0] == b"S"
    except (OSError, IndexError):
        return False


def wait_for_input(fd: int, in_copy: Callable[[], None] = _nothing, said: bytes = b"") -> bool:
    """Until something can be read from a socket, or the end of it. False: this is a copy of the process by now, in
    which `in_copy`, a function of C, was called first of all. The interpreter's lock is held all the time. `said` is
    sent when nothing is left to do but to wait. Raises OSError.
    """
    wanted = ctypes.create_string_buffer(struct.pack("ihh", fd, select.POLLIN, 0), 8)
    then: dict[int, Callable[[], Any]] = {1: _readable, COPIED: in_copy}
    size, sent = ctypes.c_size_t(len(said)), list[int]()
    while True:
        # All of it is C. Between two steps of Python, the lock is let go if a thread has asked for it: then this one
        # would not wait here when it is copied, and the copy would wait for that thread, which it has not.
        try:
            says = map(_libc.send, (fd,), (said,), (size,), (socket.MSG_NOSIGNAL,)) if said and not sent else ()
            waits = map(_libc.poll, (wanted,), (ctypes.c_ulong(1),), (ctypes.c_int(-1),))
            waits = map(operator.call, map(then.get, waits, (ctypes.get_errno,)))
            found: Any = list(chain(map(sent.append, says), waits))[-1]
        except (Exception, KeyboardInterrupt):  # of a signal's handler, which is user code
            report()
            found = errno.EINTR
        if found is None or found is True:
            return found is True
        if found != errno.EINTR:
            raise OSError(found, os.strerror(found))
