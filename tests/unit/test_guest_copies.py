"""PID 1's part in the copy of a function's worker: what the host asks, what it is told, when the worker goes on."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from roost.guest import copies
from roost.guest.copies import Copies
from roost.guest.reactor import Reactor


class FakeWorker:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.takes = True

    def tell(self, message: dict[str, Any]) -> bool:
        self.told.append(message["op"])
        return self.takes


class World:
    """The host's end, with a process that sleeps for a worker."""

    def __init__(self) -> None:
        self.host, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.app = socket.socketpair()[0]
        self.reactor = Reactor()
        self.copies = Copies(self.reactor, theirs, self.app)
        self.worker = FakeWorker()
        self.order, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.number = 0
        self.pid = os.fork()
        if self.pid == 0:
            select.select([], [], [])
        socket.send_fds(self.host, [json.dumps({"op": "first", "pid": self.pid}).encode()], [ours.fileno()])
        ours.close()

    def begin(self) -> Any:
        begun = self.copies.begin({"handler": "index.handler"})
        self.copies.serve(self.worker)
        return begun

    def say(self, **message: Any) -> None:
        self.number += 1
        self.host.send(json.dumps({**message, "number": self.number}).encode())
        self.reactor.turn(1)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            self.reactor.turn(0.01)

    def answer(self) -> Any:
        self.until(lambda: select.select([self.host], [], [], 0)[0])
        told = json.loads(self.host.recv(65536))
        assert told.pop("number") == self.number
        return told


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    os.kill(made.pid, 9)
    os.waitpid(made.pid, 0)


def test_the_worker_is_told_what_it_is_with_what_it_needs(world: World) -> None:
    pid, pipes = world.begin()
    message, fds, _, _ = socket.recv_fds(world.order, 65536, 8)
    assert pid == world.pid
    assert json.loads(message) == {"worker": {"handler": "index.handler"}}
    assert len(fds) == 4
    os.write(fds[1], b"out")
    assert os.read(pipes.stdout, 10) == b"out"
    assert os.fstat(fds[3]).st_ino == os.fstat(world.app.fileno()).st_ino
    for fd in fds:
        os.close(fd)
    pipes.close()


def test_one_that_stands_still_is_told_and_goes_on_when_it_is_released(world: World) -> None:
    world.begin()[1].close()
    world.say(op="hold", wait_s=20)
    assert world.worker.told == ["hold"]
    world.copies.held("")
    told = world.answer()
    assert told == {"held": [{"id": "0", "cwd": "/", "pid": world.pid, "default": True}], "lost": []}
    world.say(op="release")
    assert world.worker.told == ["hold", "go"]


def test_one_that_does_not_stand_still_goes_on_when_the_time_is_up(world: World) -> None:
    world.begin()[1].close()
    world.say(op="hold", wait_s=0.01)
    assert world.answer() == {
        "held": [],
        "lost": ["its requests did not end, or its handler serves them in threads"],
    }
    assert world.worker.told == ["hold", "go"]
    world.copies.held("")  # too late: nobody asks any more
    world.reactor.turn(0)
    assert not select.select([world.host], [], [], 0)[0]


def test_one_that_runs_though_it_says_that_it_waits_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_SOON_TRIES", 3)
    monkeypatch.setattr(copies, "sleeps", lambda pid: False)
    world.begin()[1].close()
    world.say(op="hold", wait_s=20)
    world.copies.held("")
    assert world.answer() == {"held": [], "lost": ["it did not stand still"]}
    assert world.worker.told == ["hold", "go"]


def test_one_that_can_t_stand_still_says_why_and_goes_on(world: World) -> None:
    world.begin()[1].close()
    world.say(op="hold", wait_s=20)
    world.copies.held("too much is open")
    assert world.answer() == {"held": [], "lost": ["too much is open"]}
    assert world.worker.told == ["hold", "go"]


def test_one_that_ends_or_takes_no_messages_is_lost(world: World) -> None:
    world.begin()[1].close()
    world.say(op="hold", wait_s=20)
    world.copies.lost(world.pid)
    assert world.answer() == {"held": [], "lost": ["its process has ended"]}
    world.say(op="hold", wait_s=20)
    assert "no shadow" in world.answer()["lost"][0]


def test_without_a_process_of_the_hosts_the_worker_is_forked() -> None:
    host, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    app, _ = socket.socketpair()
    made = Copies(Reactor(), theirs, app)
    host.send(b'{"op": "first", "pid": 0}')
    assert made.begin({}) is None
    host.close()


def test_when_the_server_has_gone_the_worker_goes_on(world: World) -> None:
    world.begin()[1].close()
    world.say(op="hold", wait_s=20)
    world.host.shutdown(socket.SHUT_RDWR)
    world.reactor.turn(1)
    assert world.worker.told == ["hold", "go"]
