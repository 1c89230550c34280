"""Sandboxes of a server that is killed again and again while clients make, pause, resume and end them."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import httpx

from tests.support.sandboxes import Box
from tests.support.server import NOTHING, Remains, Server

SCRIPTED = "tests.support.scripted_sandboxes"


def test_killed_again_and_again_nothing_is_lost_and_nothing_leaks(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    dice = random.Random(11)
    promised: dict[str, tuple[str, str]] = {}  # sandboxes that were answered with 201, and not asked to end
    lock = threading.Lock()

    def load(server: Server, seed: int, stop: threading.Event) -> None:
        choose = random.Random(seed)
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            while not stop.is_set():
                try:
                    _one_turn(server, client, choose)
                except httpx.HTTPError:
                    return

    def _one_turn(server: Server, client: httpx.Client, choose: random.Random) -> None:
        with lock:
            ids = sorted(promised)
        verb = choose.choice(["create", "pause", "files", "connect", "kill"]) if len(ids) > 3 else "create"
        if verb == "create":
            box = Box.create(server, client, timeout=3600)
            box.sh("echo kept > /kept; sync")
            with lock:
                promised[box.id] = (box.token, box.traffic)
            return
        id = choose.choice(ids)
        if verb == "kill":
            with lock:
                promised.pop(id, None)  # whether it ends is not known until it is answered
            client.delete(f"/sandboxes/{id}")
        elif verb == "connect":
            client.post(f"/v2/sandboxes/{id}/connect", json={"timeout": 3600})
        else:
            client.post(f"/sandboxes/{id}/pause", json={"memory": verb == "pause"})

    server = Server(data_dir, module=SCRIPTED).start()
    for round in range(3):
        stop = threading.Event()
        threads = [threading.Thread(target=load, args=(server, 10 * round + n, stop)) for n in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.3, 1.5))
        server.kill()
        stop.set()
        for thread in threads:
            thread.join()
        server = Server(data_dir, module=SCRIPTED).start()
    with server.client() as client:
        listed = {found["sandboxID"]: found for found in client.get("/v2/sandboxes").json()}
        assert set(promised) <= set(listed)
        assert {path.stem for path in (data_dir / "sandboxes").iterdir()} == set(listed)
        for id, (token, traffic) in promised.items():
            box = Box(server, client, id, token, traffic)
            assert box.call("connect", timeout=3600).status_code in (200, 201)
            assert box.sh("cat /kept") == "kept\n"
        for id in listed:
            assert client.delete(f"/sandboxes/{id}").status_code == 204
        assert list((data_dir / "sandboxes").iterdir()) == []
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING
