"""Connections to queues that events are published to, and adapters that are loaded when they are needed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest

from roost.functions.triggers.queues import QueueDestination
from roost.model.errors import InvalidArgument, Unavailable
from roost.triggers import publish
from roost.triggers.adapters import Sender, adapter
from roost.triggers.publish import QueuePublisher


class ScriptedAdapter:
    """Takes the place of all adapters; `fail` is what a stream's name makes sending raise."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.sent: list[tuple[str, str, bytes]] = []
        self.gate: asyncio.Event | None = None
        self.fail: dict[str, Exception] = {}

    def __call__(self, kind: str) -> ScriptedAdapter:
        return self

    @contextlib.asynccontextmanager
    async def sender(self, destination: QueueDestination) -> AsyncIterator[Sender]:
        name = destination.target["stream"]
        self.opened.append(name)

        async def send(event_id: str, body: bytes) -> None:
            if self.gate is not None:
                await self.gate.wait()
            if name in self.fail:
                raise self.fail.pop(name)
            self.sent.append((name, event_id, body))

        try:
            yield send
        finally:
            self.closed.append(name)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedAdapter:
    made = ScriptedAdapter()
    monkeypatch.setattr(publish, "adapter", made)
    return made


def to(name: str) -> str:
    return f"redis://localhost?stream={name}"


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_connection_is_used_again_and_closed_at_the_end(scripted: ScriptedAdapter) -> None:
    publisher = QueuePublisher()
    await asyncio.gather(*(publisher.publish(to("a"), str(number), b"") for number in range(5)))
    await publisher.publish(to("b"), "x", b"y")
    assert sorted(scripted.opened) == ["a", "b"]
    assert len(scripted.sent) == 6
    assert scripted.closed == []
    await publisher.close()
    assert sorted(scripted.closed) == ["a", "b"]


async def test_an_idle_connection_is_closed(scripted: ScriptedAdapter) -> None:
    publisher = QueuePublisher(idle_s=0.05)
    await publisher.publish(to("a"), "1", b"")
    await until(lambda: scripted.closed == ["a"])
    await publisher.publish(to("a"), "2", b"")
    assert scripted.opened == ["a", "a"]
    await publisher.close()


async def test_the_number_of_connections_is_bounded(scripted: ScriptedAdapter) -> None:
    publisher = QueuePublisher(most=2)
    for name in ("a", "b", "a", "c"):
        await publisher.publish(to(name), "1", b"")
    await until(lambda: scripted.closed == ["b"])  # which was not used for longest
    scripted.gate = asyncio.Event()
    busy = [asyncio.create_task(publisher.publish(to(name), "2", b"")) for name in ("a", "c")]
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match="sent to 2 queues"):
        await publisher.publish(to("d"), "1", b"")
    scripted.gate.set()
    await asyncio.gather(*busy)
    await publisher.close()
    assert sorted(scripted.closed) == ["a", "b", "c"]


async def test_a_connection_that_failed_is_made_anew(scripted: ScriptedAdapter) -> None:
    publisher = QueuePublisher()
    scripted.fail["a"] = ConnectionResetError("gone")
    with pytest.raises(Unavailable, match="did not take the event: gone"):
        await publisher.publish(to("a"), "1", b"")
    await publisher.publish(to("a"), "1", b"")
    assert scripted.opened == ["a", "a"]
    await publisher.close()
    assert scripted.closed == ["a", "a"]


async def test_what_takes_too_long_is_given_up(scripted: ScriptedAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "PUBLISH_S", 0.02)
    scripted.gate = asyncio.Event()
    publisher = QueuePublisher()
    with pytest.raises(Unavailable, match="no answer in time"):
        await publisher.publish(to("a"), "1", b"")
    await publisher.close()
    assert scripted.closed == ["a"]


async def test_what_is_no_queue_is_refused(scripted: ScriptedAdapter) -> None:
    publisher = QueuePublisher()
    with pytest.raises(InvalidArgument, match=r"no queue's: the URL needs \?stream="):
        await publisher.publish("redis://me:s3cret@localhost", "1", b"")
    await publisher.close()
    assert scripted.opened == []


@pytest.mark.parametrize(
    ("kind", "library"), [("redis", "redis"), ("rabbitmq", "aio_pika"), ("nats", "nats"), ("mqtt", "paho")]
)
def test_a_library_that_is_missing_is_said(kind: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] == library or name.startswith("roost.triggers.sources.")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Unavailable, match=rf"needs the Python package {library}.*pip install 'roost\[triggers\]'"):
        adapter(kind)
