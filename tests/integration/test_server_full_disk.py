"""A data directory on a disk that fills up: clear errors, nothing damaged, and all well when there is room again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.support.sandboxes import Box
from tests.support.server import NOTHING, READY, Remains, Server, zip_base64
from tests.support.tasks import submit

SIZE_MB = 400
#: What may be said: no room, or not now.
CLEAR = (507, 503)


class SmallDisk:
    """A mount namespace with a small file system over the data directory, seen by nobody else."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir()
        script = f"mount -t tmpfs -o size={SIZE_MB}m roost-test {data_dir} && echo mounted && exec sleep 600"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "mounted\n"
        self.pid = self._holder.pid
        self.path = Path(f"/proc/{self.pid}/root{data_dir}")

    def fill(self) -> None:
        """Until not a byte goes on it."""
        with (self.path / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * (1 << 16)):
                pass

    def clear(self) -> None:
        (self.path / "filler").unlink()

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class SmallServer(Server):
    """A server in that namespace."""

    def __init__(self, data_dir: Path, disk: SmallDisk, module: str = "roost.server") -> None:
        super().__init__(data_dir, module=module)
        self._disk = disk

    def start(self) -> Server:
        command = ["nsenter", "-t", str(self._disk.pid), "--mount", "--wd=/", sys.executable, "-m", self._module]
        with (self.data_dir.parent / f"{self.data_dir.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--port", "0", "--data-dir", str(self.data_dir)],
                stdout=subprocess.PIPE, stderr=log, text=True, env={**self._env, "PYTHONPATH": str(Path.cwd())},
            )  # fmt: skip
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(READY, line):
                self.url = f"http://127.0.0.1:{found[2]}"
                return self
        raise AssertionError(f"the server did not start:\n{self.log()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "data")
    yield disk
    disk.close()
    assert Remains.of(tmp_path / "data") == NOTHING


def test_a_full_disk_is_named_damages_nothing_and_is_got_over(tmp_path: Path, disk: SmallDisk) -> None:
    server = SmallServer(tmp_path / "data", disk).start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    assert server.invoke("notes", "add 1", x_chat_id="old").text == "1|1;|1;"
    disk.fill()
    body = {"functionName": "new", "runtime": "python3.12", "handler": "index.handler",
            "code": {"zipFile": zip_base64({"index.py": "#" * 200_000})}}  # fmt: skip
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
        for _ in range(3):
            reply = client.post("/2023-03-30/functions", json=body)
            assert reply.status_code in CLEAR, reply.text
            assert "Code" in reply.json()
        assert client.get("/2023-03-30/functions/new").status_code == 404
        assert client.get("/2023-03-30/functions/notes").status_code == 200
    for number in range(3):
        reply = server.invoke("notes", "read", x_chat_id=f"new{number}")
        assert reply.status_code in (*CLEAR, 200), reply.text
    reply = server.invoke("notes", "read", x_chat_id="old")
    assert reply.status_code == 200, "what needs no room goes on"
    disk.clear()
    with server.client() as client:
        assert client.post("/2023-03-30/functions", json=body).status_code == 200
    assert server.invoke("notes", "add 2", x_chat_id="old").text == "1,2|1;2;|1;2;"
    assert server.invoke("notes", "add 1", x_chat_id="fresh").text == "1|1;|1;"
    assert "Traceback" not in server.log()
    assert server.stop() == 0, server.log()[-3000:]
    with contextlib.closing(sqlite3.connect(disk.path / "roost.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_server_killed_on_a_full_disk_comes_back(tmp_path: Path, disk: SmallDisk) -> None:
    server = SmallServer(tmp_path / "data", disk).start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    assert server.invoke("notes", "add 1", x_chat_id="s").status_code == 200
    disk.fill()
    server.invoke("notes", "add 2", x_chat_id="s")
    server.kill()
    disk.clear()
    again = SmallServer(tmp_path / "data", disk).start()
    memory, layer, volume = again.invoke("notes", "read", x_chat_id="s").text.split("|")
    assert memory.startswith("1")
    assert layer.startswith("1;")
    assert volume.startswith("1;")
    assert again.stop() == 0
    assert os.listdir(disk.path / "sessions") != []


def test_webhooks_and_timers_on_a_full_disk_lose_nothing(tmp_path: Path, disk: SmallDisk) -> None:
    server = SmallServer(tmp_path / "data", disk).start()
    server.deploy("noted", {"index.py": "def handler(event, context):\n    return event\n"})
    with server.client() as client:

        def create(name: str, type: str, config: dict[str, Any]) -> None:
            body = {"triggerName": name, "triggerType": type, "triggerConfig": json.dumps(config)}
            assert client.post("/2023-03-30/functions/noted/triggers", json=body).status_code == 200

        def event(number: int) -> int:
            attributes = {"specversion": "1.0", "id": str(number), "source": "/s", "type": "t"}
            headers = {"content-type": "application/cloudevents+json"}
            body = json.dumps({**attributes, "data": "x" * 100_000})
            return client.post("/webhooks/default/noted/hook", headers=headers, content=body).status_code

        def fires() -> list[float]:
            query = {"limit": 100, "includePayload": "true", "prefix": "timer-"}
            found = client.get("/2023-03-30/functions/noted/async-tasks", params=query).json()["tasks"]
            times = [json.loads(task["taskPayload"])["triggerTime"] for task in found]
            return sorted(datetime.fromisoformat(time).timestamp() for time in times)

        create("hook", "webhook", {"authType": "none"})
        create("tick", "timer", {"cronExpression": "@every 1s", "catchUp": "all"})
        server.until(lambda: len(fires()) > 0)
        disk.fill()
        seen = [event(number) for number in range(20)]
        assert set(seen) <= {202, 507}
        assert 507 in seen, "20 events of 100 kB found room on a full disk"
        for number in range(100, 200):  # nothing of the next second finds room, small as it is
            event(number)
        disk.clear()
        for number in range(20):
            assert event(number) == 202
        server.until(lambda: len(fires()) > 0 and fires()[-1] > datetime.now(UTC).timestamp() - 1.5, timeout=60)
        times = fires()
        assert times == [times[0] + number for number in range(len(times))], "a second is missing, or there twice"
    assert server.stop() == 0, server.log()[-3000:]


def test_a_task_that_finds_no_room_is_refused_and_those_that_were_accepted_are_run(
    tmp_path: Path, disk: SmallDisk
) -> None:
    server = SmallServer(tmp_path / "data", disk).start()
    server.deploy(
        "slow",
        {"index.py": "import time\ndef handler(event, context):\n    time.sleep(1)\n    return event\n"},
        timeout=30,
    )
    accepted = [f"t{number}" for number in range(3)]
    for id in accepted:
        assert submit(server, "slow", id, id=id).status_code == 202
    disk.fill()
    seen = [submit(server, "slow", "x" * 100_000) for _ in range(20)]
    refused = [reply for reply in seen if reply.status_code != 202]
    assert refused, "20 events of 100 kB found room on a full disk"
    assert {reply.status_code for reply in refused} == {507}, refused[0].text
    assert refused[0].json()["Code"] == "InsufficientStorage"
    disk.clear()
    again = submit(server, "slow", "later", id="later")
    assert again.status_code == 202, again.text
    accepted += ["later", *(reply.headers["x-fc-async-task-id"] for reply in seen if reply.status_code == 202)]

    def tasks() -> dict[str, tuple[str, int]]:
        with server.client() as client:
            found = client.get("/2023-03-30/functions/slow/async-tasks?limit=100").json()["tasks"]
        return {task["taskId"]: (task["status"], task["roost"]["attempts"]) for task in found}

    server.until(lambda: set(tasks().values()) == {("Succeeded", 1)}, timeout=60)
    assert set(accepted) <= set(tasks())
    assert server.stop() == 0, server.log()[-3000:]


def test_a_checkpoint_that_finds_no_room_leaves_nothing_and_a_rollback_leaves_what_was(
    tmp_path: Path, disk: SmallDisk
) -> None:
    server = SmallServer(tmp_path / "data", disk, "tests.support.scripted_sandboxes").start()
    with server.client() as client:
        reply = client.post("/v2/sandboxes", json={"templateID": "base", "timeout": 600}).json()
        box = Box(server, client, reply["sandboxID"], reply["envdAccessToken"], reply["trafficAccessToken"])
        path = f"/sandboxes/{box.id}"
        box.sh("echo first > /kept; sync")
        first = client.post(f"{path}/checkpoints", json={}).json()["checkpointID"]
        box.sh("echo second > /kept; head -c 20000000 /dev/urandom > /large; sync")
        images = os.listdir(disk.path / "snapshots")
        disk.fill()
        refused = client.post(f"{path}/checkpoints", json={})
        assert refused.status_code in CLEAR, refused.text
        assert os.listdir(disk.path / "snapshots") == images
        back = client.post(f"{path}/rollback", json={"checkpointID": first})
        assert back.status_code in (200, *CLEAR), back.text
        assert box.sh("cat /kept") == ("first\n" if back.status_code == 200 else "second\n")
        disk.clear()
        assert client.post(f"{path}/checkpoints", json={}).status_code == 201
        assert client.post(f"{path}/rollback", json={"checkpointID": first}).status_code == 200
        assert box.sh("cat /kept") == "first\n"
        assert client.delete(path).status_code == 204
        assert os.listdir(disk.path / "snapshots") == os.listdir(disk.path / "sandboxes") == []
    assert "Traceback" not in server.log()
    assert server.stop() == 0
