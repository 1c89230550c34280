"""Which snapshots of sessions are refused before anything is done: pure counts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from roost.instances.background import Background
from roost.instances.session_snapshots import MOST_OF_SESSION, SessionSnapshots
from roost.model.errors import Throttled
from roost.model.function import Affinity, FunctionSpec, IsolationMode, Runtime
from roost.model.session import Session

SPEC = FunctionSpec(
    account="a", name="f", version="LATEST", revision="1", runtime=Runtime.PYTHON,
    isolation_mode=IsolationMode.SESSION_EXCLUSIVE,
)  # fmt: skip


class Held(Background):
    """Begins nothing: what was asked for stays under way."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        work.close()
        self.asked += 1
        return super().spawn(asyncio.sleep(0))


def session(id: str, account: str = "a") -> Session:
    return Session(
        account=account, function="f", id=id, affinity=Affinity.HEADER_FIELD, created=0.0, modified=0.0, last_used=0.0,
        ttl_s=60, idle_timeout_s=60,
    )  # fmt: skip


@pytest.fixture
def snapshots(tmp_path: Path) -> tuple[SessionSnapshots, Held]:
    held = Held()
    nothing = cast("Any", None)
    made = SessionSnapshots(
        tmp_path, book=nothing, pinned=lambda key: None, leases=nothing, rooms=nothing, images=nothing,
        background=held, clock=lambda: 0.0, most=MOST_OF_SESSION + 2, most_bytes=1,
    )  # fmt: skip
    return made, held


async def test_those_under_way_count_for_their_own_session_and_account(
    snapshots: tuple[SessionSnapshots, Held],
) -> None:
    made, held = snapshots
    for _ in range(MOST_OF_SESSION):
        await made.create(SPEC, session("one"), "")
    with pytest.raises(Throttled, match="A session has at most"):
        await made.create(SPEC, session("one"), "")
    await made.create(SPEC, session("two"), "")
    await made.create(SPEC, session("two"), "")
    with pytest.raises(Throttled, match="snapshots of sessions at most"):
        await made.create(SPEC, session("three"), "")
    await made.create(replace(SPEC, account="b"), session("one", "b"), "")
    assert held.asked == MOST_OF_SESSION + 3
