"""Takes the free places between objects, so that what a fork makes anew lies together in fresh memory.

The interpreter puts a new object where one of its size was freed, wherever that is, and so does the C library. In a
fork each such place is a page that was shared, and has to be copied for a few bytes. With the places taken, what is
new fills new pages to their end.
"""

from __future__ import annotations

import ctypes

_POOL = 16 << 10  # where the interpreter keeps objects of one size
_LARGEST = 512  # of those; what is larger it gets from the C library
_BYTES_HEAD = 33  # what `bytes` needs beside its content
_BLOCK_HEAD = 8  # what the C library needs beside a block
_BLOCKS = (*(65536 >> bits for bits in range(6)), *range(1040, 24, -16))  # a place for a large one first
_RUN = 4096
_MOST = 100_000  # places of one size: no more are looked for

_taken: list[object] = []


def take() -> None:
    """Call it after a collection, where nothing is going to be made any more."""
    for size in range(16, _LARGEST + 1, 16):
        _take_objects(size)
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for size in _BLOCKS:
        last = run = 0
        for _ in range(_MOST):
            block = malloc(size - _BLOCK_HEAD) or 0  # never freed: it is to stay taken
            run = run + size if block - last == size else 0
            last = block
            if run >= max(4 * size, _RUN):  # each behind the one before: this is the end of the heap
                break


def _take_objects(size: int) -> None:
    last = run = 0
    for number in range(_MOST):
        made = _of_size(size, number)
        _taken.append(made)
        run = run + size if id(made) - last == size else 0
        last = id(made)
        if run >= _POOL - 2 * _LARGEST:  # one behind the other through a whole pool: it was empty
            break


def _of_size(size: int, number: int) -> object:
    if size == 16:
        return object()
    if size == 32:
        return number + 0.5
    return bytes(size - _BYTES_HEAD)
