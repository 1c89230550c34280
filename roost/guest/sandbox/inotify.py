"""inotify, which the standard library does not know, by ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MODIFY, ATTRIB = 0x2, 0x4
MOVED_FROM, MOVED_TO = 0x40, 0x80
CREATE, DELETE = 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW, IGNORED = 0x4000, 0x8000
IS_DIR = 0x40000000
_ONLY_DIR = 0x01000000
_MASK = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLY_DIR

_CLOEXEC, _NONBLOCK = 0o2000000, 0o4000
_HEADER = struct.Struct("iIII")
_NETWORK = frozenset({0x6969, 0xFF534D42, 0x517B, 0xFE534D42, 0x65735546})  # NFS, CIFS, SMB, SMB 2, FUSE
_C = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Event:
    """`name` is empty when the directory itself is meant. The two ends of a move have the same `cookie`."""

    watch: int
    mask: int
    cookie: int
    name: str


class Inotify:
    """One instance. OSError (EMFILE) when the machine allows no more of them."""

    def __init__(self) -> None:
        self.fd = _checked(_C.inotify_init1(_CLOEXEC | _NONBLOCK), "")

    def add(self, directory: str) -> int:
        """A number that stands for the directory: the same again if it is watched already. Raises OSError."""
        return _checked(_C.inotify_add_watch(self.fd, os.fsencode(directory), _MASK), directory)

    def remove(self, watch: int) -> None:
        """What is no longer watched need not be removed."""
        _C.inotify_rm_watch(self.fd, watch)

    def read(self, size: int) -> list[Event]:
        """Empty when there is nothing now."""
        try:
            return list(parse(os.read(self.fd, size)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self.fd)


def parse(data: bytes) -> Iterator[Event]:
    at = 0
    while at + _HEADER.size <= len(data):
        watch, mask, cookie, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        yield Event(watch, mask, cookie, os.fsdecode(data[at : at + length].rstrip(b"\0")))
        at += length


def is_network(path: str) -> bool:
    """Whether the path is on a file system that does not tell all changes. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs is smaller everywhere; f_type is its first word
    _checked(_C.statfs(os.fsencode(path), buffer), path)
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF in _NETWORK


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number), path)
    return result
