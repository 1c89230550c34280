"""The server killed at named points and at random ones: nothing accepted is lost, nothing runs too often."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.crashing_server import CrashingServer
from tests.support.hook import Hook
from tests.support.server import NOTHING, Remains, Server
from tests.support.tasks import EFFECTS, MOUNT, configure, effects, finished, records, submit

POINTS = ["enqueue:before", "enqueue:after", "claim:before", "claim:after", "conclude:before", "conclude:after"]
KINDS = ("least", "most")
Start = Callable[..., Server]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(data_dir: Path) -> Iterator[Start]:
    """Starts the given server, or an ordinary one; none is left running, and a stopped one has left nothing."""
    started: list[Server] = []

    def start(server: Server | None = None) -> Server:
        started.append(server or Server(data_dir))
        return started[-1].start()

    yield start
    whole = all(server.ended for server in started)
    for server in started:
        server.kill()
    assert not whole or Remains.of(data_dir) == NOTHING


def deploy(server: Server) -> None:
    for name in KINDS:
        server.deploy(name, {"index.py": EFFECTS}, timeout=30, **MOUNT)
    assert configure(server, "most", roost={"delivery": "atMostOnce"}).status_code == 200
    assert configure(server, "least", maxAsyncRetryAttempts=8).status_code == 200


class Load:
    """Submits tasks to both functions until the server is gone; `accepted` are the ids that were answered with 202."""

    def __init__(self, server: Server, mark: str, *, most: int = 10_000, pause: float = 0.0) -> None:
        self.accepted: dict[str, set[str]] = {name: set() for name in KINDS}
        self._server = server
        self._mark = mark
        self._most = most
        self._pause = pause
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in KINDS]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, name: str) -> None:
        for number in range(self._most):
            id = f"{name}-{self._mark}-{number}"
            try:
                reply = submit(self._server, name, f"{id} sleep 0.01", id=id)
            except httpx.HTTPError:
                return
            assert reply.status_code == 202, reply.text
            self.accepted[name].add(id)
            time.sleep(self._pause)


def check(data_dir: Path, accepted: dict[str, set[str]]) -> None:
    """What was accepted, or stored before the answer was lost, ends with the effects that its function allows."""
    stored = {name: set(records(data_dir, name)) for name in KINDS}
    least = finished(data_dir, "least", accepted["least"] | stored["least"])
    most = finished(data_dir, "most", accepted["most"] | stored["most"])
    counted = effects(data_dir)
    for id, record in least.items():
        assert record.state == "Succeeded", record
        assert 1 <= counted[id] <= record.attempts == record.states.count("Running"), (counted[id], record)
        assert record.attempts == 1 or "Interrupted" in str(record.events), record
    for id, record in most.items():
        assert counted[id] <= record.attempts <= 1, (counted[id], record)
        if record.state == "Succeeded":
            assert counted[id] == 1
        else:
            assert (record.state, record.error_type) == ("Failed", "Interrupted"), record
    assert set(counted) <= {*least, *most}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point(data_dir: Path, start: Start, point: str) -> None:
    server = CrashingServer(data_dir, point, 7)
    start(server)
    deploy(server)
    with Load(server, "a", most=12) as load:
        server.died()
    again = start()
    check(data_dir, load.accepted)
    assert again.stop() == 0, again.log()[-3000:]


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


def killed_at_random(data_dir: Path, start: Start, hook: Hook, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    server = start()
    deploy(server)
    destination = {"onSuccess": {"destination": hook.url}}
    configure(server, "least", maxAsyncRetryAttempts=8, destinationConfig=destination)
    accepted: dict[str, set[str]] = {name: set() for name in KINDS}
    for round in range(rounds):
        with Load(server, f"r{round}", pause=0.02) as load:
            wait(lambda load=load: any(load.accepted.values()))  # type: ignore[misc]
            time.sleep(dice.uniform(0.0, 0.6))
            server.kill()
        for name in KINDS:
            accepted[name] |= load.accepted[name]
        server = start()
    check(data_dir, accepted)
    wait(lambda: delivered(data_dir) == set(records(data_dir, "least")))
    ids = [hook.ids(task) for task in records(data_dir, "least")]
    assert all(len(each) == 1 for each in ids), "each end has one event, however often it came"
    assert sum(map(len, accepted.values())) > rounds
    assert server.stop() == 0, server.log()[-3000:]


def delivered(data_dir: Path) -> set[str]:
    """Tasks of `least` whose event has arrived, as their records say."""
    return {id for id, record in records(data_dir, "least").items() if record.events[-1][2].startswith("delivered to")}


def test_killed_at_random(data_dir: Path, start: Start, hook: Hook) -> None:
    killed_at_random(data_dir, start, hook, 4, seed=5)


@pytest.mark.soak
def test_killed_at_random_fifty_times(data_dir: Path, start: Start, hook: Hook) -> None:
    killed_at_random(data_dir, start, hook, 50, seed=11)


def test_what_runs_when_the_server_is_killed_is_decided_by_the_setting(data_dir: Path, start: Start) -> None:
    server = start()
    deploy(server)
    for name in KINDS:
        assert submit(server, name, f"{name} sleep 2", id=name).status_code == 202
    wait(lambda: len(effects(data_dir)) == 2)
    server.kill()
    again = start()
    least = finished(data_dir, "least", ["least"])["least"]
    assert (least.state, least.states) == (
        "Succeeded", ["Enqueued", "Running", "Retrying", "Running", "Succeeded"],
    )  # fmt: skip
    assert "The server ended while the task ran" in least.events[2][2]
    most = finished(data_dir, "most", ["most"])["most"]
    assert (most.state, most.error_type, most.states) == ("Failed", "Interrupted", ["Enqueued", "Running", "Failed"])
    assert "atMostOnce" in most.error
    assert effects(data_dir) == {"least": 2, "most": 1}
    assert again.stop() == 0


def test_an_orderly_stop_lets_tasks_end_and_spares_those_that_can_not(data_dir: Path, start: Start) -> None:
    server = start(Server(data_dir, config="stop_grace = 1.0\n"))
    deploy(server)
    for id, seconds in (("short", 0.5), ("long", 20)):
        assert submit(server, "least", f"{id} sleep {seconds}", id=id).status_code == 202
    assert submit(server, "most", "once sleep 20", id="once").status_code == 202
    wait(lambda: len(effects(data_dir)) == 3)
    assert server.stop() == 0, server.log()[-3000:]
    found = finished(data_dir, "least", ["short"])
    assert found["short"].state == "Succeeded"
    assert (found["long"].state, found["long"].attempts, found["long"].spared) == ("Retrying", 1, 1)
    once = finished(data_dir, "most", ["once"])["once"]
    assert (once.state, once.error_type) == ("Failed", "Interrupted")


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
