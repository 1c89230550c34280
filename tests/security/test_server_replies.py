"""Replies of a hostile function: what they may cost the server, and what they may do to other functions' clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from roost.gateway.framing import ChunkedBody
from roost.gateway.head import parse_request
from roost.gateway.sessions import plan
from roost.model.function import Affinity, SessionPolicy
from tests.support.gateway_world import eventually, on_both_loops, read_answer, read_request, reply, server, spec, world

GET = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"
Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


def saying(say: Say) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server that answers each request with whatever `say` writes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await read_request(reader)
                await say(writer)

    return serve


async def hints(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 \r\nlink: </a>\r\n\r\n" * 1000)
        await writer.drain()


async def dribble(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0)


async def endless_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"a" * 4096)
        await writer.drain()


@pytest.mark.parametrize("say", [hints, dribble, endless_head])
@on_both_loops
async def test_a_reply_that_never_begins_is_given_up(tmp_path: Path, say: Say) -> None:
    async with world(tmp_path, saying(say)) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        answer = await read_answer(reader)
        assert answer.status == 502
        assert b"InvalidResponse" in answer.body
        writer.close()


@on_both_loops
async def test_a_few_hints_are_fine(tmp_path: Path) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 \r\nlink: </a>\r\n\r\n" * 10 + reply(b"here"))

    async with world(tmp_path, saying(say)) as w:
        reader, writer = await w.connect()
        for _ in range(3):
            writer.write(GET)
            assert (await read_answer(reader)).body == b"here"
        writer.close()


def test_tiny_chunks_are_taken_in_steps() -> None:
    """All that one read brings would hold the loop up for half a second."""
    body = ChunkedBody()
    data = b"1\r\na\r\n" * 40_000
    piece, rest = body.feed(data)
    assert 0 < len(piece) < 2000
    assert len(piece) * 6 + len(rest) == len(data)
    while rest:
        more, rest = body.feed(rest)
        piece += more
    assert piece == b"a" * 40_000
    assert not body.done


@pytest.mark.parametrize("unit", [b"1\r\na\r\n", b"1;x=y\r\na\r\n", b"000001\r\na\r\n"])
@on_both_loops
async def test_a_flood_of_tiny_chunks_leaves_others_their_turn(tmp_path: Path, unit: bytes) -> None:
    """Whole and in order at the end, whether the client reads fast or late, and others go on meanwhile."""
    count = 60_000
    whole = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + unit * count + b"0\r\n\r\n"

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(whole)
        await writer.drain()

    async with world(tmp_path, saying(say)) as w:
        reader, writer = await w.connect()
        for late in (0.0, 0.2):
            writer.write(GET)
            await asyncio.sleep(late)
            reading = asyncio.create_task(read_answer(reader))
            turns = 0
            while not reading.done():
                await asyncio.sleep(0)
                turns += 1
            assert reading.result().body == b"a" * count
            assert turns > 20
        writer.close()


@on_both_loops
async def test_tiny_chunks_that_break_off_or_turn_bad(tmp_path: Path) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000 + b"zz\r\n")

    async with world(tmp_path, saying(say)) as w:
        answer = await w.raw(GET)
        assert answer.count(b"a") >= 4000  # what came before is passed on
        assert not answer.endswith(b"0\r\n\r\n")  # and does not look whole
        [lease] = w.fleet.leases
        await eventually(lambda: bool(lease.released or lease.abandoned))


PLANTED = b"x-fc-cookie-session-id=of-the-attacker"


@pytest.mark.parametrize(
    "field",
    [
        b"set-cookie: " + PLANTED,
        b"Set-Cookie:   " + PLANTED + b"; Path=/",
        b"set-cookie: =" + PLANTED + b"; Path=/victim",
        b"set-cookie: \t= =" + PLANTED,
        b"service-worker-allowed: /",
        b"x-fc-session-id: of-the-attacker",
        b"X_FC_Request-Id: 1",
        b"x-roost-session-restored: files",
    ],
)
@on_both_loops
async def test_fields_that_a_function_may_not_set(tmp_path: Path, field: bytes) -> None:
    app = server(lambda head, body: reply(b"", field, b"set-cookie: fine=1"))
    name = field.partition(b":")[0].lower()
    async with world(tmp_path, app) as w:
        head = (await w.raw(GET[:-2] + b"Connection: close\r\n\r\n")).lower()
        assert b"of-the-attacker" not in head
        assert name == b"set-cookie" or b"\r\n" + name + b":" not in head
        assert b"\r\nset-cookie: fine=1" in head


@on_both_loops
async def test_nor_when_it_switches_protocols(tmp_path: Path) -> None:
    upgraded = b"HTTP/1.1 101 X\r\nupgrade: raw\r\nconnection: upgrade\r\nset-cookie: " + PLANTED + b"\r\n\r\n"
    ask = b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(upgraded)
        writer.write_eof()

    async with world(tmp_path, saying(say)) as w:
        reader, writer = await w.connect()
        writer.write(ask)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101")
        assert b"of-the-attacker" not in head
        writer.close()


@pytest.mark.parametrize(
    ("cookies", "chosen"),
    [
        ([b"a=1,x-fc-cookie-session-id=planted"], ""),  # a value that another function set
        ([b'a="1; x-fc-cookie-session-id=real'], "real"),
        ([b"a=1", b"x-fc-cookie-session-id=real"], "real"),
        ([b"X-FC-Cookie-Session-Id=planted"], ""),
        ([b"x-fc-cookie-session-id=../../etc"], ""),
    ],
)
def test_a_session_is_named_by_its_own_cookie_alone(cookies: list[bytes], chosen: str) -> None:
    fields = b"".join(b"Cookie: %b\r\n" % each for each in cookies)
    head = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")
    made = plan(SessionPolicy(affinity=Affinity.GENERATED_COOKIE), head, target=b"/")
    assert made.ref is not None
    assert made.ref.id == chosen


@pytest.mark.parametrize(
    "target",
    [
        b"/%32023-03-30/functions/echo/invocations",
        b"//2023-03-30/functions",
        b"/2023-03-30%2ffunctions",
        b"/./2023-03-30/functions",
        b"/Healthz",
        b"/healthz.",
        b"/..%2froost/instances",
        b"/%65cho%00",
        b"/echo%0d%0ax-fc-y:z",
        b"/echo:%0d%0ax",
        b"/%",
    ],
)
@on_both_loops
async def test_encoded_paths_reach_no_function_by_another_name(tmp_path: Path, target: bytes) -> None:
    """To the control plane as it is, where it is judged, or to nobody."""
    control = server(lambda head, body: reply(b"control:" + head))
    app = server(lambda head, body: reply(b"function"))
    async with world(tmp_path, app, spec(), control=control) as w:
        answer = await w.raw(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert b"function\r\n" not in answer
        assert not w.fleet.leases
        assert b"control:" not in answer or b"control:GET " + target + b" HTTP/1.1" in answer
