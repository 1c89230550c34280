"""Memory of a branch as a file: what differs from the memory of its base, a held process that both are copies of.

Pages that are the same page of the machine's at the same address are not in it. Mappings that the base has not, or has
otherwise, are in it with all that they hold, as plain memory: also those of files, which may have changed by the time
that the memory is wanted again. What decides (`compare`, `pages`) is pure.

An image is a header, blocks of pages, a table of these, and the layout, which is all that the tracer reads. The header
is written last, so what is incomplete is none.
"""

from __future__ import annotations

import bisect
import errno
import itertools
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from roost.isolation.tracing.memory import MOST_MAPPINGS, Unfit

PAGE = 4096
MOST_CHANGES = 10_000  # of mappings, each of which is a system call when the memory is made again
_MOST_SCANNED = 16 << 30  # bytes of addresses
_PIECE = 1 << 20
_BITS_SWAPPED, _BITS_PRESENT, _BITS_OF_FILE = 1 << 62, 1 << 63, 1 << 61
_NUMBER = (1 << 55) - 1
_WHICH = _BITS_SWAPPED | _BITS_PRESENT | _NUMBER
_MAGIC = b"roostmem"
_VERSION = 1
_HEADER = struct.Struct("<8sI")  # magic, version; then where layout and table are
_TABLE = struct.Struct("<QQI")  # offset, length, checksum
_NOTHING = bytes(_PIECE)
_GROWS, _WIPED = "gd", "wf"  # of the kernel's names for what a mapping is: a stack; empty after a fork
_UNREAD = {"io", "pf", "ht"}  # a device's, or of huge pages


class Corrupt(Exception):
    """The file is no image, or not all of one."""


class Mapping(NamedTuple):
    """As /proc/<pid>/smaps has it. `source`: device, inode and name; of plain memory "", and offset 0. `filled`: bytes
    that it has pages for; `own`: of these, what is not a file's that is only seen there."""

    begin: int
    end: int
    rights: str
    offset: int
    source: str
    filled: int
    flags: frozenset[str]
    own: int = 0

    @property
    def special(self) -> bool:
        """The kernel's own: code and clocks that each process has."""
        return self.source.startswith("[v")

    def like(self, other: Mapping | None) -> bool:
        """Whether both are parts of the same at the same place."""
        return (
            other is not None
            and (self.rights, self.source, self.flags & {_GROWS, _WIPED})
            == (other.rights, other.source, other.flags & {_GROWS, _WIPED})
            and (not self.source or self.offset - self.begin == other.offset - other.begin)
        )


class Part(NamedTuple):
    """Plain memory that is to be made. `advice`: as madvise takes it, or 0."""

    begin: int
    end: int
    protection: int
    grows: bool = False
    wiped: bool = False


class Range(NamedTuple):
    """With the rights that it has; those of adjacent mappings are one."""

    begin: int
    end: int
    protection: int


class Block(NamedTuple):
    """Pages, and where they are in the file, together: compressed if that takes less. `pieces`: addresses and sizes."""

    offset: int
    stored: int
    checksum: int
    pieces: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.pieces)


@dataclass(frozen=True)
class Layout:
    """What makes of a copy of the base's memory one with the mappings of the branch.

    `wanted` is all that there is in the end, `made` is new, `emptied` goes back to what was mapped there, without pages
    of its own.
    """

    wanted: tuple[Range, ...]
    made: tuple[Part, ...]
    emptied: tuple[tuple[int, int], ...]


_FIRST = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ([-r][-w][-x][ps]) ([0-9a-f]+) (\S+) (\d+) *(.*)")


def parse_smaps(text: str) -> list[Mapping]:
    """Raises Unfit if there are too many, or it is not the kernel's."""
    found: list[Mapping] = []
    head: re.Match[str] | None = None
    filled = own = 0
    for line in text.split("\n"):  # names of files may have all other ends of lines in them
        if line.startswith(("Rss:", "Swap:")):
            filled += int(line.split()[1]) << 10
        elif line.startswith("Anonymous:"):
            own = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:"):
            if head is None:
                break
            found.append(_mapping(head, filled, frozenset(line.split()[1:]))._replace(own=own))
            head, filled, own = None, 0, 0
        elif line[:1].islower() or line[:1].isdigit():
            head = _FIRST.fullmatch(line)
    if not found or head is not None:
        raise Unfit("the parts of its memory can't be told")
    if len(found) > MOST_MAPPINGS:
        raise Unfit(f"its memory has more than {MOST_MAPPINGS} parts")
    return [mapping for mapping in found if mapping.source != "[vsyscall]"]


def _mapping(head: re.Match[str], filled: int, flags: frozenset[str]) -> Mapping:
    begin, end, rights, offset, device, inode, name = head.groups()
    source = f"{device} {inode} {name}" if inode != "0" else name if name.startswith("[v") else ""
    return Mapping(int(begin, 16), int(end, 16), rights, int(offset, 16) if source else 0, source, filled, flags)


def protection_of(rights: str) -> int:
    return sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in rights)


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Of sorted ones, those that touch and have the same rights as one. Pure."""
    found: list[Range] = []
    for one in ranges:
        if found and found[-1].end == one.begin and found[-1].protection == one.protection:
            found[-1] = found[-1]._replace(end=one.end)
        else:
            found.append(one)
    return tuple(found)


def beyond(actual: Sequence[tuple[int, int]], wanted: Sequence[Range]) -> list[tuple[int, int]]:
    """What of the sorted ranges `actual` lies in none of the wanted ones. Pure."""
    found: list[tuple[int, int]] = []
    for begin, end in actual:
        at = begin
        for one in wanted[bisect.bisect_right(wanted, begin, key=lambda one: one.end) :]:
            if one.begin >= end:
                break
            if one.begin > at:
                found.append((at, one.begin))
            at = one.end
        if at < end:
            found.append((at, end))
    return found


# --- what differs


def outside(mappings: Iterable[Mapping], area: tuple[int, int]) -> Iterator[Mapping]:
    """All but those addresses. Pure."""
    for one in mappings:
        if one.begin < area[0]:
            yield one._replace(end=min(one.end, area[0]))
        if one.end > area[1]:
            begin = max(one.begin, area[1])
            yield one._replace(begin=begin, offset=one.offset + begin - one.begin if one.source else 0)


class Segment(NamedTuple):
    """Addresses in one mapping of the branch, and in one of the base's that is like it, or in none that is."""

    begin: int
    end: int
    mapping: Mapping
    base: Mapping | None


def segments(base: Sequence[Mapping], branch: Sequence[Mapping]) -> list[Segment]:
    """All of the branch. Pure. Raises Unfit if the kernel's own mappings are not where the base has them."""
    found: list[Segment] = []
    at = 0
    for mapping in branch:
        begin = mapping.begin
        while begin < mapping.end:
            while at < len(base) and base[at].end <= begin:
                at += 1
            other = base[at] if at < len(base) and base[at].begin < mapping.end else None
            if other is not None and other.begin > begin:
                end, other = other.begin, None
            else:
                end = mapping.end if other is None else min(mapping.end, other.end)
            like = other if mapping.like(other) else None
            if like is None and (mapping.special or mapping.flags & _UNREAD):
                raise Unfit("it has memory that can't be written down")
            found.append(Segment(begin, end, mapping, like))
            begin = end
    return found


def parts(found: Iterable[Segment]) -> tuple[Part, ...]:
    """What is to be made; adjacent ones as one. Pure."""
    made: list[Part] = []
    for begin, end, mapping, base in found:
        if base is not None:
            continue
        part = Part(begin, end, protection_of(mapping.rights), _GROWS in mapping.flags, _WIPED in mapping.flags)
        if made and made[-1].end == begin and made[-1][2:] == part[2:]:
            made[-1] = made[-1]._replace(end=end)
        else:
            made.append(part)
    return tuple(made)


class Run(NamedTuple):
    """Pages by number. `empty`: what is not written there is zeros."""

    first: int
    last: int
    empty: bool
    whole: bool = False  # a mapping of a file, which may end before


def pages(base: Sequence[int], branch: Sequence[int], *, first: int, plain: bool) -> tuple[list[Run], list[Run]]:
    """Of entries of pagemap from page `first` on: pages of the branch's own that are not the base's, and those where it
    has none in place of one. `plain`: the mapping is of no file. Pure. Raises Unfit if pages can't be told apart."""
    copied: list[Run] = []
    emptied: list[Run] = []
    for number, (old, new) in enumerate(zip(base, branch, strict=True), start=first):
        if new >> 63 and not new & _NUMBER:
            raise Unfit("the numbers of its pages can't be read")
        was, own = _is_own(old), _is_own(new)
        if own and not (was and old & _WHICH == new & _WHICH):
            _extend(copied, number, plain and not was)
        elif was and not own:
            _extend(emptied, number, True)
    return copied, emptied


def _is_own(entry: int) -> bool:
    """A page of this memory's, and not one of a file's that is only seen there."""
    return bool(entry & (_BITS_PRESENT | _BITS_SWAPPED)) and not entry & _BITS_OF_FILE


def _extend(runs: list[Run], number: int, empty: bool) -> None:
    if runs and runs[-1].last == number and runs[-1].empty == empty:
        runs[-1] = runs[-1]._replace(last=number + 1)
    else:
        runs.append(Run(number, number + 1, empty))


# --- writing one


@dataclass(frozen=True)
class Source:
    """Open files of /proc/<pid>: of a branch and of its base. `area`: where it was made to execute calls."""

    smaps: int
    pagemap: int
    memory: int
    base_smaps: int
    base_pagemap: int
    area: tuple[int, int]


def write(source: Source, target: int, most: int, stop: Callable[[], bool] = lambda: False) -> int:
    """Write an image to an empty file of at most so many bytes of pages; its size.

    Raises Unfit with why there can be none, OSError. `stop` is asked now and then; if it says so, that is Unfit too.
    """
    layout, runs = _look(source)
    total = sum(run.last - run.first for run in runs) * PAGE
    if total > most:
        raise Unfit(f"it takes {total >> 20} MB, and may take {most >> 20}")
    blocks: list[Block] = []
    offset = PAGE
    for pieces, content in _gathered(_contents(source.memory, runs)):
        if stop():
            raise Unfit("the server ends")
        packed = _packed(content)
        _write_all(target, packed, offset)
        blocks.append(Block(offset, len(packed), zlib.crc32(packed), pieces))
        offset += len(packed)
    head = _HEADER.pack(_MAGIC, _VERSION)
    for body in ((layout.wanted, layout.made, layout.emptied), blocks):
        table = json.dumps(body, separators=(",", ":")).encode()
        _write_all(target, table, offset)
        head += _TABLE.pack(offset, len(table), zlib.crc32(table))
        offset += len(table)
    _write_all(target, head, 0)
    return offset


def _packed(content: bytes) -> bytes:
    """Compressed, where a look at some of it says that this is worth the time."""
    sample = content[len(content) // 2 :][:PAGE]
    if len(zlib.compress(sample, 1)) * 2 > len(sample):
        return content
    return min(zlib.compress(content, 1), content, key=len)


def _gathered(contents: Iterable[tuple[int, bytes]]) -> Iterator[tuple[tuple[tuple[int, int], ...], bytes]]:
    """Pieces of a megabyte or two, however small those are that it is made of."""
    pieces: list[tuple[int, int]] = []
    gathered: list[bytes] = []
    size = 0
    for address, content in contents:
        pieces.append((address, len(content)))
        gathered.append(content)
        size += len(content)
        if size >= _PIECE:
            yield tuple(pieces), b"".join(gathered)
            pieces, gathered, size = [], [], 0
    if pieces:
        yield tuple(pieces), b"".join(gathered)


def _look(source: Source) -> tuple[Layout, list[Run]]:
    base, branch = (parse_smaps(_read_text(fd)) for fd in (source.base_smaps, source.smaps))
    found = segments(base, list(outside(branch, source.area)))
    made = parts(found)
    runs: list[Run] = []
    emptied: list[Run] = []
    scanned = 0
    for segment in found:
        if segment.mapping.special:
            continue
        if segment.base is None and segment.mapping.source:
            runs.append(Run(segment.begin // PAGE, segment.end // PAGE, empty=True, whole=True))
        elif segment.mapping.filled or (segment.base is not None and segment.base.filled):
            scanned += segment.end - segment.begin
            if scanned > _MOST_SCANNED:
                raise Unfit("its memory has too many addresses")
            copied, gone = _scan(source, segment)
            runs += copied
            emptied += gone
    wanted = merged(Range(one.begin, one.end, protection_of(one.rights)) for one in branch)
    if len(made) + len(emptied) > MOST_CHANGES:
        raise Unfit(f"its memory differs in more than {MOST_CHANGES} places")
    return Layout(wanted, made, tuple((run.first * PAGE, run.last * PAGE) for run in emptied)), runs


def _scan(source: Source, segment: Segment) -> tuple[list[Run], list[Run]]:
    copied: list[Run] = []
    emptied: list[Run] = []
    step = _PIECE // 8
    for first in range(segment.begin // PAGE, segment.end // PAGE, step):
        count = min(step, segment.end // PAGE - first)
        new = os.pread(source.pagemap, 8 * count, 8 * first)
        old = os.pread(source.base_pagemap, 8 * count, 8 * first) if segment.base is not None else bytes(8 * count)
        if len(new) != 8 * count or len(old) != 8 * count:
            raise Unfit("it has ended")
        if new == old == _NOTHING[: len(new)]:
            continue
        before: Sequence[int] = memoryview(old).cast("Q")
        again = os.pread(source.base_pagemap, 8 * count, 8 * first) if segment.base is not None else old
        if again != old:  # a page was moved meanwhile, and another one may have got its number
            pairs = zip(before, memoryview(again).cast("Q"), strict=True)
            before = [one if one == two else one & ~_NUMBER for one, two in pairs]
        more, gone = pages(before, memoryview(new).cast("Q"), first=first, plain=not segment.mapping.source)
        copied += more
        emptied += gone
    return copied, emptied


def _contents(memory: int, runs: Iterable[Run]) -> Iterator[tuple[int, bytes]]:
    """Address and content, in pieces; no pages of zeros where there are zeros without them."""
    for run in runs:
        for begin in range(run.first * PAGE, run.last * PAGE, _PIECE):
            size = min(_PIECE, run.last * PAGE - begin)
            content = _read(memory, begin, size)
            if len(content) < size and (not run.whole or _read(memory, (run.last - 1) * PAGE, PAGE)):
                raise Unfit("it has memory that can't be read")
            if not run.empty:
                yield begin, content
            elif content != _NOTHING[: len(content)]:
                yield from _filled(begin, content)
            if len(content) < size:
                break


def _filled(begin: int, content: bytes) -> Iterator[tuple[int, bytes]]:
    """Without its pages of zeros."""
    filled = [at for at in range(0, len(content), PAGE) if content[at : at + PAGE] != _NOTHING[:PAGE]]
    for _, group in itertools.groupby(enumerate(filled), key=lambda pair: pair[1] - pair[0] * PAGE):
        offsets = [at for _, at in group]
        yield begin + offsets[0], content[offsets[0] : offsets[-1] + PAGE]


def _read(memory: int, begin: int, size: int) -> bytes:
    """As far as there is something to read."""
    found = b""
    while len(found) < size:
        try:
            more = os.pread(memory, size - len(found), begin + len(found))
        except OSError:
            break
        if not more:
            break
        found += more
    return found


def _read_text(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    found: list[bytes] = []
    while more := os.read(fd, _PIECE):
        found.append(more)
    return b"".join(found).decode(errors="replace")


def _write_all(target: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(target, view, offset)
        if not done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[done:], offset + done


# --- reading one


def read_layout(fd: int) -> Layout:
    """Raises Corrupt."""
    wanted, made, emptied = _read_table(fd, 0)
    return Layout(
        wanted=tuple(Range(*one) for one in wanted),
        made=tuple(Part(*one) for one in made),
        emptied=tuple((begin, end) for begin, end in emptied),
    )


def read_blocks(fd: int) -> list[Block]:
    """Raises Corrupt."""
    return [
        Block(offset, stored, checksum, tuple((at, size) for at, size in pieces))
        for offset, stored, checksum, pieces in _read_table(fd, 1)
    ]


def _read_table(fd: int, which: int) -> list[Any]:
    try:
        head = os.pread(fd, _HEADER.size + 2 * _TABLE.size, 0)
        known = _HEADER.unpack_from(head) == (_MAGIC, _VERSION)
        offset, length, checksum = _TABLE.unpack_from(head, _HEADER.size + which * _TABLE.size)
        table = os.pread(fd, length, offset) if known and length <= os.fstat(fd).st_size else b""
    except (OSError, struct.error, OverflowError):
        raise Corrupt("it is not complete") from None
    if not table or len(table) != length or zlib.crc32(table) != checksum:
        raise Corrupt("it is not complete, or was changed")
    found: list[Any] = json.loads(table)
    return found


def restore(fd: int, memory: int, stop: Callable[[], bool] = lambda: False) -> None:
    """Write the pages of an image to memory that has its layout. Raises Corrupt, Unfit if it is to `stop`, OSError."""
    for block in read_blocks(fd):
        if stop():
            raise Unfit("the server ends")
        content = os.pread(fd, block.stored, block.offset)
        if len(content) != block.stored or zlib.crc32(content) != block.checksum:
            raise Corrupt("it is not complete, or was changed")
        view = memoryview(content if block.stored == block.size else zlib.decompress(content))
        for address, size in block.pieces:
            _write_all(memory, view[:size], address)
            view = view[size:]
