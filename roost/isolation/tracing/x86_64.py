"""What depends on the processor: registers, numbers of calls, and machine code that makes calls one after another."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MACHINE = "x86_64"
SYSCALL = b"\x0f\x05"
_TRAPS = b"\xcc\xcc"  # done, failed
_RETURNS = b"\xc3\xc3"  # the same, of a program that is a function
_MASK = (1 << 64) - 1
_NAMES = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base"
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
#: mov of a 64-bit constant into each of them.
_LOADS = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_FLAGS = 0x202  # interrupts on, no tracing, no direction
_NO_CALL = _MASK  # orig_rax of a task that is in no system call: nothing is restarted
_NOT_YET = -(1 << 40)  # a result that no call has

#: A function of C: `size_t give_back(const uint64_t pairs[][2], size_t count)`, see `roost.guest.dedup.know`. All that
#: it writes to is its stack.
GIVE_BACK = bytes.fromhex(
    "53 4154 4155 4883ec10"  # push rbx, r12, r13; two words
    "4889fb 4989f4 4531ed fc"  # rbx: pairs; r12: count; r13: given back, 0; cld
    "4d85e4 744d"  # next: if there is none left, to the end
    "488b3b be00100000 4889e2 b81b000000 0f05 4885c0 752d"  # mincore(page, 4096, stack): if it is not there, skip it
    "488b3b 488b7308 b900020000 f348a7 751c"  # compare 512 words: if they differ, skip it
    "488b3b be00100000 ba04000000 b81c000000 0f05"  # madvise(page, 4096, MADV_DONTNEED)
    "4885c0 7503 49ffc5"  # if that was done, count it
    "4883c310 49ffcc ebae"  # the pair behind; to next
    "4c89e8 4883c410 415d 415c 5b c3"  # end: return r13
)

CALLS = {
    "poll": 7,
    "mmap": 9,
    "munmap": 11,
    "pwrite64": 18,
    "brk": 12,
    "madvise": 28,
    "write": 1,
    "open": 2,
    "close": 3,
    "dup3": 292,
    "clone": 56,
    "chdir": 80,
    "umask": 95,
    "setsid": 112,
    "setgroups": 116,
    "setresuid": 117,
    "setresgid": 119,
    "capset": 126,
    "prctl": 157,
    "set_tid_address": 218,
    "keyctl": 250,
    "set_robust_list": 273,
    "prlimit64": 302,
    "setns": 308,
    "rseq": 334,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "pidfd_getfd": 438,
    "landlock_restrict_self": 446,
}


class Registers(ctypes.Structure):
    """As PTRACE_GETREGS has them."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in (*_NAMES.split(), "ds", "es", "fs", "gs"))

    def copy(self) -> Registers:
        return Registers.from_buffer_copy(self)

    @property
    def instruction(self) -> int:
        return int(self.rip)

    @property
    def call(self) -> int:
        """The system call that it is stopped in; negative if in none."""
        return ctypes.c_int64(self.orig_rax).value

    @property
    def result(self) -> int:
        return ctypes.c_int64(self.rax).value

    def argument(self, index: int) -> int:
        return int(getattr(self, _ARGUMENTS[index]))

    def calling(self, instruction: int, number: int, arguments: Sequence[int]) -> Registers:
        """Those with which one system call is made at `instruction`.

        What was there instead, if it were a call of another kind, would have no arguments: no path, no program.
        """
        made = self.at(instruction)
        made.rax, made.rbx, made.rcx, made.rbp = number, 0, 0, 0
        for name, value in zip(_ARGUMENTS, arguments, strict=False):
            setattr(made, name, value & _MASK)
        return made

    def at(self, instruction: int) -> Registers:
        """Those with which it goes on at `instruction`, in no system call."""
        made = self.copy()
        made.rip, made.orig_rax, made.eflags = instruction, _NO_CALL, _FLAGS
        return made

    def with_result(self, result: int) -> Registers:
        """Those with which the call that it is stopped in returns `result`."""
        made = self.copy()
        made.rax, made.orig_rax = result & _MASK, _NO_CALL
        return made


@dataclass(frozen=True)
class Call:
    """One system call of a program. Bytes are put into the program's memory, and their address is the argument.

    `expect`: anything else is a failure; without, what is negative is, unless it `may_fail`.
    """

    name: str
    arguments: tuple[int | bytes, ...] = ()
    expect: int | None = None
    may_fail: bool = False


@dataclass(frozen=True)
class Program:
    """Machine code for `base`. It stops by a trap at `done` when all calls were made, at `failed` after one failed; or
    returns there, to who called it as a C function without arguments."""

    base: int
    image: bytes
    calls: tuple[Call, ...]
    start: int
    done: int
    failed: int

    @property
    def results_size(self) -> int:
        return 8 * len(self.calls)

    def results(self, memory: bytes) -> list[int]:
        """Of the calls that were made, from the first `results_size` bytes of its memory."""
        values = struct.unpack(f"<{len(self.calls)}q", memory[: self.results_size])
        return [value for value in values if value != _NOT_YET]


@functools.lru_cache(maxsize=128)
def assemble(base: int, calls: tuple[Call, ...], *, returns: bool = False) -> Program:
    """The program that makes `calls`. Layout: results, code, data. Remembered: most rooms are made by the same ones.
    It uses no register that a function has to leave as it was, nor the stack."""
    start = base + 8 * len(calls)
    length = sum(map(_length, calls)) + len(_TRAPS)
    data = bytearray()
    places: list[list[int]] = []
    origin = (start + length + 15) & ~15
    for call in calls:
        row = []
        for argument in call.arguments:
            if isinstance(argument, bytes):
                row.append(origin + len(data))
                data += argument + bytes(-len(argument) % 16)
            else:
                row.append(argument)
        places.append(row)
    code, done, failed = _code(base, start, calls, places, _RETURNS if returns else _TRAPS)
    results = struct.pack("<q", _NOT_YET) * len(calls)
    image = results + code + bytes(origin - start - len(code)) + bytes(data)
    return Program(base=base, image=image, calls=calls, start=start, done=done, failed=failed)


def _code(
    base: int, start: int, calls: Sequence[Call], values: Sequence[Sequence[int]], ends: bytes
) -> tuple[bytes, int, int]:
    blocks = [_block(base + 8 * index, call, values[index]) for index, call in enumerate(calls)]
    length = sum(len(block) + (6 if jump else 0) for block, jump in blocks)
    failed = start + length + 1  # the trap there, after that of a program that is done
    code = b""
    for block, jump in blocks:
        code += block
        if jump:
            code += jump + struct.pack("<i", failed - (start + len(code) + 6))
    # A trap is reported at the address after its instruction.
    return code + ends, start + length + 1, failed + 1


def _length(call: Call) -> int:
    """Of its code, which is the same whatever the addresses are."""
    check = 12 if call.expect is not None else 0 if call.may_fail else 9
    return 10 * len(call.arguments) + 20 + check


def _block(result: int, call: Call, values: Sequence[int]) -> tuple[bytes, bytes]:
    code = b""
    for load, value in zip(_LOADS, values, strict=False):
        code += load + struct.pack("<Q", value & _MASK)
    code += b"\xb8" + struct.pack("<I", CALLS[call.name]) + SYSCALL
    code += b"\x49\xbb" + struct.pack("<Q", result) + b"\x49\x89\x03"  # mov [result], rax
    if call.expect is not None:
        return code + b"\x48\x3d" + struct.pack("<i", call.expect), b"\x0f\x85"  # cmp rax, expect; jne
    if call.may_fail:
        return code, b""
    return code + b"\x48\x85\xc0", b"\x0f\x88"  # test rax, rax; js
