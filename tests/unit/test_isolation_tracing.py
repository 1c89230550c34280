"""What a live branch is decided by, and what it is made of: mappings, states, programs of calls, what a daemon says."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from roost.isolation.driver import Branch, Left, LiveCopy
from roost.isolation.namespaces import tracer, wire
from roost.isolation.namespaces.live import parse_hold
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.said import reason
from roost.isolation.tracing import mapped, memory, status
from roost.isolation.tracing.x86_64 import CALLS, MACHINE, Call, Registers, assemble
from roost.model.errors import Unavailable
from roost.sandboxes.copies import left_behind

MAPS = """\
00400000-00423000 r--p 00000000 fe:00 5704 /.roost/bin/python 3
7f0000000000-7f0000002000 r-xp 00026000 fe:00 5704341                    /.roost/lib/libc.so.6
7f0000002000-7f0000004000 rw-p 00000000 00:00 0
7f0000004000-7f0000006000 rw-s 00000000 00:01 99                         /dev/zero (deleted)
7f0000006000-7f0000007000 rwxp 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_mappings_are_read_as_the_kernel_writes_them() -> None:
    python, code, data, shared, *_ = memory.parse_maps(MAPS)
    assert (python.name, code.begin, code.size, code.protection) == ("/.roost/bin/python 3", 0x7F0000000000, 0x2000, 5)
    assert (data.protection, data.rights, shared.rights, shared.protection) == (3, "rw-p", "rw-s", 3)
    own = memory.parse_maps(Path("/proc/self/maps").read_text())
    assert any(mapping.name == "[stack]" and mapping.protection & 3 == 3 for mapping in own)
    with pytest.raises(memory.Unfit, match="can't be told"):
        memory.parse_maps("not a mapping")
    with pytest.raises(memory.Unfit, match="more than 20000 parts"):
        memory.parse_maps("0-1 r--p 0 0:0 0\n" * 20_001)


@pytest.mark.parametrize("address", [0x7F0000002000, 0x7F0000004000, 0x7F0000006000, 0x1000])
def test_code_is_executed_only_where_nobody_can_write(address: int) -> None:
    mappings = memory.parse_maps(MAPS)
    memory.check_code(mappings, 0x7F0000001FFE)
    with pytest.raises(memory.Unfit, match="not what it was"):
        memory.check_code(mappings, address)


def test_what_is_shared_is_bounded() -> None:
    mappings = memory.parse_maps(MAPS)
    assert [one.begin for one in memory.shared(mappings)] == [0x7F0000004000]
    large = memory.parse_maps("7f0000000000-7f0005000000 rw-s 00000000 00:01 99 /dev/zero (deleted)\n")
    with pytest.raises(memory.Unfit, match="it shares 80 MB"):
        memory.shared(large)


def test_the_kernel_is_asked_for_what_is_judged_and_else_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    code = ctypes.cast(ctypes.CDLL(None).poll, ctypes.c_void_p).value
    assert code is not None
    with tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        file.truncate(8192)
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            stack.enter_context(mmap.mmap(file.fileno(), 8192, mmap.MAP_SHARED, protection))
        asked = mapped.judged_by(os.getpid(), code)
        memory.check_code(asked, code)
        with pytest.raises(memory.Unfit):
            memory.check_code(asked, 4096)
        monkeypatch.setattr(mapped.fcntl, "ioctl", _not_known)
        read = mapped.judged_by(os.getpid(), code)
        assert [one[:3] for one in memory.shared(asked)] == [one[:3] for one in memory.shared(read)]
        assert {one.rights for one in memory.shared(read)} >= {"r--s", "rw-s"}
        known = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 11)
        assert (len(asked) < len(read)) is known
        assert next(one[:3] for one in asked if one.begin <= code < one.end) in [one[:3] for one in read]


def _not_known(*_: object) -> None:
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


def test_a_state_is_read_and_what_is_none_refused() -> None:
    own = status.read_status(os.getpid())
    assert (own.uid, own.gid, own.room_pid) == (os.geteuid(), os.getegid(), os.getpid())
    assert len(status.read_limits(os.getpid())) == 16
    row = f"{'Max cpu time':<26}{'unlimited':<21}{7:<21}seconds"
    assert status.parse_limits(f"Limit\n{row}\n") == ((status.UNLIMITED, 7),)
    for text in ("", "Uid:\t1 x", "Name:\ta\nUid:\t1\n"):
        with pytest.raises(status.Unknown):
            status.parse_status(text)
    with pytest.raises(status.Unknown):
        status.parse_limits("Limit\nMax cpu time             a b\n")


@pytest.mark.skipif(os.uname().machine != MACHINE, reason="this is machine code of another processor")
def test_a_program_makes_its_calls_and_stops_at_one_that_fails() -> None:
    area = mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    reader, writer = os.pipe()
    good = [Call("write", (writer, b"abc", 3), expect=3), Call("close", (1 << 20,), may_fail=True)]
    for calls, wanted in (
        ([*good, Call("write", (writer, b"de", 2))], [3, -9, 2]),
        ([*good, Call("close", (1 << 20,)), Call("write", (writer, b"never", 5))], [3, -9, -9]),
        ([Call("write", (writer, b"fg", 2), expect=3), Call("write", (writer, b"never", 5))], [2]),
    ):
        program = assemble(base, tuple(calls), returns=True)
        area[: len(program.image)] = program.image
        ctypes.CFUNCTYPE(None)(program.start)()
        assert program.results(area[: program.results_size]) == wanted
    assert os.read(reader, 100) == b"abcdeabcfg"
    os.close(reader)
    os.close(writer)


def test_registers_make_one_call_and_go_on_elsewhere() -> None:
    base = Registers(rip=100, orig_rax=7, rax=(1 << 64) - 516, rdi=5, rbx=9)
    assert (base.call, base.result, base.argument(0)) == (7, -516, 5)
    made = base.calling(98, CALLS["mmap"], (0, 4096, -1))
    assert (made.rip, made.rax, made.rsi, made.rbx, made.call) == (98, 9, 4096, 0, -1)
    assert made.rdx == (1 << 64) - 1
    assert (base.with_result(-4).result, base.with_result(-4).call, base.with_result(-4).rbx) == (-4, -1, 9)
    assert base.rip == 100


HELD = {"id": "ab-1", "cwd": "/home/user", "pid": 3, "default": True}


def test_what_a_daemon_says_is_bounded() -> None:
    contexts, lost = parse_hold({"held": [HELD], "lost": ["x" * 500] * 40})
    assert contexts == [HELD]
    assert (len(lost), len(lost[0])) == (32, 200)
    nested: list[object] = []
    for _ in range(10_000):
        nested = [nested]  # what can't be shown
    assert parse_hold({"held": [], "lost": [nested, 7, "why", "\ud800"]}) == ([], ["why", "?"])
    assert (reason(nested), reason("why")) == ("", "why")


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"held": [], "lost": 1},
        {"held": [1], "lost": []},
        {"held": [HELD, HELD], "lost": []},
        {"held": [{**HELD, "id": "../x"}], "lost": []},
        {"held": [{**HELD, "id": ""}], "lost": []},
        {"held": [{**HELD, "pid": "3"}], "lost": []},
        {"held": [{**HELD, "cwd": "x" * 4097}], "lost": []},
        {"held": [HELD] * 129, "lost": []},
    ],
)
def test_what_a_daemon_must_not_say_is_refused(reply: dict[str, object]) -> None:
    with pytest.raises(Unavailable, match="does not keep to the protocol"):
        parse_hold(reply)


async def test_a_branch_is_used_as_often_as_it_is_shared_and_dropped_once() -> None:
    dropped: list[int] = []

    async def drop() -> None:
        dropped.append(1)

    async def alive() -> bool:
        return not dropped

    async def measure() -> int:
        return 7

    left = Left(threads=1, processes=0, files=("socket:[1]", "/tmp/x"))
    copy = LiveCopy(held=None, drop=drop, alive=alive, measure=measure, id="a", cwd="/", default=True, left=left)
    kept = LiveCopy(
        held=None, drop=drop, alive=alive, measure=measure, id="a", cwd="/", default=True, left=left, kept=True
    )
    assert [kept.use() for _ in range(3)] == [False, False, False]
    assert await Branch(copies=(copy, kept)).measure() == 14
    assert await Branch(copies=(copy, kept)).alive()
    branch = Branch(copies=(copy,), lost=())
    branch.share(3)
    assert [copy.use() for _ in range(3)] == [False, False, True]
    assert left_behind(branch) == ("processes", "threads", "connections")
    assert left_behind(Branch(copies=(copy,), lost=("why",)))[0] == "memory"
    assert left_behind(Branch()) == ("memory", "processes")
    await branch.close()
    await branch.close()
    assert dropped == [1]


@pytest.mark.skipif(os.uname().machine != MACHINE, reason="a tracer does nothing on another processor")
def test_a_tracer_that_is_full_does_what_gives_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "_MOST", 0)
    ours, theirs = wire.pair()
    with ours, theirs:
        full = tracer.Tracer(theirs, RoomPolicy(seccomp=b""))
        said: dict[str, str] = {}
        for op in ("hold", "branch", "settle", "fork", "unshelve", "look", "shelve", "drop", "alive"):
            wire.send(ours, {"id": 1, "op": op, "shadow": 7, "shadows": [7]})
            assert full._answer()
            reply = wire.receive(ours)
            assert reply is not None
            said[op] = reply[0].get("error", "")
    refused = {op for op, error in said.items() if "already" in error}
    assert refused == {"hold", "branch", "settle", "fork", "unshelve"}, said


def test_a_copy_is_made_ahead_while_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def do(_: tracer.Tracer, message: dict[str, int], *__: object) -> dict[str, int]:
        done.append(f"branch {message['id']}")
        return {"shadow": message["id"]}

    monkeypatch.setattr(tracer.Tracer, "_do", do)
    monkeypatch.setattr(tracer.Tracer, "_prepare", lambda _, number: done.append(f"copy {number}"))
    ours, theirs = wire.pair()
    with ours, theirs:
        idle = tracer.Tracer(theirs, RoomPolicy(seccomp=b""))
        for number in (1, 2):
            wire.send(ours, {"id": number, "op": "branch", "keep": True})
        wire.send(ours, {"id": 3, "op": "branch", "keep": False})
        while len(done) < 5:
            assert idle.turn()
        ours.shutdown(socket.SHUT_WR)
        assert not idle.turn()
    assert done[:3] == ["branch 1", "branch 2", "branch 3"]
    assert sorted(done[3:]) == ["copy 1", "copy 2"]


def test_who_asks_after_a_long_time_is_not_kept_waiting_by_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def do(_: tracer.Tracer, message: dict[str, int], *__: object) -> dict[str, int]:
        done.append(f"branch {message['id']}")
        return {"shadow": message["id"]}

    monkeypatch.setattr(tracer, "_AFTER_S", 1.0)
    monkeypatch.setattr(tracer, "_LATEST_S", 0.05)
    monkeypatch.setattr(tracer.Tracer, "_do", do)
    monkeypatch.setattr(tracer.Tracer, "_prepare", lambda _, number: done.append(f"copy {number}"))
    ours, theirs = wire.pair()
    with ours, theirs:
        idle = tracer.Tracer(theirs, RoomPolicy(seccomp=b""))

        def ask() -> None:
            for number in (1, 2):
                time.sleep(0.2 if number == 1 else 0)
                wire.send(ours, {"id": number, "op": "branch", "keep": True})
                wire.receive(ours)
            ours.shutdown(socket.SHUT_WR)

        asker = threading.Thread(target=ask)
        asker.start()
        while idle.turn():
            pass
        asker.join()
    assert done == ["branch 1", "branch 2"]


def test_who_asks_for_ever_keeps_no_copy_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(tracer, "_LATEST_S", 0.05)
    monkeypatch.setattr(tracer.Tracer, "_do", lambda _, message, *__: {"shadow": message["id"]})
    monkeypatch.setattr(tracer.Tracer, "_prepare", lambda _, number: copied.append(number))
    ours, theirs = wire.pair()
    with ours, theirs:
        busy = tracer.Tracer(theirs, RoomPolicy(seccomp=b""))
        asking = threading.Event()

        def ask() -> None:
            number = 1
            while not asking.wait(0.005):
                wire.send(ours, {"id": number, "op": "branch", "keep": number == 1})
                wire.receive(ours)
                number += 1
            ours.shutdown(socket.SHUT_WR)

        asker = threading.Thread(target=ask)
        asker.start()
        end = time.monotonic() + 10
        while not copied and time.monotonic() < end:
            busy.turn()
        asking.set()
        while busy.turn():
            pass
        asker.join()
    assert copied == [1]
