"""A storm of events for each kind of source that is looked at, while the server is killed: between the tasks and the
note that they have been made, and anywhere. Nothing is lost, nothing is fired twice, by the handler's own file."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.support.crashing_server import CrashingServer
from tests.support.s3 import S3Server
from tests.support.server import NOTHING, Remains, Server, running

#: Which request (that of a task stays the same, however often it runs) was told of what.
HANDLER = """
import json, os
def handler(event, context):
    said = json.loads(event)
    names = [row["item"] for row in said.get("rows", ())]
    names += [one["oss"]["object"]["key"] for one in said.get("events", ())]
    line = json.dumps([context.request_id, names]).encode() + b"\\n"
    fd = os.open("/mnt/notes/lines", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line)
    os.close(fd)
"""
COUNT = 300
Write = Callable[[str], None]


class Storm:
    """Writes COUNT names from a thread, some of them before there is any server."""

    def __init__(self, write: Write) -> None:
        self.names = [f"in/{number % 3}/{number}" for number in range(COUNT)]
        self._write = write
        self._left = list(self.names)
        self._failed: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join(60)
        assert not self._failed and not self._left

    def _run(self) -> None:
        try:
            while self._left:
                self._write(self._left.pop())
                time.sleep(0.005)
        except BaseException as error:
            self._failed.append(error)


def told(data_dir: Path) -> dict[str, set[str]]:
    """Of each name the requests that were told of it."""
    found: dict[str, set[str]] = defaultdict(set)
    with contextlib.suppress(FileNotFoundError):
        for line in (data_dir / "volumes/default/notes/lines").read_text().splitlines():
            request, names = json.loads(line)
            for name in names:
                found[name].add(request)
    return found


def create(server: Server, type: str, settings: dict[str, Any]) -> None:
    mounts = {"mountPoints": [{"serverAddr": "notes:/", "mountDir": "/mnt/notes"}]}
    server.deploy("noting", {"index.py": HANDLER}, nasConfig=mounts)
    body = {"triggerName": "t", "triggerType": type, "triggerConfig": json.dumps(settings)}
    with server.client() as client:
        reply = client.post("/2023-03-30/functions/noting/triggers", json=body)
        assert reply.status_code == 200, reply.text
        server.until(lambda: client.get("/2023-03-30/functions/noting/triggers/t").json()["status"] == "running")


def through_crashes(data_dir: Path, point: str, config: str, type: str, settings: dict[str, Any], write: Write) -> None:
    storm = Storm(write)
    server = CrashingServer(data_dir, point, 3, config=config)
    server.start()
    try:
        create(server, type, settings)
        storm.start()
        server.died()
    finally:
        server.kill()
    before = len(told(data_dir))
    server = Server(data_dir, config=config).start()
    try:
        server.until(lambda: len(told(data_dir)) >= before + 50, 60)
    finally:
        server.kill()
    with running(data_dir, config=config) as server:
        storm.join()
        server.until(lambda: len(told(data_dir)) == COUNT, 60)
        with server.client() as client:
            tasks = client.get("/2023-03-30/functions/noting/triggers/t").json()
            assert tasks["status"] == "running", tasks
        time.sleep(1.5)
    counts = told(data_dir)
    assert set(counts) == set(storm.names)
    assert {name: requests for name, requests in counts.items() if len(requests) != 1} == {}
    assert Remains.of(data_dir) == NOTHING


def test_files(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"

    def write(name: str) -> None:
        path = data_dir / "objects/inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    settings = {"events": ["oss:ObjectCreated:*", "oss:ObjectRemoved:*"], "bucketName": "inbox"}
    through_crashes(data_dir, "objects.note:before", "", "oss", settings, write)


def test_objects_of_s3(tmp_path: Path, s3: S3Server) -> None:
    bucket, client = s3.bucket(), s3.client()
    settings = {"events": ["oss:ObjectCreated:*"], "bucketName": bucket, "pollSeconds": 1}
    through_crashes(
        tmp_path / "data",
        "objects.note:before",
        s3.config,
        "oss",
        settings,
        lambda name: client.put_object(Bucket=bucket, Key=name, Body=b"x"),
    )


def test_rows_of_postgresql(tmp_path: Path, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as database:
        database.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, item text)")

        def write(name: str) -> None:
            database.execute("INSERT INTO orders (item) VALUES (%s)", [name])
            database.execute("NOTIFY orders")

        settings = {"dsn": postgres_url, "table": "orders", "idColumn": "id", "channel": "orders", "batchSize": 2}
        through_crashes(tmp_path / "data", "rows.note:before", "", "postgresql", settings, write)
