"""The book of sessions: what it remembers of those that ended."""

from __future__ import annotations

from roost.instances.sessions import SessionBook
from roost.model.function import FunctionSpec, Runtime
from roost.model.session import Session
from tests.support.fake_driver import MemorySessions

SPEC = FunctionSpec(account="a", name="f", version="LATEST", revision="1", runtime=Runtime.PYTHON)


async def ended(session: Session) -> None: ...


async def test_of_ended_sessions_a_bounded_number_is_remembered_the_latest() -> None:
    now = [1000.0]
    store = MemorySessions()
    book = SessionBook(store, clock=lambda: now[0], ended=ended, idle=ended, max_tombstones=2)
    for name in ("first", "second", "third", "alive"):
        now[0] += 1
        session = await book.create(SPEC, "LATEST", name, {})
        if name != "alive":
            await book.end(session, forget=False)
    await book.sweep()
    assert [session.id for session in book.list("a", "f")] == ["second", "third", "alive"]
    assert sorted(key[2] for key in store.rows) == ["alive", "second", "third"]
