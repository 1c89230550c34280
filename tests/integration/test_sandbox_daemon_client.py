"""The host's client of a room's daemon: the room may answer whatever it likes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from roost.model.errors import RoostError, Unavailable
from roost.sandboxes.daemon import CommandRefused, DaemonRunner, Lines

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\nconnection: close\r\n\r\n"


def message(value: Any, flags: int = 0) -> bytes:
    body = json.dumps(value).encode()
    return bytes([flags]) + len(body).to_bytes(4, "big") + body


def event(**parts: Any) -> bytes:
    return message({"event": parts})


def out(text: str, stream: str = "stdout") -> bytes:
    return event(data={stream: base64.b64encode(text.encode()).decode()})


def ended(code: int) -> bytes:
    return event(end={"exited": True, "exitCode": code, "status": f"exit status {code}"}) + message({}, 2)


@asynccontextmanager
async def room(directory: Path, reply: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A socket that answers each request with these bytes; None: with the beginning of a stream that does not end."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head + await reader.read(64 << 10))
        if reply is not None or b"SendSignal" in head:
            writer.write(OK + (reply or b""))
            writer.close()
        else:
            writer.write(OK + event(start={"pid": 42}) + out("begun\n"))

    path = str(directory / "app.sock")
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield path, heard
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


async def run(path: str, on_line: Callable[[str, str], None] = lambda *_: None) -> int:
    async with asyncio.timeout(10):
        return await DaemonRunner().run(path, "make", user="app", cwd="/srv", env={"A": "1"}, on_line=on_line)


async def test_a_command_its_output_and_its_end(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    reply = (
        event(start={"pid": 7}) + event(keepalive={}) + out("one\ntw") + out("oops", "stderr") + out("o\n") + ended(3)
    )
    async with room(tmp_path, reply) as (path, heard):
        assert await run(path, lambda stream, text: told.append((stream, text))) == 3
    assert told == [("stdout", "one"), ("stdout", "two"), ("stderr", "oops")]
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert b"x-roost-port: 49983" in head
    assert base64.b64encode(b"app:") in head
    asked = json.loads(body[5:])
    assert asked["process"] == {"cmd": "/bin/bash", "args": ["-l", "-c", "make"], "cwd": "/srv", "envs": {"A": "1"}}


async def test_a_command_that_a_signal_ended(tmp_path: Path) -> None:
    async with room(tmp_path, event(end={"exited": False, "exitCode": -1}) + message({}, 2)) as (path, _):
        assert await run(path) == 137


async def test_a_refusal_is_told_with_the_command(tmp_path: Path) -> None:
    refusal = message({"error": {"code": "unauthenticated", "message": "invalid username: 'app'"}}, 2)
    async with room(tmp_path, refusal) as (path, _):
        with pytest.raises(CommandRefused, match="'make': command failed: unauthenticated: invalid username: 'app'"):
            await run(path)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        event(start={"pid": 1}),
        event(start={"pid": 1}) + message({}, 2),
        b"\0\xff\xff\xff\xff",
        b"\0\0\0\0\x02{]",
        message([]),
        message({"event": 7}) + message({}, 2),
        message({"event": {"start": 1, "end": [2]}}) + message({}, 2),
        message({"error": 5}, 2),
        event(data={"stdout": "no base64!"}),
        event(data={"stdout": {"a": 1}}),
        b"\0\0\x01\0\0" + b"[" * 65536,
    ],
)
async def test_nonsense_is_an_error_of_the_room(tmp_path: Path, reply: bytes) -> None:
    async with room(tmp_path, reply) as (path, _):
        with pytest.raises(Unavailable):
            await run(path)


@pytest.mark.parametrize("code", [-5, 2**40, "x", None, True])
async def test_exit_codes_that_are_none(tmp_path: Path, code: object) -> None:
    async with room(tmp_path, event(end={"exited": True, "exitCode": code}) + message({}, 2)) as (path, _):
        assert await run(path) in (0, 1)


async def test_a_room_without_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(RoostError):
        await run(str(tmp_path / "nothing.sock"))


async def test_who_does_not_wait_has_the_command_ended(tmp_path: Path) -> None:
    begun = asyncio.Event()
    async with room(tmp_path, None) as (path, heard):
        task = asyncio.create_task(run(path, lambda *_: begun.set()))
        async with asyncio.timeout(10):
            await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert b"SendSignal" in heard[-1]
    assert json.loads(heard[-1].partition(b"\r\n\r\n")[2]) == {"process": {"pid": 42}, "signal": "SIGNAL_SIGKILL"}


def test_a_line_without_an_end_is_cut() -> None:
    told: list[str] = []
    lines = Lines(lambda _, text: told.append(text))
    for _ in range(10):
        lines.add("stdout", b"x" * 1000)
    lines.end()
    assert "".join(told) == "x" * 10_000
    assert max(map(len, told)) <= 4096
