"""Puts what a zygote has in memory into a file that it maps, so that a fork of it copies next to nothing.

Of memory that is a process' own, a fork copies an entry for each page, and the child gives all of them back at its end.
Of a file that it maps, a child finds the pages when it uses them, sixteen at a time, and gets a page of its own where
it writes, as ever. So forks take a fraction of the time, and so do copies of what they have become.

The price: who gives such memory back with MADV_DONTNEED finds there what the zygote had, not zeros; who has a mapping
of it grow (mremap) finds what comes next in the file, or nothing. No library that a zygote has in memory does the first
and counts on zeros. The second is what the C library does with large blocks of `malloc`, so a zygote is started with
`MALLOC`, by which these are in the heap, as they are in any process that has used and freed a large one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from roost.isolation.tracing.images import Mapping, parse_smaps, protection_of
from roost.isolation.tracing.memory import Unfit
from roost.isolation.tracing.x86_64 import GIVE_BACK, MACHINE, Call, assemble

#: Environment of a process that is to call `map_own_memory`: thresholds as the C library itself has them in the end.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864"}
_AREA = 4096
_MOST = 1 << 30  # bytes of one mapping: as much as one call writes
_READ_WRITE_EXECUTE = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
_PRIVATE_FIXED = 0x12
_FAILED = ctypes.c_size_t(-1).value  # of mmap
#: Nobody changes the file any more: neither what it holds, nor its size, nor these seals.
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
#: Of a mapping that is nothing but memory, by the kernel's names. What is more would be lost.
_PLAIN = frozenset({"rd", "wr", "mr", "mw", "me", "ac", "sd", "hg"})


class Original(NamedTuple):
    """By which a fork knows, for all of its life, what it began with: see `roost.guest.dedup.know`."""

    device: str
    inode: str
    view: int
    size: int
    give_back: Callable[[int, int], int]


def map_own_memory() -> Original | None:
    """Once, in a process of one thread that was started with `MALLOC`. None: it can't be had here, and nothing has
    changed. Raises OSError where the file can't be sealed, or memory is at its end."""
    if os.uname().machine != MACHINE or os.environ.get("GLIBC_TUNABLES") != MALLOC["GLIBC_TUNABLES"]:
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # of the C library that knows these, or there is none
        area = mmap.mmap(-1, _AREA, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, _READ_WRITE_EXECUTE)
        wanted = [
            one for one in parse_smaps(Path("/proc/self/smaps").read_bytes().decode(errors="replace")) if is_wanted(one)
        ]
        file = os.memfd_create("roost-zygote", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError, Unfit):
        return None
    try:
        offset = replaced = 0
        for one in wanted:
            replaced += _replace(area, one, file, offset)
            offset += one.end - one.begin  # what is adjacent in both is one mapping afterwards
        if not replaced:
            return None
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        return _original(file, offset)
    finally:
        area.close()
        os.close(file)


def _original(file: int, size: int) -> Original:
    libc = ctypes.CDLL(None)
    word, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype, libc.mmap.argtypes = word, (word, word, number, number, number, ctypes.c_long)
    libc.mprotect.argtypes = (word, word, number)
    view = libc.mmap(0, size, mmap.PROT_READ, mmap.MAP_PRIVATE, file, 0)
    code = libc.mmap(0, _AREA, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if _FAILED in (view, code):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    ctypes.memmove(code, GIVE_BACK, len(GIVE_BACK))
    if libc.mprotect(code, _AREA, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    device, inode = os.fstat(file).st_dev, os.fstat(file).st_ino
    name = f"{os.major(device):02x}:{os.minor(device):02x}"
    return Original(name, str(inode), view, size, ctypes.CFUNCTYPE(word, word, word)(code))


def is_wanted(mapping: Mapping) -> bool:
    """Whether it is memory of the process' own, most of which it uses. Pure."""
    size = mapping.end - mapping.begin
    plain = mapping.rights in ("rw-p", "r--p") and mapping.flags <= _PLAIN
    return plain and mapping.own > 0 and size <= min(2 * mapping.filled, _MOST)


def _replace(area: mmap.mmap, mapping: Mapping, file: int, offset: int) -> bool:
    """Between the two calls nothing else is executed, so nothing that is written is lost. False: the first one failed,
    as where memory is at its end, or was given back since; the mapping stays."""
    size = mapping.end - mapping.begin
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    calls = (
        Call("pwrite64", (file, mapping.begin, size, offset), expect=size),
        Call("mmap", (mapping.begin, size, protection_of(mapping.rights), _PRIVATE_FIXED, file, offset)),
    )
    program = assemble.__wrapped__(base, calls, returns=True)  # no need to remember it
    area[: len(program.image)] = program.image
    ctypes.CFUNCTYPE(None)(program.start)()
    return len(program.results(area[: program.results_size])) == len(calls)
