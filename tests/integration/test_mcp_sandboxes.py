"""Sandboxes as MCP servers: the official client, unmodified, against a real server and real rooms."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.integration.test_server_audit import shown
from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running

KEYED = '[keys]\nid = "the-secret"\n'
MODES = ["legacy", "2026-07-28", "auto"]
OF_ONE = {"run_code", "run_command", "read_file", "write_file", "list_files"}
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has the packages of code contexts already."""
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    data_dir.mkdir()
    subprocess.run(["cp", "-al", str(data_packages().parent), str(data_dir / "packages")], check=True)
    with running(data_dir) as server:
        yield server
        assert "Traceback" not in server.log()
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[dict[str, Any]]:
    """One with an interpreter, for all tests that end none."""
    with server.client() as client:
        made = client.post("/v2/sandboxes", json={"templateID": "code-interpreter-v1", "timeout": 600}).json()
        yield made
        client.delete(f"/sandboxes/{made['sandboxID']}")


def at(server: Server, box: dict[str, Any]) -> str:
    return f"{server.url}/sandboxes/{box['sandboxID']}/mcp"


@pytest.fixture(params=MODES)
def session(server: Server, box: dict[str, Any], request: pytest.FixtureRequest) -> Client:
    """To be entered by the test: a client belongs to the task that opened it."""
    return Client(at(server, box), mode=request.param, read_timeout_seconds=60)


@pytest.fixture
def one(server: Server, box: dict[str, Any]) -> Client:
    """The same."""
    return Client(at(server, box), mode="2026-07-28", read_timeout_seconds=60)


async def call(client: Client, tool: str, **given: Any) -> str:
    result = await client.call_tool(tool, given)
    assert not result.is_error, result
    return "\n".join(part.text for part in result.content if part.type == "text")


async def failed(client: Client, tool: str, **given: Any) -> str:
    result = await client.call_tool(tool, given)
    assert result.is_error, result
    return str(result.content[0].text)  # type: ignore[union-attr]


# --- the tools of one sandbox ----------------------------------------------------------------------------------------


async def test_every_tool_by_every_kind_of_client(session: Client) -> None:
    async with session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(tools) == OF_ONE
        assert tools["run_command"].input_schema["required"] == ["command"]
        await call(session, "run_code", code="x = 20")
        assert await call(session, "run_code", code="print('p')\nx + 1") == "p\n21"
        assert await call(session, "run_code", code="echo $HOME", language="bash") == "/home/user"
        assert await call(session, "run_command", command="id -un; pwd; echo e >&2; exit 3") == (
            "user\n/home/user\n[stderr]\ne\n[exit code 3]"
        )
        assert await call(session, "run_command", command="id -un; pwd", user="root", cwd="/tmp") == "root\n/tmp"
        assert "to /home/user/deep/a.txt" in await call(session, "write_file", path="deep/a.txt", content="grüß\n")
        assert await call(session, "read_file", path="/home/user/deep/a.txt") == "grüß"
        listed = await call(session, "list_files", path="/home/user/deep")
        assert listed.split() == ["file", "7", "/home/user/deep/a.txt"]


async def test_what_a_command_says_is_bounded_and_says_so(one: Client) -> None:
    async with one:
        text = await call(
            one, "run_command", command="echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last"
        )
        assert len(text) < 70_000
        assert text.startswith("first\n")
        assert text.endswith("\nlast")
        assert "bytes were cut here" in text
        text = await call(one, "run_code", code="for i in range(100000): print('line', i)")
        assert len(text) < 70_000
        assert "bytes were cut here" in text
        await call(
            one,
            "run_command",
            command="seq 200000 > long; head -c 100 /dev/urandom > noise; mkdir many; cd many; touch $(seq 1500)",
        )
        part = await call(one, "read_file", path="long")
        assert part.endswith("read on with offset 131072]")
        rest = await call(one, "read_file", path="long", offset=1288800)
        assert rest.endswith("200000")
        assert "not text" in await failed(one, "read_file", path="noise")
        assert "500 of 1500 entries were cut here" in await call(one, "list_files", path="many")


async def test_pictures_are_images(one: Client) -> None:
    async with one:
        plot = "import matplotlib.pyplot as p\np.plot([1, 2])\np.savefig('plot.png')\np.show()"
        result = await one.call_tool("run_code", {"code": plot})
        picture = next(part for part in result.content if part.type == "image")
        assert base64.b64decode(picture.data).startswith(b"\x89PNG")
        result = await one.call_tool("read_file", {"path": "plot.png"})
        assert [(part.type, part.mime_type) for part in result.content] == [("image", "image/png")]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tool", "given", "said"),
    [
        ("run_command", {}, "command: "),
        ("run_command", {"command": "true", "timeout": -1}, "timeout: "),
        ("run_command", {"command": "true", "more": 1}, "more: "),
        ("run_command", {"command": "true", "user": "nobody-here"}, "nobody-here"),
        ("run_command", {"command": "true", "cwd": "/no/such"}, "/no/such"),
        ("run_command", {"command": "a\0b"}, "NUL"),
        ("run_code", {"code": "1", "language": "cobol"}, "language: "),
        ("run_code", {"code": "1/0"}, "ZeroDivisionError"),
        ("read_file", {"path": "/nothing"}, "does not exist"),
        ("read_file", {"path": "/etc"}, "is a directory"),
        ("write_file", {"path": "/proc/x", "content": ""}, "no such file"),
        ("list_files", {"path": "/nothing"}, "/nothing"),
    ],
)  # fmt: skip
async def test_bad_input_is_the_tools_error(one: Client, tool: str, given: dict[str, Any], said: str) -> None:
    async with one:
        assert said in await failed(one, tool, **given)


async def test_time_limits(one: Client) -> None:
    async with one:
        said = await failed(one, "run_command", command="echo begun; sleep 301", timeout=1)
        assert said == "begun\n[stopped after 1 s]"
        assert "stopped after 1 s" in await failed(one, "run_code", code="import time; time.sleep(300)", timeout=1)
        assert await call(one, "run_code", code="'free'") == "free"
        assert await gone(one, "sleep 301")


async def gone(client: Client, command: str) -> bool:
    """Whether nothing of that command line runs any more, within a while."""
    for _ in range(200):
        found = await call(client, "run_command", command=f"pgrep -x -f '{command}' || true")
        if found == "(no output)":
            return True
        await asyncio.sleep(0.1)
    return False


async def test_a_client_that_goes_away_stops_the_command(server: Server, box: dict[str, Any], one: Client) -> None:
    async with one:
        for tool, given in (
            ("run_command", {"command": "sleep 302", "timeout": 600}),
            ("run_code", {"code": "import subprocess; subprocess.run(['sleep', '302'])", "timeout": 600}),
        ):
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
                body = rpc("tools/call", name=tool, arguments=given)
                head = f"POST /sandboxes/{box['sandboxID']}/mcp HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                while await call(one, "run_command", command="pgrep -x -f 'sleep 302' || true") == "(no output)":
                    await asyncio.sleep(0.05)
            assert await gone(one, "sleep 302"), tool


async def test_a_request_that_is_cancelled(server: Server, box: dict[str, Any], one: Client) -> None:
    def post(body: bytes, session: str = "") -> httpx.Response:
        headers = {**JSON, "mcp-session-id": session} if session else JSON
        return httpx.post(at(server, box), content=body, headers=headers, timeout=60, trust_env=False)

    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    mine, other = (post(rpc("initialize", **hello)).headers["mcp-session-id"] for _ in range(2))
    slow = rpc("tools/call", name="run_command", arguments={"command": "sleep 303", "timeout": 600})
    cancel = json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}).encode()
    async with one:
        waiting = asyncio.create_task(asyncio.to_thread(post, slow, mine))
        while await call(one, "run_command", command="pgrep -x -f 'sleep 303' || true") == "(no output)":
            await asyncio.sleep(0.05)
        for session in (other, ""):  # whose request it is not
            assert (await asyncio.to_thread(post, cancel, session)).status_code == 202
        assert await call(one, "run_command", command="pgrep -x -f 'sleep 303' || true") != "(no output)"
        assert (await asyncio.to_thread(post, cancel, mine)).status_code == 202
        assert "cancelled" in (await waiting).text
        assert await gone(one, "sleep 303")


async def test_a_sandbox_that_is_paused_or_ends_in_the_middle(server: Server) -> None:
    with server.client() as client:
        made = client.post("/v2/sandboxes", json={"templateID": "base"}).json()
        path = f"/sandboxes/{made['sandboxID']}"
        async with Client(at(server, made), mode="legacy", read_timeout_seconds=60) as session:
            waiting = asyncio.create_task(failed(session, "run_command", command="sleep 300", timeout=600))
            while "sleep" not in await call(
                session, "run_command", command="pgrep -x sleep >/dev/null && echo sleep || echo"
            ):
                await asyncio.sleep(0.05)
            await asyncio.to_thread(client.post, f"{path}/pause", json={})
            assert "is paused" in await waiting
            assert "is paused" in await failed(session, "run_command", command="true")
            await asyncio.to_thread(client.post, f"{path}/connect", json={"timeout": 60})
            assert await call(session, "run_command", command="echo back") == "back"
            assert "has no code interpreter" in await failed(session, "run_code", code="1")
            await asyncio.to_thread(client.delete, path)
        reply = client.post(f"{path}/mcp", content=rpc("ping"), headers=JSON)
        assert (reply.status_code, reply.json()["reason"]) == (404, "killed")


# --- the server's own address ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_sandboxes_are_made_used_and_killed(server: Server, mode: str) -> None:
    async with Client(f"{server.url}/roost/mcp", mode=mode, read_timeout_seconds=60) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == OF_ONE | {"create_sandbox", "list_sandboxes", "kill_sandbox"}
        assert tools["run_code"].input_schema["required"] == ["sandbox", "code"]
        made = json.loads(await call(client, "create_sandbox", metadata={"for": mode}))
        id = made["sandbox"]
        assert made["template"] == "code-interpreter-v1"
        assert await call(client, "run_code", sandbox=id, code="6 * 7") == "42"
        rows = [json.loads(line) for line in (await call(client, "list_sandboxes")).splitlines()]
        assert {"for": mode} in [row["metadata"] for row in rows]
        assert await call(client, "kill_sandbox", sandbox=id) == f"Killed {id}."
        assert "was killed" in await failed(client, "run_command", sandbox=id, command="true")
        assert "was not found" in await failed(client, "kill_sandbox", sandbox="i" * 20)
        assert "sandbox: " in await failed(client, "run_command", command="true")
        assert "template" in await failed(client, "create_sandbox", template="no-such")
        assert "timeout: at most" in await failed(client, "create_sandbox", timeout=10**9)


# --- the protocol ----------------------------------------------------------------------------------------------------

JSON = {"content-type": "application/json", **ACCEPT}


def rpc(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def test_what_is_no_message_is_refused(http: httpx.Client) -> None:
    for method in ("GET", "DELETE", "PUT"):
        reply = http.request(method, "/roost/mcp", headers=ACCEPT)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    good = rpc("ping")
    assert http.post("/roost/mcp", content=good, headers=JSON).json()["result"] == {}
    assert http.post("/roost/mcp", content=good, headers={**JSON, "accept": "text/html"}).status_code == 406
    assert http.post("/roost/mcp", content=good, headers={**JSON, "content-type": "text/plain"}).status_code == 415
    assert http.post("/roost/mcp", content=b"x" * ((16 << 20) + 1), headers=JSON).status_code == 413
    for body, code in (
        (b"{", -32700),
        (b"[]", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"x"}', -32600),
    ):
        reply = http.post("/roost/mcp", content=body, headers=JSON)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)


def test_a_long_answer_comes_as_a_stream_that_is_kept_alive(
    server: Server, box: dict[str, Any], http: httpx.Client
) -> None:
    body = rpc("tools/call", name="run_command", arguments={"command": "sleep 16; echo done"})
    path = f"/sandboxes/{box['sandboxID']}/mcp"
    reply = http.post(path, content=body, headers=JSON)
    assert reply.headers["content-type"] == "text/event-stream"
    comment, event = reply.text.strip().split("\n\n")
    assert comment.startswith(":")
    message = json.loads(event.partition("data: ")[2])
    assert message["result"]["content"] == [{"type": "text", "text": "done"}]


def test_pages_of_the_web_are_refused(http: httpx.Client, box: dict[str, Any]) -> None:
    for path in ("/roost/mcp", f"/sandboxes/{box['sandboxID']}/mcp"):
        for strange in ({"origin": "http://evil.test"}, {"host": "evil.test"}, {"sec-fetch-site": "cross-site"}):
            assert http.post(path, content=rpc("ping"), headers={**JSON, **strange}).status_code == 403
        assert http.post(path, content=rpc("ping"), headers=JSON).status_code == 200


async def test_with_keys(tmp_path: Path) -> None:
    with running(tmp_path / "data", config=KEYED) as server, server.client() as http:
        key = {"x-api-key": "the-secret"}
        made = http.post("/v2/sandboxes", json={"templateID": "base"}, headers=key).json()
        other = http.post("/v2/sandboxes", json={"templateID": "base"}, headers=key).json()
        token, foreign = made["envdAccessToken"], other["envdAccessToken"]
        path = f"/sandboxes/{made['sandboxID']}/mcp"
        for headers, status in (
            ({}, 401),
            ({"x-api-key": "wrong"}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({"x-access-token": foreign}, 401),
            (key, 200),
            ({"authorization": "Bearer the-secret"}, 200),
            ({"x-access-token": token}, 200),
            ({"authorization": f"Bearer {token}"}, 200),
        ):
            reply = http.post(path, content=rpc("ping"), headers={**JSON, **headers})
            assert reply.status_code == status, headers
            assert ("www-authenticate" in reply.headers) == (status == 401)
        assert (
            http.post("/roost/mcp", content=rpc("ping"), headers={**JSON, "x-access-token": token}).status_code == 401
        )
        assert http.post("/roost/mcp", content=rpc("ping"), headers={**JSON, **key}).status_code == 200
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as authorized:
            transport = streamable_http_client(f"{server.url}{path}", http_client=authorized)
            async with Client(transport, read_timeout_seconds=60) as session:
                assert await call(session, "run_command", command="echo hi") == "hi"


async def test_what_a_tool_does_not_take_is_denied_and_recorded(tmp_path: Path) -> None:
    only = 'mcp_tools = ["run_command", "read_file", "list_files"]\n'
    with running(tmp_path / "data", config=only) as server, server.client() as http:
        made = [http.post("/v2/sandboxes", json={"templateID": "base"}).json() for _ in range(2)]
        mine, other = (one["sandboxID"] for one in made)

        def ask(path: str, tool: Any, given: Any) -> dict[str, Any]:
            body = rpc("tools/call", name=tool, arguments=given)
            return dict(http.post(path, content=body, headers=JSON).json())

        own, every = f"/sandboxes/{mine}/mcp", "/roost/mcp"
        refused: list[tuple[str, str, Any, str]] = [
            (
                own,
                "write_file",
                {"path": "/tmp/x", "content": "x"},
                "Unknown tool",
            ),  # there is one, not for anybody here
            (every, "create_sandbox", {}, "Unknown tool"),
            (own, "delete_everything", {}, "Unknown tool"),
            (own, "run_command", {"command": ["touch", "/tmp/x"]}, "command: "),
            (own, "run_command", {"command": "touch /tmp/x", "sudo": True}, "sudo: "),
            (own, "run_command", {"command": "touch /tmp/x", "sandbox": other}, "sandbox: "),
            (own, "list_files", {"path": "/", "depth": 999}, "depth: "),
            (own, "read_file", "/etc/passwd", "arguments: "),
            (every, "run_command", {"command": "touch /tmp/x"}, "sandbox: "),
            (every, "run_command", {"command": "touch /tmp/x", "sandbox": "i" + "0" * 19}, "was not found"),
        ]
        for path, tool, given, said in refused:
            assert said in json.dumps(ask(path, tool, given)), tool
        assert "No such file" in json.dumps(ask(own, "run_command", {"command": "ls /tmp/x"}))
        # what it does take is done, and a path is one of its own sandbox
        assert "hi" in json.dumps(ask(own, "run_command", {"command": "echo hi | tee /tmp/only-here"}))
        there = ask(every, "read_file", {"sandbox": other, "path": "/tmp/only-here"})
        assert "does not exist" in json.dumps(there)
        assert "does not exist" in json.dumps(ask(own, "read_file", {"path": f"/../../{server.data_dir}/roost.db"}))
        listed = http.post(own, content=rpc("tools/list"), headers=JSON).json()["result"]["tools"]
        assert [tool["name"] for tool in listed] == ["run_command", "read_file", "list_files"]

        def denied() -> list[str]:
            return [one["detail"]["tool"] for one in shown(server.data_dir) if one["outcome"] == "denied"]

        server.until(lambda: sorted(denied()) == sorted(tool for _, tool, _, _ in refused))
    with pytest.raises(AssertionError, match="did not start"), running(tmp_path / "bad", config='mcp_tools = ["rm"]\n'):
        pass
