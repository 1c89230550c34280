"""Processes of the guest: its forks, the spare that becomes the first context, and what the zygote rehearses."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.guest.fork import fork
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.spare import Spare, make_spare
from tests.support.fake_daemon import FakeIdentities


def _ran(program: str) -> subprocess.CompletedProcess[str]:
    """What it printed, in an interpreter of its own, where it did not fail."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def _in_fork(what: str) -> str:
    """Evaluate it in a fork of a new interpreter, which has one thread."""
    program = (
        "import os, random\n"
        "from roost.guest.fork import fork\n"
        "os.register_at_fork(after_in_child=lambda: os.write(1, b'hook '))\n"
        "random.seed(1); state = random.getstate()\n"
        "pid = fork()\n"
        f"pid or (print({what}, flush=True), os._exit(0))\n"
        "os.waitpid(pid, 0)\n"
    )
    return _ran(program).stdout.strip()


def test_a_fork_has_random_numbers_of_its_own() -> None:
    assert _in_fork("random.getstate() == state") == "False"


def test_a_fork_of_one_thread_calls_no_hook() -> None:
    assert _in_fork("'child'") == "child"


def test_a_fork_says_why_there_can_be_none() -> None:
    program = (
        "import resource\n"
        "from roost.guest.fork import fork\n"
        "import os\n"
        "os.setresuid(54321, 54321, 54321)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try:\n    fork() or os._exit(0)\n"
        "except BlockingIOError as error:\n    print(error.strerror)\n"
    )
    assert _ran(program).stdout.strip() == "Resource temporarily unavailable"


@contextlib.contextmanager
def _ends() -> Iterator[tuple[socket.socket, tuple[int, int, int]]]:
    """The daemon's end of a context's socket, and what the context gets."""
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(sock) for sock in socket.socketpair())
        null = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, null)
        yield ours, (theirs.fileno(), null, null)


def _gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.01)
    return False


def test_a_spare_becomes_the_context_of_its_order(tmp_path: Path) -> None:
    accounts = FakeIdentities(default="root", home=str(tmp_path), env={"GREETING": "hello"})
    spare = Spare()
    with _ends() as (ours, fds):
        child = spare.take(accounts, {"language": "bash", "cwd": str(tmp_path)}, fds)
        assert child is not None
        try:
            ours.settimeout(20)
            reader = frames.FrameReader()
            received: list[frames.Frame] = []
            while not received:
                received += reader.feed(ours.recv(1 << 16))
            assert received[0][0] == frames.READY
            assert Path(f"/proc/{spare.pid}/cwd").resolve() == tmp_path
            assert b"GREETING=hello" in Path(f"/proc/{spare.pid}/environ").read_bytes().split(b"\0")
        finally:
            child.kill()
            os.waitpid(spare.pid, 0)


_RESTS = """
import os, socket, sys
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.python.channel import Channel
os.dup2(int(sys.argv[1]), 3)
channel = Channel(socket.socket(fileno=3))
while (cell := channel.receive()) is not None:
    channel.send(frames.DONE, cell["code"].encode())
"""


def test_a_context_that_hears_of_a_hold_and_of_its_end_at_once_goes_on() -> None:
    """As one does that was slow, or stopped, and was given up meanwhile."""
    hold = [frames.frame(frames.HOLD, number) for number in (b"1", b"2")]
    go, cell = frames.frame(frames.GO), frames.frame(frames.RUN, b'{"code": "1"}')
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        ours.sendall(hold[0] + go + cell)
        context = subprocess.Popen([sys.executable, "-c", _RESTS, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        try:
            reader = frames.FrameReader()
            assert reader.feed(ours.recv(1 << 16)) == [(frames.DONE, b"1")]
            # Positive control: one that is not given up is answered, by its number.
            ours.sendall(hold[1])
            assert reader.feed(ours.recv(1 << 16)) == [(frames.HELD, b"2")]
            ours.sendall(go + cell)
            assert reader.feed(ours.recv(1 << 16)) == [(frames.DONE, b"1")]
        finally:
            context.kill()
            context.wait()


@pytest.mark.parametrize(("leaves", "code"), [("channel.leave()", 0), ("os.close(3)", 1)])
def test_a_context_whose_socket_is_gone_ends(leaves: str, code: int) -> None:
    """As in a fork that a handler of a signal has made."""
    program = _RESTS.replace("while (", f"{leaves}\nwhile (")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", program, str(theirs.fileno())]
        ran = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=20, check=False)
    assert ran.returncode == code, ran.stderr


def test_what_handlers_of_signals_raise_does_not_end_a_wait() -> None:
    program = (
        "import os, signal, socket, time\n"
        "from roost.guest.fork import wait_for_input\n"
        "def late(*_): raise TimeoutError('late')\n"
        "signal.signal(signal.SIGALRM, late)\n"
        "ours, theirs = socket.socketpair()\n"
        "if os.fork() == 0:\n"
        "    time.sleep(0.5); ours.send(b'x'); os._exit(0)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)\n"
        "found = wait_for_input(theirs.fileno(), said=b'once')\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(found, ours.recv(64))\n"
    )
    ran = _ran(program)
    assert ran.stdout.strip() == "True b'once'"
    assert ran.stderr.count("TimeoutError: late") > 1


@pytest.mark.parametrize(
    "accounts", [FakeIdentities(default="root", env={"LONG": "x" * (200 << 10)}), FakeIdentities(default="nobody-here")]
)
def test_a_spare_that_cannot_take_its_order_is_gone(accounts: FakeIdentities) -> None:
    spare = Spare()
    with _ends() as (_, fds):
        assert spare.take(accounts, {"language": "bash", "cwd": "/"}, fds) is None
    assert _gone(spare.pid)


def test_a_spare_that_is_not_wanted_is_gone() -> None:
    spare = Spare()
    spare.close()
    assert _gone(spare.pid)


def test_a_spare_ends_with_its_daemon() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(Spare().pid).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    orphan = int(os.read(reader, 32))
    os.close(reader)
    os.close(writer)
    pidfd = None
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(orphan)
    if pidfd is not None:
        try:
            assert select.select([pidfd], [], [], 10)[0]
        finally:
            os.close(pidfd)


def test_without_libraries_in_memory_there_is_no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "roost.guest.sandbox.interpreter.python.context", raising=False)
    assert make_spare() is None


def test_a_rehearsal_leaves_nothing_behind() -> None:
    program = (
        "import gc, os, signal, threading\n"
        "from roost.guest.main import rehearse\n"
        "def state():\n"
        "    children = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
        "    handlers = [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "    frozen, threads = gc.get_freeze_count(), threading.active_count()\n"
        "    return os.listdir('/proc/self/fd'), children, handlers, os.getcwd(), dict(os.environ), frozen, threads\n"
        "before = state()\n"
        "rehearse()\n"
        "after = state()\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
        "assert before == after, (before, after)\n"
    )
    _passes(program)


def test_a_rehearsal_that_ends_early_leaves_no_context() -> None:
    program = (
        "import contextlib, os\n"
        "from roost.guest import rehearsal, supervisor\n"
        "def fails(*_): raise RuntimeError\n"
        "supervisor.Supervisor._start = fails\n"
        "with contextlib.suppress(RuntimeError):\n"
        "    rehearsal._rehearse_sandbox()\n"
        "assert open(f'/proc/self/task/{os.getpid()}/children').read() == ''\n"
    )
    _passes(program)


def test_memory_in_huge_pages_is_the_same_memory() -> None:
    program = (
        "import os, hashlib\n"
        "from roost.isolation import linux\n"
        "held = [os.urandom(3000) for _ in range(8000)]\n"
        "before = hashlib.sha256(b''.join(held)).digest()\n"
        "linux.use_huge_pages()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    held[:4000] = [bytes(3000)] * 4000\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert hashlib.sha256(b''.join(held)).digest() == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_state_of_random_numbers_is_the_parents_own() -> None:
    random.seed(7)
    state = random.getstate()
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert random.getstate() == state


def test_hooks_that_make_locks_anew_are_found_and_called_by_any_other_fork() -> None:
    program = (
        "import concurrent.futures.thread, logging, os, random, threading\n"
        "from roost.guest.at_fork import at_fork\n"
        "at_fork.arrange()\n"
        "found = [getattr(hook, '__name__', '') for hook, _ in at_fork._left_out]\n"
        "assert found == ['_after_fork', '_after_at_fork_child_reinit_locks', '_at_fork_reinit'], found\n"
        "at_fork.arrange()\n"  # once
        "assert len(at_fork._left_out) == 3\n"
        "held = threading.Thread(target=lambda: logging.lastResort.acquire())\n"
        "held.start(); held.join()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if logging.lastResort.lock.acquire(blocking=False) else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "os._exit(0)\n"  # the end of the interpreter would wait for that lock
    )
    _passes(program)


def _passes(program: str) -> None:
    """In a process of its own, which says nothing."""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
