"""Edits of ELF headers that make a program carry its own loader and libraries.

A program names its loader by an absolute path (PT_INTERP) and finds libraries through the loader's search path. To
run in a root file system that has neither, both must point into the bundle, without environment variables that
children would inherit. Only existing bytes are rewritten, so no segment moves: the two new strings share the room of
the old loader path, and the search path takes a dynamic entry that the linker left spare.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from roost.model.errors import Unavailable

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_STRTAB, _DT_RPATH, _DT_DEBUG, _DT_RUNPATH = 0, 5, 15, 21, 29
_ENTRY = struct.Struct("<qQ")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True, kw_only=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def is_elf(path: Path) -> bool:
    """Whether the file begins like a 64-bit little-endian ELF file."""
    with path.open("rb") as file:
        return file.read(6) == b"\x7fELF\x02\x01"


def interpreter_of(path: Path) -> str | None:
    """The loader that an ELF program names, or None for a static program or a library."""
    data = path.read_bytes()
    for segment in _segments(data):
        if segment.kind == _PT_INTERP:
            return data[segment.offset : segment.offset + segment.size].split(b"\0")[0].decode()
    return None


def carry_own_loader(data: bytearray, *, loader: str, libraries: str) -> None:
    """Make the program in `data` start through `loader` and search `libraries` before everything else.

    The search path is a DT_RPATH: it goes before LD_LIBRARY_PATH and also serves libraries loaded later.
    Raises Unavailable when the program's headers have no room for it.
    """
    segments = list(_segments(data))
    named = next((s for s in segments if s.kind == _PT_INTERP), None)
    if named is None or not any(_holds(s, named) for s in segments if s.kind == _PT_LOAD):
        raise Unavailable("The interpreter names no loader: it is not a dynamically linked program.")
    strings = loader.encode() + b"\0" + libraries.encode() + b"\0"
    if len(strings) > named.size:
        raise Unavailable(f"The interpreter's loader path has {named.size} bytes; {len(strings)} are needed.")
    data[named.offset : named.offset + named.size] = strings.ljust(named.size, b"\0")
    libraries_at = named.address + len(loader) + 1
    _set_search_path(data, segments, libraries_at)


def drop_search_path(data: bytearray) -> None:
    """Remove a library's own DT_RPATH and DT_RUNPATH: the program's search path applies to it then."""
    for offset, size in _dynamic_tables(_segments(data)):
        kept = [
            entry
            for entry in _ENTRY.iter_unpack(bytes(data[offset : offset + size]))
            if entry[0] not in (_DT_RPATH, _DT_RUNPATH)
        ]
        table = b"".join(_ENTRY.pack(*entry) for entry in kept)
        data[offset : offset + size] = table.ljust(size, b"\0")


def _set_search_path(data: bytearray, segments: Iterable[_Segment], string_at: int) -> None:
    table = next(_dynamic_tables(segments), None)
    if table is None:
        raise Unavailable("The interpreter has no dynamic section: it is not a dynamically linked program.")
    start, size = table
    entries = [(tag, value) for tag, value in _ENTRY.iter_unpack(bytes(data[start : start + size]))]
    used = next((i for i, (tag, _) in enumerate(entries) if tag == _DT_NULL), len(entries))
    strings = next((value for tag, value in entries[:used] if tag == _DT_STRTAB), None)
    if strings is None:
        raise Unavailable("The interpreter's dynamic section has no string table.")
    # The loader adds the offset to the string table's address without a bound, so it may point before the table.
    path = (_DT_RPATH, (string_at - strings) % (1 << 64))
    live = [entry for entry in entries[:used] if entry[0] not in (_DT_RPATH, _DT_RUNPATH)]
    if len(live) + 2 > len(entries):
        # No spare entry: DT_DEBUG serves debuggers alone.
        live = [entry for entry in live if entry[0] != _DT_DEBUG]
    if len(live) + 2 > len(entries):
        raise Unavailable("The interpreter's dynamic section has no room for a search path.")
    packed = b"".join(_ENTRY.pack(*entry) for entry in [*live, path])
    data[start : start + size] = packed.ljust(size, b"\0")


def _dynamic_tables(segments: Iterable[_Segment]) -> Iterator[tuple[int, int]]:
    for segment in segments:
        if segment.kind == _PT_DYNAMIC:
            yield segment.offset, segment.size - segment.size % _ENTRY.size


def _segments(data: bytes | bytearray) -> Iterator[_Segment]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise Unavailable("The interpreter is not a 64-bit little-endian ELF file.")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _flags, offset, address, _physical, filled, _memory, _align = _PROGRAM_HEADER.unpack_from(
            data, table + index * size
        )
        yield _Segment(kind=kind, offset=offset, address=address, size=filled)


def _holds(outer: _Segment, inner: _Segment) -> bool:
    return outer.offset <= inner.offset and inner.offset + inner.size <= outer.offset + outer.size
