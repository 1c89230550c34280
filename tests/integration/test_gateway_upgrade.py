"""After 101: WebSocket and any other protocol, spliced both ways."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, unix_serve

from roost.model.usage import Outcome
from tests.support.gateway_world import eventually, on_both_loops, read_answer, read_head, reply, server, spec, world

UPGRADE = b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@on_both_loops
async def test_websockets_both_ways(tmp_path: Path) -> None:
    async with world(tmp_path, None) as w, unix_serve(echo, str(w.app_socket), max_size=8 << 20):
        url = f"ws://{w.host}:{w.port}/echo/socket?x=1"
        async with connect(url, max_size=8 << 20) as client:
            assert client.response is not None
            assert client.response.headers["x-fc-request-id"].startswith("1-")
            for message in ("hello", b"\0\1\2", "x" * (4 << 20)):
                await client.send(message)
                assert await client.recv() == message
        await eventually(lambda: bool(w.records.seen))
        assert (w.records.seen[0].outcome, w.records.seen[0].status) == (Outcome.OK, 101)
        assert w.fleet.leases[0].released == 1


@on_both_loops
async def test_many_websockets_at_once(tmp_path: Path) -> None:
    async with world(tmp_path, None) as w, unix_serve(echo, str(w.app_socket)):

        async def client(number: int) -> None:
            async with connect(f"ws://{w.host}:{w.port}/echo") as socket:
                for turn in range(10):
                    await socket.send(f"{number}-{turn}")
                    assert await socket.recv() == f"{number}-{turn}"

        await asyncio.gather(*(client(number) for number in range(30)))
        await eventually(lambda: len(w.records.seen) == 30)


@on_both_loops
async def test_a_websocket_ends_at_the_functions_timeout(tmp_path: Path) -> None:
    async with world(tmp_path, None, spec(timeout_s=0.3)) as w, unix_serve(echo, str(w.app_socket)):
        async with connect(f"ws://{w.host}:{w.port}/echo") as client:
            with contextlib.suppress(websockets.ConnectionClosed):
                await asyncio.wait_for(client.recv(), 5)
            await eventually(lambda: bool(w.records.seen))
        assert w.records.seen[0].outcome is Outcome.TIMEOUT


@on_both_loops
async def test_each_direction_ends_by_itself(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH + b"early")
        received = await reader.read()  # up to the client's half-close
        writer.write(received.upper())
        writer.close()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(UPGRADE + b"sent at once, ")
        status, fields = await read_head(reader)
        assert (status, fields["upgrade"]) == (101, "raw")
        assert await reader.readexactly(5) == b"early"
        writer.write(b"and later")
        writer.write_eof()
        assert await reader.read() == b"SENT AT ONCE, AND LATER"
        writer.close()
        await eventually(lambda: bool(w.records.seen))
        assert w.records.seen[0].outcome is Outcome.OK
        await eventually(lambda: not w.gateway.connections)


@on_both_loops
async def test_a_client_that_breaks_a_spliced_connection_ends_the_other_side(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()
        writer.close()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(UPGRADE)
        await read_head(reader)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5)
        await eventually(lambda: bool(w.records.seen))
    lease = w.fleet.leases[0]
    assert (lease.released, lease.abandoned) == (1, [])


@on_both_loops
async def test_a_function_may_decline_to_switch(tmp_path: Path) -> None:
    async with world(tmp_path, server(lambda *_: reply(b"no", status=b"426 Upgrade Required"))) as w:
        reader, writer = await w.connect()
        for _ in range(2):
            writer.write(UPGRADE)
            answer = await read_answer(reader)
            assert (answer.status, answer.body) == (426, b"no")
        writer.close()
