"""The system calls that a room may make: an allow-list, compiled to a classic BPF program on the host.

Everything else fails: calls that libseccomp knows by name with EPERM, newer ones with ENOSYS, as on an older kernel,
so that programs fall back. Calls of another architecture (x32, int 0x80) kill the process. libseccomp only tells the
numbers of calls; the program is written here, since its rules about arguments silently give way to those without.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from roost.model.errors import Unavailable

try:
    import pyseccomp
except (ImportError, OSError, RuntimeError):  # what it raises where the C library is not installed
    pyseccomp = None

#: Names by purpose. A name that an architecture or libseccomp does not know is left out.
ALLOWED: dict[str, str] = {
    "files: open, read, write, seek, truncate, lock, allocate, copy (fcntl: see CONDITIONS)": """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev preadv2
        pwritev2 lseek truncate ftruncate flock fallocate fadvise64 readahead
        sendfile splice tee copy_file_range fsync fdatasync sync syncfs sync_file_range
        dup dup2 dup3 memfd_create mknod mknodat umask""",
    "files: names and attributes (ids of the room only, by its user namespace)": """
        stat lstat fstat newfstatat statx statfs fstatfs access
        faccessat faccessat2 chdir fchdir getcwd mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat
        readlink readlinkat rename renameat renameat2 chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
        utime utimes utimensat futimesat getdents getdents64 getxattr lgetxattr fgetxattr listxattr llistxattr
        flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
        inotify_init inotify_init1 inotify_add_watch inotify_rm_watch""",
    "memory": """
        brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 munlock mlockall munlockall
        membarrier pkey_alloc pkey_free pkey_mprotect get_mempolicy""",
    "processes and threads (clone: see CONDITIONS)": """
        fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid getpgrp setpgid
        getsid setsid set_tid_address set_robust_list get_robust_list rseq futex futex_waitv futex_wake futex_wait
        futex_requeue arch_prctl prctl pidfd_open pidfd_send_signal getrlimit setrlimit prlimit64 getrusage
        times sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_getattr
        sched_setparam sched_setscheduler sched_setattr sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval getpriority setpriority ioprio_get ioprio_set getcpu restart_syscall""",
    "signals": """
        rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait rt_sigqueueinfo
        rt_tgsigqueueinfo sigaltstack kill tkill tgkill pause alarm signalfd signalfd4""",
    "ids: programs ask, and may set what they already are": """
        getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid
        setgroups setfsuid setfsgid capget capset""",
    "time: read and wait, never set": """
        time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer timer_create
        timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime""",
    "waiting on descriptors": """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd
        eventfd2 pipe pipe2""",
    "sockets (socket: see CONDITIONS)": """
        bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt sendto sendmsg
        sendmmsg recvfrom recvmsg recvmmsg""",
    "IPC in the room's own namespace": """
        shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink
        mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
    "asynchronous files of the old kind (databases use them)": """
        io_setup io_destroy io_submit io_getevents io_pgetevents io_cancel""",
    "the system: what it is, random numbers, own restrictions": """
        uname sysinfo getrandom landlock_create_ruleset landlock_add_rule landlock_restrict_self""",
}

_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00000080
_ALL = 0xFFFFFFFF
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
_F_SETLEASE, _F_NOTIFY, _F_SETDELEG = 1024, 1026, 1040
_PER_LINUX, _PER_LINUX32, _UNAME26, _ASK = 0x0, 0x8, 0x20000, 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A call that depends on the low 32 bits of an argument, which is all of it that the kernel looks at.

    If `argument & mask` is one of `values` the call is allowed (or, with `allow=False`, refused); else the opposite.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL
    allow: bool = True
    error: int = errno.EPERM


CONDITIONS: dict[str, Condition] = {
    # No new namespace. clone3 takes its flags by a pointer, which no filter can follow: it gets ENOSYS, and glibc
    # falls back to clone.
    "clone": Condition(argument=0, mask=_NAMESPACES, values=(0,)),
    # No AF_VSOCK (not covered by network namespaces), no AF_NETLINK (glibc does without), no exotic protocols.
    "socket": Condition(argument=0, values=(_AF_UNIX, _AF_INET, _AF_INET6), error=errno.EAFNOSUPPORT),
    "socketpair": Condition(argument=0, values=(_AF_UNIX,), error=errno.EAFNOSUPPORT),
    # No typing into a terminal that somebody else reads, no console, no line disciplines of old devices.
    "ioctl": Condition(argument=1, values=(_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD), allow=False),
    # No leases: one on a file that rooms share (the guest, a package) would stop everyone else who opens it for 45 s.
    # No notice of what others do with it either.
    "fcntl": Condition(argument=1, values=(_F_SETLEASE, _F_NOTIFY, _F_SETDELEG), allow=False),
    # Not ADDR_NO_RANDOMIZE or READ_IMPLIES_EXEC.
    "personality": Condition(argument=0, values=(_PER_LINUX, _PER_LINUX32, _UNAME26, _UNAME26 | _PER_LINUX32, _ASK)),
}
_NOT_IMPLEMENTED = ("clone3",)

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_HIGHEST_CALL = 1024

_RET_ALLOW = 0x7FFF0000
_RET_KILL = 0x80000000
_RET_ERRNO = 0x00050000
_LOAD, _AND, _RETURN, _JUMP_EQUAL, _JUMP_AT_LEAST = 0x20, 0x54, 0x06, 0x15, 0x35
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def program() -> bytes:
    """The filter of this machine. Raises Unavailable if its architecture is not known or libseccomp is missing."""
    architecture = _ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        raise Unavailable(f"There is no seccomp filter for the architecture {os.uname().machine}.")
    return assemble(_known_calls(), architecture)


def assemble(numbers: Mapping[str, int], architecture: int) -> bytes:
    """The filter for an architecture whose calls have these numbers."""
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _RET_KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _RET_KILL),
    ]
    for name, condition in CONDITIONS.items():
        if name in numbers:
            block = _condition(condition)
            code += [(_JUMP_EQUAL, 0, len(block), numbers[name]), *block]
    segments = _segments(numbers)
    for (_, action), (following, _) in pairwise(segments):
        code += [(_JUMP_AT_LEAST, 1, 0, following), (_RETURN, 0, 0, action)]
    code.append((_RETURN, 0, 0, segments[-1][1]))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _condition(condition: Condition) -> list[Instruction]:
    refuse = _RET_ERRNO | condition.error
    listed, other = (_RET_ALLOW, refuse) if condition.allow else (refuse, _RET_ALLOW)
    code: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument), (_AND, 0, 0, condition.mask)]
    for value in condition.values:
        code += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, listed)]
    return [*code, (_RETURN, 0, 0, other)]


def _segments(numbers: Mapping[str, int]) -> list[tuple[int, int]]:
    """Runs of numbers with the same answer: where each starts, and its action."""
    allowed = {numbers[name] for names in ALLOWED.values() for name in names.split() if name in numbers}
    absent = {numbers[name] for name in _NOT_IMPLEMENTED if name in numbers}
    known = set(numbers.values())
    segments: list[tuple[int, int]] = []
    for number in range(max(known) + 2):
        if number in allowed:
            action = _RET_ALLOW
        elif number in absent or number not in known:
            action = _RET_ERRNO | errno.ENOSYS
        else:
            action = _RET_ERRNO | errno.EPERM
        if not segments or segments[-1][1] != action:
            segments.append((number, action))
    return segments


def _known_calls() -> dict[str, int]:
    """The numbers of all calls that libseccomp knows on this machine."""
    if pyseccomp is None:
        raise Unavailable("libseccomp is missing: apt install libseccomp2.")
    found: dict[str, int] = {}
    for number in range(_HIGHEST_CALL):
        try:
            found[pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number).decode()] = number
        except ValueError:
            continue
    return found
