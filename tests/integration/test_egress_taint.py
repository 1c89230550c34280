"""Labels at the proxy itself: what was open is cut, what was begun is not gone on with, and nothing is heard before its
label is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from roost.instances.labels import LabelBook, RoomLabels
from roost.isolation.egress.guard import Guard
from roost.isolation.egress.outward import RoomProxy
from roost.isolation.egress.rules import Policy, parse_rules
from roost.isolation.egress.taint import taint_policy
from roost.model.errors import StorageFull
from roost.model.taint import LABELS, NONE, PRIVATE, UNTRUSTED, Holder, Holdings, Labels, TaintRules
from tests.integration.test_egress_outward import HOUSE, LOOPBACK, World, echo, status, web


class Rows:
    """A store; `open` lets writes through, `full` refuses them."""

    def __init__(self) -> None:
        self.rows: dict[str, Labels] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.full = False

    async def put(self, labels: Mapping[str, Labels]) -> None:
        await self.open.wait()
        if self.full:
            raise StorageFull("The disk is full.")
        self.rows |= labels

    async def delete(self, holders: Iterable[str]) -> None:
        if self.full:
            raise StorageFull("The disk is full.")
        for holder in holders:
            self.rows.pop(holder, None)

    async def list_all(self) -> dict[str, Labels]:
        return dict(self.rows)


class Tainted(World):
    """`web.test` is anybody's, `mail.test` is private and trusted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names = {"web.test": [HOUSE], "mail.test": [HOUSE]}
        self.rows = Rows()
        self.refused: list[str] = []
        self.room: RoomLabels

    async def guarded(self, web_port: int, mail_port: int, mode: str = "block") -> None:
        mail = (f"mail.test:{mail_port}",)
        book = LabelBook(self.rows)
        held = Holdings(holders=(Holder(name="a/sandbox/i1"),))
        self.room = await book.enter(held, lambda labels, why: self.proxy.labels_grew() if self.proxy else None)
        guard = Guard(
            taint_policy(TaintRules(mode=mode, trusted=mail, private=mail)),
            labels=lambda: self.room.labels,
            add=lambda labels, why: book.grow(self.room, labels, why),
            on_refused=lambda place, refused: self.refused.append(place),
        )
        rules = parse_rules([f"web.test:{web_port}", *mail, "*.web.test"])
        self.proxy = RoomProxy(self.folder / "proxy.sock", Policy(allow=rules), LOOPBACK, self.resolve, guard=guard)
        await self.proxy.start()
        self._stack.push_async_callback(self.proxy.close)

    async def get(self, host: str, port: int) -> bytes:
        return await self.say(f"GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[Tainted]:
    made = Tainted(tmp_path)
    yield made
    await made.close()


async def tunnel(world: Tainted, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await world.talk()
    writer.write(b"CONNECT web.test:%d HTTP/1.1\r\nhost: web.test\r\n\r\n" % port)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until it is cut."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("answered", [True, False])
async def test_a_tunnel_is_cut_before_what_is_private_is_heard(world: Tainted, answered: bool) -> None:
    got: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            got.append(data)
            writer.write(b"noted")
        writer.close()

    strange, mail = await world.serve(listen), await world.serve(web([]))
    await world.guarded(strange, mail)
    reader, writer = await tunnel(world, strange)
    if answered:
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"noted"
    world.rows.open.clear()
    asking = asyncio.create_task(world.get("mail.test", mail))
    assert await rest(reader) == b""  # cut, while the label is still being written
    writer.write(b"the secret")
    assert not asking.done()
    world.rows.open.set()
    assert (await asking).endswith(b"hello")
    assert world.rows.rows == {"a/sandbox/i1": world.room.labels}
    assert b"the secret" not in b"".join(got)
    assert world.room.labels == (LABELS if answered else {PRIVATE})


async def test_a_request_that_has_begun_is_not_gone_on_with(world: Tainted) -> None:
    got = bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while data := await reader.read(1000):
            got.extend(data)
        writer.close()

    strange, mail = await world.serve(slow), await world.serve(web([]))
    await world.guarded(strange, mail)
    reader, writer = await world.talk()
    head = f"POST http://web.test:{strange}/ HTTP/1.1\r\nhost: web.test:{strange}\r\ncontent-length: 100\r\n\r\n"
    writer.write(head.encode() + b"first")
    while not got:
        await asyncio.sleep(0.01)
    world.room.labels |= {UNTRUSTED}  # another request of the room has read the web
    assert (await world.get("mail.test", mail)).endswith(b"hello")
    writer.write(b"the secret")
    answer = await rest(reader)
    assert bytes(got) == b"first"
    assert answer == b"" or status(answer) == 403


async def test_a_private_room_is_answered_once_and_opens_no_tunnel(world: Tainted) -> None:
    seen: list[bytes] = []
    strange, mail = await world.serve(web(seen)), await world.serve(web([]))
    await world.guarded(strange, mail)
    await world.get("mail.test", mail)
    assert status(await world.say(b"CONNECT web.test:%d HTTP/1.1\r\nhost: web.test\r\n\r\n" % strange)) == 403
    assert world.room.labels == {PRIVATE}
    assert status(await world.get("web.test", strange)) == 200
    assert world.room.labels == LABELS
    assert status(await world.get("web.test", strange)) == 403
    assert status(await world.get("mail.test", mail)) == 200
    assert len(seen) == 1
    assert world.refused == [f"web.test:{strange}"] * 2


async def test_a_name_is_told_to_nobody(world: Tainted) -> None:
    strange, mail = await world.serve(web([])), await world.serve(web([]))
    await world.guarded(strange, mail)
    assert status(await world.say(b"GET http://data.web.test/ HTTP/1.1\r\nhost: data.web.test\r\n\r\n")) == 502
    await world.get("web.test", strange)
    await world.get("mail.test", mail)
    world.asked.clear()
    assert status(await world.say(b"GET http://secret.web.test/ HTTP/1.1\r\nhost: secret.web.test\r\n\r\n")) == 403
    assert world.asked == []


async def test_looking_on_stops_nothing(world: Tainted) -> None:
    strange, mail = await world.serve(echo), await world.serve(web([]))
    await world.guarded(strange, mail, mode="audit")
    reader, writer = await tunnel(world, strange)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    await world.get("mail.test", mail)
    writer.write(b"the secret")
    assert await reader.readexactly(10) == b"the secret"
    assert world.refused == [f"web.test:{strange}"]


async def test_what_can_not_be_noted_is_not_heard(world: Tainted) -> None:
    strange, mail = await world.serve(web([])), await world.serve(web([]))
    await world.guarded(strange, mail)
    world.rows.full = True
    for host, port in (("mail.test", mail), ("web.test", strange)):
        reply = await world.get(host, port)
        assert status(reply) == 503
        assert b"disk is full" in reply
    assert world.rows.rows == {}
    world.rows.full = False
    assert status(await world.get("mail.test", mail)) == 200  # the labels that it had in memory are written now
    assert world.rows.rows == {"a/sandbox/i1": LABELS}


async def test_labels_go_where_data_can_go_and_no_further() -> None:
    rows = Rows()
    book = LabelBook(rows)
    told: list[tuple[str, Labels]] = []

    async def enter(name: str, *holders: Holder) -> RoomLabels:
        held = Holdings(holders=(Holder(name=f"a/instance/{name}", lasting=False), *holders))
        return await book.enter(held, lambda labels, why: told.append((name, labels)))

    one = await enter("one", Holder(name="a/volume/v/x"))
    reader = await enter("reader", Holder(name="a/volume/v", writable=False), Holder(name="a/volume/w"))
    third = await enter("third", Holder(name="a/volume/w"))
    apart = await enter("apart", Holder(name="a/volume/v/y"))
    await book.grow(one, frozenset({UNTRUSTED}), "a test")
    assert [room.labels for room in (one, reader, third, apart)] == [{UNTRUSTED}, {UNTRUSTED}, {UNTRUSTED}, NONE]
    await book.grow(third, frozenset({PRIVATE}), "a test")
    assert one.labels == {UNTRUSTED}  # nothing is written to what the other reads
    assert reader.labels == LABELS
    assert rows.rows == {
        "a/instance/one": {UNTRUSTED},
        "a/volume/v/x": {UNTRUSTED},
        "a/instance/reader": LABELS,
        "a/volume/w": LABELS,
        "a/instance/third": LABELS,
    }
    later = LabelBook(rows)
    await later.load()
    assert later.of([Holder(name="a/volume/v/x/deeper")]) == {UNTRUSTED}
    assert later.listed("other") == {}
    assert await book.clear("a/volume/w") == LABELS
    assert third.labels == LABELS  # its own is another
    assert await book.clear("a/instance/third") == LABELS
    assert third.labels == NONE
    rows.full = True
    with pytest.raises(StorageFull):
        await book.clear("a/instance/reader")
    assert reader.labels == LABELS
    assert "a/instance/reader" in rows.rows
    assert not any(name == "apart" for name, _ in told)
