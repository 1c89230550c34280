"""A whole server while its processes, rooms, helpers and disk fail. Longer runs of the same are in tests/soak."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.soak.load import SESSIONS, Held, Load, children
from tests.support.server import NOTHING, Remains, Server


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


def test_killed_at_any_moment_under_mixed_load_everything_is_in_place(
    tmp_path: Path, start: Callable[[], Server]
) -> None:
    data_dir = tmp_path / "data"
    dice = random.Random(11)
    server = start()
    Load.deploy(server)
    for round in range(2):
        with Load(server, round) as load:
            time.sleep(dice.uniform(0.2, 2.0))
            server.kill()
        assert sum(load.replies.values()) > 0
        server = start()
    check_everything(server)
    assert server.stop() == 0, server.log()[-4000:]
    assert Remains.of(data_dir) == NOTHING


def check_everything(server: Server) -> None:
    """Functions, alias, sessions and their files are there, and work."""
    with server.client() as client:
        names = {f["functionName"] for f in client.get("/2023-03-30/functions").json()["functions"]}
        assert {"event", "stream", "notes"} <= names
        assert client.get("/2023-03-30/functions/notes/aliases/live").json()["versionId"] == "1"
        assert server.invoke("event", "x").text == "x"
        assert client.get("/stream/").text.endswith("39\n")
        for number in range(SESSIONS):
            path = f"/2023-03-30/functions/notes/sessions/s{number}"
            session = client.get(path)
            if session.status_code == 404:  # no request for it came through
                continue
            assert session.json()["sessionStatus"] in ("Active", "Paused")
            if session.json()["sessionStatus"] == "Paused":
                assert client.put(f"{path}/resume").status_code == 200
            reply = server.invoke("notes", "read", x_chat_id=f"s{number}")
            assert reply.status_code == 200, reply.text
            _, layer, volume = reply.text.split("|")
            # A request writes to the layer, then to the volume; one that was cut off may have done the first only.
            written = iter(layer.split(";"))
            lost = [entry for entry in volume.split(";") if entry not in written]
            assert not lost, (lost, layer, volume)


def test_a_server_holds_no_more_after_many_rooms_than_before(server: Server) -> None:
    server.deploy("brief", {"index.py": NOTES}, **EXCLUSIVE)

    def cycle(number: int) -> None:
        assert server.invoke("brief", "add x", x_chat_id=f"c{number}").status_code == 200
        [instance] = [i for i in server.instances() if f"c{number}" in i["sessions"]]
        if number % 2:
            os.kill(instance["pid"], signal.SIGKILL)
        with server.client() as client:
            assert client.delete(f"/2023-03-30/functions/brief/sessions/c{number}").status_code in (200, 204)

    def held() -> Held:
        server.until(lambda: server.instances() == [])
        time.sleep(0.5)  # pools are refilled, closed connections are gone
        return Held.of(server.pid)

    for number in range(10):
        cycle(number)
    before = held()
    for number in range(10, 30):
        cycle(number)
    after = held()
    assert (after.fds, after.namespaces, after.children) == (before.fds, before.namespaces, before.children)


def test_a_worker_that_kills_whatever_it_sees_harms_itself_alone(server: Server) -> None:
    code = (
        "import os, signal\ndef handler(event, context):\n    os.kill(int(event), signal.SIGKILL)\n    return 'alive'"
    )
    server.deploy("killer", {"index.py": code})
    server.deploy("bystander", {"index.py": "def handler(event, context): return 'fine'"})
    for target in ("-1", "1", "0"):
        reply = server.invoke("killer", target)
        assert reply.status_code == 200, reply.text
        assert "x-fc-error-type" in reply.headers or reply.text == "alive"
        assert server.invoke("bystander").text == "fine"


def test_rooms_killed_from_outside_at_random_are_replaced(server: Server) -> None:
    server.deploy(
        "target", {"index.py": "import time\ndef handler(event, context):\n    time.sleep(0.02)\n    return 'ok'"}
    )
    dice = random.Random(3)
    done = threading.Event()
    seen: list[int] = []

    def load() -> None:
        while not done.is_set():
            seen.append(server.invoke("target").status_code)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        alive = [i["pid"] for i in server.instances() if i["function"] == "target" and i.get("pid")]
        if alive:
            try:
                os.kill(dice.choice(alive), signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    done.set()
    for thread in threads:
        thread.join()
    # 502: the instance exited under the request; 503: it was ended while it started, which is no fault of the function.
    assert set(seen) <= {200, 502, 503}
    assert seen.count(200) > len(seen) / 2
    assert server.invoke("target").text == "ok"


def test_helpers_that_stand_still_are_replaced(server: Server) -> None:
    server.deploy("still", {"index.py": "def handler(event, context): return 'ok'"}, **EXCLUSIVE)
    for helper in ("roost-zygote", "roost-maker"):
        for pid in children(server.pid, helper):
            os.kill(pid, signal.SIGSTOP)
        threads = [
            threading.Thread(target=server.invoke, args=("still",), kwargs={"x_chat_id": f"{helper}-{number}"})
            for number in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.invoke("still", x_chat_id=f"{helper}-after").text == "ok"


def test_helpers_killed_in_mid_create_are_replaced(server: Server) -> None:
    server.deploy("many", {"index.py": "def handler(event, context): return 'ok'"}, **EXCLUSIVE)
    for helper in ("roost-zygote", "roost-maker"):
        replies: list[httpx.Response] = []

        def ask(number: int, helper: str = helper, replies: list[httpx.Response] = replies) -> None:
            replies.append(server.invoke("many", x_chat_id=f"{helper}-{number}"))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        for pid in children(server.pid, helper):
            os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert {reply.status_code for reply in replies} <= {200, 503}
        assert server.invoke("many", x_chat_id=f"{helper}-after").text == "ok"
