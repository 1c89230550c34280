"""Requests through the gateway to an HTTP server on a unix socket, and back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from roost.model.usage import Outcome
from tests.support.gateway_world import world


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body) of one request with Content-Length or without a body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head, await reader.readexactly(length)


def reply(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"HTTP/1.1 " + status, *lines, b"content-length: %d" % len(body)))
    return head + b"\r\n" + body


async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request with its own head and body."""
    try:
        while True:
            head, body = await read_request(reader)
            writer.write(reply(head + body, b"x-kept: yes", b"x-fc-secret: no", b"x-fc-status: 200"))
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()


async def test_a_request_reaches_the_guest_with_its_fields(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        w.fleet.headers = {"x-fc-session-id": "s1"}
        answer = await w.raw(
            b"POST /echo:prod/a/b?c=d HTTP/1.1\r\nHost: h.example\r\nContent-Length: 5\r\nX-Mine: 1\r\n"
            b"X-Fc-Request-Id: forged\r\nX_Fc_Account_Id: forged\r\nX-Roost-Session-Dir: /etc\r\n"
            b"Connection: close, X-Hop\r\nX-Hop: gone\r\ntraceparent: 00-a-b-01\r\n\r\nhello"
        )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"x-kept: yes" in head
    assert b"x-fc-status: 200" in head
    assert b"x-fc-secret" not in head
    assert b"x-fc-request-id: 1-" in head
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
    assert record.outcome is Outcome.OK
    assert record.status == 200
    assert record.trace_parent == "00-a-b-01"
    (lease,) = w.fleet.leases
    assert lease.released
    assert not lease.abandoned


async def test_connections_are_kept_on_both_sides(tmp_path: Path) -> None:
    opened = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await mirror(reader, writer)

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        for _ in range(5):
            writer.write(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert body.startswith(b"GET / HTTP/1.1\r\n")
        writer.close()
    assert opened == 1
