"""MCP servers in rooms, reached by the official client through the gateway, with a session for each client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from tests.support.server import NOTHING, Remains, Server, running

#: Both transports of one server with tools that remember, in memory and in a file.
SERVER = '''
import asyncio
import os
import sys

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("notes")
memory: list[str] = []


@server.tool()
def add(text: str) -> str:
    """Remember a text; all that is remembered, and all that is in the file."""
    memory.append(text)
    with open("/root/notes", "a") as file:
        file.write(text + ";")
    return ",".join(memory) + "|" + open("/root/notes").read()


@server.tool()
def where() -> str:
    """The instance that answers."""
    return os.uname().nodename


@server.tool()
async def count(to: int, ctx: Context) -> int:
    """Count slowly, with progress."""
    for n in range(1, to + 1):
        await ctx.report_progress(n, to)
        await asyncio.sleep(0.02)
    return to


if __name__ == "__main__":
    server.run("streamable-http", host="0.0.0.0", port=int(os.environ["FC_SERVER_PORT"]))
else:
    http = server.streamable_http_app()
    sse = server.sse_app()
'''
TOML = """
name = "{name}"
runtime = "{runtime}"
handler = "main.{handler}"
command = {command}
timeout = 120
[session]
affinity = "{affinity}"
exclusive = {exclusive}
"""


@pytest.fixture(scope="module")
def mcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the same MCP server deployed in four ways."""
    folder = tmp_path_factory.mktemp("mcp")
    with running(folder / "data") as server:
        deploy(server, folder / "a", "http", affinity="mcp-http")
        deploy(server, folder / "b", "shared", affinity="mcp-http", exclusive=False)
        deploy(server, folder / "c", "sse", affinity="mcp-sse", handler="sse")
        deploy(server, folder / "d", "custom", affinity="mcp-http", runtime="custom", command=["python3", "main.py"])
        yield server
    assert Remains.of(folder / "data") == NOTHING


def deploy(
    server: Server, folder: Path, name: str, *, affinity: str, exclusive: bool = True,
    runtime: str = "python", handler: str = "http", command: list[str] | None = None,
) -> None:  # fmt: skip
    """As a user does it: a folder with a requirements.txt, and the command line."""
    folder.mkdir()
    (folder / "main.py").write_text(SERVER)
    (folder / "requirements.txt").write_text("mcp>=2,<3\n")
    text = TOML.format(
        name=name, runtime=runtime, handler=handler, command=command, affinity=affinity,
        exclusive=str(exclusive).lower(),
    )  # fmt: skip
    text = text.replace("command = None\n", "")
    (folder / "roost.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "roost.sdk.cli", "deploy", str(folder)],
        check=False, env={**os.environ, "ROOST_URL": server.url}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def client(server: Server, name: str) -> Client:
    """The official client with the handshake that makes a session."""
    if name == "sse":
        return Client(sse_client(f"{server.url}/sse/sse"), mode="legacy", read_timeout_seconds=60)
    return Client(streamable_http_client(f"{server.url}/{name}/mcp"), mode="legacy", read_timeout_seconds=60)


async def call(session: Client, tool: str, **arguments: Any) -> str:
    result = await session.call_tool(tool, arguments)
    assert not result.is_error, result
    return str(result.content[0].text)  # type: ignore[union-attr]


def mine(server: Server, name: str) -> list[dict[str, Any]]:
    return [i for i in server.instances() if i["function"] == name]


async def until(condition: Any) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def two_clients(server: Server, name: str) -> AsyncIterator[tuple[Client, Client]]:
    async with client(server, name) as one, client(server, name) as two:
        yield one, two


@pytest.mark.parametrize("name", ["http", "custom", "sse"])
async def test_every_client_has_an_instance_and_a_memory_of_its_own(mcp: Server, name: str) -> None:
    async with two_clients(mcp, name) as (one, two):
        assert {tool.name for tool in (await one.list_tools()).tools} == {"add", "where", "count"}
        assert await call(one, "add", text="a1") == "a1|a1;"
        assert await call(two, "add", text="b1") == "b1|b1;"
        assert await call(one, "add", text="a2") == "a1,a2|a1;a2;"
        places = {await call(one, "where"), await call(two, "where")}
        assert places == {i["id"] for i in mine(mcp, name)}
        assert sorted(len(i["sessions"]) for i in mine(mcp, name)) == [1, 1]
        # At once, each on its own.
        both = await asyncio.gather(*(call(c, "add", text="x") for c in (one, two) for _ in range(5)))
        assert {text.split(",")[0] for text in both} == {"a1", "b1"}
    # A client that leaves ends its session (DELETE, or the end of its stream), and with it the instance.
    await until(lambda: mine(mcp, name) == [])


async def test_sessions_share_an_instance_where_the_function_says_so(mcp: Server) -> None:
    async with two_clients(mcp, "shared") as (one, two):
        assert await call(one, "where") == await call(two, "where")
        await call(one, "add", text="a")
        assert (await call(two, "add", text="b")).startswith("a,b|")
        [instance] = mine(mcp, "shared")
        assert len(instance["sessions"]) == 2
    await until(lambda: [i["sessions"] for i in mine(mcp, "shared")] == [[]])


@pytest.mark.parametrize("name", ["http", "sse"])
async def test_progress_comes_while_the_tool_runs(mcp: Server, name: str) -> None:
    seen: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    async with client(mcp, name) as session:
        result = await session.call_tool("count", {"to": 5}, progress_callback=progress)
    assert result.content[0].text == "5"  # type: ignore[union-attr]
    assert seen == [1, 2, 3, 4, 5]


async def test_the_stateless_protocol_needs_no_session(mcp: Server) -> None:
    async with Client(f"{mcp.url}/shared/mcp", mode="2026-07-28", read_timeout_seconds=60) as session:
        assert "where" in {tool.name for tool in (await session.list_tools()).tools}
        assert await call(session, "where")
    assert [i["sessions"] for i in mine(mcp, "shared")] == [[]]


async def test_the_client_finds_out_by_itself_what_the_server_speaks(mcp: Server) -> None:
    async with Client(f"{mcp.url}/http/mcp", read_timeout_seconds=60) as session:
        assert await call(session, "where")


def post(server: Server, name: str, session_id: str | None) -> httpx.Response:
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
    if session_id is not None:
        headers["mcp-session-id"] = session_id
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    with server.client() as client:
        return client.post(f"/{name}/mcp", json=body, headers=headers)


@pytest.mark.parametrize("name", ["http", "shared"])
def test_an_unknown_session_is_404(mcp: Server, name: str) -> None:
    before = len(mine(mcp, name))
    for unknown in ("0123456789abcdef0123456789abcdef", "x" * 200):
        reply = post(mcp, name, unknown)
        assert reply.status_code == 404
        assert reply.json()["Code"] == "SessionNotFound"
    # No instance was started for it.
    assert len(mine(mcp, name)) <= before


async def test_a_session_that_was_ended_is_404_and_a_new_one_starts_afresh(mcp: Server) -> None:
    async with client(mcp, "http") as session:
        await call(session, "add", text="a")
        [instance] = mine(mcp, "http")
        [session_id] = instance["sessions"]
        with mcp.client() as plain:
            assert plain.delete("/http/mcp", headers={"mcp-session-id": session_id}).status_code == 200
        await until(lambda: mine(mcp, "http") == [])
        assert post(mcp, "http", session_id).status_code == 404
        with pytest.raises(MCPError, match=r"[Ss]ession"):
            await call(session, "add", text="b")
    async with client(mcp, "http") as session:
        assert await call(session, "add", text="c") == "c|c;"


async def test_when_its_instance_dies_the_client_is_told_and_begins_again(mcp: Server) -> None:
    async with client(mcp, "http") as session:
        await call(session, "add", text="a")
        [instance] = mine(mcp, "http")
        [session_id] = instance["sessions"]
        os.kill(instance["pid"], 9)
        await until(lambda: instance["id"] not in {i["id"] for i in mine(mcp, "http")})
        # The server's memory of the session is gone, so the session is: 404, as the protocol has it.
        with pytest.raises(MCPError, match=r"[Ss]ession"):
            await call(session, "add", text="b")
        assert post(mcp, "http", session_id).status_code == 404
        # Its client can't end it any more, so Roost did.
        await until(lambda: mine(mcp, "http") == [])
    async with client(mcp, "http") as again:
        assert await call(again, "add", text="c") == "c|c;"
