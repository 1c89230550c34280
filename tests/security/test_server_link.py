"""The control connection, spoken by a guest that code of the room has replaced."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.instances.link import GuestLink, WorkerExit
from roost.isolation.pace import Pace
from roost.model.errors import InitializerFailed, RoostError
from roost.telemetry.attribution import Attributor
from roost.telemetry.log_record import visible


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


class Hostile:
    """A guest whose every word is the test's."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.logs: list[tuple[str, str]] = []
        self.exits: list[WorkerExit] = []
        self.lost = 0
        self.writer: asyncio.StreamWriter | None = None
        self.connected = asyncio.Event()
        self.link = GuestLink(
            socket,
            on_log=lambda stream, text: self.logs.append((stream, text)),
            on_exit=self.exits.append,
            on_lost=self._on_lost,
        )

    def _on_lost(self) -> None:
        self.lost += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.connected.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()

    async def say(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)
        await self.writer.drain()


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Hostile]:
    made = Hostile(tmp_path / "guest.sock")
    server = await asyncio.start_unix_server(made.serve, made.socket)
    await made.link.open()
    await made.connected.wait()
    yield made
    await made.link.close()
    server.close()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"{" * 100_000 + b"\n",
        b'{"event":' + b"9" * 5000 + b"}\n",
        b'{"event":"ready","init_ms":1' + b"0" * 400 + b"}\n",
        b'{"event":"ready","init_ms":NaN}\n',
        b'{"event":"ready","init_ms":-Infinity}\n',
        b'{"event":"log","stream":7,"text":{"a":1}}\n',
        b'{"event":"log","text":"\\ud800"}\n',
        b'{"event":["log"]}\n',
        b'{"event":"pre_stopped"}\n' * 1000,
        line(event="failed", error=[1]),
        line(event="failed", error={"errorType": 1, "errorMessage": None, "stackTrace": [1, None, {}]}),
        line(event="exited", code=10**30, signal=-5),
        b"null\n",
        b"\n",
    ],
)
async def test_no_message_ends_the_host_s_listening(guest: Hostile, said: bytes) -> None:
    await guest.say(said + line(event="log", stream="stdout", text="still here"))
    while ("stdout", "still here") not in guest.logs:
        await asyncio.sleep(0.005)
    assert not guest.lost
    assert all(text.encode() is not None for _, text in guest.logs)


async def test_a_start_that_is_answered_with_nonsense(guest: Hostile) -> None:
    """Negative or endless times of an initializer would be billed."""
    starting = asyncio.create_task(guest.link.start({}, 5))
    await asyncio.sleep(0.01)
    await guest.say(b'{"event":"ready","init_ms":-1e308}\n')
    assert await starting == 0.0


async def test_a_fault_is_bounded(guest: Hostile) -> None:
    starting = asyncio.create_task(guest.link.start({}, 5))
    await asyncio.sleep(0.01)
    error = {"errorType": "T" * 10_000, "errorMessage": "m" * 200_000, "stackTrace": ["s"] * 100_000}
    await guest.say(line(event="failed", error=error))
    with pytest.raises(InitializerFailed) as caught:
        await starting
    fault = caught.value.fault
    assert (len(fault.type), len(fault.message)) == (200, 65536)
    assert len(fault.stack) <= 100


async def test_a_line_without_end_ends_the_connection(guest: Hostile) -> None:

    async def endless() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await guest.say(b"a" * (1 << 16))

    saying = asyncio.create_task(endless())
    while not guest.lost:
        await asyncio.sleep(0.005)
    saying.cancel()
    with pytest.raises(RoostError):
        await guest.link.start({}, 1)


async def test_a_flood_leaves_others_their_turn(guest: Hostile) -> None:
    """Messages that are dear to take come as fast as they are taken; the loop is free for most of the time."""
    dear_s = 0.05
    taken: list[float] = []

    def take(stream: str, text: str) -> None:
        time.sleep(dear_s)
        taken.append(time.monotonic())

    guest.link._on_log = take
    await guest.say(b'{"event":"log","stream":"stdout","text":"x"}\n' * 20)
    while len(taken) < 6:
        await asyncio.sleep(0.005)
    burst, flood = taken[:3], taken[3:]
    assert burst[-1] - burst[0] >= dear_s  # the first ones follow each other
    free = [after - before - dear_s for before, after in itertools.pairwise(flood)]
    assert min(free) > 5 * dear_s


def test_whoever_uses_up_more_than_a_share_waits() -> None:
    pace = Pace(share=0.1, burst=1.0)
    assert pace.spend(0.0, 1.0) == 0.0  # a burst is free
    assert pace.spend(1.0, 2.0) == pytest.approx(10.0)  # a second more is ten of waiting
    assert pace.spend(12.0, 12.0) == pytest.approx(0.0)  # which pay it off
    assert pace.spend(100.0, 101.0) == 0.0


def test_logs_can_not_be_forged_into_another_s() -> None:
    """Control characters are shown, not obeyed; a marker of another's request stays with this function's lines."""
    hostile = '\x1b[2J\x1b]0;owned\x07\r{"requestId":"1-a"}\x00\u202e\u2028\x9b31m'
    shown = visible(hostile)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2028" for c in shown)
    lines = Attributor(exclusive=True).attribute("FC Invoke Start RequestId: 1-of-another\nhello\n")
    assert [each.request_id for each in lines] == ["1-of-another"] * 2  # kept by function first: see RequestTails
