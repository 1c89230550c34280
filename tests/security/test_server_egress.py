"""A room's way out, attacked from the room: what code in it can make the host hold, hold up, or send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from roost.isolation.egress.embedded import EmbeddedServer
from roost.isolation.egress.model_proxy import MAX_REQUEST, MAX_REQUESTS, PREFIX, ModelEndpoint, ModelProxy

CHAT = f"{PREFIX}chat/completions"
CONNECTIONS = 64


class Model:
    """The model's endpoint on a TCP port: it reads when `reading` is set, and answers when `answering` is."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.answering = asyncio.Event()
        self.heads: list[bytes] = []
        self.open = 0
        self.most = 0
        self.left = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            await self.reading.wait()
            ended = asyncio.create_task(self._end(reader))
            answering = asyncio.create_task(self.answering.wait())
            await asyncio.wait((ended, answering), return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            if ended.done():
                self.left.set()
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            await writer.drain()
            ended.cancel()
        finally:
            self.open -= 1
            writer.close()

    @staticmethod
    async def _end(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    made = Model()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield made
    made.reading.set()
    made.answering.set()
    server.close()


@pytest.fixture
async def door(model: Model, tmp_path: Path) -> AsyncIterator[Path]:
    """The socket that a room sees at /run/roost/index.sock."""
    path = tmp_path / "index.sock"
    async with httpx.AsyncClient(trust_env=False) as client:
        proxy = ModelProxy(ModelEndpoint(base_url=model.url, api_key="sk-of-the-host"), client)
        server = EmbeddedServer(proxy, path, parser="h11", max_connections=CONNECTIONS)
        await server.start()
        yield path
        await server.close()


async def knock(door: Path, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(door))
    writer.write(head.encode("latin-1"))
    return reader, writer


async def taken(writer: asyncio.StreamWriter, limit: int) -> int:
    """How many bytes the other side takes in before it stops reading for half a second."""
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < limit:
            writer.write(b"a" * (1 << 16))
            async with asyncio.timeout(0.5):
                await writer.drain()
            sent += 1 << 16
    return sent


async def test_a_body_is_not_held_in_the_hosts_memory(door: Path, model: Model) -> None:
    """64 connections of 32 MB would be 2 GB for a room of 128 MB. A model that does not read stops the room."""
    _, writer = await knock(door, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_REQUEST}\r\n\r\n")
    assert await taken(writer, MAX_REQUEST) < MAX_REQUEST // 2
    model.reading.set()  # the same bytes do go through when they are read
    assert await taken(writer, MAX_REQUEST // 2) == MAX_REQUEST // 2
    writer.close()


async def test_an_endless_head_is_cut_off(door: Path, model: Model) -> None:
    reader, writer = await knock(door, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-endless: ")
    assert await taken(writer, 8 << 20) < 8 << 20
    with contextlib.suppress(ConnectionError):
        assert b" 400 " in await reader.readline()
    assert model.heads == []
    writer.close()


async def test_a_room_has_a_number_of_connections_and_no_more(door: Path) -> None:
    held = [await knock(door, "") for _ in range(CONNECTIONS)]
    reader, extra = await knock(door, f"GET {PREFIX}models HTTP/1.1\r\nhost: x\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    for _, writer in (*held, (reader, extra)):
        writer.close()
    await asyncio.sleep(0.1)
    reader, writer = await knock(door, f"GET {PREFIX}nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b" 404 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_a_room_has_a_share_of_requests_to_its_model(door: Path, model: Model) -> None:
    """Else a few rooms would hold all the connections that the host may have to models."""
    model.reading.set()
    head = f"GET {PREFIX}models HTTP/1.1\r\nhost: x\r\n\r\n"
    asked = [await knock(door, head) for _ in range(MAX_REQUESTS + 4)]
    while model.most < MAX_REQUESTS:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert model.most == MAX_REQUESTS
    model.answering.set()
    for reader, writer in asked:
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_an_answer_that_nobody_waits_for_is_given_up(door: Path, model: Model) -> None:
    model.reading.set()
    _, writer = await knock(door, f"GET {PREFIX}models HTTP/1.1\r\nhost: x\r\n\r\n")
    while not model.open:
        await asyncio.sleep(0.01)
    writer.close()
    await asyncio.wait_for(model.left.wait(), 5)


@pytest.mark.parametrize(
    "smuggled",
    [
        "content-type: a\r\n b: c",
        "content-type: a\rb: c",
        "content-type: \xff\xfe",
        "transfer-encoding: chunked\r\ncontent-length: 3",
        "content-length: 3\r\ncontent-length: 4",
        "authorization: Bearer mine\r\ncookie: a=b",
        "openai-beta: x\r\nhost: evil",
    ],
)
async def test_nothing_is_smuggled_to_the_model(door: Path, model: Model, smuggled: str) -> None:
    """What arrives, if anything does, is one request with the host's key and none of the room's own fields."""
    model.reading.set()
    model.answering.set()
    reader, writer = await knock(door, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{smuggled}\r\n\r\n0\r\n\r\n")
    assert await asyncio.wait_for(reader.readline(), 5) != b""
    assert len(model.heads) <= 1
    for head in model.heads:
        lines = head.decode("latin-1").lower().split("\r\n")
        assert lines[0] == "post /v1/chat/completions http/1.1"
        names = [line.partition(":")[0] for line in lines[1:] if line]
        assert len(names) == len(set(names))
        assert "authorization: bearer sk-of-the-host" in lines
        assert not {"cookie", "b"} & set(names)
        assert not any("evil" in line for line in lines)
    writer.close()
