"""A process' memory in a file that it maps: the same memory, each fork's own where it writes, nobody's to change.

Each case runs in a process of its own, whose memory is put there for good.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from roost.isolation.namespaces.memory_file import MALLOC, is_wanted
from roost.isolation.tracing import images
from roost.isolation.tracing.x86_64 import MACHINE

pytestmark = pytest.mark.skipif(os.uname().machine != MACHINE, reason="this is machine code of another processor")

BEGIN = """
import ctypes, fcntl, gc, hashlib, mmap, os, re, sys
from pathlib import Path
from roost.isolation.namespaces import memory_file
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
held = [os.urandom(3000) for _ in range(8000)]
def digest():
    return hashlib.sha256(b"".join(held)).hexdigest()
def mapped(pid="self"):
    return [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:roost-zygote" in line]
def own(pid="self"):
    return int(re.search(r"^Anonymous: +([0-9]+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
before, fds = digest(), os.listdir("/proc/self/fd")
"""


def run(program: str, *, env: Mapping[str, str] = MALLOC) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_the_same_memory_and_each_forks_own_where_it_writes() -> None:
    run("""
assert own() > 24_000
assert memory_file.map_own_memory()
assert own() < 8_000 and len(mapped()) > 5  # of what is left, most was written again since
assert digest() == before and os.listdir("/proc/self/fd") == fds
def change():
    assert digest() == before
    held[:4000] = [bytes(3000)] * 4000
    assert digest() != before
    assert [str(number) for number in range(100_000)][-1] == "99999"
in_child(change)
gc.collect()
assert digest() == before
in_child(lambda: digest() == before or 1 / 0)
""")


def test_nobody_changes_what_all_share() -> None:
    run("""
assert memory_file.map_own_memory()
place, rights = next((line[0], line[1]) for line in mapped() if line[1] == "rw-p")
name = "-".join(format(int(end, 16), "x") for end in place.split("-"))
file = os.open(f"/proc/self/map_files/{name}", os.O_RDWR)
refused = 0
for attempt in (
    lambda: os.pwrite(file, b"x", 0),
    lambda: os.ftruncate(file, 0),
    lambda: os.ftruncate(file, 1 << 40),
    lambda: mmap.mmap(file, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    lambda: os.posix_fallocate(file, 1 << 40, 4096),
    lambda: fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK),
):
    try:
        attempt()
    except PermissionError:
        refused += 1
assert refused == 6, refused
other = os.memfd_create("other", os.MFD_ALLOW_SEALING)  # where it is not sealed, all of that goes through
os.pwrite(other, b"x", 0), os.ftruncate(other, 8192), os.posix_fallocate(other, 0, 4096)
mmap.mmap(other, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
fcntl.fcntl(other, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
""")


def test_what_is_given_back_is_again_what_all_share() -> None:
    """The price of it, of which rooms can make nothing: what they get is what each of them had at its beginning."""
    run("""
size = 8 << 20
block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block[:] = b"a" * size
assert memory_file.map_own_memory()
address = ctypes.addressof(ctypes.c_char.from_buffer(block))
def give_back():
    block[:] = b"b" * size
    assert libc.madvise(address, size, mmap.MADV_DONTNEED) == 0
    assert block[:] == b"a" * size
in_child(give_back)
assert block[:] == b"a" * size
""")


def test_what_is_more_than_memory_stays_what_it_is() -> None:
    run("""
def block():
    made = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made[:] = b"a" * (1 << 20)
    return made, ctypes.addressof(ctypes.c_char.from_buffer(made))
wiped, at = block()
assert libc.madvise(at, 1 << 20, 18) == 0  # MADV_WIPEONFORK
apart, there = block()
assert libc.madvise(there, 1 << 20, mmap.MADV_DONTFORK) == 0
shared = mmap.mmap(-1, 4096)
assert memory_file.map_own_memory()
def look():
    assert wiped[:] == bytes(1 << 20)
    assert not [1 for line in Path("/proc/self/maps").read_text().splitlines() if int(line.split("-")[0], 16) == there]
    shared[0] = 7
in_child(look)
assert wiped[:] == b"a" * (1 << 20) and shared[0] == 7
""")


#: A large block, made before any that was freed, grows in a fork by more than the file has behind it; how that ends.
GROWS = """
import ctypes, os, sys
block = bytearray(b"a" * (4 << 20))
os.environ.update(eval(sys.argv[1]))
from roost.isolation.namespaces import memory_file
there = memory_file.map_own_memory() is not None
pid = os.fork()
if pid == 0:
    block += bytes(256 << 20)
    os._exit(block != b"a" * (4 << 20) + bytes(256 << 20))
print(there, os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize(
    ("started_with", "pretended", "ends"),
    [(MALLOC, {}, "True 0"), ({}, {}, "False 0"), ({}, MALLOC, f"True {int(signal.SIGBUS)}")],
)
def test_large_blocks_grow_where_the_c_library_has_them_in_the_heap(
    started_with: Mapping[str, str], pretended: Mapping[str, str], ends: str
) -> None:
    """Where it was not told to, memory stays as it was; if it were not, there would be nothing behind the block."""
    command = [sys.executable, "-c", GROWS, repr(dict(pretended))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=started_with)
    assert (done.stdout.strip(), done.stderr) == (ends, "")


def test_what_there_is_no_room_for_stays_as_it_was() -> None:
    run("""
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as much as the file can hold
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
memory_file.map_own_memory()
assert own() > 24_000 and len(mapped()) <= 2  # with the view of it
assert digest() == before
in_child(lambda: digest() == before or 1 / 0)
""")


#: A fork that has written to many pages, of which most are again what they were.
STIRRED = """
from roost.guest import dedup
import resource, signal, threading
dedup.know(*memory_file.map_own_memory())
def stir():
    for one in held:  # counted up, and down again
        pass
    held[0] = None
def digest():
    return hashlib.sha256(b"".join(map(bytes, held[1:]))).hexdigest()
before = digest()
"""


def stirred(work: str, *, before: str = "") -> None:
    """Run `work` in a fork; `before` in its parent, before its memory is a file."""
    forked = f"def work():\n{textwrap.indent(work, '    ')}\nin_child(work)\nassert digest() == before"
    run(f"{before}{STIRRED}{forked}")


def test_pages_that_are_again_what_they_were_are_given_back() -> None:
    stirred(
        """
stir()
was = own()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
given = dedup.give_back()
assert given > 1000, given
assert was - own() > 3 * given, (was, own(), given)
assert held[0] is None and digest() == before
assert gc.isenabled() and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR1}
assert os.listdir("/proc/self/fd") == fds
stir()
gc.disable()
assert dedup.give_back() > 1000 and not gc.isenabled()
assert digest() == before
""",
    )


def test_nothing_is_given_back_where_others_could_write_meanwhile() -> None:
    stirred(
        """
stir()
ends = threading.Event()
other = threading.Thread(target=ends.wait)
other.start()
assert dedup.give_back() == 0
ends.set()
other.join()
assert dedup.give_back() > 1000  # else as above
""",
    )


@pytest.mark.parametrize("flags", [0x22, 0x32])
def test_what_is_mapped_in_its_place_is_not_given_back(flags: int) -> None:
    """It would be zeros. What is mapped elsewhere is the other case, in which the memory is what it was."""
    stirred(
        """
assert (libc.mmap(address, 64 << 20, 3, flags, -1, 0) == address) is there
fill()
given = dedup.give_back()
assert (given < 16 << 10) is there, given
assert all(block[at] == 97 for at in range(0, len(block), 4096))
""",
        before=f"""
flags, there = {flags}, {flags == 0x32}
block = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def fill():
    for at in range(0, len(block), 4096):
        block[at] = 97
fill()
address = ctypes.addressof(ctypes.c_char.from_buffer(block))
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_size_t, [*[ctypes.c_size_t] * 2, *[ctypes.c_int] * 3, ctypes.c_long]
""",
    )


def test_nothing_happens_where_nothing_more_can_be_opened() -> None:
    stirred(
        """
stir()
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
assert dedup.give_back() == 0
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
assert dedup.give_back() > 1000
""",
    )


def test_nothing_happens_where_there_is_no_memory_left() -> None:
    stirred(
        """
stir()
kept = resource.getrlimit(resource.RLIMIT_AS)
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used, kept[1]))
eaten = []
try:
    while True:
        eaten.append(bytes(1 << 12))
except MemoryError:
    pass
assert dedup.give_back() == 0
eaten.clear()
resource.setrlimit(resource.RLIMIT_AS, kept)
assert dedup.give_back() > 1000
""",
    )


def test_names_of_files_are_only_names(tmp_path: Path) -> None:
    stirred(
        """
stir()
assert dedup.give_back() > 1000
""",
        before=f"""
odd = open({str(tmp_path)!r} + "/a\\rb c\\n 1", "w+b")
odd.truncate(4096)
odd = mmap.mmap(odd.fileno(), 4096)
""",
    )


def test_a_handler_of_a_signal_that_raises_leaves_none_blocked() -> None:
    """One that was due is called by the call that blocks them."""
    stirred(
        """
stir()
blocks = signal.pthread_sigmask
def raises(how, mask):
    before = blocks(how, mask)
    if how == signal.SIG_BLOCK and mask:
        raise error
    return before
signal.pthread_sigmask = raises
error = RuntimeError()
assert dedup.give_back() == 0 and blocks(signal.SIG_BLOCK, ()) == set() and gc.isenabled()
error = KeyboardInterrupt()
try:
    dedup.give_back()
except KeyboardInterrupt:
    pass
assert blocks(signal.SIG_BLOCK, ()) == set() and gc.isenabled()
signal.pthread_sigmask = blocks
assert dedup.give_back() > 1000
""",
    )


def test_pages_that_are_gone_are_left_out() -> None:
    stirred(
        """
block = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(block))
assert libc.munmap(address + 4096, 4096) == 0
pairs = array("Q", [address + 4096, address, 0, address, address, address])
assert dedup._known[0].give_back(pairs.buffer_info()[0], 3) == 1
""",
        before="""
from array import array
libc.munmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
""",
    )


PLAIN = frozenset({"rd", "wr", "mr", "mw", "me", "ac"})


@pytest.mark.parametrize(
    ("mapping", "wanted"),
    [
        (images.Mapping(0, 8192, "rw-p", 0, "", 4096, PLAIN, 4096), True),
        (images.Mapping(0, 8192, "r--p", 0, "fe:00 1 /lib", 8192, PLAIN, 4096), True),
        (images.Mapping(0, 8192, "r--p", 0, "fe:00 1 /lib", 8192, PLAIN, 0), False),
        (images.Mapping(0, 8192, "r-xp", 0, "fe:00 1 /lib", 8192, PLAIN, 4096), False),
        (images.Mapping(0, 8192, "rw-s", 0, "00:01 1 /dev/zero", 8192, PLAIN, 4096), False),
        (images.Mapping(0, 1 << 20, "rw-p", 0, "", 4096, PLAIN, 4096), False),
        (images.Mapping(0, 2 << 30, "rw-p", 0, "", 2 << 30, PLAIN, 2 << 30), False),
        (images.Mapping(0, 8192, "rw-p", 0, "", 8192, PLAIN | {"gd"}, 8192), False),
        (images.Mapping(0, 8192, "rw-p", 0, "", 8192, PLAIN | {"wf"}, 8192), False),
        (images.Mapping(0, 8192, "rw-p", 0, "", 8192, PLAIN | {"lo"}, 8192), False),
    ],
)
def test_what_goes_there_is_memory_that_is_used(mapping: images.Mapping, wanted: bool) -> None:
    assert is_wanted(mapping) is wanted
