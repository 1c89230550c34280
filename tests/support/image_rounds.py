"""Memory that is changed at random, written to an image and made again: run as a program, as it holds tasks.

    python -m tests.support.image_rounds SEED DIRECTORY

It ends with status 0 if each time all memory was the same after as before, and nothing is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roost.isolation.tracing import images, shadows, shelving
from roost.isolation.tracing.shadows import Shadow
from roost.isolation.tracing.tracee import AREA, Tracee
from roost.isolation.tracing.x86_64 import CALLS, Call

PAGE = 4096
PLAIN = 0x22  # MAP_PRIVATE, MAP_ANONYMOUS
FIXED = 0x10
REGION = 0x5000_0000_0000  # where nothing else is
ROUNDS = 12
CALLS |= {"mprotect": 10, "mremap": 25}


class Rounds:
    def __init__(self, seed: int, directory: Path) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.file = directory / "mapped"
        self.file.write_bytes(self.random.randbytes(40 * PAGE + 100))
        self.base = self._base()

    def _base(self) -> Shadow:
        """A process that waits, with memory of each kind: at REGION plain one, a file's, and some without rights."""
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
            libc.mmap(REGION, 64 * PAGE, 3, PLAIN | FIXED, -1, 0)
            ctypes.memmove(REGION, self.random.randbytes(48 * PAGE), 48 * PAGE)
            libc.mmap(REGION + 64 * PAGE, 32 * PAGE, 3, 2 | FIXED, os.open(self.file, os.O_RDONLY), 4 * PAGE)
            for page in range(64, 96, 3):
                ctypes.memmove(REGION + page * PAGE, self.random.randbytes(100), 100)
            libc.mmap(REGION + 96 * PAGE, 64 * PAGE, 0, PLAIN | FIXED, -1, 0)
            libc.mmap(REGION + 160 * PAGE, 8 * PAGE, 3, 0x21 | FIXED, -1, 0)  # shared
            ctypes.memmove(REGION + 160 * PAGE, self.random.randbytes(PAGE), PAGE)
            os.write(told, b"1")
            select.poll().poll()
            os._exit(0)
        os.read(ready, 1)
        return shadows.hold(pid, os.pidfd_open(pid), 0, 0)

    def run(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(ROUNDS):
            made, _ = shadows.branch(self.base, -1)
            self.change(made)
            self.there_and_back(made).close()
        self.base.close()
        assert len(os.listdir("/proc/self/fd")) == before - 1, os.listdir("/proc/self/fd")
        with contextlib.suppress(ChildProcessError):
            raise AssertionError(f"a task is left: {os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | 0x40000000)}")

    def change(self, made: Shadow) -> None:
        within = made.tracee.within(made.area)
        changes: list[Callable[[Tracee], object]] = [
            self._write, self._write, self._empty, self._unmap, self._protect, self._map, self._map_file, self._heap,
            self._move, self._wipe, self._stack,
        ]  # fmt: skip
        for _ in range(self.random.randrange(1, 30)):
            with contextlib.suppress(OSError):  # what is not there can't be changed
                self.random.choice(changes)(within)
        within.close()

    def _place(self, most: int = 12) -> tuple[int, int]:
        size = self.random.randrange(1, most)
        return REGION + self.random.randrange(-8, 170) * PAGE, size * PAGE

    def _write(self, within: Tracee) -> None:
        at, size = self._place(40)
        within.write(at + self.random.randrange(PAGE), self.random.randbytes(size))

    def _empty(self, within: Tracee) -> None:
        within.call("madvise", *self._place(), 4)

    def _unmap(self, within: Tracee) -> None:
        within.call("munmap", *self._place())

    def _protect(self, within: Tracee) -> None:
        within.call("mprotect", *self._place(), self.random.choice((0, 1, 3, 5, 7)))

    def _map(self, within: Tracee) -> None:
        near_area = self.random.random() < 0.2
        at = within.insn + AREA if near_area else self._place()[0]
        size = self._place()[1]
        within.call(
            "mmap", at, size, self.random.choice((0, 1, 3, 7)), PLAIN | (0x100000 if near_area else FIXED), -1, 0
        )
        if self.random.random() < 0.7:
            within.write(at, self.random.randbytes(size // 2))

    def _map_file(self, within: Tracee) -> None:
        path = os.fsencode(self.file) + b"\0"
        (fd,), _ = within.run([Call("open", (path, os.O_RDONLY))])
        at, size = self._place(20)
        within.call("mmap", at, size, 3, 2 | FIXED, fd, self.random.randrange(45) * PAGE)
        within.call("close", fd)
        within.write(at, b"changed")

    def _heap(self, within: Tracee) -> None:
        now = within.call("brk", 0)
        within.call("brk", now + self.random.randrange(-8, 40) * PAGE + self.random.randrange(100))
        if (later := within.call("brk", 0)) > now:
            within.write(now, self.random.randbytes(later - now))

    def _move(self, within: Tracee) -> None:
        at, size = self._place()
        within.call("mremap", at, size, size, 3, self._place()[0])

    def _wipe(self, within: Tracee) -> None:
        within.call("madvise", *self._place(), 18)

    def _stack(self, within: Tracee) -> None:
        stack = next(one for one in _mappings(within.pid) if "gd" in one.flags)
        size = self.random.randrange(1, 8) * PAGE
        within.call("mmap", stack.begin - size, size, 3, PLAIN | 0x100 | FIXED, -1, 0)
        within.write(stack.begin - size, self.random.randbytes(size))

    def there_and_back(self, made: Shadow) -> Shadow:
        before = _all(made)
        source = shelving.look(made, self.base)
        image = os.open(self.directory, os.O_RDWR | os.O_TMPFILE, 0o600)
        size = images.write(images.Source(*source, area=(made.area, made.area + AREA)), image, 1 << 30)
        assert size == os.fstat(image).st_size < 4 << 20, size
        assert _all(made) == before
        shelved = shelving.shelve(made)
        made.close()
        for fd in source:
            os.close(fd)
        again = shelving.unshelve(shelved, self.base, images.read_layout(image))
        memory = os.open(f"/proc/{again.tracee.pid}/mem", os.O_RDWR)
        images.restore(image, memory)
        os.close(memory)
        os.close(image)
        after = _all(again)
        differing = [hex(at) for at in before.keys() | after.keys() if before.get(at) != after.get(at)]
        assert not differing, (
            sorted(differing)[:20],
            [before.get(int(differing[0], 16)), after.get(int(differing[0], 16))],
        )
        within = again.tracee.within(again.area)
        assert within.call("brk", 0) == shelved.brk
        return again


def _mappings(pid: int) -> list[images.Mapping]:
    return images.parse_smaps(Path(f"/proc/{pid}/smaps").read_text())


def _all(shadow: Shadow) -> dict[int, Any]:
    """Rights, kind and content of each page."""
    found: dict[int, Any] = {}
    for one in images.outside(_mappings(shadow.tracee.pid), (shadow.area, shadow.area + AREA)):
        for at in range(one.begin, one.end, PAGE):
            content = b"" if one.special else _page(shadow.tracee, at)
            found[at] = one.rights, one.flags & {"gd", "wf"}, content
    shadow.tracee.close()
    return found


def _page(tracee: Tracee, at: int) -> bytes:
    try:
        return tracee.read(at, PAGE)
    except OSError:  # behind the end of a file; plain memory has zeros there
        return bytes(PAGE)


if __name__ == "__main__":
    Rounds(int(sys.argv[1]), Path(sys.argv[2])).run()
