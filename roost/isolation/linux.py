"""The Linux system calls that Python lacks, each raising OSError with the call's name in its message.

Standard library only: the zygote imports it inside the guest bundle.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_IDMAP = 0x100000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2

#: Capabilities by name: those that a room's root may keep.
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}

_CLONE_VM = 0x00000100
_CLONE_PIDFD = 0x00001000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_CLONE_INTO_CGROUP = 0x200000000
_PR_CAPBSET_READ = 23
_PR_GET_TID_ADDRESS = 40
_KCMP_VM = 1
_MADV_COLLAPSE = 25
_HUGE_PAGE = 2 << 20
_SIGSET_SIZE = 128  # as the C library has it
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_NS_GET_USERNS = 0xB701
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

# Calls before 2019 have a number for each architecture, later ones the same everywhere.
_ARCHITECTURE_CALLS = {
    "x86_64": {"pivot_root": 155, "keyctl": 250, "capset": 126, "kcmp": 312, "get_robust_list": 274},
    "aarch64": {"pivot_root": 41, "keyctl": 219, "capset": 91, "kcmp": 272, "get_robust_list": 100},
}
_COMMON_CALLS = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "openat2": 437,
    "mount_setattr": 442,
}
_CALLS = _COMMON_CALLS | _ARCHITECTURE_CALLS.get(os.uname().machine, {})

# l: a number or descriptor, p: bytes or NULL.
_PARAMETERS = {
    "pivot_root": "pp",
    "keyctl": "lplll",
    "capset": "pp",
    "open_tree": "lpl",
    "move_mount": "lplpl",
    "fsopen": "pl",
    "fsconfig": "llppl",
    "fsmount": "lll",
    "openat2": "lppl",
    "mount_setattr": "lplpl",
    "kcmp": "lllll",
    "get_robust_list": "lpp",
}

# All functions are looked up and typed here: done in a room's first process, it would be on the way of every start.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.setfsuid.argtypes = (ctypes.c_uint,)
_libc.setfsgid.argtypes = (ctypes.c_uint,)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _system_call(parameters: str) -> Callable[..., int]:
    """The C library's `syscall` for one call; its first argument is the call's number."""
    kinds: dict[str, type[ctypes.c_long | ctypes.c_char_p]] = {"l": ctypes.c_long, "p": ctypes.c_char_p}
    function = _libc["syscall"]  # by index: a new object each time
    function.argtypes = (ctypes.c_long, *(kinds[letter] for letter in parameters))
    return function


_system_calls = {name: _system_call(parameters) for name, parameters in _PARAMETERS.items()}
# For clone: the interpreter's lock stays with the caller on both sides.
_locked_libc = ctypes.PyDLL(None, use_errno=True)
_sleeper_stack = ctypes.create_string_buffer(16 << 10)


def _last_capability() -> int:
    """The kernel refuses numbers that it does not know."""
    number = 0
    while number < 63 and _libc.prctl(_PR_CAPBSET_READ, number + 1, 0, 0, 0) >= 0:
        number += 1
    return number


LAST_CAPABILITY = _last_capability()


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(name: str, *args: int | bytes | None, what: str = "") -> int:
    return _check(_system_calls[name](_CALLS[name], *args), what or name)


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* flags for new ones."""
    _check(_libc.unshare(flags), "unshare")


def fork_into(cgroup_fd: int | None, namespaces: int) -> tuple[int, int]:
    """Fork with the child in new namespaces (CLONE_NEW*) and, if one is given, a cgroup of the v2 tree from its start.

    Returns (0, -1) in the child, its process id and a pidfd in the parent. The caller has one thread, and its random
    numbers are the child's too. Moving a process into a v2 cgroup later takes 12 ms: the kernel waits until no
    processor can be looking at the process any more.
    """
    pidfd, tid_address = ctypes.c_int(-1), ctypes.c_ulong(0)
    flags = namespaces | _CLONE_PIDFD | (0 if cgroup_fd is None else _CLONE_INTO_CGROUP)
    # The C library keeps the thread's number and expects a fork to renew it in the child.
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(tid_address), 0, 0, 0) == 0:
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    fields = (flags, ctypes.addressof(pidfd), tid_address.value, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup_fd or 0)
    arguments = struct.pack("11Q", *fields)
    number, size = ctypes.c_long(_CALLS["clone3"]), ctypes.c_long(len(arguments))
    # Without Python's own steps after a fork: with one thread there is nothing to mend, and they call what libraries
    # have registered, which costs the child half a megabyte and a millisecond.
    return _check(_locked_libc.syscall(number, arguments, size), "clone3"), pidfd.value


def thread_addresses() -> tuple[int, int]:
    """Where the C library keeps the thread's number, and the head of its list of robust locks; 0 if not known."""
    tid, head, size = ctypes.c_ulong(0), ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
    _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(tid), 0, 0, 0)
    _call("get_robust_list", 0, ctypes.cast(head, ctypes.c_char_p), ctypes.cast(size, ctypes.c_char_p))  # type: ignore[arg-type]
    return tid.value, int.from_bytes(head.raw, "little")


def same_memory(one: int, other: int) -> bool:
    """Whether two processes share their memory."""
    return _call("kcmp", one, other, _KCMP_VM, 0, 0) == 0


def use_huge_pages() -> None:
    """Put what this process has in memory into huge pages, where it fills them: to fork, one entry is copied for each
    instead of 512. A child that writes copies small pages, as ever, and what is new stays in small ones.

    Where the kernel (before 6.1) or its free memory has none, nothing changes.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, _, _, inode, *name = line.split()
        if rights != "rw-p" or inode != "0" or name not in ([], ["[heap]"]):
            continue
        begin, end = (int(address, 16) for address in place.split("-"))
        begin, end = -(-begin // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if begin < end:
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(_MADV_COLLAPSE))


def has_ended(pidfd: int) -> bool:
    """Whether the process has, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def open_network(pid: int, pidfd: int) -> int:
    """A descriptor of a process' network namespace. Raises OSError, also if it has ended: its number may be
    another's."""
    netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if pidfd < 0 or has_ended(pidfd):
        os.close(netns)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return netns


def signal_descriptor(number: int) -> int:
    """One that can be read, without waiting, once the signal is pending, which it is no more then. See signalfd(2)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    blocked = ctypes.create_string_buffer(struct.pack("Q", 1 << (number - 1)), _SIGSET_SIZE)
    return _check(_libc.signalfd(-1, blocked, os.O_NONBLOCK | os.O_CLOEXEC), "signalfd")


def start_sleeper(namespaces: int, seconds: int) -> int:
    """Start a child in new namespaces (CLONE_NEW*) that sleeps, and ends by itself; its process id.

    It runs nothing but the C library's `sleep`, on a stack of its own in this process' memory: nothing has to be
    copied for it, while a fork takes milliseconds. The caller has one thread, and one sleeper at a time.
    """
    top = (ctypes.addressof(_sleeper_stack) + len(_sleeper_stack)) & ~15
    function = ctypes.cast(_libc.sleep, ctypes.c_void_p)
    flags = ctypes.c_int(namespaces | _CLONE_VM | signal.SIGCHLD)
    return _check(_libc.clone(function, ctypes.c_void_p(top), flags, ctypes.c_void_p(seconds)), "clone")


def setns(fd: int, kind: int) -> None:
    """Join the namespace that `fd` refers to."""
    _check(_libc.setns(fd, kind), "setns")


def owner(fd: int) -> int:
    """A descriptor of the user namespace that owns the namespace which `fd` refers to."""
    made: int = fcntl.ioctl(fd, _NS_GET_USERNS)
    os.set_inheritable(made, False)
    return made


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    return _check(_libc.prctl(option, arg2, arg3, 0, 0), f"prctl {option}")


def set_process_name(name: bytes) -> None:
    """At most 15 bytes: what `ps` shows as the command."""
    buffer = ctypes.create_string_buffer(name)
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def set_hostname(name: bytes) -> None:
    _check(_libc.sethostname(name, len(name)), "sethostname")


def set_fs_ids(uid: int, gid: int) -> None:
    """Ids that new files get. The calls report no failure, so the result is read back."""
    for call, wanted in ((_libc.setfsgid, gid), (_libc.setfsuid, uid)):
        call(wanted)
        if ctypes.c_uint(call(0xFFFFFFFF)).value != wanted:
            raise OSError(1, f"setting the file system id to {wanted} was refused")


def sync_file_system(fd: int) -> None:
    """Write everything of the file system that `fd` is on to its device."""
    _check(_libc.syncfs(fd), "syncfs")


def make_mounts_private() -> None:
    """Mounts of this namespace and of its parent no longer reach each other."""
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "making mounts private")


def unmount(path: bytes) -> None:
    """Detach a mount; it goes when its last user has."""
    _check(_libc.umount2(path, MNT_DETACH), "umount")


def pivot_root(new: bytes, old: bytes) -> None:
    _call("pivot_root", new, old)


def clone_tree(path: str) -> int:
    """A detached copy of the mount at `path`, with `path` as its root and without mounts below."""
    return _call("open_tree", _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC, what=f"open_tree {path}")


def clone_tree_at(fd: int, path: str) -> int:
    """The same for a `path` below the directory `fd`; empty: for what `fd` itself refers to."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (0 if path else _AT_EMPTY_PATH)
    return _call("open_tree", fd, path.encode(), flags, what=f"open_tree {path}")


def clone_whole_tree(path: str) -> int:
    """A detached copy of the mount at `path` with all mounts below it. Whoever came by a mount namespace as an ordinary
    user may copy them together only."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return _call("open_tree", _AT_FDCWD, os.fsencode(path), flags, what=f"open_tree {path}")


def set_mount_attributes(mount_fd: int, attributes: int, userns_fd: int | None = None) -> None:
    """Add MOUNT_ATTR_* to a mount; with `userns_fd`, map a detached mount's ids by that namespace."""
    if userns_fd is not None:
        attributes |= MOUNT_ATTR_IDMAP
    packed = struct.pack("QQQQ", attributes, 0, 0, userns_fd or 0)
    _call("mount_setattr", mount_fd, b"", _AT_EMPTY_PATH, packed, len(packed))


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount on the directory or file that `target_fd` refers to."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call("move_mount", mount_fd, b"", target_fd, b"", flags)


def new_mount(kind: str, options: dict[str, str | None], attributes: int = 0) -> int:
    """A detached mount of a new file system. An option whose value is None is a flag."""
    context = _call("fsopen", kind.encode(), _FSOPEN_CLOEXEC, what=f"fsopen {kind}")
    try:
        for key, value in options.items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            data = None if value is None else value.encode()
            _call("fsconfig", context, command, key.encode(), data, 0, what=f"{kind} option {key}")
        _call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0, what=f"making the {kind} file system")
        return _call("fsmount", context, _FSMOUNT_CLOEXEC, attributes, what=f"mounting {kind}")
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{_kernel_messages(context)}") from None
    finally:
        os.close(context)


def _kernel_messages(context: int) -> str:
    """What the kernel wrote about a file system that it did not make."""
    lines = []
    for _ in range(8):
        try:
            lines.append(os.read(context, 512).decode(errors="replace").strip())
        except OSError:
            break
    return "".join(f"; {line}" for line in lines)


def open_beneath(directory_fd: int, path: str, flags: int, resolve: int) -> int:
    """Open by openat2 with RESOLVE_* restrictions; close-on-exec."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _call("openat2", directory_fd, os.fsencode(path), how, len(how), what=f"openat2 {path}")


def drop_capabilities(keep: frozenset[int] = frozenset()) -> None:
    """Give up every capability but `keep`, also for programs executed later."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(LAST_CAPABILITY + 1):
        if number not in keep:
            prctl(PR_CAPBSET_DROP, number)
    low = sum(1 << number for number in keep if number < 32)
    high = sum(1 << (number - 32) for number in keep if number >= 32)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, struct.pack("IIIIII", low, low, 0, high, high, 0))


def load_seccomp(program: bytes) -> None:
    """Install a filter in the classic BPF form (8 bytes an instruction). Needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(header, len(header))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def new_session_keyring() -> None:
    """Leave the session keyring that was inherited."""
    _call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)


def bring_loopback_up() -> None:
    """Set `lo` of the present network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
