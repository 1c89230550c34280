"""Keys that are for some tools and functions alone: what they open, what they are told of, and that there is no way
around. By the official clients, where there are some for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from roost.api.mcp.arguments import TOOLS
from roost.tenants.roles import TABLE
from tests.integration.test_server_audit import shown
from tests.support.server import NOTHING, Remains, Server, running, zip_base64
from tests.support.tenants import Who

FC = "/2023-03-30"
ECHO = "def handler(event, context): return event"
WEB = """
def handler(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"hello"]
"""
GRANTS = ["tool:run_command", "tool:list_files", "tool:list_sandboxes", "function:mine", "function:site"]


@dataclass
class Place:
    server: Server
    operator: Who
    box: str
    token: str

    def key(self, *grants: str, role: str = "admin") -> Who:
        """Even an administrator's opens no more than it is for."""
        asked = {"name": "agent", "role": role, "grants": list(grants)}
        made = self.operator.ask("POST", "/roost/keys", asked)
        assert sorted(made["grants"]) == sorted(grants)
        return Who(self.operator.http, made["id"], made["secret"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config='[keys]\nroot = "the-secret-of-the-operator"\n') as server, server.client() as http:
        operator = Who(http, "root", "the-secret-of-the-operator")
        for name, code in (("mine", ECHO), ("yours", ECHO), ("site", WEB), ("other-site", WEB)):
            made = {"functionName": name, "runtime": "python3.12", "handler": "index.handler"}
            operator.ask("POST", f"{FC}/functions", {**made, "code": {"zipFile": zip_base64({"index.py": code})}})
        box = operator.ask("POST", "/sandboxes", {"templateID": "base", "timeout": 600})
        yield Place(server, operator, box["sandboxID"], box["envdAccessToken"])
        operator.ask("DELETE", f"/sandboxes/{box['sandboxID']}")
    assert Remains.of(data_dir) == NOTHING


async def session(
    place: Place, path: str, secret: str, calls: dict[str, dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """The tools that are told of, and what each call comes to."""
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {secret}"}) as http:
        streams = streamable_http_client(f"{place.server.url}{path}", http_client=http)
        async with Client(streams, read_timeout_seconds=60) as client:
            told = [tool.name for tool in (await client.list_tools()).tools]
            came = []
            for name, given in calls.items():
                try:
                    result = await client.call_tool(name, given)
                    came.append("error" if result.is_error else result.content[0].text.strip())
                except Exception as error:
                    came.append(str(error))
            return told, came


async def test_a_key_is_told_of_its_tools_and_calls_them_alone(place: Place) -> None:
    key = place.key(*GRANTS)
    touch = {"command": "touch /tmp/there; echo done"}
    write = {"path": "/tmp/made", "content": "x"}
    own = f"/sandboxes/{place.box}/mcp"
    told, came = await session(
        place, own, key.secret, {"run_command": touch, "write_file": write, "run_code": {"code": "1"}}
    )
    assert told == ["run_command", "list_files"]
    assert came == ["done", "Unknown tool: write_file", "Unknown tool: run_code"]
    calls = {"list_sandboxes": {}, "create_sandbox": {}, "kill_sandbox": {"sandbox": place.box}}
    told, came = await session(place, "/roost/mcp", key.secret, calls)
    assert told == ["list_sandboxes", "run_command", "list_files"]
    assert place.box in came[0] and came[1:] == ["Unknown tool: create_sandbox", "Unknown tool: kill_sandbox"]
    denied = [
        one["detail"]["tool"]
        for one in shown(place.server.data_dir)
        if one["outcome"] == "denied" and one["actor"] == key.id
    ]
    assert denied == ["write_file", "run_code", "create_sandbox", "kill_sandbox"]
    # Controls: who has all tools, and who has the sandbox's own token.
    told, came = await session(
        place,
        "/roost/mcp",
        place.operator.secret,
        {"run_command": {"sandbox": place.box, "command": "ls /tmp/made /tmp/there"}},
    )
    assert set(told) == set(TOOLS) and "cannot access '/tmp/made'" in came[0] and "/tmp/there" in came[0]
    told, _ = await session(place, own, place.token, {})
    assert "write_file" in told


def test_a_key_invokes_its_functions_alone(place: Place) -> None:
    key = place.key(*GRANTS)
    assert key.send("POST", f"{FC}/functions/mine/invocations", b"hello").text == "hello"
    later = {"x_fc_invocation_type": "Async"}
    assert key.send("POST", f"{FC}/functions/mine/invocations", b"hello", **later).status_code == 202
    assert key.send("GET", "/site/").text == "hello"
    for reply in (
        key.send("POST", f"{FC}/functions/yours/invocations", b"hello"),
        key.send("POST", f"{FC}/functions/yours/invocations", b"hello", **later),
        key.send("POST", f"{FC}/functions/absent/invocations", b"hello"),
        key.send("GET", "/other-site/"),
        key.send("GET", "/yours/"),
    ):
        assert reply.status_code == 403, reply.text
    how = [
        (one["action"], one["detail"].get("by"))
        for one in shown(place.server.data_dir)
        if one["outcome"] == "denied" and one["actor"] == key.id
    ]
    assert how == [("login", "grant")] * 5
    # Controls: the same function by a key without grants, and none by a key for another one.
    assert place.operator.send("GET", "/other-site/").text == "hello"
    assert place.key("function:yours").send("GET", "/site/").status_code == 403


def test_every_other_route_is_closed_to_it(place: Place) -> None:
    """Whatever its role: it may not make another key, nor get a sandbox's token to go around its tools."""
    key = place.key(*GRANTS)
    tried = 0
    for (method, path), role in TABLE.items():
        if role is None or path.endswith("/mcp") or path.startswith("/{function}") or path.endswith("/invocations"):
            continue
        ids = {"name": "yours", "id": place.box, "account": "default", "function": "mine"}
        filled = "/".join(ids.get(part[1:-1], "x") if part.startswith("{") else part for part in path.split("/"))
        if "{rest" in path:
            continue  # there is nothing, for anybody
        reply = key.send(method, filled)
        assert reply.status_code == 403, (method, path, reply.status_code, reply.text)
        tried += 1
    assert tried > 100
    assert place.operator.ask("GET", f"/sandboxes/{place.box}")["state"] == "running"
    assert place.operator.send("GET", f"{FC}/functions/yours").status_code == 200


def test_what_can_not_be_granted_and_what_outlives_the_server(place: Place) -> None:
    for grants in (
        [""],
        ["tool:rm"],
        ["run_code"],
        ["function:"],
        ["function:a b"],
        ["tool:run_code function:x"],
        "tool:run_code",
        [1],
        ["function:x"] * 101,
    ):
        reply = place.operator.send("POST", "/roost/keys", {"name": "x", "role": "viewer", "grants": grants})
        assert (reply.status_code, reply.json()["Code"]) == (400, "InvalidArgument"), grants
    key, only_tool = place.key("function:mine", role="invoker"), place.key("tool:list_sandboxes", role="invoker")
    # Its role has to allow it as well.
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    accept = {"accept": "application/json, text/event-stream"}
    assert only_tool.send("POST", "/roost/mcp", message.encode(), **accept).status_code == 403
    assert key.send("POST", f"/sandboxes/{place.box}/mcp", message.encode(), **accept).status_code == 403
    url = httpx.URL(place.server.url)
    place.server.kill()
    place.server.start(port=str(url.port))
    assert key.send("POST", f"{FC}/functions/mine/invocations", b"again").text == "again"
    assert key.send("POST", f"{FC}/functions/yours/invocations", b"again").status_code == 403
    listed = {one["id"]: one["grants"] for one in place.operator.ask("GET", "/roost/keys")["keys"]}
    assert listed[key.id] == ["function:mine"]


def test_the_command_line_makes_and_lists_them(place: Place) -> None:
    who = {
        "ROOST_URL": place.server.url,
        "ROOST_ACCESS_KEY_ID": "root",
        "ROOST_ACCESS_KEY_SECRET": place.operator.secret,
    }

    def roost(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "roost.sdk.cli", "keys", *arguments]
        environment = {**os.environ, **who, "COLUMNS": "200"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    made = roost("create", "agent", "--role", "invoker", "--for", "tool:run_code", "--for", "function:mine")
    assert made.returncode == 0, made.stderr
    id, secret = (line.partition("=")[2] for line in made.stdout.splitlines())
    key = Who(place.operator.http, id, secret)
    assert key.send("POST", f"{FC}/functions/mine/invocations", b"hello").text == "hello"
    assert key.send("POST", f"{FC}/functions/yours/invocations", b"hello").status_code == 403
    assert "function:mine tool:run_code" in roost("ls").stdout
    wrong = roost("create", "agent", "--for", "tool:rm")
    assert wrong.returncode == 1 and "there is no tool 'tool:rm'" in wrong.stderr
