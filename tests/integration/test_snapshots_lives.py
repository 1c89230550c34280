"""Snapshots and forks over a driver without rooms: what fails halfway, and what a killed server leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.isolation.driver import Template
from roost.model.errors import AccessDenied, Conflict, NotFound, StorageFull, Throttled, Unavailable
from roost.model.function import Limits
from roost.model.sandbox import Sandbox
from roost.sandboxes.checkpoints import Checkpoints
from roost.sandboxes.copies import Copies as SandboxCopies
from roost.sandboxes.fleet import Gone, Order
from roost.sandboxes.launcher import Launcher
from roost.sandboxes.packages import ContextPackages
from roost.sandboxes.pruning import Bounds
from roost.sandboxes.registry import TemplateRegistry
from roost.sandboxes.snapshots import Snapshots
from roost.sandboxes.template_book import TemplateBook
from roost.sandboxes.templates import RootInfo, TemplateShelf
from tests.integration.test_sandboxes_lives import ORDER, Bench
from tests.support.fake_driver import FakeDriver
from tests.support.sandboxes import MemorySandboxes, MemoryTemplates
from tests.support.triggers import until


class HostOnly:
    """No root file system but the host's."""

    def get(self, name: str) -> Template:
        if name != "host":
            raise NotFound(f"no {name}")
        return Template(name="host", root=Path("/nonexistent"))

    def list(self) -> list[RootInfo]:
        return []


class Copies:
    """Everything about snapshots of one server."""

    def __init__(
        self,
        folder: Path,
        *,
        driver: FakeDriver | None = None,
        store: MemorySandboxes | None = None,
        templates: MemoryTemplates | None = None,
    ) -> None:
        self.bench = Bench(folder, driver=driver, store=store)
        self.store = templates or MemoryTemplates()
        self.book = TemplateBook(self.store, self.store, clock=self.bench.clock)
        self.shelf = TemplateShelf(HostOnly(), ContextPackages(folder), Limits(), self.book)
        self.bench.lives.templates = self.shelf
        self.registry = TemplateRegistry(self.bench.lives, self.shelf)
        copies = SandboxCopies(self.bench.lives, self.bench.fleet)
        self.checkpoints = Checkpoints(
            lives=self.bench.lives,
            fleet=self.bench.fleet,
            copies=copies,
            bounds=Bounds(most=4, age_s=1000.0, memory_bytes=1000, disk_bytes=1000),
            spills=folder / "spills",
            over_quota=lambda account: self.over_quota,
        )
        self.over_quota = 0
        self.snapshots = Snapshots(
            lives=self.bench.lives,
            fleet=self.bench.fleet,
            launcher=Launcher(self.bench.lives),
            copies=copies,
            checkpoints=self.checkpoints,
            shelf=self.shelf,
            registry=self.registry,
            most=10,
        )

    @property
    def images(self) -> frozenset[str]:
        return self.bench.assembly.images.names()

    async def fork(self, sandbox: Sandbox, count: int = 1) -> list[object]:
        forks, _ = await self.snapshots.fork("acme", sandbox.id, count=count, timeout_s=60)
        return list(forks)


@pytest.fixture
async def copies(tmp_path: Path) -> AsyncIterator[Copies]:
    copies = Copies(tmp_path)
    yield copies
    await copies.bench.close()


async def test_each_fork_succeeds_or_fails_by_itself(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    forks = await copies.fork(sandbox, 4)  # the server has room for three
    made = [fork for fork in forks if isinstance(fork, Sandbox)]
    assert [type(fork) for fork in forks] == [Sandbox, Sandbox, Throttled, Throttled]
    assert len(copies.images) == 1
    with pytest.raises(Throttled):
        await copies.fork(sandbox)
    await copies.bench.fleet.kill("acme", sandbox.id)
    await copies.bench.fleet.kill("acme", made[0].id)
    assert len(copies.images) == 1
    await copies.bench.fleet.kill("acme", made[1].id)
    assert copies.images == frozenset()


async def test_forks_that_do_not_start_leave_nothing(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    copies.bench.driver.script = "failed"
    (failed,) = await copies.fork(sandbox)
    assert isinstance(failed, Exception)
    assert copies.images == frozenset()
    assert copies.bench.layers == [sandbox.id]


async def test_a_full_disk_takes_no_snapshot(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    await copies.bench.fleet.pause("acme", sandbox.id, memory=False)
    copies.bench.images.full = True
    for attempt in (copies.snapshots.take("acme", sandbox.id), copies.fork(sandbox)):
        with pytest.raises(StorageFull):
            await attempt
    copies.bench.images.full = False
    copies.store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await copies.snapshots.take("acme", sandbox.id, "named")
    assert copies.images == frozenset()
    assert copies.snapshots.of_account("acme") == []


async def test_a_room_that_died_is_told_and_its_files_can_be_copied_after(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    copies.bench.room(sandbox).die()
    with pytest.raises(Unavailable):
        await copies.snapshots.take("acme", sandbox.id)
    await copies.bench.until_paused(sandbox)
    snapshot, copied = await copies.snapshots.take("acme", sandbox.id)
    assert copied.left_behind == ()
    await copies.registry.remove("acme", snapshot.id)


async def test_two_at_once_of_one_name_are_one_template(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    taken = await asyncio.gather(*(copies.snapshots.take("acme", sandbox.id, "same") for _ in range(4)))
    assert {snapshot.id for snapshot, _ in taken} == {"same:default"}
    assert len(copies.images) == len(copies.snapshots.of_account("acme")) == 1
    assert len(copies.store.records) == len(copies.store.builds) == 1
    await copies.registry.remove("acme", "same")
    assert copies.images == frozenset()


async def test_an_account_has_so_many_snapshots_at_most_also_of_many_at_once(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    copies.snapshots._most = 2
    taken = await asyncio.gather(
        *(copies.snapshots.take("acme", sandbox.id) for _ in range(60)), return_exceptions=True
    )
    assert sum(isinstance(one, Throttled) for one in taken) == 58
    snapshots = copies.snapshots.of_account("acme")
    assert len(copies.images) == len(snapshots) == 2
    await copies.registry.remove("acme", snapshots[0].id)
    copies.store.error = StorageFull("full")
    with pytest.raises(StorageFull):
        await copies.snapshots.take("acme", sandbox.id, "named")
    copies.store.error = None  # what failed takes no place
    await copies.snapshots.take("acme", sandbox.id, "named")
    with pytest.raises(Throttled, match="max_snapshots"):
        await copies.snapshots.take("acme", sandbox.id)


async def test_copies_that_are_being_made_take_their_place_of_the_disk(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    monkeypatch.setattr(copies.bench.assembly, "used_bytes", lambda place: 600 << 20)  # of the 1024 MB for all
    copies.bench.driver.gate = asyncio.Event()
    forking = asyncio.create_task(copies.fork(sandbox))
    await until(lambda: len(copies.images) == 1)
    with pytest.raises(StorageFull, match="snapshots_disk_mb"):
        await copies.snapshots.take("acme", sandbox.id)
    copies.bench.driver.gate.set()
    await forking
    await copies.snapshots.take("acme", sandbox.id)


async def test_who_may_not(copies: Copies) -> None:
    sandbox = await copies.bench.fleet.create(ORDER)
    await copies.snapshots.take("acme", sandbox.id, "mine")
    with pytest.raises(Gone):
        await copies.snapshots.take("other", sandbox.id)
    with pytest.raises(NotFound):
        await copies.registry.remove("other", "mine")
    with pytest.raises(NotFound):
        copies.shelf.get("mine", "other")
    with pytest.raises(AccessDenied):
        await copies.registry.remove("acme", "base")
    with pytest.raises(Conflict):
        await copies.snapshots.take("acme", sandbox.id, "base")
    assert copies.snapshots.of_account("other") == []
    await copies.registry.remove("acme", "mine")


async def test_the_next_server_has_what_is_needed_and_removes_the_rest(tmp_path: Path) -> None:
    first = Copies(tmp_path)
    sandbox = await first.bench.fleet.create(ORDER)
    await first.snapshots.take("acme", sandbox.id, "kept")
    (fork,) = await first.fork(sandbox)
    assert isinstance(fork, Sandbox)
    images = first.images
    assert len(images) == 2
    (tmp_path / "snapshots" / "half-made.img").touch()  # complete, but no record tells of it

    second = Copies(tmp_path, driver=first.bench.driver, store=first.bench.store, templates=first.store)
    await second.book.load()
    await second.bench.care.load()
    await second.bench.care.reconcile()
    assert second.images == images
    made = await second.bench.fleet.create(order("kept"))
    assert second.bench.room(made).spec.lower == second.bench.assembly.images.paths(made.foundation.layers)
    await second.registry.remove("acme", "kept")
    assert second.images == images
    await second.bench.fleet.kill("acme", made.id)
    await second.bench.fleet.kill("acme", fork.id)
    assert second.images == frozenset()
    await second.bench.care.close()
    await first.bench.close()


def order(template: str) -> Order:
    return replace(ORDER, template=template)
