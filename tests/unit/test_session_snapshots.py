"""Which snapshots of sessions are refused before anything is done, and what a session leaves that could not begin."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from roost.instances.background import Background
from roost.instances.session_snapshots import MOST_OF_SESSION, SessionSnapshot, SessionSnapshots
from roost.instances.sessions import SessionBook
from roost.isolation.driver import Branch
from roost.model.errors import NotFound, RoostError, StorageFull, Throttled, Unavailable
from roost.model.function import Affinity, FunctionSpec, IsolationMode, Runtime
from roost.model.session import Session, SessionState
from roost.model.taint import NONE
from tests.support.fake_driver import MemorySessions

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


class World:
    """A session's files, and a snapshot for it to begin with: what is copied is `new`.

    `fails`: what steps raise, by the name of what they make.
    """

    def __init__(self, directory: Path) -> None:
        self.layer, self.folder = directory / "layer.img", directory / "folder.img"
        self.fails: dict[str, RoostError] = {}
        self.book = SessionBook(MemorySessions(), clock=lambda: 0.0, ended=self.ended, idle=cast("Any", None))
        self.background = Background()
        self.snapshots = SessionSnapshots(
            directory / "snapshots", book=self.book, pinned=lambda key: None, leases=cast("Any", self),
            rooms=cast("Any", self), images=self, background=self.background, clock=lambda: 0.0, most=1, most_bytes=1,
        )  # fmt: skip
        self.snapshots._snapshots["of"] = SessionSnapshot(
            id="of", source=session("source"), spec=SPEC, description="", created=0.0, expires=1.0,
            layer=directory / "of.layer", folder=directory / "of.folder", lost=(), branch=Branch(), labels=NONE,
            memory_bytes=0,
        )  # fmt: skip

    async def ended(self, ended: Session) -> None:
        self.layer.unlink(missing_ok=True)
        if not self.book.remembers(ended):
            self.folder.unlink(missing_ok=True)

    def disks_of(self, spec: FunctionSpec, session: Session) -> tuple[Path, Path]:
        return self.layer, self.folder

    async def snapshot(self, layer: Path, target: Path) -> None:
        if target.name in self.fails:
            raise self.fails[target.name]
        with target.open("x") as file:
            file.write("new")

    async def lease(self, *_: object, **__: object) -> None:
        raise self.fails["lease"]

    async def begin(self, of: str = "of") -> None:
        begun = await self.book.create(SPEC, "LATEST", "s", {"disable_id_reuse": True})
        await self.snapshots.restore(of, SPEC, begun)


@pytest.mark.parametrize("fault", ["taken", "full", "deleted"])
async def test_what_is_kept_of_one_before_outlives_a_refusal(tmp_path: Path, fault: str) -> None:
    world = World(tmp_path)
    world.folder.write_text("old")
    if fault == "full":
        world.fails[world.layer.name] = StorageFull("full")
    for _ in range(2):  # its id may be used again, whatever was to hold for the one that did not begin
        with pytest.raises(RoostError, match={"taken": "its folder is kept"}.get(fault)):
            await world.begin("gone" if fault == "deleted" else "of")
        assert world.folder.read_text() == "old"
        assert not world.layer.exists()
        assert world.book.get("a", "f", "s").state is SessionState.EXPIRED


@pytest.mark.parametrize("fault", ["layer.img", "folder.img", "lease"])
async def test_what_could_not_begin_leaves_nothing(tmp_path: Path, fault: str) -> None:
    world = World(tmp_path)
    world.fails[fault] = Unavailable("not now")
    with pytest.raises(Unavailable):
        await world.begin()
    assert not world.folder.exists()
    assert not world.layer.exists()
    with pytest.raises(NotFound):
        world.book.get("a", "f", "s")
