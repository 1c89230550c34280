"""What a process had open, made anew in a copy of it, which has nothing open but its own channel and outputs.

Files are opened again where they were, and descriptors of events and epolls are made anew. What was a connection is
at its end in the copy, so that whoever waits for it hears of that as of any other end, and nobody closes what is
another's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KEPT = 4  # 0 to 3 are the copy's own already
_MOST = 4096
_MEANWHILE = 8  # are open while they are made
_ADD = 1  # EPOLL_CTL_ADD
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """One descriptor. `same`: which of the first ones it is too; `watches`: of an epoll, (number, events, data)."""

    kind: str  # file, socket, epoll, event or other
    inheritable: bool
    path: str = ""
    flags: int = 0
    offset: int = 0
    same: int = -1
    watches: tuple[tuple[int, int, int], ...] = ()


def remember() -> dict[int, Open]:
    """What is open beside the first ones. Raises OSError where that is more than a copy can have."""
    first: dict[tuple[int, int], int] = {}
    for fd in range(1, KEPT):
        with contextlib.suppress(OSError):  # it was closed
            first[_identity(fd)] = fd
    found: dict[int, Open] = {}
    names = os.listdir("/proc/self/fd")
    if len(names) > min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _MEANWHILE):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for name in names:
        if (fd := int(name)) >= KEPT:
            with contextlib.suppress(OSError, ValueError, KeyError):  # the listing's own is closed by now
                found[fd] = _look(fd, first)
    return found


def _identity(fd: int) -> tuple[int, int]:
    about = os.fstat(fd)
    return about.st_dev, about.st_ino


def _look(fd: int, first: Mapping[tuple[int, int], int]) -> Open:
    mode = os.fstat(fd).st_mode
    inheritable = os.get_inheritable(fd)
    same = first.get(_identity(fd), -1)
    target = os.readlink(f"/proc/self/fd/{fd}")
    if same >= 0 and not target.startswith("anon_inode:"):  # all of those have one inode
        return Open(kind="other", inheritable=inheritable, same=same)
    if stat.S_ISSOCK(mode):
        return Open(kind="socket", inheritable=inheritable)
    if target.startswith("anon_inode:[eventpoll]"):
        return Open(kind="epoll", inheritable=inheritable, watches=tuple(_watches(_about(fd))))
    if target.startswith("anon_inode:[eventfd]"):
        return Open(kind="event", inheritable=inheritable)
    if stat.S_ISREG(mode) or stat.S_ISCHR(mode):  # not a pipe with a name, which might wait for its other end
        flags = int(dict(line.split(":", 1) for line in _about(fd).splitlines())["flags"], 8)
        offset = os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(mode) else 0
        return Open(kind="file", inheritable=inheritable, path=target, flags=flags, offset=offset)
    return Open(kind="other", inheritable=inheritable)


def _about(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}") as info:
        return info.read()


def _watches(about: str) -> Iterator[tuple[int, int, int]]:
    for line in about.splitlines():
        if line.startswith("tfd:"):
            words = line.split()
            yield int(words[1]), int(words[3], 16), int(words[5], 16)


def renew(opened: Mapping[int, Open], given: Mapping[int, int]) -> None:
    """In the copy. `given`: what is to be at a number, instead of what was there."""
    given = {number: _away(fd, opened) for number, fd in given.items()}
    null = _away(os.open(os.devnull, os.O_PATH | os.O_CLOEXEC), opened)
    ended, other = socket.socketpair()
    other.close()
    ended.setblocking(False)
    dead = _away(ended.detach(), opened)
    for number, one in opened.items():
        source = one.same if one.same >= 0 else dead if one.kind == "socket" else null
        os.dup2(given.get(number, source), number, inheritable=one.inheritable)
    for number, one in opened.items():
        with contextlib.suppress(OSError):
            if (fd := _made(one)) >= 0:
                os.dup2(fd, number, inheritable=one.inheritable)
                os.close(fd)
    for number, one in opened.items():
        for watched, events, data in one.watches:
            order = struct.pack("<IQ", events & 0xFFFFFFFF, data)
            _libc.epoll_ctl(number, _ADD, watched, order)  # of what is gone: nobody waits for that
    for fd in (null, dead, *given.values()):
        os.close(fd)


def _away(fd: int, opened: Mapping[int, Open]) -> int:
    """The same at a number that was nobody's."""
    taken = []
    while fd in opened:
        taken.append(fd)
        fd = os.dup(fd)
    for one in taken:
        os.close(one)
    return fd


def _made(one: Open) -> int:
    if one.kind == "file":
        fd = os.open(one.path, one.flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC) | os.O_NOCTTY)
        if one.offset:
            os.lseek(fd, one.offset, os.SEEK_SET)
        return fd
    if one.kind == "epoll":
        return _epoll()
    if one.kind == "event":
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    return -1


def _epoll() -> int:
    made = select.epoll()
    try:
        return os.dup(made.fileno())
    finally:
        made.close()
