"""What is to be built, read from a client's request, and in which order it is done: without a room."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model.errors import Conflict, InvalidArgument, NotFound, PayloadTooLarge, Throttled, Unavailable
from roost.sandboxes.bases import template_for
from roost.sandboxes.build_cache import BuildCache
from roost.sandboxes.build_log import LINE_CHARACTERS, MOST_LINES, PAGE, BuildLog
from roost.sandboxes.build_queue import BuildQueue, BuildStatus
from roost.sandboxes.builder import BuildFailed
from roost.sandboxes.builds import Base, Context, Plan, expand, plan
from roost.sandboxes.recipes import MOST_STEPS, parse_recipe

HASH = "a" * 64
BASE = Base(root="host", identity="host-1")


def planned(*steps: tuple[Any, ...], base: Base = BASE, scope: str = "me", **more: Any) -> Plan:
    listed = [{"type": kind, "args": list(args)} for kind, *args in steps]
    for step in listed:
        if step["type"] == "COPY":
            step["filesHash"] = HASH
    return plan(parse_recipe({"fromTemplate": "base", "steps": listed, **more}), base, scope=scope, disk_mb=64)


# -- the request


def test_what_the_builder_sends_is_read() -> None:
    recipe = parse_recipe(
        {
            "steps": [
                {"type": "RUN", "args": ["id", "root"], "force": True},
                {"type": "COPY", "args": ["src", "/app", "", "0755"], "force": False, "filesHash": HASH},
                {"type": "ARG", "args": ["A", "b"], "force": False},
            ],
            "force": False,
            "fromImage": "e2bdev/base",
            "startCmd": "serve",
            "readyCmd": "true",
        }
    )
    assert (recipe.image, recipe.template, recipe.start_command, recipe.ready_command) == (
        "e2bdev/base",
        "",
        "serve",
        "true",
    )
    assert [step.type for step in recipe.steps] == ["RUN", "COPY", "ENV"]
    assert recipe.steps[0].force and recipe.steps[1].files_hash == HASH


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "fromImage and fromTemplate"),
        ({"fromImage": "a", "fromTemplate": "b"}, "fromImage and fromTemplate"),
        ({"fromImage": 1}, "fromImage"),
        ({"fromImage": "a", "fromImageRegistry": {"type": "registry"}}, "fromImageRegistry"),
        ({"fromImage": "a", "steps": {}}, "steps"),
        ({"fromImage": "a", "steps": [{"type": "RUN", "args": ["x"]}] * (MOST_STEPS + 1)}, "steps"),
        ({"fromImage": "a", "steps": [{"type": "RUN", "args": ["x" * 600_000]}] * 2}, "steps"),
        ({"fromImage": "a", "steps": [None]}, "step 1"),
        ({"fromImage": "a", "steps": [{"type": "RUN", "args": ["x"]}, {"type": "ONBUILD", "args": ["x"]}]}, "step 2"),
        ({"fromImage": "a", "steps": [{"type": "RUN", "args": []}]}, "step 1"),
        ({"fromImage": "a", "steps": [{"type": "RUN", "args": ["a\0b"]}]}, "step 1"),
        ({"fromImage": "a", "steps": [{"type": "RUN", "args": [1]}]}, "step 1"),
        ({"fromImage": "a", "steps": [{"type": "ENV", "args": ["A", "b", "C"]}]}, "step 1"),
        ({"fromImage": "a", "steps": [{"type": "COPY", "args": ["a", "b"]}]}, "step 1"),
        ({"fromImage": "a", "steps": [{"type": "COPY", "args": ["a", "b"], "filesHash": "../x"}]}, "step 1"),
        ({"fromImage": "a", "startCmd": ["x"]}, "startCmd"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_or_step(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        parse_recipe(body)


words = st.text("aZ0$\\{}:-+/. \0'", max_size=8)
values = st.none() | st.booleans() | st.integers() | words | st.lists(words, max_size=2)
steps = st.fixed_dictionaries(
    {"type": st.sampled_from(["RUN", "COPY", "ENV", "USER", "WORKDIR", "X"]) | values},
    optional={"args": st.lists(words, max_size=4) | values, "filesHash": st.just(HASH) | values},
)


@given(
    st.fixed_dictionaries(
        {"fromImage": st.just("a")},
        optional={"steps": st.lists(steps | values, max_size=4), "startCmd": values, "force": values},
    )
)
def test_whatever_comes_is_planned_or_refused(body: dict[str, Any]) -> None:
    try:
        made = plan(parse_recipe(body), BASE, scope="x", disk_mb=1)
    except InvalidArgument:
        return
    assert all(command.text for stage in made.stages for command in stage.commands)


# -- the plan


def test_settings_change_what_follows_and_need_no_room() -> None:
    made = planned(
        ("ENV", "A", "1", "PATH", "/mine:$PATH"),
        ("ENV", "B", "${A}2"),
        ("RUN", "make"),
        ("ENV", "A", "3"),
        ("WORKDIR", "/home/user"),
    )
    (stage,) = made.stages
    (command,) = stage.commands
    assert (command.text, command.user, command.cwd) == ("make", "user", "/home/user")
    assert command.env == {
        "A": "1",
        "B": "12",
        "PATH": "/mine:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    assert made.context.env["A"] == "3" and stage.number == 3


def test_users_and_folders_are_there_when_they_are_needed_and_at_the_end() -> None:
    made = planned(("USER", "app"), ("WORKDIR", "/srv"), ("RUN", "id"), ("WORKDIR", "sub"), ("USER", "root"))
    first, last = made.stages
    assert [command.user for command in first.commands] == ["root", "root", "app"]
    assert "useradd" in first.commands[0].text and "/srv" in first.commands[1].text
    assert first.commands[2].cwd == "/srv"
    assert [command.text for command in last.commands] == ["test -d /srv/sub || install -d -o app /srv/sub"]
    assert (made.context.user, made.context.workdir) == ("root", "/srv/sub")


def test_what_a_dockerfile_starts_and_ends_with_costs_nothing() -> None:
    made = planned(("USER", "root"), ("WORKDIR", "/"), ("RUN", "x"), ("USER", "user"), ("WORKDIR", "/home/user"))
    assert [len(stage.commands) for stage in made.stages] == [1]


def test_a_copy_is_done_by_root_for_an_owner() -> None:
    made = planned(("WORKDIR", "/app"), ("COPY", "src/*.py", "lib/", "", "0644"), ("COPY", "a b", "$HOME/x", "1001:7"))
    first, second = made.stages
    assert first.commands[-1].user == "root" and first.files_hash == HASH
    assert first.commands[-1].text.endswith("/run/build/archive 'src/*.py' /app/lib/ user: 0644")
    assert second.commands[-1].text.endswith("/run/build/archive 'a b' /home/user/x 1001:7 ''")


@pytest.mark.parametrize(
    "step",
    [
        ("COPY", "../x", "/y"),
        ("COPY", "/x", "/y"),
        ("COPY", "a/../../x", "/y"),
        ("COPY", "x", "/y", "a;b"),
        ("COPY", "x", "/y", "user:g h"),
        ("COPY", "x", "/y", "", "rwx"),
        ("USER", "$(id)"),
        ("USER", "-x"),
        ("RUN", "x", "a b"),
        ("ENV", "A-B", "x"),
        ("ENV", "", "x"),
    ],
)
def test_a_bad_step_is_refused_with_its_number(step: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"step 1\b|step 2\b"):
        planned(("RUN", "true"), step)


def test_keys_follow_everything_before_and_nothing_after() -> None:
    one = planned(("ENV", "A", "1"), ("RUN", "x"), ("RUN", "y"))
    other = planned(("ENV", "A", "1"), ("RUN", "x"), ("RUN", "z"))
    assert one.stages[0].key == other.stages[0].key and one.stages[1].key != other.stages[1].key
    assert one.stages[0].key != planned(("ENV", "A", "2"), ("RUN", "x")).stages[0].key
    assert one.stages[0].key != planned(("ENV", "A", "1"), ("RUN", "x"), scope="you").stages[0].key
    later = Base(root="host", identity="host-2")
    assert one.stages[0].key != planned(("ENV", "A", "1"), ("RUN", "x"), base=later).stages[0].key
    assert planned(("RUN", "a b")).stages[0].key != planned(("RUN", "a", "b")).stages[0].key


def test_force_goes_for_the_step_and_all_that_follow() -> None:
    steps = [{"type": "RUN", "args": [name], "force": name == "b"} for name in "abc"]
    made = plan(parse_recipe({"fromImage": "x", "steps": steps}), BASE, scope="", disk_mb=1)
    assert [stage.fresh for stage in made.stages] == [False, True, True]
    made = plan(parse_recipe({"fromImage": "x", "steps": steps, "force": True}), BASE, scope="", disk_mb=1)
    assert all(stage.fresh for stage in made.stages)


def test_a_template_begins_where_its_base_ended() -> None:
    base = Base(root="host", identity="t", context=Context(user="app", workdir="/srv", env={"A": "1"}))
    (stage,) = planned(("RUN", "x"), base=base).stages
    (command,) = stage.commands
    assert (command.user, command.cwd, dict(command.env)) == ("app", "/srv", {"A": "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A/${A}", "1/1"),
        ("${A}$B", "1"),
        ("${B:-else}${A:-else}", "else1"),
        ("${A:+then}${B:+then}", "then"),
        (r"\$A \\ \n", r"$A \ \n"),
        ("$ ${ $1 ${A", "$ ${ $1 ${A"),
    ],
)
def test_references_are_replaced(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}) == expected


# -- FROM


@pytest.mark.parametrize(
    ("image", "template"),
    [
        ("e2bdev/base", "base"),
        ("e2bdev/base:latest", "base"),
        ("docker.io/e2bdev/code-interpreter:1", "code-interpreter-v1"),
        ("ubuntu:24.04", "ubuntu-24.04"),
        ("ubuntu:22.04", "ubuntu"),
        ("docker.io/library/ubuntu", "ubuntu"),
        ("registry:5000/team/ubuntu@sha256:00", "ubuntu"),
        ("python:3", "base"),
        ("python:3.12-slim", "other"),
    ],
)
def test_an_image_is_a_local_template(image: str, template: str) -> None:
    local = {"base", "code-interpreter-v1", "ubuntu", "ubuntu-24.04", "other"}
    assert template_for(image, local, {"python": "base", "python:3.12-slim": "other"}) == template


def test_an_image_without_a_template_says_what_there_is() -> None:
    with pytest.raises(NotFound, match=r"image 'node:lts'; there are: base, mine"):
        template_for("node:lts", {"mine", "base"}, {})
    with pytest.raises(NotFound, match="mapped to the template 'gone'"):
        template_for("node:lts", {"base"}, {"node": "gone"})


# -- the log


def test_a_log_is_bounded_and_says_what_is_missing() -> None:
    log = BuildLog()
    for number in range(MOST_LINES + 5):
        log.add(0.0, "info", f"{number}\n\x00\x1b[31m" + "x" * (LINE_CHARACTERS * 2 if number == 0 else 0))
    log.end(1.0, "error", "over")
    read = []
    while page := log.page(len(read), 1000):
        assert len(page) <= PAGE
        read += page
    assert len(read) == MOST_LINES + 2
    assert len(read[0].text) <= LINE_CHARACTERS and read[1].text == "1\x1b[31m"
    assert [line.text for line in read[-2:]] == ["5 lines of output were dropped", "over"]
    assert list(log.page(-5, -1)) == []


# -- the cache


def _cache(directory: Path, most_bytes: int = 1 << 30) -> BuildCache:
    cache = BuildCache(directory / "builds", most_bytes=most_bytes)
    cache.prepare()
    return cache


def test_an_upload_is_there_when_it_is_complete(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    with pytest.raises(ConnectionError), cache.upload("me", HASH, most_bytes=10) as file:
        file.write(b"12345")
        raise ConnectionError
    with pytest.raises(PayloadTooLarge), cache.upload("me", HASH, most_bytes=10) as file:
        file.write(b"12345678901")
    assert not cache.has_files("me", HASH)
    for text in (b"one", b"two"):
        with cache.upload("me", HASH, most_bytes=10) as file:
            file.write(text)
    assert (cache.files("me", HASH) / "archive").read_bytes() == b"two"
    assert not cache.has_files("you", HASH)
    assert list((tmp_path / "builds/work").iterdir()) == []
    with pytest.raises(InvalidArgument):
        cache.files("me", "../../etc")


def test_layers_that_are_not_used_go_first(tmp_path: Path) -> None:
    cache = _cache(tmp_path, most_bytes=3 << 12)
    for number, key in enumerate("abc"):
        with cache.work_file() as made:
            made.write_bytes(b"x" * 4096)
            cache.keep(key, made)
        os.utime(tmp_path / f"builds/layers/{key}.img", (number, number))
    assert cache.layer("a") is not None
    with cache.work_file() as made:
        made.write_bytes(b"x" * 4096)
        cache.keep("d", made)
    assert [key for key in "abcd" if cache.layer(key)] == ["a", "c", "d"]


def test_uploads_that_are_not_used_go_first(tmp_path: Path) -> None:
    cache = _cache(tmp_path, most_bytes=2 << 12)
    for number, digit in enumerate("abc"):
        with cache.upload("me", digit * 64, most_bytes=4096) as file:
            file.write(b"x" * 4096)
        os.utime(cache.files("me", digit * 64) / "archive", (number, number))
    assert [digit for digit in "abc" if cache.has_files("me", digit * 64)] == ["b", "c"]


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    (tmp_path / "builds/work/left").write_text("x")
    with cache.work_file() as made:
        made.write_text("x")
        cache.keep("a", made)
    again = _cache(tmp_path)
    assert list((tmp_path / "builds/work").iterdir()) == [] and again.layer("a") is not None


# -- the queue


async def test_builds_wait_run_and_end(tmp_path: Path) -> None:
    queue = BuildQueue(clock=lambda: 1.0, at_once=1, kept=3)
    gate = asyncio.Event()

    async def work(log: BuildLog) -> None:
        log.add(0.0, "info", "begun")
        await gate.wait()

    async def fails(log: BuildLog) -> None:
        raise BuildFailed("step 2 failed", "2")

    async def refused(log: BuildLog) -> None:
        raise Unavailable("no loop devices")

    async def broken(log: BuildLog) -> None:
        raise ZeroDivisionError

    builds = [queue.start(name, "t", job) for name, job in zip("abcd", (work, fails, refused, broken), strict=True)]
    await asyncio.sleep(0)
    assert [build.status for build in builds] == ["building", "waiting", "waiting", "waiting"]
    with pytest.raises(Conflict):
        queue.start("a", "t", work)
    gate.set()
    async with asyncio.timeout(5):
        while not all(build.ended for build in builds):
            await asyncio.sleep(0.001)
    assert [build.status for build in builds] == ["ready", "error", "error", "error"]
    assert (builds[1].message, builds[1].step) == ("step 2 failed", "2")
    assert builds[2].message == "no loop devices" and "own" in builds[3].message
    assert [line.text for line in builds[0].log.page()] == ["begun", "The template is ready."]
    queue.start("e", "t", fails)
    with pytest.raises(NotFound):
        queue.get("a")
    await queue.close()


async def test_a_cancelled_build_failed_wherever_it_was() -> None:
    queue = BuildQueue(clock=lambda: 1.0, at_once=1)
    cleaned = []

    async def work(log: BuildLog) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(1)

    first, second = queue.start("a", "t", work), queue.start("b", "t", work)
    await queue.cancel("b")
    await asyncio.sleep(0)
    third = queue.start("c", "t", work)
    await asyncio.sleep(0)
    await queue.close()
    assert [build.status for build in (first, second, third)] == [BuildStatus.ERROR] * 3
    assert first.message == "The build was cancelled." and cleaned == [1]
    with pytest.raises(Throttled):
        queue.start("d", "t", work)
    with pytest.raises(NotFound):
        await queue.cancel("unknown")
