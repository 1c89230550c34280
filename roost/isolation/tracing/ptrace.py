"""The system call ptrace, as far as it is needed. Each function raises OSError with what was asked in its message."""

from __future__ import annotations

import ctypes
import os

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_STOP = 1, 2, 3, 128
CHILD_EVENTS = frozenset((EVENT_FORK, EVENT_VFORK, EVENT_CLONE))
#: Children are traced too; what is traced dies with the tracer.
OPTIONS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 20
EXITKILL = 1 << 20
WAIT_ALL = 0x40000000  # __WALL: whatever signal tells of its end

_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SETOPTIONS, _GETEVENTMSG, _GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT = 0x4200, 0x4201, 0x4204, 0x4205, 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK, _RSEQ = 0x420A, 0x420B, 0x420F
_NT_X86_XSTATE = 0x202
_XSTATE_MOST = 16 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _ask(what: str, request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {what}: {os.strerror(number)}")


def seize(pid: int, options: int) -> None:
    _ask("seize", _SEIZE, pid, 0, options)


def interrupt(pid: int) -> None:
    _ask("interrupt", _INTERRUPT, pid)


def resume(pid: int) -> None:
    _ask("resume", _CONT, pid)


def step(pid: int) -> None:
    """Let it execute one instruction; a system call is one."""
    _ask("step", _SINGLESTEP, pid)


def detach(pid: int, number: int = 0) -> None:
    """With the signal by which it was stopped, if any."""
    _ask("detach", _DETACH, pid, 0, number)


def event_message(pid: int) -> int:
    """Of a stop that tells of a child: its process id."""
    value = ctypes.c_ulong()
    _ask("event message", _GETEVENTMSG, pid, 0, ctypes.addressof(value))
    return value.value


def registers(pid: int, into: ctypes.Structure) -> None:
    _ask("registers", _GETREGS, pid, 0, ctypes.addressof(into))


def set_registers(pid: int, registers: ctypes.Structure) -> None:
    _ask("setting registers", _SETREGS, pid, 0, ctypes.addressof(registers))


def extended(pid: int) -> bytes:
    """Floating point and vector registers."""
    buffer = ctypes.create_string_buffer(_XSTATE_MOST)
    vector = _Vector(ctypes.addressof(buffer), _XSTATE_MOST)
    _ask("vector registers", _GETREGSET, pid, _NT_X86_XSTATE, ctypes.addressof(vector))
    return buffer.raw[: vector.length]


def set_extended(pid: int, state: bytes) -> None:
    buffer = ctypes.create_string_buffer(state, len(state))
    vector = _Vector(ctypes.addressof(buffer), len(state))
    _ask("setting vector registers", _SETREGSET, pid, _NT_X86_XSTATE, ctypes.addressof(vector))


def signal_mask(pid: int) -> int:
    mask = ctypes.c_uint64()
    _ask("signal mask", _GETSIGMASK, pid, 8, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(pid: int, mask: int) -> None:
    value = ctypes.c_uint64(mask)
    _ask("setting the signal mask", _SETSIGMASK, pid, 8, ctypes.addressof(value))


class _Sequences(ctypes.Structure):
    """Restartable sequences: where the kernel and the C library have their common area."""

    _fields_ = (
        ("pointer", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


def sequences(pid: int) -> tuple[int, int, int]:
    """(address, size, signature) of its area; the address is 0 if it has none."""
    found = _Sequences()
    _ask("restartable sequences", _RSEQ, pid, ctypes.sizeof(found), ctypes.addressof(found))
    return found.pointer, found.size, found.signature
