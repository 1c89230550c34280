"""Snapshots, forks, checkpoints and rollbacks of a server that is killed again and again: what was answered is there,
and no image is left."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import httpx

from tests.support.sandboxes import Box
from tests.support.server import NOTHING, Remains, Server

SCRIPTED = "tests.support.scripted_sandboxes"
SETTINGS = "sandbox_memory_mb = 64\nsandbox_disk_mb = 64\n"


def test_killed_again_and_again_nothing_is_lost_and_no_image_is_left(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    dice = random.Random(12)
    lock = threading.Lock()
    boxes: dict[str, tuple[str, str]] = {}  # that were answered with 201, and not asked to end
    snapshots: set[str] = set()

    def load(server: Server, seed: int, stop: threading.Event) -> None:
        choose = random.Random(seed)
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            while not stop.is_set():
                try:
                    turn(server, client, choose)
                except httpx.HTTPError:
                    return

    def turn(server: Server, client: httpx.Client, choose: random.Random) -> None:
        with lock:
            ids, kept = sorted(boxes), sorted(snapshots)
        verb = (
            choose.choice(["fork", "snapshot", "from", "kill", "delete", "checkpoint", "rollback"])
            if ids and kept
            else "create"
        )
        if verb in ("create", "from"):
            template = choose.choice(kept) if verb == "from" else "base"
            reply = client.post("/v2/sandboxes", json={"templateID": template, "timeout": 3600})
            if reply.status_code == 201:
                add(server, client, [reply.json()], fresh=verb == "create")
            if verb == "create":
                snapshot(client, reply.json()["sandboxID"])
        elif verb == "fork":
            reply = client.post(f"/sandboxes/{choose.choice(ids)}/fork", json={"count": 2, "timeout": 3600})
            if reply.status_code == 201:
                add(server, client, [made["sandbox"] for made in reply.json() if "sandbox" in made])
        elif verb == "snapshot":
            snapshot(client, choose.choice(ids))
        elif verb == "checkpoint":
            client.post(f"/sandboxes/{choose.choice(ids)}/checkpoints", json={})
        elif verb == "rollback":
            id = choose.choice(ids)
            if (nodes := client.get(f"/sandboxes/{id}/checkpoints")).status_code == 200 and nodes.json():
                body = {"checkpointID": choose.choice(nodes.json())["checkpointID"]}
                if choose.random() < 0.5:
                    client.post(f"/sandboxes/{id}/rollback", json=body)
                else:
                    client.delete(f"/sandboxes/{id}/checkpoints/{body['checkpointID']}")
        elif verb == "kill":
            id = choose.choice(ids)
            with lock:
                boxes.pop(id, None)  # whether it ends is not known until it is answered
            client.delete(f"/sandboxes/{id}")
        else:
            name = choose.choice(kept)
            with lock:
                snapshots.discard(name)
            client.delete(f"/templates/{name}")

    def add(server: Server, client: httpx.Client, made: list[dict[str, str]], *, fresh: bool = False) -> None:
        for found in made:
            box = Box(server, client, found["sandboxID"], found["envdAccessToken"], found["trafficAccessToken"])
            if fresh:
                box.sh("echo kept > /kept; sync")
            with lock:
                boxes[box.id] = (box.token, box.traffic)

    def snapshot(client: httpx.Client, id: str) -> None:
        reply = client.post(f"/sandboxes/{id}/snapshots", json={})
        if reply.status_code == 201:
            with lock:
                snapshots.add(reply.json()["snapshotID"])

    server = Server(data_dir, module=SCRIPTED, config=SETTINGS).start()
    for round in range(3):
        stop = threading.Event()
        threads = [threading.Thread(target=load, args=(server, 10 * round + n, stop)) for n in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.5, 2))
        server.kill()
        stop.set()
        for thread in threads:
            thread.join()
        server = Server(data_dir, module=SCRIPTED, config=SETTINGS).start()
    with server.client() as client:
        listed = {found["sandboxID"] for found in client.get("/v2/sandboxes").json()}
        assert boxes.keys() <= listed
        assert snapshots <= {found["snapshotID"] for found in client.get("/snapshots").json()}
        for id, (token, traffic) in boxes.items():
            box = Box(server, client, id, token, traffic)
            assert box.call("connect", timeout=3600).status_code in (200, 201)
            assert box.sh("cat /kept") == "kept\n"
        for id in listed:
            assert client.delete(f"/sandboxes/{id}").status_code == 204
        for found in client.get("/snapshots").json():
            assert client.delete(f"/templates/{found['snapshotID']}").status_code == 204
        assert list((data_dir / "snapshots").iterdir()) == list((data_dir / "sandboxes").iterdir()) == []
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING
