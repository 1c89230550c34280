"""Landlock: a second wall around a room, for what its namespaces and its filter of system calls should have kept out.

A room's processes can't mount or change the root (any ruleset forbids that), make device nodes, use device files that
are not below /dev, trace processes outside, signal them, or connect to their abstract sockets: whatever capability
or namespace a mistake elsewhere has left them. https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_MAKE_CHAR, _MAKE_BLOCK, _REFER, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 15
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
#: ABIs that first have something: REFER, without which no ruleset lets a file move to another directory; and others.
OLDEST, _WITH_IOCTL, _WITH_SCOPES = 2, 5, 6

_call = ctypes.CDLL(None, use_errno=True)["syscall"]
_call.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)
_add = ctypes.CDLL(None, use_errno=True)["syscall"]
_add.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long)


def abi() -> int:
    """The kernel's version of it; 0 where it has none, or Landlock is off."""
    return max(0, int(_call(_CREATE_RULESET, None, 0, _VERSION)))


#: Asked once: a room's first process has no time for it.
_ABI = abi()


def available() -> bool:
    """Whether there is a wall here."""
    return _ABI >= OLDEST


def restrict(*, scopes: bool = True) -> bool:
    """Put this thread, and whatever it starts, behind the wall; "/" is the room's. False where the kernel is too old.

    `scopes`: signals and abstract sockets reach what is behind this very wall alone. A process that was put behind
    another one of the same room, as copies of contexts are, would be out of reach; so rooms with those go without.

    Needs no_new_privs or CAP_SYS_ADMIN. Raises OSError.
    """
    wall = ruleset("", scopes=scopes)
    if wall < 0:
        return False
    try:
        _check(_call(_RESTRICT_SELF, wall, 0, 0))
    finally:
        os.close(wall)
    return True


def ruleset(root: str, *, scopes: bool) -> int:
    """A descriptor of the wall around a room with this root, "" for "/"; -1 where the kernel is too old. Raises
    OSError."""
    if not available():
        return -1
    device_use = _IOCTL_DEV if _ABI >= _WITH_IOCTL else 0
    scoped = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if scopes and _ABI >= _WITH_SCOPES else 0
    handled = struct.pack("QQQ", _MAKE_CHAR | _MAKE_BLOCK | _REFER | device_use, 0, scoped)
    size = len(handled) if scoped else 8  # older kernels know the first member alone, or two
    wall = _check(_call(_CREATE_RULESET, handled, size, 0))
    try:
        _allow(wall, f"{root}/", _REFER)
        if device_use:
            _allow(wall, f"{root}/dev", device_use)
    except OSError:
        os.close(wall)
        raise
    return wall


def _allow(ruleset: int, path: str, access: int) -> None:
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", access, directory)
        _check(_add(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(directory)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return int(result)
