"""How a room's first process has the room copied, with a runsc that does what the test says; and what is made of the
room's answers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roost.isolation.gvisor import copying
from roost.isolation.gvisor.checkpoints import parse_reply, size_of
from roost.isolation.gvisor.copying import Copying
from roost.isolation.gvisor.oci import Kernel
from roost.isolation.namespaces import wire


@dataclass
class Bench:
    """The first process between the server and the room, and what runsc was told to do."""

    copying: Copying
    room: socket.socket
    address: Path
    image: int
    log: Path
    fails: Path

    def ask(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(10)
        sock.connect(str(self.address))
        wire.send(sock, {"op": "copy"}, [self.image])
        self.copying.go_on(True)
        self.copying.go_on(False)
        return sock

    def heard(self) -> bytes:
        """By the room; nothing if nothing was said."""
        with contextlib.suppress(BlockingIOError):
            return self.room.recv(64)
        return b""

    def did(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def say(self, word: bytes) -> None:
        self.copying.hear(word)
        self.copying.go_on(False)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    log, fails = tmp_path / "log", tmp_path / "fails"

    def command_line(kernel: Kernel, verb: str, image: int = -1) -> list[str]:
        script = f'echo {verb} >> {log}; if [ -e {fails}.{verb} ]; then echo "no {verb} today"; exit 3; fi'
        return ["/bin/sh", "-c", script]

    monkeypatch.setattr(copying, "command_line", command_line)
    asks = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asks.bind(str(tmp_path / "copies.sock"))
    asks.listen()
    channel, room = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.setblocking(False)
    room.setblocking(False)
    image = os.open(tmp_path, os.O_RDONLY)
    kernel = Kernel(flags=(), command=())
    with asks, channel, room:
        yield Bench(Copying(kernel, asks, channel), room, tmp_path / "copies.sock", image, log, fails)
    os.close(image)


def test_a_copy_from_its_order_to_its_end(bench: Bench) -> None:
    with bench.ask() as server:
        assert bench.heard() == b"h\x01" and bench.copying.may_pass  # others are served while it gets ready
        bench.say(b"r\x01" + json.dumps(["one"]).encode())
        assert bench.heard() == b"s\x01" and not bench.copying.may_pass
        assert bench.did() == []
        bench.say(b"q\x01")
        assert bench.did() == ["pause", "checkpoint"] and not bench.copying.may_pass
        received = wire.receive(server)
        assert received is not None and parse_reply(received[0]) == ("one",)
        bench.copying.go_on(False)
        assert bench.did() == ["pause", "checkpoint"]  # its files are being copied
        server.send(b"done")
        bench.copying.go_on(False)
        bench.copying.go_on(False)
        assert bench.did() == ["pause", "checkpoint", "resume"]
        assert bench.heard() == b"g\x01" and bench.copying.may_pass and not bench.copying.under_way
        assert server.recv(16) == b""
    with bench.ask():  # and again
        assert bench.heard() == b"h\x02"


def test_the_room_goes_on_when_the_server_has_gone(bench: Bench) -> None:
    bench.ask().close()
    assert bench.heard() == b"h\x01"
    bench.copying.go_on(False)
    bench.copying.go_on(False)
    assert bench.heard() == b"g\x01" and bench.did() == []
    server = bench.ask()
    bench.say(b"r\x02[]")
    bench.say(b"q\x02")
    server.close()
    bench.copying.go_on(False)
    bench.copying.go_on(False)
    assert bench.did() == ["pause", "checkpoint", "resume"] and bench.copying.may_pass


def test_the_room_goes_on_when_it_can_t_be_written_down(bench: Bench) -> None:
    bench.fails.with_suffix(".checkpoint").touch()
    with bench.ask() as server:
        bench.say(b"r\x01[]")
        bench.say(b"q\x01")
        bench.copying.go_on(False)
        received = wire.receive(server)
        assert received is not None and received[0] == {"error": "runsc checkpoint: no checkpoint today"}
        assert server.recv(16) == b""
    assert bench.did() == ["pause", "checkpoint", "resume"] and bench.copying.may_pass


@pytest.mark.parametrize("said", [b"", b"r\x00[]", b"q\x01", b"x\x01", b"r", b"\xff" * 4096])
def test_a_room_that_does_not_answer_as_it_should_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(copying, "_READY_S", 0.0)
    with bench.ask() as server:
        bench.say(said)
        bench.copying.go_on(False)
        received = wire.receive(server)
        assert received is not None and received[0] == {"error": "the room does not get ready to be copied"}
    assert bench.did() == [] and bench.copying.may_pass
    bench.say(b"r\x01[]")  # too late
    assert not bench.copying.under_way


def test_what_is_no_order_is_closed(bench: Bench) -> None:
    for sent in (b"{", b'{"op":"copy"}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(bench.address))
            sock.send(sent)
            bench.copying.go_on(True)
            assert sock.recv(16) == b""
    assert not bench.copying.under_way and bench.heard() == b""


def test_a_runsc_that_hangs_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_TOOL_S", 0.1)
    monkeypatch.setattr(copying, "command_line", lambda *_: ["/bin/sh", "-c", "exec /bin/sleep 600"])
    began = time.monotonic()
    bench.copying._image = bench.image
    assert bench.copying._run("pause", 0.1) == "runsc pause: it took too long"
    assert time.monotonic() - began < 60


def test_how_large_the_disk_of_a_copy_is() -> None:
    assert [size_of(mb << 20) for mb in (0, 64, 65, 200, 1000)] == [128, 128, 256, 512, 2048]


@pytest.mark.parametrize("lost", [None, 1, "", "{}", "[" * 100_000, '["a"', "null"])
def test_a_hostile_answer_is_nothing(lost: object) -> None:
    assert parse_reply({"lost": lost}) == ()


def test_a_long_answer_is_cut() -> None:
    assert parse_reply({"lost": '["why", [[]], 7]'}) == ("why",)
    (first, *_), all_of_it = (parse_reply({"lost": json.dumps(["x" * 1000] * 100)}) for _ in range(2))
    assert len(first) == 200 and len(all_of_it) == 32
