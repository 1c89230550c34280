"""When the guest gives memory back: once nothing has come for some time, and then not before something has."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from roost.guest import async_server
from roost.guest.async_server import AsyncServer, Exchange
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.python import channel

QUIET_S = 0.1


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times at which that was."""
    times: list[float] = []
    monkeypatch.setattr(channel, "give_back", lambda: times.append(time.monotonic()))
    monkeypatch.setattr(channel, "_QUIET", struct.pack("ll", 0, int(QUIET_S * 1e6)))
    return times


async def test_a_server_says_when_no_request_has_come(
    given: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[float, float]] = []

    async def handle(exchange: Exchange) -> None:
        began = time.monotonic()
        await asyncio.sleep(float(exchange.head.target.strip("/")))
        served.append((began, time.monotonic()))
        await exchange.whole(200, [("content-length", "2")], b"ok")

    async def ask(seconds: float) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
        writer.write(b"GET /%f HTTP/1.1\r\nhost: it\r\n\r\n" % seconds)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

    async def await_given(count: int) -> None:
        async with asyncio.timeout(30):
            while len(given) < count:
                await asyncio.sleep(0.01)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        server = AsyncServer(
            listener,
            handle,
            concurrency=4,
            grace_s=0.0,
            on_quiet=lambda: given.append(time.monotonic()),
            quiet_s=QUIET_S,
        )
        await server.serve()
        await await_given(1)  # nobody has asked at all
        for count in (2, 3):
            await ask(5 * QUIET_S)
            await await_given(count)
        await asyncio.sleep(5 * QUIET_S)
        assert len(given) == 3
        assert not any(began < when < ended for when in given for began, ended in served)
        monkeypatch.setattr(async_server, "_LATE_S", QUIET_S)
        await ask(0.0)
        time.sleep(5 * QUIET_S)
        began = time.monotonic()
        await await_given(4)
        assert given[-1] >= began + QUIET_S  # what has come meanwhile goes first


def test_a_context_does_when_no_cell_has_come(given: list[float]) -> None:
    daemon, its = socket.socketpair()
    cells: list[object] = []

    def rest() -> None:
        while (cell := made.receive()) is not None:
            cells.append(cell)

    def await_given(count: int) -> None:
        deadline = time.monotonic() + 30
        while len(given) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    made = channel.Channel(its)
    thread = threading.Thread(target=rest)
    thread.start()
    with daemon, its:
        for count in (1, 2):
            await_given(count)
            time.sleep(5 * QUIET_S)
            assert len(given) == count
            daemon.sendall(frames.frame(frames.RUN, json.dumps({"code": str(count)}).encode()))
        await_given(3)
        daemon.shutdown(socket.SHUT_WR)
        thread.join()
    assert cells == [{"code": "1"}, {"code": "2"}]
