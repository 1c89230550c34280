"""What the tools make of a room that says anything at all, and of one that ends."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from roost.api.mcp import rooms, streams
from roost.api.mcp.rooms import Room, Rooms
from roost.model.errors import InvalidArgument, NotFound, RoostError, Throttled, Unavailable
from roost.sandboxes.fleet import Gone

END = b"\x02\0\0\0\x02{}"


def room(answer: Callable[[httpx.Request], httpx.Response]) -> Room:
    return Room(httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://sandbox"))


async def forever(piece: bytes) -> AsyncIterator[bytes]:
    while True:
        yield piece


def event(**event: Any) -> bytes:
    return streams.envelope(json.dumps({"event": event}).encode())


async def run(answer: Callable[[httpx.Request], httpx.Response], timeout_s: float = 30) -> tuple[str, bytes]:
    said = bytearray()
    ending = await room(answer).run(
        "x", cwd="", user="user", timeout_s=timeout_s, output=lambda name, data: said.extend(data)
    )
    return ending, bytes(said)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def replies(*parts: bytes, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, content=pieces(*parts))


async def test_a_command() -> None:
    out = event(data={"stdout": base64.b64encode(b"hi").decode()})
    start, end = event(start={"pid": 7}), event(end={"exitCode": 3, "exited": True})
    assert await run(replies(start, event(keepalive={}), out, end, END)) == ("exit code 3", b"hi")
    assert await run(replies(start, event(end={}), END)) == ("", b"")
    assert (await run(replies(start, event(end={"exited": False, "status": "signal: killed"}), END)))[
        0
    ] == "signal: killed"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", Unavailable),
        (END, Unavailable),
        (b"\0\xff\xff\xff\xff", Unavailable),
        (streams.envelope(b"[]"), Unavailable),
        (streams.envelope(b"[" * 100_000), Unavailable),
        (b"\x02" + streams.envelope(b'{"error":{"message":"no way"}}')[1:], InvalidArgument),
        (b"\x02" + streams.envelope(b'{"error":{"message":[[]]}}')[1:], InvalidArgument),
    ],
)
async def test_a_stream_that_makes_no_sense(body: bytes, error: type[RoostError]) -> None:
    with pytest.raises(error):
        await run(replies(body))


async def test_what_is_nested_too_deeply_is_passed_over() -> None:
    nested: list[object] = []
    for _ in range(10_000):
        nested = [nested]
    assert streams.ending({"exited": False, "status": nested}) == "ended by a signal"
    deep = b"[" * 60_000
    with pytest.raises(InvalidArgument):
        await room(replies(deep, status=400)).write("/tmp/x", b"")
    assert await room(replies(deep)).write("/tmp/x", b"") == "/tmp/x"


async def test_output_that_is_no_output_is_passed_over() -> None:
    start, end = event(start={"pid": 7}), event(end={})
    odd = (
        event(data={"stdout": 7, "stderr": "!", "pty": None}),
        event(data=[]),
        event(strange=1),
        streams.envelope(b"{}"),
    )
    assert await run(replies(start, *odd, end, END)) == ("", b"")


async def test_a_command_over_its_time_is_killed() -> None:
    killed: list[dict[str, Any]] = []

    async def slow() -> AsyncIterator[bytes]:
        yield event(start={"pid": 7})
        await asyncio.sleep(60)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/Start"):
            return httpx.Response(200, content=slow())
        killed.append(json.loads(request.content))
        return httpx.Response(200, content=pieces(b"{}"))

    assert await run(answer, timeout_s=0.1) == ("stopped after 0.1 s", b"")
    assert killed == [{"process": {"pid": 7}, "signal": "SIGNAL_SIGKILL"}]


async def test_replies_without_an_end_are_bounded() -> None:
    def flood(status: int) -> Callable[[httpx.Request], httpx.Response]:
        return lambda request: httpx.Response(status, content=forever(b"x" * 65536))

    for ask in (
        lambda: room(flood(200)).list("/", 1),
        lambda: room(flood(500)).list("/", 1),
        lambda: room(flood(200)).write("a", b""),
    ):
        with pytest.raises(Unavailable, match="too large"):
            await ask()
    data, _ = await room(flood(200)).read("a", 0, 100)
    assert data == b"x" * 100
    with pytest.raises(Unavailable, match="too large"):
        async with aclosing(room(flood(200)).execute("1", "python")) as said:
            async for _ in said:
                pass


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (404, b'{"message": "no such file."}', NotFound, "no such file."),
        (400, b'["x"]', InvalidArgument, '["x"].'),
        (500, b"", Unavailable, "status 500."),
        (502, b'{"message": "x", "port": 49999}', InvalidArgument, "no code interpreter"),
        (418, b"\xff" * 5000, InvalidArgument, "\ufffd"),
    ],
)
async def test_refusals(status: int, body: bytes, error: type[RoostError], said: str) -> None:
    with pytest.raises(error) as caught:
        await room(replies(body, status=status)).list("/", 1)
    assert said in caught.value.message
    assert len(caught.value.message) < 1100


class FakeLease:
    """One of a sandbox whose socket is not there."""

    def __init__(self) -> None:
        self.app_socket = "/nonexistent/app.sock"
        self.held = True
        self.why = ""
        self.on_revoked: Callable[[], None] | None = None
        self.over = False
        self.sandbox = self
        self.id = "i1"

    def release(self) -> None:
        self.held = False

    async def ended(self, *, wait: bool) -> bool:
        return self.over

    def revoke(self) -> None:
        on_revoked, self.held = self.on_revoked, False
        if on_revoked is not None:
            on_revoked()


class FakeTraffic:
    def __init__(self) -> None:
        self.leases: list[FakeLease] = []
        self.over = False

    async def lease(self, id: str) -> Any:
        self.leases.append(FakeLease())
        self.leases[-1].over = self.over
        return self.leases[-1]

    async def mourn(self, lease: Any) -> None: ...

    def why_gone(self, id: str) -> Gone:
        return Gone(id, "killed")


async def test_a_sandbox_that_is_taken_away_ends_the_tool_and_a_caller_that_goes_lets_go() -> None:
    traffic = FakeTraffic()
    uses = Rooms(traffic)

    async def work(room: Room) -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(uses.use("i1", work))
    while not traffic.leases or traffic.leases[0].on_revoked is None:
        await asyncio.sleep(0)
    traffic.leases[0].revoke()
    with pytest.raises(Gone, match="killed"):
        await task
    left = asyncio.create_task(uses.use("i1", work))
    while len(traffic.leases) < 2 or traffic.leases[1].on_revoked is None:
        await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert not traffic.leases[1].held


@pytest.mark.parametrize(("over", "error"), [(True, Gone), (False, Unavailable)])
async def test_a_connection_that_breaks_is_explained(over: bool, error: type[RoostError]) -> None:
    traffic = FakeTraffic()
    traffic.over = over
    with pytest.raises(error):
        await Rooms(traffic).use("i1", lambda room: room.list("/", 1))
    assert not traffic.leases[0].held


async def test_one_sandbox_has_so_many_tools_at_once() -> None:
    traffic, done = FakeTraffic(), asyncio.Event()
    uses = Rooms(traffic)

    async def work(room: Room) -> None:
        await done.wait()

    running = [asyncio.create_task(uses.use("i1", work)) for _ in range(rooms.MOST_AT_ONCE)]
    while len(traffic.leases) < rooms.MOST_AT_ONCE:
        await asyncio.sleep(0)
    with pytest.raises(Throttled):
        await uses.use("i1", work)
    other = asyncio.create_task(uses.use("i2", work))
    done.set()
    await asyncio.gather(other, *running)
    await uses.use("i1", work)
