"""The warm path: a free slot and a kept connection at hand, so no task runs. It ends in all the ways the other does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.gateway.invoke import InvokeLimits
from roost.model.usage import Outcome
from tests.support.gateway_world import (
    World,
    eventually,
    on_both_loops,
    read_answer,
    read_head,
    read_request,
    reply,
    spec,
    world,
)

GET = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"


class App:
    """Answers the first request of a connection; the second reaches `second` with what remains to be said."""

    def __init__(self) -> None:
        self.connections = 0
        self.held = asyncio.Event()  # a second request has come
        self.go = asyncio.Event()
        self.cancelled = 0
        self.first = b""  # what a second request is answered with before `go`
        self.dies = False
        self.deaf = False  # to a half-close

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await read_request(reader)
            writer.write(reply(b"first"))
            await read_request(reader)
            writer.write(self.first)
            self.held.set()
            if not self.dies:
                await self._hold(reader)
                writer.write(reply(b"second"))
        writer.close()

    async def _hold(self, reader: asyncio.StreamReader) -> None:
        going = asyncio.ensure_future(self.go.wait())
        ended = asyncio.ensure_future(reader.read())
        await asyncio.wait([going] if self.deaf else [going, ended], return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        if not self.go.is_set():
            self.cancelled += 1
            raise ConnectionError


Warm = tuple[World, asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def warmed(folder: Path, app: App, *, timeout_s: float = 30.0, grace_s: float = 0.5) -> AsyncIterator[Warm]:
    """A world whose gateway keeps a connection to `app`, which is in a second request over it."""
    async with world(folder, app, spec(timeout_s=timeout_s), invoke=InvokeLimits(grace_s=grace_s)) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        assert (await read_answer(reader)).body == b"first"
        writer.write(GET)
        await asyncio.wait_for(app.held.wait(), 10)
        assert app.connections == 1
        try:
            yield w, reader, writer
        finally:
            app.go.set()
            writer.close()


def outcomes(w: World) -> list[tuple[Outcome, int]]:
    return [(record.outcome, record.status) for record in w.records.seen]


@on_both_loops
async def test_a_reply_ends_it(tmp_path: Path) -> None:
    app = App()
    async with warmed(tmp_path, app) as (w, reader, _):
        assert not w.fleet.leases[1].released
        app.go.set()
        assert (await read_answer(reader)).body == b"second"
        await eventually(lambda: len(w.records.seen) == 2)
        assert [lease.released for lease in w.fleet.leases] == [1, 1]
        assert outcomes(w) == [(Outcome.OK, 200), (Outcome.OK, 200)]
        assert all(0 <= record.wait_s < 10 and 0 <= record.duration_s < 10 for record in w.records.seen)


@pytest.mark.parametrize("deaf", [False, True])
@on_both_loops
async def test_past_its_time_it_is_cancelled(tmp_path: Path, deaf: bool) -> None:
    app = App()
    app.deaf = deaf
    async with warmed(tmp_path, app, timeout_s=0.1, grace_s=0.1) as (w, reader, _):
        assert (await read_answer(reader)).status == 504
        lease = w.fleet.leases[1]
        await eventually(lambda: bool(lease.released or lease.abandoned))
        assert (lease.released, lease.abandoned) == ((0, ["timeout"]) if deaf else (1, []))
        await eventually(lambda: len(w.records.seen) == 2)
        assert outcomes(w)[1] == (Outcome.TIMEOUT, 504)


@on_both_loops
async def test_a_client_that_goes_cancels_it(tmp_path: Path) -> None:
    app = App()
    async with warmed(tmp_path, app) as (w, _, writer):
        writer.close()
        await eventually(lambda: len(w.records.seen) == 2)
        assert app.cancelled == 1
        assert (w.fleet.leases[1].released, w.fleet.leases[1].abandoned) == (1, [])
        assert outcomes(w)[1][0] is Outcome.CANCELLED


@on_both_loops
async def test_a_function_that_dies_is_not_asked_twice(tmp_path: Path) -> None:
    app = App()
    app.dies = True
    async with warmed(tmp_path, app) as (w, reader, _):
        assert (await read_answer(reader)).status == 500
        assert app.connections == 1
        assert w.fleet.leases[1].released == 1
        assert w.fleet.leases[1].failures == 1


@on_both_loops
async def test_a_begun_reply_is_broken_off_with_the_function(tmp_path: Path) -> None:
    app = App()
    app.dies, app.first = True, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
    async with warmed(tmp_path, app) as (w, reader, _):
        assert (await read_head(reader))[0] == 200
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(10)
        await eventually(lambda: len(w.records.seen) == 2)
        assert w.fleet.leases[1].released == 1


@on_both_loops
async def test_a_drain_waits_for_it(tmp_path: Path) -> None:
    app = App()
    async with warmed(tmp_path, app) as (w, reader, _):
        closing = asyncio.create_task(w.gateway.close(drain_s=10))
        await eventually(lambda: w.gateway.draining)
        app.go.set()
        assert (await read_answer(reader)).body == b"second"
        await closing
        assert w.fleet.leases[1].released == 1


@on_both_loops
async def test_a_drain_that_is_over_breaks_it_off(tmp_path: Path) -> None:
    app = App()
    async with warmed(tmp_path, app) as (w, reader, _):
        await w.gateway.close(drain_s=0.02)
        assert w.fleet.leases[1].abandoned == ["cancelled"]
        assert outcomes(w)[1][0] is Outcome.CANCELLED
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


@on_both_loops
async def test_a_lease_comes_back_from_a_client_that_goes_at_once(tmp_path: Path) -> None:
    """The slot is taken in the step that reads the request; the connection to the instance is still to be made."""
    app = App()
    async with world(tmp_path, app) as w:
        for _ in range(20):
            _, writer = await w.connect()
            writer.write(GET)
            writer.transport.abort()
        await w.raw(GET.replace(b"localhost\r\n", b"localhost\r\nConnection: close\r\n"))
        await eventually(lambda: all(lease.released or lease.abandoned for lease in w.fleet.leases))
