"""The data plane of sandboxes on real sockets: rooms are coroutines, their daemon is a small server of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.gateway.upstream import Pool
from roost.model.errors import Unavailable
from roost.model.sandbox import Sandbox, SandboxState
from tests.integration.test_sandboxes_lives import ORDER, Bench
from tests.support.gateway_world import Answer, Handler, World, eventually, mirror, read_answer, reply, server, world


@contextlib.asynccontextmanager
async def plane(folder: Path, app: Handler) -> AsyncIterator[tuple[World, Bench, Sandbox]]:
    """A gateway over one sandbox whose daemon is `app`."""
    (folder / "sandboxes").mkdir()
    bench = Bench(folder / "sandboxes")
    sandbox = await bench.fleet.create(replace(ORDER, auto_pause=True, auto_resume=True))
    daemon = await asyncio.start_unix_server(app, bench.assembly.run_dir(sandbox.id) / "app.sock")
    try:
        async with world(folder, None, sandboxes=bench.traffic) as w:
            yield w, bench, sandbox
    finally:
        daemon.close()
        await bench.close()
    assert all(not entry.leases for entry in bench.lives.entries.values())


def head(sandbox: Sandbox, path: str = "/x", *, port: int = 49983, token: str | None = None) -> bytes:
    given = sandbox.envd_token if token is None else token
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nE2b-Sandbox-Id: {sandbox.id}\r\nE2b-Sandbox-Port: {port}\r\n"
        f"X-Access-Token: {given}\r\n\r\n"
    ).encode()


async def ask(w: World, request: bytes) -> Answer:
    reader, writer = await w.connect()
    try:
        writer.write(request)
        return await read_answer(reader)
    finally:
        writer.close()


async def test_requests_reach_the_daemon_over_kept_connections(tmp_path: Path) -> None:
    accepted = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await mirror(reader, writer)

    async with plane(tmp_path, app) as (w, bench, sandbox):
        for path in ("/a?b=c", "/d"):
            answer = await ask(w, head(sandbox, path))
            assert answer.status == 200
            assert answer.body.startswith(f"GET {path} HTTP/1.1\r\n".encode())
            assert b"x-roost-port: 49983" in answer.body
            assert sandbox.envd_token.encode() not in answer.body
            assert "x-fc-secret" not in answer.headers, "a room can't set what is the server's"
        assert accepted == 1
        assert (await ask(w, head(sandbox, token="wrong"))).status == 401
        lease = bench.lives.entries[sandbox.id].leases
        await eventually(lambda: not lease)


async def test_pages_may_ask_the_daemon_and_read_why_it_refuses(tmp_path: Path) -> None:
    async with plane(tmp_path, mirror) as (w, _, sandbox):

        def by_page(text: bytes) -> bytes:
            return text.removesuffix(b"\r\n") + b"Origin: http://localhost:3000\r\n\r\n"

        for request, status in ((head(sandbox), 200), (head(sandbox, token="wrong"), 401)):
            answer = await ask(w, by_page(request))
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "*")
        asked = b"OPTIONS" + by_page(head(sandbox, token="")).removeprefix(b"GET").removesuffix(b"\r\n")
        answer = await ask(w, asked + b"Access-Control-Request-Method: GET\r\n\r\n")
        assert (answer.status, answer.headers["access-control-allow-methods"]) == (204, "GET")
        other = await ask(w, by_page(head(sandbox, port=8000)))
        assert "access-control-allow-origin" not in other.headers, "what a port of the user's allows is its own"


async def test_a_port_s_server_may_close_its_connections_when_it_likes(tmp_path: Path) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() != b"control\n":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply(b"once"))
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.close()

    async with plane(tmp_path, mirror) as (w, bench, sandbox):
        socket = bench.assembly.run_dir(sandbox.id) / "guest.sock"
        socket.unlink()
        async with await asyncio.start_unix_server(relay, socket):
            token = f"e2b-traffic-access-token: {sandbox.traffic_token}\r\n\r\n".encode()
            for _ in range(5):
                request = head(sandbox, port=8000).removesuffix(b"\r\n") + token
                assert (await ask(w, request)).body == b"once"
                await asyncio.sleep(0.005)


async def test_a_daemon_that_says_nothing_is_a_closed_port(tmp_path: Path) -> None:
    async with plane(tmp_path, server(lambda head, body: b"")) as (w, _, sandbox):
        answer = await ask(w, head(sandbox))
        assert answer.status == 502
        assert json.loads(answer.body)["message"] == "The sandbox is running but port is not open"


async def test_a_client_that_goes_is_seen_by_the_daemon_as_a_half_close(tmp_path: Path) -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        assert await reader.read() == b""
        over.set()
        writer.close()

    async with plane(tmp_path, app) as (w, bench, sandbox):
        _, writer = await w.connect()
        writer.write(head(sandbox))
        await asyncio.wait_for(asked.wait(), 10)
        assert len(bench.lives.entries[sandbox.id].leases) == 1
        writer.close()
        await asyncio.wait_for(over.wait(), 10)
        await eventually(lambda: not bench.lives.entries[sandbox.id].leases)


async def test_a_pause_while_a_request_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, go = asyncio.Event(), asyncio.Event()
    acquire = Pool.acquire

    async def slow(self: Pool, path: Path, *, fresh: bool = False) -> object:
        connecting.set()
        await go.wait()
        return await acquire(self, path, fresh=fresh)

    async with plane(tmp_path, mirror) as (w, bench, sandbox):
        monkeypatch.setattr(Pool, "acquire", slow)
        answer = asyncio.ensure_future(ask(w, head(sandbox)))
        await asyncio.wait_for(connecting.wait(), 10)
        await bench.fleet.pause("acme", sandbox.id)
        go.set()
        assert (await asyncio.wait_for(answer, 10)).status == 502


async def test_many_who_come_wake_it_once_also_when_that_fails(tmp_path: Path) -> None:
    async with plane(tmp_path, mirror) as (w, bench, sandbox):
        await bench.fleet.set_timeout("acme", sandbox.id, 0)
        await bench.until_paused(sandbox)
        bench.lives.entries[sandbox.id].sandbox = replace(
            bench.fleet.get("acme", sandbox.id), reason="shutdown", ends_at=0.0
        )
        await bench.lives.change(bench.lives.entries[sandbox.id])
        attempts = 0

        async def resume(*_: object, **__: object) -> None:
            nonlocal attempts
            attempts += 1
            await asyncio.sleep(0.05)
            raise Unavailable("no room")

        bench.lives.resume = resume  # type: ignore[method-assign,assignment]
        answers = await asyncio.gather(*(ask(w, head(sandbox)) for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        assert attempts == 1
        assert bench.state(sandbox) is SandboxState.PAUSED
        # One without a token wakes nothing.
        assert (await ask(w, head(sandbox, token="wrong"))).status == 401
        assert attempts == 1
