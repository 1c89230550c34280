"""Gives back pages of memory that are again what they were in the zygote, so that idle processes share them.

To use an object is to count it, in its own memory: so a process soon has a page of its own for whatever it has looked
at. Most of these counts go down again, and then the page is what it was, byte for byte.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: Without anything to do, before it is worth the time: some milliseconds, then and when the memory is used again.
QUIET_S = 30.0
_PAGE = 4096
_libc = ctypes.PyDLL(None)
_libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_OWN = 0b100  # of an entry of pagemap, the first three bits: in memory, not swapped, not a file's


class _Original(NamedTuple):
    device: bytes
    inode: bytes
    view: int
    size: int
    give_back: Callable[[int, int], int]


_known: list[_Original] = []  # one; or none, and then there is nothing to share


def know(device: str, inode: str, view: int, size: int, give_back: Callable[[int, int], int]) -> None:
    """Of the zygote, to those that are forked from it: the file that its memory is mapped from, as `/proc/self/maps`
    names it, and where all of that can be read, at addresses of this process.

    `give_back` takes the address of pairs of addresses, of a page and of what it was, and how many pairs there are:
    where both are the same, the page is given back. Nothing else is executed meanwhile. It returns how many these were.
    """
    _known[:] = [_Original(device.encode(), inode.encode(), view, size, give_back)]


def give_back() -> int:
    """How many pages were. None in a process with several threads, which could write to what is just compared; whoever
    has the kernel write to memory later (`io_submit`) has to have it in memory that was not the zygote's.

    Whatever fails, it is only that nothing is given back: raises no Exception."""
    if not _known:
        return 0
    collects, blocked = gc.isenabled(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # raises what a handler does that was due
        gc.disable()  # what would be freed now could be memory that is looked at
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            return 0
        [original] = _known
        pairs = _candidates(original)
        given = original.give_back(pairs.buffer_info()[0], len(pairs) // 2)
        _libc.madvise(original.view, original.size, mmap.MADV_DONTNEED)  # what was seen there has taken page tables
    except Exception:  # no /proc, no descriptor, no memory, or whatever code of the room does when something is opened
        return 0
    finally:
        if collects:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return given


def _candidates(known: _Original) -> array[int]:
    """Addresses of pages that this process has written to, each with that of what the zygote had there."""
    found = array("Q")
    kernels = _place_of_the_kernels()
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
            match line.split():
                case [where, b"rw-p", offset, known.device, known.inode, *_]:
                    begin, end = (int(address, 16) for address in where.split(b"-"))
                    before = known.view + int(offset, 16) - begin
                    entries = os.pread(pagemap, (end - begin) // _PAGE * 8, begin // _PAGE * 8)
                    for number, entry in enumerate(memoryview(entries).cast("Q")):
                        address = begin + number * _PAGE
                        if entry >> 61 == _OWN and address != kernels:
                            found.extend((address, before + address))
    finally:
        os.close(pagemap)
    return found


def _place_of_the_kernels() -> int:
    """The page that the kernel writes to when it likes: on which processor the thread runs, see rseq(2)."""
    try:
        offset = ctypes.c_ssize_t.in_dll(_libc, "__rseq_offset").value
    except ValueError:  # a C library that knows nothing of it
        return 0
    return (threading.get_ident() + offset) // _PAGE * _PAGE
