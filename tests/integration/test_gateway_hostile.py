"""What hostile or broken clients and functions send: each gets a clear answer, and nothing leaks through."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from roost.gateway.connection import ClientLimits
from roost.model.usage import Outcome
from tests.support.gateway_world import (
    eventually,
    mirror,
    on_both_loops,
    read_answer,
    read_request,
    reply,
    server,
    world,
)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX: a\r\n folded\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX@: a\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\n: a\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nnothing\r\n\r\n", 400),
        (b"GET /ec\0ho HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\nHost: h\n\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400),
        (b"GET /echo HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"GET /echo RTSP/1.0\r\nHost: h\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 65536 + b"\r\n\r\n", 431),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1" + b"0" * 16 + b"\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5000, 400),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else str(value),
)
@on_both_loops
async def test_what_is_not_http_is_refused_and_ends_the_connection(
    tmp_path: Path, request_bytes: bytes, status: int
) -> None:
    smuggled = b"GET /echo/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    async with world(tmp_path, mirror) as w:
        answer = await w.raw(request_bytes + smuggled)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer
    assert b'"RequestId"' in answer
    assert b"Traceback" not in answer


@on_both_loops
async def test_a_bad_chunk_in_mid_request_cancels_it(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"3\r\nabc\r\n")
        assert await reader.read() == b""  # the half-close
        ended.set()
        writer.close()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await eventually(lambda: bool(w.fleet.leases))
        await asyncio.sleep(0.05)
        writer.write(b"oops\r\n")
        assert (await read_answer(reader)).status == 400
        assert await reader.read() == b""
        await asyncio.wait_for(ended.wait(), 5)
        await eventually(lambda: bool(w.records.seen))
        assert w.records.seen[0].outcome is Outcome.CANCELLED
        assert w.fleet.leases[0].released == 1
        writer.close()


@on_both_loops
async def test_who_goes_on_sending_what_was_refused_gets_to_read_why(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        reader, writer = await w.connect()
        writer.write(b"GET /echo HTTP/2.0\r\nHost: h\r\n\r\n")
        await asyncio.sleep(0.1)  # it is answered
        for _ in range(5):  # a connection that was closed would be reset by the first, and fail at the second
            writer.write(b"and more of it\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)
        assert (await read_answer(reader)).status == 505
        assert await reader.read() == b""
        writer.close()
        await eventually(lambda: not w.gateway.connections)


@on_both_loops
async def test_slow_heads_and_idle_connections_are_ended(tmp_path: Path) -> None:
    # It lingers for as long as a busy machine may take to have the dripping client read its answer.
    limits = ClientLimits(head_timeout_s=0.3, idle_timeout_s=0.3, linger_s=60)
    async with world(tmp_path, mirror, limits=limits) as w:
        reader, writer = await w.connect()

        async def drip() -> None:
            for byte in b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Slow: " + b"z" * 10_000:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await read_answer(reader)).status == 408
        dripping.cancel()
        writer.close()
        silent_reader, silent_writer = await w.connect()
        assert await asyncio.wait_for(silent_reader.read(), 5) == b""
        silent_writer.close()
        reader, writer = await w.connect()
        writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await eventually(lambda: not w.gateway.connections)


@on_both_loops
async def test_a_body_that_stops_coming_is_ended(tmp_path: Path) -> None:
    limits = ClientLimits(head_timeout_s=0.2, body_timeout_s=0.2)
    async with world(tmp_path, mirror, limits=limits) as w:
        reader, writer = await w.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await eventually(lambda: bool(w.records.seen))
    assert w.records.seen[0].outcome is Outcome.CANCELLED


@on_both_loops
async def test_a_client_that_never_reads_gets_no_more_answers(tmp_path: Path) -> None:
    served = 0

    def app(head: bytes, body: bytes) -> bytes:
        nonlocal served
        served += 1
        return reply(bytes(200_000))

    async with world(tmp_path, server(app)) as w:
        reader, writer = await w.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n" * 1000)
        last = -1
        while last != served or not served:  # until it stands still
            last = served
            await asyncio.sleep(0.2)
        assert served < 200
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(1000):
            assert len((await read_answer(reader)).body) == 200_000
        writer.close()


@on_both_loops
async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with world(tmp_path, mirror, limits=ClientLimits(max_connections=2)) as w:
        kept = [await w.connect() for _ in range(2)]
        await eventually(lambda: len(w.gateway.connections) == 2)
        reader, writer = await w.connect()
        answer = await read_answer(reader)
        assert (answer.status, await reader.read()) == (503, b"")
        kept[0][1].close()
        await eventually(lambda: len(w.gateway.connections) == 1)
        reader, writer = await w.connect()
        writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        for _, each in (*kept, (reader, writer)):
            each.close()


@on_both_loops
async def test_a_client_still_sending_reads_its_error(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        for _ in range(5):
            reader, writer = await w.connect()
            writer.write(b"POST /nobody HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
            assert (await read_answer(reader)).status == 404
            writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
    ],
    ids=lambda value: repr(value)[:50],
)
@on_both_loops
async def test_a_function_that_does_not_speak_http(tmp_path: Path, answer: bytes) -> None:
    async with world(tmp_path, server(lambda head, body: answer)) as w:
        reader, writer = await w.connect()
        for _ in range(2):
            writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
            got = await read_answer(reader)
            assert got.status == 502
            assert b'"errorType": "InvalidResponse"' in got.body
            assert got.headers["x-fc-error-type"] == "UnhandledInvocationError"
        writer.close()
        await eventually(lambda: len(w.records.seen) == 2)
    assert {record.outcome for record in w.records.seen} == {Outcome.FUNCTION_ERROR}


@on_both_loops
async def test_bad_chunks_of_a_function_break_the_reply(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await passed.wait()
        writer.write(b"zz\r\n")
        await reader.read()
        writer.close()

    passed = asyncio.Event()
    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"abc\r\n")
        passed.set()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""  # nobody can take it for a whole reply
        writer.close()
        await eventually(lambda: bool(w.records.seen))
    assert w.records.seen[0].outcome is Outcome.FUNCTION_ERROR


@on_both_loops
async def test_a_function_can_not_plant_what_is_the_servers(tmp_path: Path) -> None:
    lines = (
        b"x-fc-request-id: forged",
        b"X-Roost-Session-Restored: forged",
        b"Set-Cookie: x-fc-cookie-session-id=forged; Path=/",
        b"Set-Cookie: mine=1",
        b"x-fc-log-result: forged",
        b"keep-alive: timeout=999",
    )
    async with world(tmp_path, server(lambda *_: reply(b"", *lines))) as w:
        got = await w.raw(b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert b"forged" not in got
    assert b"999" not in got
    assert b"Set-Cookie: mine=1" in got


@on_both_loops
async def test_bytes_a_function_sends_unasked_reach_nobody(tmp_path: Path) -> None:
    """A poisoned connection is not used again: the second client gets its own reply."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply(b"good") + reply(b"evil"))

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        for _ in range(3):
            writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await read_answer(reader)).body == b"good"
        writer.close()
