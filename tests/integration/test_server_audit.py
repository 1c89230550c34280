"""The audit of a real server: each kind of act by its real client, then verified by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from e2b.sandbox.filesystem.filesystem import WriteEntry
from e2b_code_interpreter import Sandbox
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.support.interpreter import data_packages
from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running

KEY_ID, SECRET = "operator", "e2b_" + "0" * 40
CALLER = """
import urllib.error, urllib.request
def handler(event, context):
    def status(path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:3128{path}", data=None, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code
    return [status("/npm/left-pad"), status("/openai/v1/models"), status("/openai/v1/files")]
"""


def audit(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roost.sdk.cli", "audit", *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def shown(data_dir: Path) -> list[dict[str, Any]]:
    done = audit(data_dir, "show", "--json", "-n", "10000")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("roost") / "data"
    made.mkdir()
    subprocess.run(["cp", "-al", str(data_packages().parent), str(made / "packages")], check=True)
    return made


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    with running(data_dir, config=f'[keys]\n{KEY_ID} = "{SECRET}"\n') as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def sandbox(server: Server) -> Iterator[Sandbox]:
    made = Sandbox.create(api_url=server.url, sandbox_url=server.url, api_key=SECRET)
    yield made
    made.kill()


async def test_every_kind_of_act_is_recorded_and_the_log_is_whole(
    server: Server, sandbox: Sandbox, data_dir: Path
) -> None:
    sandbox.commands.run("echo started")
    sandbox.run_code("1 + 1")
    sandbox.files.write("/home/user/note\n", "written")
    sandbox.files.write_files([WriteEntry(path="/tmp/one", data="1"), WriteEntry(path="/tmp/two", data="2")])
    sandbox.files.read("/home/user/note\n")
    with server.client() as client:
        assert client.post("/sandboxes", json={}, headers={"X-API-KEY": "wrong"}).status_code == 401
        refused = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": "wrong"}
        assert client.get("/files?path=/etc/passwd", headers=refused).status_code == 401
        bearer = {"Authorization": f"Bearer {SECRET}"}
        assert client.put("/roost/objects/box/key", content=b"x", headers=bearer).status_code < 300
        assert client.get("/roost/objects/box/key", headers=bearer).content == b"x"
        made = client.post("/roost/keys", json={"name": "ci", "role": "viewer"}, headers=bearer)
        assert made.status_code == 201, made.text
        assert client.post(
            "/secrets", json={"name": "token", "value": "hidden"}, headers={"X-API-KEY": SECRET}
        ).is_success
    async with httpx2.AsyncClient(headers=bearer, timeout=60) as authorized:
        transport = streamable_http_client(f"{server.url}/sandboxes/{sandbox.sandbox_id}/mcp", http_client=authorized)
        async with Client(transport, read_timeout_seconds=60) as session:
            await session.call_tool("run_command", {"command": "true"})
    fc = Sdk(server.url, key_id=KEY_ID, secret=SECRET)
    variables = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "sk-hidden"}
    fc.create("caller", {"index.py": CALLER}, environment_variables=variables, timeout=60)
    assert json.loads(fc.reply("caller", b"")) == [404, 502, 404]

    server.until(lambda: any(one["actor"].startswith("instance/") for one in shown(data_dir)))
    records = shown(data_dir)
    box, secret = f"sandbox/{sandbox.sandbox_id}", [one for one in records if one["action"] == "secret.use"]
    found = {(one["action"], one["actor"], one["target"], one["outcome"]) for one in records}
    assert {
        ("audit.start", "system", "server", "allowed"),
        ("login", KEY_ID, "server", "allowed"),
        ("login", "anonymous", "server", "denied"),
        ("api.change", KEY_ID, "/v2/sandboxes", "allowed"),
        ("api.change", "anonymous", "/sandboxes", "denied"),
        ("process.start", "token", box, "allowed"),
        ("process.start", KEY_ID, box, "allowed"),  # by MCP
        ("file.write", "token", box, "allowed"),
        ("file.read", "token", box, "allowed"),
        ("file.read", "anonymous", box, "denied"),
        ("file.write", KEY_ID, "/roost/objects/box/key", "allowed"),
        ("file.read", KEY_ID, "/roost/objects/box/key", "allowed"),
        ("policy.change", KEY_ID, f"key/{made.json()['id']}", "allowed"),
        ("policy.change", KEY_ID, "/secrets", "allowed"),
        ("api.change", KEY_ID, "/2023-03-30/functions", "allowed"),
    } <= found
    written = [one["detail"].get("path") for one in records if one["action"] == "file.write" and one["target"] == box]
    assert "/home/user/note\n" in written and {"/tmp/one", "/tmp/two"} <= set(written)
    calls = {one["detail"].get("call") for one in records if one["action"] == "process.start"}
    assert calls >= {"/process.Process/Start", "/execute"}
    egress = {(one["target"], one["outcome"]) for one in records if one["action"] == "egress.connect"}
    assert {("model/openai/v1/models", "allowed"), ("model/openai/v1/files", "denied")} <= egress
    assert ("index/npm/left-pad", "denied") in egress
    assert [one["target"] for one in secret] == ["OPENAI_API_KEY"]
    told = json.dumps(records)
    assert "hidden" not in told
    assert SECRET not in told
    assert made.json()["secret"] not in told

    done = audit(data_dir, "verify")
    assert done.returncode == 0, done.stderr
    assert f"Records 1 to {records[-1]['seq']} are as they were written" in done.stdout


def test_a_killed_server_s_log_is_whole_and_gone_on_with(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir).start()
    try:
        for number in range(20):
            server.deploy(f"f{number}", {"index.py": "def handler(event, context):\n    return event\n"})
        server.until(lambda: sum(one["action"] == "api.change" for one in shown(data_dir)) == 20)
        noted = audit(data_dir, "head").stdout.strip()
        server.kill()
        assert audit(data_dir, "verify", "--noted", noted).returncode == 0
        server.start()
        server.deploy("after", {"index.py": "def handler(event, context):\n    return event\n"})
        assert server.stop() == 0
        assert audit(data_dir, "verify", "--noted", noted).returncode == 0
        records = shown(data_dir)
        assert [one["seq"] for one in records] == list(range(1, len(records) + 1))
        assert records[-1]["target"] == "/2023-03-30/functions"

        [file] = (data_dir / "audit").glob("*.jsonl")
        file.write_bytes(file.read_bytes().replace(b'"actor":"anonymous"', b'"actor":"somebody!"', 1))
        done = audit(data_dir, "verify")
        assert done.returncode == 1
        assert done.stderr.startswith("roost audit: the log is not whole. 0000000000000001.jsonl:")
        assert "one of them was changed" in done.stderr
    finally:
        if not server.ended:
            server.stop()
    assert Remains.of(data_dir) == NOTHING


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify",), "There is no audit log at"),
        (("verify", "--noted", "4"), "NUMBER:DIGEST is expected"),
        (("verify", "--public-key", "/nonexistent"), "There is no public key /nonexistent."),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    if len(arguments) > 1:
        (tmp_path / "audit").mkdir()
    done = audit(tmp_path, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_folder_of_somebody_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "key.pub").write_text("no key")
    done = audit(tmp_path, "verify")
    assert done.returncode == 2
    assert "is no public key" in done.stderr
    assert os.listdir(tmp_path / "audit") == ["key.pub"]
