"""Webhooks under load and at their limits: ten thousand events at once, a full queue, a server with keys."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from alibabacloud_fc20230330 import models as fc

from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running

EVENTS, BATCH = 10_000, 500
BATCHED = {"content-type": "application/cloudevents-batch+json"}
KEYS = """
max_queued_tasks = 5
max_running_tasks = 1
[keys]
LTAItest = "a-secret-of-the-test"
"""


def events(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"specversion": "1.0", "id": str(number), "source": "/storm", "type": "t", "data": {"text": "x" * 200}}
        for number in range(start, start + count)
    ]


def memory_mb(server: Server, what: str = "VmHWM") -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def stored(server: Server, function: str) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{server.data_dir}/roost.db?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM tasks WHERE function=?", (function,)).fetchone()[0])


def test_ten_thousand_events_at_once_and_again_are_ten_thousand_tasks_in_bounded_memory(tmp_path: Path) -> None:
    # One at a time is run: what is measured is how they are taken in.
    with running(tmp_path / "data", config="max_running_tasks = 1\n") as server:
        server.deploy("stormy", {"index.py": "def handler(event, context):\n    return ''\n"})
        with server.client() as client:
            body = {
                "triggerName": "hook", "triggerType": "webhook", "triggerConfig": json.dumps({"authType": "none"}),
            }  # fmt: skip
            made = client.post("/2023-03-30/functions/stormy/triggers", json=body)
            assert made.status_code == 200, made.text
        url = made.json()["httpTrigger"]["urlInternet"]
        before = memory_mb(server, "VmRSS")

        def send(start: int) -> int:
            content = json.dumps(events(start, BATCH))
            return httpx.post(url, headers=BATCHED, content=content, timeout=60).status_code

        began = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            # Every fifth batch comes twice, side by side with itself.
            starts = [start for start in range(0, EVENTS, BATCH) for _ in range(1 + (start % (5 * BATCH) == 0))]
            answers = list(pool.map(send, starts))
        took = time.monotonic() - began
        assert set(answers) == {202}
        assert stored(server, "stormy") == EVENTS
        grown = memory_mb(server) - before
        print(f"{EVENTS} events, some sent twice, in {took:.1f} s; {grown:.0f} MB more at most")
        assert grown < 120
    assert Remains.of(tmp_path / "data") == NOTHING


def test_a_full_queue_says_when_to_come_back_and_a_server_with_keys_takes_webhooks_without(tmp_path: Path) -> None:
    with running(tmp_path / "data", config=KEYS) as server:
        sdk = Sdk(server.url, key_id="LTAItest", secret="a-secret-of-the-test")
        sdk.create("slow", {"index.py": "import time\ndef handler(event, context):\n    time.sleep(60)\n"}, timeout=90)
        config = json.dumps({"authType": "bearer", "token": "a-token-of-the-test"})
        body = fc.CreateTriggerInput(trigger_name="hook", trigger_type="webhook", trigger_config=config)
        made = sdk.client.create_trigger("slow", fc.CreateTriggerRequest(body=body)).body
        url = made.http_trigger.url_internet
        assert url == f"{server.url}/webhooks/default/slow/hook"
        assert httpx.post(url, json={}).status_code == 401
        right = {"authorization": "Bearer a-token-of-the-test"}
        # From elsewhere, through a proxy: what a server without keys would refuse.
        named = httpx.post(url, json={}, headers={**right, "host": "hooks.example.com"})
        assert named.status_code == 202, named.text
        answers = [httpx.post(url, headers=right, json={"n": number}) for number in range(8)]
        full = [reply for reply in answers if reply.status_code != 202]
        assert full
        assert {(reply.status_code, reply.json()["Code"]) for reply in full} == {(429, "AsyncQueueFull")}
        assert int(full[0].headers["retry-after"]) >= 1
        # Of a batch that does not fit, what was kept is known when it comes again.
        reply = httpx.post(url, headers={**right, **BATCHED}, content=json.dumps(events(0, 10)))
        assert reply.status_code == 429
        tasks = sdk.client.list_async_tasks("slow", fc.ListAsyncTasksRequest(limit=100)).body.tasks
        assert len(tasks) <= 6
        for task in tasks:
            with contextlib.suppress(Exception):
                sdk.client.stop_async_task("slow", task.task_id)
    assert Remains.of(tmp_path / "data") == NOTHING
