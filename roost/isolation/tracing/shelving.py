"""A branch without its memory: what is kept of it while that is an image, and how it is made a branch again.

Its memory is made of a copy of its base's, in which mappings are changed as the image's layout says. The pages that the
image has are written by others, while this process serves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roost.isolation.tracing import images
from roost.isolation.tracing.memory import parse_maps
from roost.isolation.tracing.shadows import Shadow, ready
from roost.isolation.tracing.tracee import AREA, Refused, Tracee
from roost.isolation.tracing.x86_64 import SYSCALL, Call

_FIXED = 0x4032  # MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE
_GROWS = 0x100
_ALL = 7
_WIPE_ON_FORK, _DONT_NEED = 18, 4
_AT_ONCE = 100  # calls, as many as the area has room for


@dataclass(frozen=True)
class Shelved:
    """`shadow` is the record of one whose task has ended; `brk` where its heap ended."""

    shadow: Shadow
    brk: int


def look(shadow: Shadow, base: Shadow) -> list[int]:
    """Open files, as `images.Source` has them. Raises Refused if it is no branch, OSError."""
    if shadow.resident or not shadow.area:
        raise Refused("that is no branch")
    pid, other = shadow.tracee.pid, base.tracee.pid
    opened: list[int] = []
    try:
        for path in (f"{pid}/smaps", f"{pid}/pagemap", f"{pid}/mem", f"{other}/smaps", f"{other}/pagemap"):
            opened.append(os.open(f"/proc/{path}", os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return opened


def shelve(shadow: Shadow) -> Shelved:
    """What is to be kept of a branch; its task is the caller's to end. Raises Refused, OSError."""
    if shadow.resident or not shadow.area:
        raise Refused("that is no branch")
    within = shadow.tracee.within(shadow.area)
    return Shelved(replace(shadow, pidfd=-1), within.call("brk", 0))


def unshelve(shelved: Shelved, base: Shadow, layout: images.Layout) -> Shadow:
    """A branch of what was shelved, whose pages are still to be written. Raises images.Corrupt if there can't be one by
    this image, Refused, OSError."""
    shadow = shelved.shadow
    copy = ready(base)
    pid, within = copy.tracee.pid, copy.tracee.within(shadow.area)
    try:
        if shadow.area != base.area:
            copy.tracee.call("mmap", shadow.area, AREA, _ALL, _FIXED, -1, 0)
            within.write(shadow.area, SYSCALL)
        # Before all others: a heap that grows later would find the place taken, and the allocator of C with it.
        if within.call("brk", shelved.brk) != shelved.brk:
            raise images.Corrupt("its heap can't be where it was")
        calls = list(_changes(images.beyond(_mapped(pid), layout.wanted), layout))
        for first in range(0, len(calls), _AT_ONCE):
            within.run(calls[first : first + _AT_ONCE])
        if _rights(pid) != layout.wanted:
            raise images.Corrupt("its memory can't be made as it was")
    except BaseException:
        copy.close()
        raise
    finally:
        within.close()
    return replace(shadow, tracee=Tracee(pid, shadow.tracee.insn, shadow.tracee.base), pidfd=copy.pidfd)


def _changes(gone: Sequence[tuple[int, int]], layout: images.Layout) -> Iterator[Call]:
    for begin, last in gone:
        yield Call("munmap", (begin, last - begin))
    for part in layout.made:
        flags = _FIXED | (_GROWS if part.grows else 0)
        size = part.end - part.begin
        yield Call("mmap", (part.begin, size, part.protection, flags, -1, 0))
        if part.wiped:
            yield Call("madvise", (part.begin, size, _WIPE_ON_FORK))
    for begin, last in layout.emptied:
        yield Call("madvise", (begin, last - begin, _DONT_NEED))


def _maps(pid: int) -> list[images.Range]:
    found = parse_maps(Path(f"/proc/{pid}/maps").read_bytes().decode(errors="replace"))
    return [images.Range(one.begin, one.end, one.protection) for one in found if one.name != "[vsyscall]"]


def _mapped(pid: int) -> list[tuple[int, int]]:
    return [(one.begin, one.end) for one in _maps(pid)]


def _rights(pid: int) -> tuple[images.Range, ...]:
    return images.merged(_maps(pid))
