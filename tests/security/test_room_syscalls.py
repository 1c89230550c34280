"""What a room's processes must not be able to ask of the kernel.

Each call is made with arguments that do nothing even where it is allowed. The positive control is a room without the
filter, with every capability and without a user namespace of its own: there the same call is not refused.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pyseccomp
import pytest
import pytest_asyncio

from roost.isolation.bundle import Bundle
from roost.isolation.driver import ROOT_CAPABILITIES
from roost.isolation.namespaces.room import NamespacesRoom
from tests.support.rooms import WEAK, World, probe_bundle, world

pytestmark = pytest.mark.asyncio(loop_scope="module")
Pair = list[tuple[World, NamespacesRoom]]

MAKE_CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ctypes.set_errno(0)
values = [ctypes.c_char_p(a.encode()) if isinstance(a, str) else ctypes.c_long(a) for a in {arguments!r}]
answer = libc.syscall(ctypes.c_long({number}), *values)
if answer == 0 and {number} == {clone}:
    import os
    os._exit(0)
result = ctypes.get_errno() if answer < 0 else 0
"""

NAMESPACES = {
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
NOWHERE = "/nonexistent/path"
PAGE = 4096
CALLS: list[tuple[str, str, tuple[int | str, ...]]] = [
    *((f"unshare {name}", "unshare", (flag,)) for name, flag in NAMESPACES.items()),
    *((f"clone {name}", "clone", (flag | signal.SIGCHLD, 0, 0, 0, 0)) for name, flag in NAMESPACES.items()),
    ("clone3", "clone3", (0, 0)),
    ("setns", "setns", (-1, 0)),
    ("mount", "mount", (NOWHERE, NOWHERE, "tmpfs", 0, 0)),
    ("umount2", "umount2", (NOWHERE, 0)),
    ("pivot_root", "pivot_root", (NOWHERE, NOWHERE)),
    ("fsopen", "fsopen", ("nonexistent", 0)),
    ("fsconfig", "fsconfig", (-1, 99, 0, 0, 0)),
    ("fsmount", "fsmount", (-1, 0, 0)),
    ("move_mount", "move_mount", (-1, NOWHERE, -1, NOWHERE, 0)),
    ("open_tree", "open_tree", (-1, NOWHERE, 0)),
    ("mount_setattr", "mount_setattr", (-1, NOWHERE, 0, 0, 0)),
    ("chroot", "chroot", (NOWHERE,)),
    ("ptrace", "ptrace", (0x4200, 0, 0, 0)),
    ("process_vm_readv", "process_vm_readv", (1, 0, 0, 0, 0, 0)),
    ("process_vm_writev", "process_vm_writev", (1, 0, 0, 0, 0, 0)),
    ("pidfd_getfd", "pidfd_getfd", (-1, 0, 0)),
    ("kcmp", "kcmp", (1, 1, 99, 0, 0)),
    ("process_madvise", "process_madvise", (-1, 0, 0, 0, 0)),
    ("bpf", "bpf", (99, 0, 0)),
    ("perf_event_open", "perf_event_open", (0, 0, -1, -1, 0)),
    ("io_uring_setup", "io_uring_setup", (0, 0)),
    ("userfaultfd", "userfaultfd", (0xFFFF,)),
    ("keyctl", "keyctl", (0x7FFF, 0, 0, 0, 0)),
    ("add_key", "add_key", (0, 0, 0, 0, 0)),
    ("request_key", "request_key", (0, 0, 0, 0)),
    ("open_by_handle_at", "open_by_handle_at", (-1, 0, 0)),
    ("name_to_handle_at", "name_to_handle_at", (-1, NOWHERE, 0, 0, 0)),
    ("fanotify_init", "fanotify_init", (0x7FFFFFFF, 0)),
    ("acct", "acct", (NOWHERE,)),
    ("quotactl", "quotactl", (99, NOWHERE, 0, 0)),
    ("swapon", "swapon", (NOWHERE, 0)),
    ("swapoff", "swapoff", (NOWHERE,)),
    ("reboot", "reboot", (0, 0, 0, 0)),
    ("settimeofday", "settimeofday", (0, 0)),
    ("clock_settime", "clock_settime", (99, 0)),
    ("adjtimex", "adjtimex", (0,)),
    ("personality", "personality", (0x40000,)),
    ("personality, high bits", "personality", (0x100040000,)),
    ("seccomp listener", "seccomp", (1, 8, 0)),
    ("sethostname", "sethostname", ("x", -1)),
    ("syslog", "syslog", (10, 0, 0)),
    ("mknod device", "mknod", ("/tmp/null", 0o020666, 0x103)),
    ("lease", "fcntl", (-1, 1024, 1)),
    ("dnotify", "fcntl", (-1, 1026, 1)),
    ("delegation", "fcntl", (-1, 1040, 0)),
    ("vmsplice", "vmsplice", (-1, 0, 0, 0)),
    ("mbind", "mbind", (0, PAGE, 99, 0, 0, 0)),
    ("move_pages", "move_pages", (1, 0, 0, 0, 0, 0)),
]
#: `socket(family, SOCK_RAW or SOCK_DGRAM, 0)`; the high bits of the family are not looked at by the kernel.
FAMILIES = {"netlink": (16, 3), "packet": (17, 3), "vsock": (40, 1), "vsock, high bits": (40 | 1 << 32, 1)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A room as it should be, and a weak one."""
    base: Path = tmp_path_factory.mktemp("rooms")
    strong_world, weak_world = (world(bundle, base / n, p, alone=False) for n, p in (("strong", None), ("weak", WEAK)))
    async with strong_world as strong, weak_world as weak:
        yield [(strong, await strong.room("strong")), (weak, await weak.room("weak"))]


async def _errors(pair: Pair, name: str, arguments: tuple[int | str, ...]) -> list[str]:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    clone = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "clone")
    source = MAKE_CALL.format(arguments=arguments, number=number, clone=clone)
    answers = [await made.ask(room, source) for made, room in pair]
    return [errno.errorcode.get(answer, "success") for answer in answers]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooted(pair: Pair) -> Pair:
    """A room whose root keeps all that a room's root can."""
    made, _ = pair[0]
    return [(made, await made.room("rooted", capabilities=ROOT_CAPABILITIES))]


@pytest.mark.parametrize(("name", "arguments"), [call[1:] for call in CALLS], ids=[call[0] for call in CALLS])
async def test_call_is_refused(pair: Pair, rooted: Pair, name: str, arguments: tuple[int | str, ...]) -> None:
    strong, weak, with_capabilities = await _errors([*pair, *rooted], name, arguments)
    # Device nodes are refused by Landlock first, where the kernel has it.
    expected = {"clone3": ("ENOSYS",), "mknod": ("EPERM", "EACCES")}.get(name, ("EPERM",))
    assert strong == with_capabilities
    assert strong in expected
    assert weak not in ("EPERM", "ENOSYS", "EACCES")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("init_module", (0, 0, "")), ("finit_module", (-1, "", 99)), ("kexec_load", (0, 99, 0, 0))],
)
async def test_no_module_and_no_other_kernel_is_loaded(pair: Pair, name: str, arguments: tuple[int | str, ...]) -> None:
    """Without a control: kernels are built without these, too."""
    strong, _ = await _errors(pair, name, arguments)
    assert strong in ("EPERM", "ENOSYS")


@pytest.mark.parametrize("family", FAMILIES)
async def test_socket_family_is_refused(pair: Pair, family: str) -> None:
    strong, weak = await _errors(pair, "socket", (*FAMILIES[family], 0))
    assert (strong, weak) == ("EAFNOSUPPORT", "success")


@pytest.mark.parametrize("bits", [0, 1 << 32])
async def test_nothing_can_be_typed_into_a_terminal(pair: Pair, bits: int) -> None:
    source = f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        _, terminal = os.openpty()
        answers = []
        for request in (0x5412, 0x541C):
            ctypes.set_errno(0)
            libc.syscall(ctypes.c_long(16), ctypes.c_long(terminal), ctypes.c_long(request | {bits}), b"x")
            answers.append(ctypes.get_errno())
        result = answers
        """
    strong, weak = [await made.ask(room, source) for made, room in pair]
    assert strong == [errno.EPERM, errno.EPERM]
    assert errno.EPERM not in weak


FOREIGN_CALL = """
import ctypes, mmap, os
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex({code!r}))
function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
pid = os.fork()
if pid == 0:
    function()
    os._exit(0)
result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
#: mov eax, 20; int 0x80; ret  |  mov eax, 0x40000027; syscall; ret (getpid in both)
FOREIGN = {"int 0x80": "b814000000cd80c3", "x32": "b8270000400f05c3"}


@pytest.mark.parametrize("kind", FOREIGN)
async def test_calls_of_another_architecture_kill(pair: Pair, kind: str) -> None:
    source = FOREIGN_CALL.format(code=FOREIGN[kind])
    assert [await made.ask(room, source) for made, room in pair] == [-signal.SIGSYS, 0]


async def test_privileges_are_gone(pair: Pair) -> None:
    source = """
        fields = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
        result = [int(fields[name], 16) for name in names]
        """
    strong, weak = [await made.ask(room, source) for made, room in pair]
    assert strong == [0, 0, 0, 0, 0, 1, 2]
    assert weak[2] != 0 and weak[5:] == [0, 0]


async def test_programs_that_agents_need_run_under_the_filter(pair: Pair) -> None:
    made, room = pair[0]
    source = """
        import subprocess, threading, sys
        def run(command):
            ran = subprocess.run(command, shell=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
            return ran.stdout.strip() or ran.stderr
        threads = [threading.Thread(target=sum, args=([1],)) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        result = [run("bash -c 'echo $((1+1)) | cat'"),
                  run("git init -q /tmp/r && git -C /tmp/r status -s && echo git"),
                  run(sys.executable + " -m pip --version | cut -c1-4")]
        """
    assert await made.ask(room, source) == ["2", "git", "pip"]
