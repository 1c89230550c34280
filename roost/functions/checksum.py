"""CRC-64/XZ (ECMA-182, reflected), the checksum Function Compute reports for a package, as a decimal number."""

from __future__ import annotations

import _lzma
import ctypes
from collections.abc import Callable, Iterable
from functools import lru_cache

_POLYNOMIAL = 0xC96C5795D7870F42
_ALL = 0xFFFFFFFFFFFFFFFF

Update = Callable[[bytes, int], int]


def crc64(chunks: Iterable[bytes]) -> int:
    """The checksum over all chunks together. Blocking: about a second per GB with liblzma."""
    update = _native() or portable_update
    value = 0
    for chunk in chunks:
        value = update(chunk, value)
    return value


def portable_update(data: bytes, value: int) -> int:
    """Continue `value` over `data` without any library; for an interpreter whose liblzma can't be reached."""
    table = _table()
    value ^= _ALL
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ _ALL


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    table = []
    for entry in range(256):
        value = entry
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@lru_cache(maxsize=1)
def _native() -> Update | None:
    # The standard library links liblzma for its own use and offers no checksum of it. Through the loaded extension the
    # library's public function is reached whatever file name it has on this machine.
    try:
        function = ctypes.CDLL(_lzma.__file__).lzma_crc64
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    return lambda data, value: int(function(data, len(data), value))
