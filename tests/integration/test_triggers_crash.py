"""The server killed around the fires of timers: none is lost, none happens twice; effects are counted in a file."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.crashing_server import CrashingServer
from tests.support.server import NOTHING, Remains, Server
from tests.support.tasks import MOUNT, configure, effects, finished, records

TIMERS = ("one", "two", "three")
#: Appends which timer it was, and the time that it was for.
NOTES = """
import json, os
def handler(event, context):
    event = json.loads(event)
    fd = os.open("/mnt/effects/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{event['triggerName']}@{event['triggerTime']}\\n".encode())
    os.close(fd)
"""
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


def trigger(server: Server, function: str, name: str, config: dict[str, Any], method: str = "POST") -> None:
    path = f"/2023-03-30/functions/{function}/triggers"
    body = {"triggerConfig": json.dumps(config)}
    with server.client() as client:
        if method == "POST":
            reply = client.post(path, json={"triggerName": name, "triggerType": "timer", **body})
        else:
            reply = client.put(f"{path}/{name}", json=body)
    assert reply.status_code == 200, reply.text


def every_second(enable: bool) -> dict[str, Any]:
    return {"cronExpression": "@every 1s", "catchUp": "all", "enable": enable}


def deploy(server: Server) -> None:
    server.deploy("noting", {"index.py": NOTES}, timeout=10, **MOUNT)
    # No task runs twice: a timer that fires twice would show, whatever the crash cut off.
    assert configure(server, "noting", roost={"delivery": "atMostOnce"}).status_code == 200
    for name in TIMERS:
        trigger(server, "noting", name, every_second(True))


def check(server: Server, data_dir: Path) -> None:
    """Each timer has fired for every second that there was, once."""
    time.sleep(1.2)  # what was missed is caught up with
    for name in TIMERS:
        trigger(server, "noting", name, every_second(False), "PUT")
    ended = finished(data_dir, "noting", records(data_dir, "noting"))
    with server.client() as client:
        path, query = "/2023-03-30/functions/noting/async-tasks", {"limit": "100", "includePayload": "true"}
        payloads: list[dict[str, Any]] = []
        while True:
            page = client.get(path, params=query).json()
            payloads += [json.loads(task["taskPayload"]) for task in page["tasks"]]
            if not page.get("nextToken"):
                break
            query["nextToken"] = page["nextToken"]
    fires = Counter((one["triggerName"], one["triggerTime"]) for one in payloads)
    assert len(fires) == len(ended)
    assert set(fires.values()) == {1}, "no time has two tasks"
    for name in TIMERS:
        times = sorted(datetime.fromisoformat(at).timestamp() for who, at in fires if who == name)
        assert len(times) >= 3
        assert times == [times[0] + number for number in range(len(times))], f"{name} lost a second"
    counted = effects(data_dir)
    assert set(counted) <= {f"{name}@{at}" for name, at in fires}
    assert set(counted.values()) <= {1}, "no time had its effect twice"
    lost = [record for record in ended.values() if record.state != "Succeeded"]
    assert {(record.state, record.error_type) for record in lost} <= {("Failed", "Interrupted")}
    assert len(counted) >= len(ended) - len(lost)


@pytest.mark.parametrize("point", ["enqueue:after", "triggers.put_cursor:after"])
def test_killed_at_a_named_point_of_a_fire(data_dir: Path, start: Start, point: str) -> None:
    server = CrashingServer(data_dir, point, 8)
    start(server)
    deploy(server)
    server.died()
    again = start()
    check(again, data_dir)
    assert again.stop() == 0, again.log()[-3000:]


def killed_around_fires(data_dir: Path, start: Start, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    server = start()
    deploy(server)
    for _ in range(rounds):
        time.sleep(max(0, 1 - time.time() % 1 + dice.uniform(-0.02, 0.06)))
        server.kill()
        server = start()
    check(server, data_dir)
    assert server.stop() == 0, server.log()[-3000:]


def test_killed_around_whole_seconds(data_dir: Path, start: Start) -> None:
    killed_around_fires(data_dir, start, 2, seed=3)


@pytest.mark.soak
def test_killed_around_whole_seconds_fifty_times(data_dir: Path, start: Start) -> None:
    killed_around_fires(data_dir, start, 50, seed=4)
