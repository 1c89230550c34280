"""The filter is run here by a small interpreter of classic BPF, so that every decision can be asked for."""

import errno
import struct

import pytest

from roost.isolation import seccomp

X86 = 0xC000003E
ALLOW, KILL = 0x7FFF0000, 0x80000000
NUMBERS = {
    "read": 0,
    "write": 1,
    "ioctl": 16,
    "socket": 41,
    "socketpair": 53,
    "fcntl": 72,
    "clone": 56,
    "ptrace": 101,
    "personality": 135,
    "mount": 165,
    "bpf": 321,
    "clone3": 435,
    "openat2": 437,
}


def decide(call: str | int, *arguments: int, architecture: int = X86) -> int:
    number = NUMBERS[call] if isinstance(call, str) else call
    data = struct.pack("IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("HBBI", seccomp.assemble(NUMBERS, X86)))
    value = at = 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            value = struct.unpack_from("I", data, constant)[0]
        elif code == 0x54:
            value &= constant
        elif code in (0x15, 0x35):
            taken = value == constant if code == 0x15 else value >= constant
            at += if_true if taken else if_false
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize("call", ["read", "write", "openat2"])
def test_listed_calls_are_allowed(call: str) -> None:
    assert decide(call) == ALLOW


@pytest.mark.parametrize("call", ["ptrace", "mount", "bpf"])
def test_known_calls_that_are_not_listed_are_refused(call: str) -> None:
    assert decide(call) == refused(errno.EPERM)


@pytest.mark.parametrize("call", ["clone3", 436, 438, 1000, 0x3FFFFFFF])
def test_unknown_calls_do_not_exist(call: str | int) -> None:
    assert decide(call) == refused(errno.ENOSYS)


@pytest.mark.parametrize("number", [0x40000000, 0x40000000 | 39, 0xFFFFFFFF])
def test_x32_kills(number: int) -> None:
    assert decide(number) == KILL


def test_another_architecture_kills() -> None:
    assert decide("read", architecture=0x40000003) == KILL


@pytest.mark.parametrize("flag", [0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_makes_no_namespace(flag: int) -> None:
    thread = 0x3D0F00
    assert decide("clone", thread) == ALLOW
    assert decide("clone", thread | flag) == decide("clone", 17 | flag) == refused(errno.EPERM)


@pytest.mark.parametrize("family", range(64))
@pytest.mark.parametrize("high", [0, 1 << 32])
def test_socket_families(family: int, high: int) -> None:
    wanted = ALLOW if family in (1, 2, 10) else refused(errno.EAFNOSUPPORT)
    assert decide("socket", family | high) == wanted


@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x541D, 0x5423, 0x5412 | 1 << 32, 0x541C | 0xABC << 40])
def test_terminal_requests_are_refused_whatever_the_high_bits(request_: int) -> None:
    assert decide("ioctl", 0, request_) == refused(errno.EPERM)


def test_other_requests_are_allowed() -> None:
    assert decide("ioctl", 0, 0x5401) == decide("ioctl", 0, 0x5413) == ALLOW


def test_randomisation_cannot_be_switched_off() -> None:
    assert decide("personality", 0x40000) == refused(errno.EPERM)
    assert decide("personality", 0x1_0004_0000) == refused(errno.EPERM)
    assert decide("personality", 0xFFFFFFFF) == decide("personality", 0) == ALLOW


def test_the_program_of_this_machine_fits_the_kernel() -> None:
    program = seccomp.program()
    assert len(program) % 8 == 0 and len(program) // 8 < 4096


def test_no_call_is_listed_twice() -> None:
    names = [name for group in seccomp.ALLOWED.values() for name in group.split()]
    assert len(names) == len(set(names)) and not set(names) & set(seccomp.CONDITIONS)


def test_descriptors_are_controlled_but_for_leases_and_notices() -> None:
    set_flags, set_lease, notify = 4, 1024, 1026
    assert decide("fcntl", 3, set_flags, 0) == ALLOW
    for command in (set_lease, notify, set_lease | 1 << 32):  # the kernel looks at the low half
        assert decide("fcntl", 3, command, 1) == refused(errno.EPERM)
