"""Memory as an image: what differs, what is made of it, what is refused."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roost.isolation.namespaces.spills import Spills
from roost.isolation.tracing import images
from roost.isolation.tracing.images import Mapping, Part, Range, Run
from roost.isolation.tracing.memory import Unfit
from roost.model.errors import Unavailable

PRESENT, SWAPPED, FILE, DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 55


def plain(begin: int, end: int, rights: str = "rw-p", filled: int = 0, *flags: str) -> Mapping:
    return Mapping(begin << 12, end << 12, rights, 0, "", filled, frozenset(flags))


def file(begin: int, end: int, offset: int, rights: str = "r--p", source: str = "fe:00 7 /lib") -> Mapping:
    return Mapping(begin << 12, end << 12, rights, offset << 12, source, 0, frozenset())


def differing(base: list[Mapping], branch: list[Mapping]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pages of what both have, and of what is made."""
    found = images.segments(base, branch)
    both = [(one.begin >> 12, one.end >> 12) for one in found if one.base is not None]
    return both, [(part.begin >> 12, part.end >> 12) for part in images.parts(found)]


def test_a_name_may_have_all_ends_of_lines_but_one(tmp_path: Path) -> None:
    """That one is the only one that the kernel escapes."""
    with (tmp_path / "a\rb\x0bc\x85d\u2028e").open("w+b") as file:
        file.truncate(images.PAGE)
        with mmap.mmap(file.fileno(), images.PAGE) as mapped:
            mapped[0] = 1
            text = Path("/proc/self/smaps").read_bytes().decode()
    found = images.parse_smaps(text)
    assert len(found) == text.count("VmFlags:") - text.count("[vsyscall]")
    assert [one.rights for one in found if one.source.endswith("e") and str(tmp_path) in one.source] == ["rw-s"]


def test_mappings_are_read_as_the_kernel_writes_them() -> None:
    found = images.parse_smaps(Path("/proc/self/smaps").read_text())
    stack = next(one for one in found if "gd" in one.flags)
    assert stack.filled > 0 and not stack.special and stack.source == ""
    assert any(one.special for one in found) and not any(one.source == "[vsyscall]" for one in found)
    assert any(one.source.endswith("/libc.so.6") or "python" in one.source for one in found)
    assert (
        sum(one.end - one.begin for one in found) >> 12 <= int(Path("/proc/self/statm").read_text().split()[0]) + 1000
    )
    for text in ("", "not a mapping", "0-1000 rw-p 0 0:0 0\nRss: 0 kB\n"):
        with pytest.raises(Unfit, match="can't be told"):
            images.parse_smaps(text)


def test_what_both_have_and_what_is_made() -> None:
    base = [file(0, 10, 0), plain(10, 20), plain(30, 40, "---p")]
    assert differing(base, base) == ([(0, 10), (10, 20), (30, 40)], [])
    assert differing(base, [plain(12, 15)]) == ([(12, 15)], [])  # the rest is gone
    assert differing(base, [plain(5, 25)]) == ([(10, 20)], [(5, 10), (20, 25)])
    assert differing(base, [plain(30, 35), plain(35, 40, "---p")]) == ([(35, 40)], [(30, 35)])  # other rights
    assert differing(base, [file(2, 8, 2), file(8, 10, 9)]) == ([(2, 8)], [(8, 10)])  # another place of the file
    assert differing(base, [file(0, 10, 0, source="fe:00 8 /lib")]) == ([], [(0, 10)])  # another file of that name
    assert differing(base, [plain(10, 20, "rw-p", 0, "gd")]) == ([], [(10, 20)])
    assert differing([], [plain(0, 3), plain(3, 5), plain(5, 6, "r--p")]) == ([], [(0, 5), (5, 6)])


def test_the_kernels_own_and_devices_are_where_they_were_or_refused() -> None:
    vdso = Mapping(4096, 8192, "r-xp", 0, "[vdso]", 4096, frozenset())
    assert images.parts(images.segments([vdso], [vdso])) == ()
    assert images.parts(images.segments([vdso], [])) == ()
    for one in (vdso, plain(1, 2, "rw-p", 0, "io"), plain(1, 2, "rw-p", 0, "ht")):
        with pytest.raises(Unfit, match="can't be written down"):
            images.segments([], [one])


@pytest.mark.parametrize(
    ("old", "new", "copied", "emptied"),
    [
        (PRESENT | 5, PRESENT | 5, False, False),
        (PRESENT | 5 | DIRTY, PRESENT | 5, False, False),
        (PRESENT | 5, PRESENT | 6, True, False),
        (0, PRESENT | 6, True, False),
        (PRESENT | FILE | 5, PRESENT | 6, True, False),
        (PRESENT | 5, 0, False, True),
        (PRESENT | 5, PRESENT | FILE | 6, False, True),  # back to what the file has
        (PRESENT | FILE | 5, 0, False, False),
        (0, PRESENT | FILE | 5, False, False),
        (SWAPPED | 5, SWAPPED | 5, False, False),
        (SWAPPED | 5, PRESENT | 5, True, False),
        (SWAPPED | 5, SWAPPED | 7, True, False),
    ],
)
def test_pages_that_differ(old: int, new: int, copied: bool, emptied: bool) -> None:
    found, gone = images.pages([old], [new], first=7, plain=True)
    assert [run[:2] for run in found] == ([(7, 8)] if copied else [])
    assert gone == ([Run(7, 8, True)] if emptied else [])


def test_runs_of_pages_and_where_zeros_can_be_left_out() -> None:
    base, branch = [0, 0, PRESENT | 1, 0, 0], [PRESENT | 9, PRESENT | 8, PRESENT | 7, 0, PRESENT | 6]
    assert images.pages(base, branch, first=0, plain=True)[0] == [Run(0, 2, True), Run(2, 3, False), Run(4, 5, True)]
    assert images.pages(base, branch, first=0, plain=False)[0] == [Run(0, 3, False), Run(4, 5, False)]


def test_pages_without_numbers_are_refused() -> None:
    """Who may not see them would take all of them for the same."""
    with pytest.raises(Unfit, match="numbers of its pages"):
        images.pages([PRESENT], [PRESENT], first=0, plain=True)


def test_ranges() -> None:
    wanted = (Range(10, 20, 1), Range(20, 30, 3), Range(40, 50, 1))
    assert images.beyond([(0, 5), (8, 32), (35, 45), (50, 60)], wanted) == [
        (0, 5),
        (8, 10),
        (30, 32),
        (35, 40),
        (50, 60),
    ]
    assert images.beyond([(12, 28), (40, 50)], wanted) == []
    assert images.beyond([(0, 5)], ()) == [(0, 5)]
    assert images.merged([Range(0, 1, 3), Range(1, 2, 3), Range(2, 3, 1), Range(4, 5, 1)]) == (
        Range(0, 2, 3),
        Range(2, 3, 1),
        Range(4, 5, 1),
    )
    area = (4 << 12, 6 << 12)
    assert list(images.outside([file(2, 8, 10)], area)) == [file(2, 4, 10), file(6, 8, 14)]
    assert list(images.outside([plain(4, 6), plain(6, 7)], area)) == [plain(6, 7)]


def test_what_is_made_keeps_what_it_is() -> None:
    found = images.segments([], [plain(0, 1, "rw-p", 0, "gd"), plain(1, 2, "---p", 0, "wf")])
    assert images.parts(found) == (
        Part(0, 4096, 3, grows=True),
        Part(4096, 8192, 0, wiped=True),
    )


def test_an_image_that_is_none(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    try:
        for data in (b"", b"roostmem", bytes(5000), struct.pack("<8sIQQI", b"roostmem", 1, 1 << 62, 1 << 62, 0)):
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            with pytest.raises(images.Corrupt):
                images.read_layout(fd)
    finally:
        os.close(fd)


def test_a_place_for_memory_that_can_not_be_opened_is_told() -> None:
    @contextmanager
    def no_more_files() -> Iterator[list[int]]:
        raise OSError(errno.EMFILE, "Too many open files")
        yield []

    spills = Spills(no_more_files)
    with pytest.raises(Unavailable, match="Too many open files"), spills.shelf():
        raise AssertionError("there is one")
    spills.close()
