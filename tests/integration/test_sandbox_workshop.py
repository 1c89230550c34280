"""Builds from request to template, over a builder without rooms: names, tags, limits, what fails, what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.model.errors import Conflict, InvalidArgument, NotFound, PayloadTooLarge, StorageFull, Throttled
from roost.model.function import Limits
from roost.model.sandbox import Foundation
from roost.model.taint import NONE, parse_taint
from roost.sandboxes import workshop as workshops
from roost.sandboxes.build_cache import BuildCache
from roost.sandboxes.build_log import BuildLog
from roost.sandboxes.build_queue import Build, BuildQueue, BuildStatus
from roost.sandboxes.builder import BuildFailed, Built, Order
from roost.sandboxes.workshop import BASE_STEP, Requested, Workshop
from tests.integration.test_snapshots_lives import Copies, order

HASH = "a" * 64


class ScriptedBuilder:
    """Makes an empty image. `error` is raised instead, after it was made; `gate` holds builds until it is set."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def build(self, order: Order, log: BuildLog) -> Built:
        self.orders.append(order)
        order.target.touch()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        plan = order.plan
        layers = (order.target, *plan.base.layers) if plan.stages else plan.base.layers
        return Built(
            root=plan.base.root,
            layers=layers,
            context=plan.context,
            start_command=plan.start_command,
            ready_command=plan.ready_command,
        )


class World:
    def __init__(self, folder: Path) -> None:
        self.copies = Copies(folder)
        self.builder = ScriptedBuilder()
        self.cache = BuildCache(folder / "builds", most_bytes=1 << 20)
        self.cache.prepare()
        self.queue = BuildQueue(clock=self.copies.bench.clock)
        self.workshop = Workshop(
            shelf=self.copies.shelf,
            registry=self.copies.registry,
            images=self.copies.bench.assembly.images,
            builder=self.builder,  # type: ignore[arg-type]
            cache=self.cache,
            queue=self.queue,
            limits=Limits(memory_mb=1024, cpu=2.0),
            most=3,
            stand_ins={"debian:13": "base"},
            clock=self.copies.bench.clock,
        )

    def start(self, requested: Requested, **recipe: Any) -> Build:
        body = {"fromTemplate": "base", "steps": [{"type": "RUN", "args": ["make"]}], **recipe}
        return self.workshop.start("acme", requested.record.id, requested.id, body)

    async def built(self, name: str, *tags: str, **recipe: Any) -> Build:
        build = self.start(self.workshop.request("acme", name, tags), **recipe)
        return await self.ended(build)

    async def ended(self, build: Build) -> Build:
        async with asyncio.timeout(10):
            while not build.ended:
                await asyncio.sleep(0.001)
        return build


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path)
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(world.copies.shelf, "root", world.copies.bench.lives.assembly._roots.root)
    yield world
    await world.queue.close()
    await world.copies.bench.close()


async def test_a_build_is_a_template_when_it_is_done(world: World) -> None:
    requested = world.workshop.request("acme", "app:v1", ["stable"], cpu=1, memory_mb=256)
    assert requested.tags == ("v1", "stable")
    with pytest.raises(NotFound):
        world.copies.shelf.get("app", "acme")
    steps = [{"type": "ENV", "args": ["A", "1"]}, {"type": "USER", "args": ["app"]}, {"type": "RUN", "args": ["make"]}]
    build = await world.ended(world.start(requested, steps=steps, startCmd="serve", readyCmd="check"))
    assert build.status is BuildStatus.READY
    template = world.copies.shelf.get("app:stable", "acme")
    assert (template.id, template.build) == (requested.record.id, requested.id)
    assert (template.limits.cpu, template.limits.memory_mb) == (1, 256)
    (image,) = world.copies.images
    assert template.foundation == Foundation(
        layers=(image,), user="app", environment={"A": "1"}, start_command="serve", ready_command="check"
    )
    await world.copies.registry.remove("acme", "app")
    assert world.copies.images == frozenset()


async def test_what_is_built_on_a_snapshot_has_its_labels_and_its_policy(world: World) -> None:
    policy = {"mode": "block", "trusted": ["a.test"], "start": ["private"]}
    sandbox = await world.copies.bench.fleet.create(replace(order("base"), network={"taint": policy}))
    snapshot, _ = await world.copies.snapshots.take("acme", sandbox.id, "kept")
    assert (await world.built("app", fromTemplate=snapshot.id)).status is BuildStatus.READY
    for name in (snapshot.id, "app"):
        foundation = world.copies.shelf.get(name, "acme").foundation
        assert (foundation.labels, foundation.taint) == (("private",), parse_taint(policy))
    made = await world.copies.bench.fleet.create(order("app"))
    assembly = world.copies.bench.assembly
    assert assembly.spec(made).egress.taint == parse_taint(policy)
    assert assembly.holdings(made, first=True).brought == {"private"}
    assert assembly.holdings(made).brought == NONE  # after that its labels are its own


async def test_a_new_build_takes_the_place_of_the_old_one_and_sandboxes_keep_theirs(world: World) -> None:
    await world.built("app")
    old = world.copies.images
    fleet = world.copies.bench.fleet
    sandbox = await fleet.create(order("app"))
    await world.built("app")
    assert len(world.copies.images) == 2
    await fleet.kill("acme", sandbox.id)
    assert len(world.copies.images) == 1
    assert not old & world.copies.images


async def test_two_that_are_asked_for_at_once_are_one_template(world: World) -> None:
    first, second = (world.workshop.request("acme", name, ()) for name in ("app:a", "app:b"))
    assert first.record.id == second.record.id
    await asyncio.gather(*(world.ended(world.start(requested)) for requested in (first, second)))
    assert {tag for tag, _, _ in world.copies.shelf.tags("acme", world.copies.shelf.get("app", "acme"))} == {"a", "b"}


async def test_an_account_has_so_many_templates_at_most(world: World) -> None:
    for name in ("one", "two", "three", "three"):
        await world.built(name)
    with pytest.raises(Throttled, match="max_snapshots"):
        world.workshop.request("acme", "four", ())
    await world.copies.registry.remove("acme", "one")
    world.workshop.request("acme", "four", ())


async def test_templates_that_are_being_built_count(world: World) -> None:
    world.builder.gate.clear()
    requested = [world.workshop.request("acme", name, ()) for name in ("one", "two", "three", "four", "one:again")]
    builds = [world.start(one) for one in requested[:3]]
    with pytest.raises(Throttled, match="max_snapshots"):
        world.start(requested[3])
    with pytest.raises(Throttled, match="max_snapshots"):
        world.workshop.request("acme", "five", ())
    builds.append(world.start(requested[4]))  # of one of the three
    world.workshop.request("other", "four", ())
    world.builder.error = BuildFailed("no", "1")
    world.builder.gate.set()
    await asyncio.gather(*(world.ended(build) for build in builds))
    world.builder.error = None
    assert (await world.ended(world.start(requested[3]))).status is BuildStatus.READY


async def test_less_is_given_than_was_asked_for_and_told(world: World) -> None:
    requested = world.workshop.request("acme", "big", (), cpu=64, memory_mb=1 << 20)
    assert (requested.limits.cpu, requested.limits.memory_mb) == (2.0, 1024)
    build = await world.ended(world.start(requested))
    assert build.log.page()[0].text == "This server gives 2 CPUs and 1024 MB at most."


@pytest.mark.parametrize(
    ("recipe", "step", "words"),
    [
        ({"fromTemplate": "nothing"}, BASE_STEP, "'nothing' not found"),
        ({"fromTemplate": "", "fromImage": "fedora:99"}, BASE_STEP, "pulls no images"),
        ({"steps": [{"type": "RUN", "args": ["x"]}, {"type": "USER", "args": ["$(id)"]}]}, "2", "no name of a user"),
    ],
)
async def test_recipes_that_can_not_be_built(world: World, recipe: dict[str, Any], step: str, words: str) -> None:
    build = await world.built("app", **recipe)
    assert (build.status, build.step) == (BuildStatus.ERROR, step)
    assert words in build.message
    assert world.builder.orders == []


async def test_a_stand_in_for_an_image(world: World) -> None:
    build = await world.built("app", fromTemplate="", fromImage="debian:13")
    assert build.status is BuildStatus.READY


async def test_what_a_failed_build_stood_on_goes_with_it_if_it_was_removed_meanwhile(world: World) -> None:
    sandbox = await world.copies.bench.fleet.create(order("base"))
    snapshot, _ = await world.copies.snapshots.take("acme", sandbox.id, "kept")
    world.builder.gate.clear()
    world.builder.error = BuildFailed("step 1 failed", "1")
    build = world.start(world.workshop.request("acme", "app", []), fromTemplate=snapshot.id)
    async with asyncio.timeout(10):
        while not world.builder.orders:
            await asyncio.sleep(0.001)
    await world.copies.registry.remove("acme", "kept")
    assert len(world.copies.images) == 2  # what is being made, and what that stands on
    world.builder.gate.set()
    assert (await world.ended(build)).status is BuildStatus.ERROR
    assert world.copies.images == frozenset()


@pytest.mark.parametrize("error", [BuildFailed("step 1 failed", "1"), StorageFull("full"), ValueError("a mistake")])
async def test_builds_that_fail_leave_nothing(world: World, error: Exception) -> None:
    world.builder.error = error
    build = await world.built("app")
    assert build.status is BuildStatus.ERROR
    assert world.copies.images == frozenset()
    assert world.copies.shelf.book.find("acme", "app") is None


async def test_what_it_stands_on_stays_while_it_is_built(world: World) -> None:
    await world.built("base-of-it")
    world.builder.gate.clear()
    build = world.start(world.workshop.request("acme", "app", ()), fromTemplate="base-of-it")
    while len(world.builder.orders) < 2:
        await asyncio.sleep(0.001)
    await world.copies.registry.remove("acme", "base-of-it")
    assert len(world.copies.images) == 2
    world.builder.gate.set()
    await world.ended(build)
    assert len(world.copies.shelf.get("app", "acme").foundation.layers) == 2
    assert len(world.copies.images) == 2


async def test_who_may_not_and_what_is_no_name(world: World) -> None:
    requested = world.workshop.request("acme", "app", ())
    for account, template, build in (("other", "app", requested.id), ("acme", "x", requested.id), ("acme", "app", "x")):
        with pytest.raises(NotFound):
            world.workshop.start(account, template, build, {"fromTemplate": "base"})
        with pytest.raises(NotFound):
            world.workshop.status(account, template, build)
    with pytest.raises(NotFound):
        world.workshop.has_files("other", "app", HASH)
    assert world.workshop.status("acme", "app", requested.id).status is BuildStatus.WAITING
    for name in ("", ":v1", "A b", "-x", "a:"):
        with pytest.raises(InvalidArgument):
            world.workshop.request("acme", name, ())
    for name in ("base", "host", "httpbin"):
        with pytest.raises(Conflict):
            world.workshop.request("acme", name, ())


async def test_requests_that_nobody_starts_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshops, "_MOST_REQUESTED", 2)
    world.builder.gate.clear()
    forgotten = world.workshop.request("acme", "one", ())
    running = world.workshop.request("acme", "two", ())
    build = world.start(running)
    another = world.start(world.workshop.request("acme", "three", ()))
    with pytest.raises(NotFound):
        world.start(forgotten)
    with pytest.raises(Throttled):
        world.workshop.request("acme", "four", ())
    world.builder.gate.set()
    await asyncio.gather(world.ended(build), world.ended(another))
    world.workshop.request("acme", "four", ())


async def test_uploads_are_bounded_and_kept_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = world.workshop.request("acme", "app", ())
    monkeypatch.setattr(workshops, "MOST_UPLOAD", 10)
    with pytest.raises(PayloadTooLarge):
        async with world.workshop.upload("acme", HASH) as file:
            file.write(b"x" * 11)
    assert not world.workshop.has_files("acme", requested.record.id, HASH)
    async with world.workshop.upload("acme", HASH) as file:
        file.write(b"x" * 10)
    assert world.workshop.has_files("acme", "app", HASH)
    with pytest.raises(InvalidArgument):
        world.workshop.has_files("acme", "app", "../../etc")


async def test_a_build_of_an_earlier_server_is_ready(world: World) -> None:
    build = await world.built("app")
    world.workshop._requested.clear()
    known = world.workshop.status("acme", "app", build.id)
    assert (known.status, known.template) == (BuildStatus.READY, build.template)
