"""Long runs: a server under mixed load whose rooms are killed, and one that is killed itself, over and over.

ROOST_SOAK_MINUTES (default 10) is the time for each. What is leaked is printed, and must be nothing.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_server_chaos import check_everything
from tests.soak.load import SESSIONS, Held, Load, children
from tests.support.server import NOTHING, Remains, Server

MINUTES = float(os.environ.get("ROOST_SOAK_MINUTES", "10"))
WARM_UP_S = 20.0
#: The zygote, the maker of namespaces, the watch for orphans; and what one takes of the server's descriptors.
HELPERS = 3
FDS_OF_HELPER = 3
#: Caches fill and the allocator keeps what it has once had: growth that goes on is what counts.
MEMORY_SLACK_KB = 30_000

pytestmark = pytest.mark.soak


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Starts a server of one data directory; none is left running, however the test ends."""
    started: list[Server] = []

    def start() -> Server:
        started.append(Server(tmp_path / "data"))
        return started[-1].start()

    yield start
    for server in started:
        server.kill()


def test_rooms_are_made_used_and_killed_without_a_trace(tmp_path: Path, start: Callable[[], Server]) -> None:
    data_dir = tmp_path / "data"
    server = start()
    Load.deploy(server)
    storm(server, WARM_UP_S, seed=0)
    before = at_rest(server)
    rooms = storm(server, MINUTES * 60, seed=1)
    after = at_rest(server)
    print(f"{rooms} rooms killed; before {before}, after {after}")
    # A helper that was killed last is started when it is needed next.
    more = max(0, after.children - before.children)
    assert after.children <= HELPERS
    assert after.fds - before.fds <= more * FDS_OF_HELPER
    assert after.namespaces <= before.namespaces
    assert after.memory_kb - before.memory_kb < MEMORY_SLACK_KB
    check_everything(server)
    assert server.stop() == 0, server.log()[-4000:]
    assert Remains.of(data_dir) == NOTHING


def storm(server: Server, seconds: float, *, seed: int) -> int:
    """Mixed load while rooms, and now and then a helper, are killed; how many rooms were."""
    dice = random.Random(seed)
    until = time.monotonic() + seconds
    killed = 0
    with Load(server, seed) as load:
        while time.monotonic() < until:
            time.sleep(dice.uniform(0.05, 0.5))
            pids = [i["pid"] for i in server.instances() if i.get("pid")]
            if dice.random() < 0.05:
                pids = children(server.pid, dice.choice(["roost-zygote", "roost-maker"]))
            for pid in dice.sample(pids, min(len(pids), 1)):
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
    print(dict(load.replies))
    assert not [key for key in load.replies if key[1] == 500], load.replies
    return killed


def at_rest(server: Server) -> Held:
    """With no instance left: sessions are ended, functions are gone, and deployed anew."""
    with server.client() as client:
        for number in range(SESSIONS):
            client.delete(f"/2023-03-30/functions/notes/sessions/s{number}")
        for name in ("event", "stream", "notes", "brief"):
            client.delete(f"/2023-03-30/functions/{name}")
    server.until(lambda: server.instances() == [], timeout=60)
    time.sleep(2)
    held = Held.of(server.pid)
    Load.deploy(server)
    return held


def test_a_server_is_killed_over_and_over_without_a_trace(tmp_path: Path, start: Callable[[], Server]) -> None:
    data_dir = tmp_path / "data"
    dice = random.Random(5)
    server = start()
    Load.deploy(server)
    until = time.monotonic() + MINUTES * 60
    rounds = 0
    while time.monotonic() < until:
        with Load(server, rounds):
            time.sleep(dice.uniform(0.0, 3.0))
            server.kill()
        server = start()
        check_everything(server)
        rounds += 1
    print(f"killed {rounds} times")
    assert server.stop() == 0, server.log()[-4000:]
    assert Remains.of(data_dir) == NOTHING
