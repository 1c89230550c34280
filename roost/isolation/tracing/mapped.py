"""What is mapped in a process' memory, as far as it is judged before a copy: asked of the kernel, mapping by mapping.

Since Linux 6.11 there is a question for that (PROCMAP_QUERY, see fs/proc/task_mmu.c); before, all mappings are read,
which takes more than a millisecond for a process with some libraries.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from roost.isolation.tracing.memory import MOST_SHARED, Mapping, parse_maps

_QUERY = struct.Struct("<9Q 4I 2Q")  # size, flags, address; begin, end and rights of what is found; more
_ASK = 3 << 30 | _QUERY.size << 16 | ord("f") << 8 | 17
_SHARED, _OR_NEXT = 0x08, 0x10
_RIGHTS = ((0x01, "r"), (0x02, "w"), (0x04, "x"))


def judged_by(pid: int, address: int) -> list[Mapping]:
    """The mapping with an address, and those that are shared, in order; others may be among them, and the last of too
    many shared ones are not. Raises OSError, Unfit."""
    fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd, errors="replace", newline="\n") as maps:
        try:
            return _asked(fd, address)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
        return parse_maps(maps.read())


def _asked(fd: int, address: int) -> list[Mapping]:
    found: list[Mapping] = []
    nothing_more = contextlib.suppress(FileNotFoundError)
    with nothing_more:
        found.append(_ask(fd, address, 0))
    with nothing_more:
        at = 0
        while len(found) <= MOST_SHARED + 1:
            found.append(_ask(fd, at, _SHARED | _OR_NEXT))
            at = found[-1].end
    return sorted(set(found), key=lambda one: one.begin)


def _ask(fd: int, address: int, flags: int) -> Mapping:
    asked = bytearray(_QUERY.pack(_QUERY.size, flags, address, *[0] * 12))
    fcntl.ioctl(fd, _ASK, asked)
    _, _, _, begin, end, has, *_ = _QUERY.unpack(asked)
    rights = "".join(letter if has & bit else "-" for bit, letter in _RIGHTS)
    return Mapping(f"{begin:x}", f"{end:x}", rights + ("s" if has & _SHARED else "p"), "")
