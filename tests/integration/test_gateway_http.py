"""HTTP requests through the gateway to a server on a unix socket, and its replies back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from roost.gateway.connection import ClientLimits
from roost.model.errors import Fault, InitializerFailed, Throttled
from roost.model.usage import Outcome
from tests.support.gateway_world import (
    eventually,
    mirror,
    on_both_loops,
    read_answer,
    read_chunks,
    read_head,
    read_request,
    reply,
    server,
    world,
)

GET = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"


@on_both_loops
async def test_a_request_reaches_the_guest_with_its_fields(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        w.fleet.headers = {"x-fc-session-id": "s1"}
        answer = await w.raw(
            b"POST /echo:prod/a/b?c=d HTTP/1.1\r\nHost: h.example\r\nContent-Length: 5\r\nX-Mine: 1\r\n"
            b"X-Fc-Request-Id: forged\r\nX_Fc_Account_Id: forged\r\nX-Roost-Session-Dir: /etc\r\n"
            b"Connection: close, X-Hop\r\nX-Hop: gone\r\ntraceparent: 00-a-b-01\r\n\r\nhello"
        )
        await eventually(lambda: bool(w.records.seen))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"x-kept: yes" in head
    assert b"x-fc-status: 200" in head
    assert b"x-fc-secret" not in head
    assert b"x-fc-request-id: 1-" in head
    assert b"connection: close" in head
    assert body.startswith(b"POST /a/b?c=d HTTP/1.1\r\n")
    assert body.endswith(b"\r\n\r\nhello")
    for kept in (b"X-Mine: 1", b"traceparent: 00-a-b-01", b"Host: h.example", b"x-forwarded-for: 127.0.0.1",
                 b"x-forwarded-prefix: /echo:prod", b"x-fc-control-path: /http-invoke", b"x-fc-session-id: s1",
                 b"x-fc-function-name: echo", b"x-fc-qualifier: prod"):  # fmt: skip
        assert kept in body
    assert b"forged" not in body
    assert b"/etc" not in body
    assert b"gone" not in body
    (record,) = w.records.seen
    assert (record.outcome, record.status, record.trace_parent) == (Outcome.OK, 200, "00-a-b-01")
    (lease,) = w.fleet.leases
    assert lease.released
    assert not lease.abandoned


@pytest.mark.parametrize(("given", "reaches"), [(b"Bearer key", False), (b"Bearer of-the-function", True)])
async def test_a_key_of_the_server_stays_with_it(tmp_path: Path, given: bytes, reaches: bool) -> None:
    async with world(tmp_path, mirror) as w:
        answer = await w.raw(b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: %b\r\n\r\n" % given)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert (given in answer) is reaches


@on_both_loops
async def test_connections_are_kept_on_both_sides(tmp_path: Path) -> None:
    opened = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await mirror(reader, writer)

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        for _ in range(5):
            writer.write(GET)
            answer = await read_answer(reader)
            assert answer.status == 200
            assert answer.body.startswith(b"GET / HTTP/1.1\r\n")
        writer.close()
    assert opened == 1


@on_both_loops
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    app = server(lambda head, body: reply(head.split()[1] + body))
    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        requests = [b"POST /echo/%d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n%03d" % (n, n) for n in range(200)]
        writer.write(b"".join(requests))
        for n in range(200):
            assert (await read_answer(reader)).body == b"/%d%03d" % (n, n)
        writer.close()


@on_both_loops
async def test_chunks_are_streamed_both_ways_as_they_come(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for piece in read_chunks(reader):  # the reply goes on while the request still comes
            writer.write(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\nx-trailer: dropped\r\n\r\n")

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        status, fields = await read_head(reader)
        assert (status, fields["transfer-encoding"]) == (200, "chunked")
        pieces = read_chunks(reader)
        for word in (b"one", b"two", b"three"):
            writer.write(b"%x\r\n%b\r\n" % (len(word), word))
            assert await anext(pieces) == word
        writer.write(b"0\r\n\r\n")
        assert [piece async for piece in pieces] == []
        writer.write(b"POST /nobody HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert (await read_answer(reader)).status == 404  # the connection is in step
        writer.close()


@on_both_loops
async def test_a_reply_without_length_is_framed_for_the_client(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc")
        await writer.drain()
        writer.close()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        answer = await read_answer(reader)
        assert (answer.headers["transfer-encoding"], answer.body) == ("chunked", b"abc")
        writer.write(GET)
        assert (await read_answer(reader)).body == b"abc"
        writer.close()
        old = await w.raw(b"GET /echo HTTP/1.0\r\n\r\n")
        assert b"chunked" not in old
        assert old.endswith(b"\r\n\r\nabc")


@on_both_loops
async def test_an_http10_client_may_keep_its_connection(tmp_path: Path) -> None:
    async with world(tmp_path, server(lambda head, body: reply(b"x"))) as w:
        reader, writer = await w.connect()
        for _ in range(2):
            writer.write(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await read_answer(reader)).headers["connection"] == "keep-alive"
        writer.write(b"GET /echo HTTP/1.0\r\n\r\n")
        assert (await read_answer(reader)).headers["connection"] == "close"
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [(b"HEAD", b"200 OK", True), (b"GET", b"304 Not Modified", True), (b"GET", b"204 No Content", False)],
)
@on_both_loops
async def test_replies_without_a_body(tmp_path: Path, method: bytes, status: bytes, length: bool) -> None:
    line = b"content-length: 10\r\n" if length else b""
    app = server(lambda head, body: b"HTTP/1.1 %b\r\n%b\r\n" % (status, line))
    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        for _ in range(2):
            writer.write(b"%b /echo HTTP/1.1\r\nHost: h\r\n\r\n" % method)
            answer = await read_answer(reader, bodiless=True)
            assert answer.status == int(status.split()[0])
            assert ("content-length" in answer.headers) is length
            assert "transfer-encoding" not in answer.headers
        writer.close()


@on_both_loops
async def test_expect_continue_is_answered_once_there_is_a_lease(tmp_path: Path) -> None:
    app = server(lambda head, body: reply(body + (b"!" if b"xpect" in head else b"")))
    async with world(tmp_path, app) as w:
        gate = w.fleet.gate = asyncio.Event()
        reader, writer = await w.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        await eventually(lambda: w.fleet.waiting == 1)
        gate.set()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await read_answer(reader)).body == b"ok"
        w.fleet.error = Throttled("full", retry_after=7)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["retry-after"]) == (429, "7")
        assert await reader.read() == b""  # nobody knows whether the body would have come
        writer.close()


@on_both_loops
async def test_interim_replies_of_the_guest_end_at_the_gateway(tmp_path: Path) -> None:
    app = server(
        lambda head, body: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply(b"x")
    )
    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        assert (await read_answer(reader)).body == b"x"
        writer.close()


@on_both_loops
async def test_large_bodies_pass_without_being_collected(tmp_path: Path) -> None:
    size, block = 100 << 20, os.urandom(1 << 20)

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        left = size
        while left:
            data = await reader.read(min(left, 1 << 18))
            left -= len(data)
            writer.write(data)
            await writer.drain()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()

        async def upload() -> None:
            writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(block)):
                writer.write(block)
                await writer.drain()

        before = most = resident()
        task = asyncio.create_task(upload())
        assert (await read_head(reader))[0] == 200
        seen = 0
        while seen < size:
            data = await reader.read(1 << 18)
            at = seen % len(block)
            expected = block[at : at + len(data)]
            assert data[: len(expected)] == expected
            seen += len(data)
            most = max(most, resident())
        await task
        assert most - before < 24 << 20
        writer.close()


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@on_both_loops
async def test_a_slow_reader_holds_the_guest_back(tmp_path: Path) -> None:
    sent = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (256 << 20))
        for _ in range(256):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        await read_head(reader)
        last = -1
        while last != sent:  # until it stands still
            last = sent
            await asyncio.sleep(0.2)
        assert sent < 32 << 20
        writer.transport.abort()
        await eventually(lambda: bool(w.records.seen))
    assert w.records.seen[0].outcome is Outcome.CANCELLED


@on_both_loops
async def test_an_upload_waits_for_the_lease_in_a_small_buffer(tmp_path: Path) -> None:
    async with world(tmp_path, server(lambda head, body: reply(b"%d" % len(body)))) as w:
        gate = w.fleet.gate = asyncio.Event()
        reader, writer = await w.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (32 << 20))
        writer.write(bytes(32 << 20))
        await eventually(lambda: w.fleet.waiting == 1)
        await asyncio.sleep(0.2)
        assert writer.transport.get_write_buffer_size() > 8 << 20  # type: ignore[attr-defined]
        gate.set()
        assert (await read_answer(reader)).body == b"%d" % (32 << 20)
        writer.close()


@on_both_loops
async def test_many_clients_at_once(tmp_path: Path) -> None:
    app = server(lambda head, body: reply(body))
    async with world(tmp_path, app) as w:

        async def client(number: int) -> None:
            reader, writer = await w.connect()
            for turn in range(5):
                body = b"%d-%d" % (number, turn)
                writer.write(b"PUT /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                assert (await read_answer(reader)).body == body
            writer.close()

        await asyncio.gather(*(client(number) for number in range(100)))
        await eventually(lambda: len(w.records.seen) == 500)
    assert all(lease.released == 1 for lease in w.fleet.leases)


@on_both_loops
async def test_the_control_plane_gets_reserved_paths_as_they_are(tmp_path: Path) -> None:
    control = server(lambda head, body: reply(head + body, b"x-fc-request-id: theirs"))
    async with world(tmp_path, mirror, control=control) as w:
        reader, writer = await w.connect()
        for target in (b"/healthz", b"/2023-03-30/functions?limit=1", b"/roost/x", b"/metrics"):
            writer.write(b"GET %b HTTP/1.1\r\nHost: h\r\nx-fc-trace: kept\r\n\r\n" % target)
            answer = await read_answer(reader)
            assert answer.body.startswith(b"GET %b HTTP/1.1\r\n" % target)
            assert b"x-fc-trace: kept" in answer.body
            assert answer.headers["x-fc-request-id"].startswith("1-")
        writer.close()
    assert w.fleet.leases == []


@on_both_loops
async def test_without_the_control_plane_the_answer_is_503(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        answer = await w.raw(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"Code": "ServiceUnavailable"' in answer


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        (b"/nobody/x", 404, b"FunctionNotFound"),
        (b"/", 404, b"FunctionNotFound"),
        (b"/echo:@/x", 400, b"InvalidArgument"),
    ],
)
@on_both_loops
async def test_paths_that_lead_nowhere(tmp_path: Path, target: bytes, status: int, code: bytes) -> None:
    async with world(tmp_path, mirror) as w:
        answer = await w.raw(b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % target)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b'"Code": "%b"' % code in answer


@on_both_loops
async def test_errors_have_function_computes_shape(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        reader, writer = await w.connect()
        w.fleet.error = InitializerFailed(Fault(type="ImportError", message="no module x", stack=("line 1",)))
        writer.write(GET)
        answer = await read_answer(reader)
        assert answer.status == 502
        assert b'"errorType": "ImportError"' in answer.body
        assert b'"stackTrace": ["line 1"]' in answer.body
        assert answer.headers["x-fc-request-id"].encode() in answer.body
        w.fleet.error = ValueError("a secret of ours")
        writer.write(GET)
        answer = await read_answer(reader)
        assert answer.status == 500
        assert b"secret" not in answer.body
        writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer wrong\r\n\r\n")
        assert (await read_answer(reader)).status == 403
        writer.close()


@on_both_loops
async def test_a_drain_lets_requests_end_and_accepts_no_new_ones(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await go.wait()
        writer.write(reply(b"done"))

    async with world(tmp_path, app, limits=ClientLimits(linger_s=0.5)) as w:
        idle_reader, idle_writer = await w.connect()
        reader, writer = await w.connect()
        writer.write(GET)
        await eventually(lambda: len(w.fleet.leases) == 1)
        closing = asyncio.create_task(w.gateway.close(drain_s=10))
        assert await idle_reader.read() == b""
        with pytest.raises(OSError):
            await w.connect()
        go.set()
        answer = await read_answer(reader)
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        await closing
        writer.close()
        idle_writer.close()
