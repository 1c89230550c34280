"""The server knocks at no door of its own networks because an account's settings name it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import NOTHING, Remains, Server, running, zip_base64
from tests.support.tenants import Who

FC = "/2023-03-30"
CODE = """
import urllib.error, urllib.request
def handler(event, context):
    if event != b"model":
        return "done"
    try:
        return urllib.request.urlopen("http://127.0.0.1:3128/openai/v1/models", timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
"""


class Door(BaseHTTPRequestHandler):
    """Something of the server's own network."""

    knocked: list[str]

    def do_POST(self) -> None:
        self.knocked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, format: str, *arguments: Any) -> None: ...


@pytest.fixture
def door() -> Iterator[tuple[int, list[str]]]:
    knocked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Door,), {"knocked": knocked})) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http.server_port, knocked
        http.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config='[keys]\nroot = "the-secret-of-the-operator"\n') as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def furnish(who: Who, **fields: Any) -> None:
    made = {"functionName": "f", "runtime": "python3.12", "handler": "index.handler", **fields}
    who.ask("POST", f"{FC}/functions", {**made, "code": {"zipFile": zip_base64({"index.py": CODE})}})


def outcome(who: Who, destination: str, task: str) -> dict[str, Any]:
    """The record of a task whose end was told to there."""
    config = {"asyncTask": True, "destinationConfig": {"onSuccess": {"destination": destination}}}
    who.ask("PUT", f"{FC}/functions/f/async-invoke-config", config)
    headers = {"x_fc_invocation_type": "Async", "x_fc_async_task_id": task}
    assert who.send("POST", f"{FC}/functions/f/invocations", b"x", **headers).status_code == 202
    for _ in range(200):
        told: dict[str, Any] = who.ask("GET", f"{FC}/functions/f/async-tasks/{task}")
        if told.get("destinationStatus") in {"Succeeded", "Failed"}:
            return told
        time.sleep(0.1)
    raise AssertionError(told)


def test_an_account_s_settings_do_not_lead_inside(server: Server, door: tuple[int, list[str]]) -> None:
    port, knocked = door
    with server.client() as http:
        operator = Who(http, "root", "the-secret-of-the-operator")
        tenant = operator.key("tenant", "admin")
        inside = {"OPENAI_BASE_URL": f"https://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "k"}
        furnish(tenant, environmentVariables=inside)
        for number, scheme in enumerate(("http", "https")):
            told = outcome(tenant, f"{scheme}://127.0.0.1:{port}/hook", f"t-{number}")
            assert told["destinationStatus"] == "Failed"
            said = json.dumps(told["events"])
            assert "by https, not http" in said or "this server's own networks" in said
        said = tenant.send("POST", f"{FC}/functions/f/invocations", b"model").text
        assert "this server's own networks" in said
        queue = {"endpoint": f"redis://127.0.0.1:{port}", "stream": "s"}
        trigger = {"triggerName": "q", "triggerType": "redis", "triggerConfig": json.dumps(queue)}
        tenant.ask("POST", f"{FC}/functions/f/triggers", trigger)
        for _ in range(100):
            last = tenant.ask("GET", f"{FC}/functions/f/triggers/q")["roost"].get("lastError") or ""
            if last:
                break
            time.sleep(0.1)
        assert "this server's own networks" in json.dumps(last)
        assert knocked == []
        # positive control: the operator's own settings lead there
        furnish(operator)
        assert outcome(operator, f"http://127.0.0.1:{port}/hook", "t")["destinationStatus"] == "Succeeded"
        assert knocked == ["/hook"]
