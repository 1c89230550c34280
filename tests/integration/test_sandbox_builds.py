"""Templates built in real rooms: each step over what those before it left, and what earlier builds spare."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from roost.isolation.bundle import Bundle
from roost.model.errors import StorageFull
from roost.model.function import Limits
from roost.sandboxes.build_log import BuildLog
from roost.sandboxes.build_queue import BuildQueue, BuildStatus
from roost.sandboxes.builder import BuildFailed, Built, Order
from roost.sandboxes.builds import Base, plan
from roost.sandboxes.recipes import parse_recipe
from tests.integration.test_driver_recovery import start
from tests.support.builds import Workshop
from tests.support.rooms import World, probe_bundle, world

HASH = "a" * 64
BASE = Base(root="host", identity="1")
LIMITS = Limits(disk_mb=64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return probe_bundle(tmp_path_factory)


@pytest.fixture
async def rooms(bundle: Bundle, tmp_path: Path) -> AsyncIterator[World]:
    async with world(bundle, tmp_path) as made:
        furnish(made.template.root)
        (made.template.root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        (made.template.root / "etc/login.defs").write_text("")
        yield made


def furnish(root: Path) -> None:
    (root / "home/user").mkdir(parents=True)
    os.chown(root / "home/user", 1000, 1000)


@pytest.fixture
def workshop(rooms: World) -> Workshop:
    return Workshop(rooms, rooms.directory / "data")


def order(rooms: World, name: str, *steps: tuple[str, ...], base: Base = BASE, **more: Any) -> Order:
    listed: list[dict[str, Any]] = [{"type": kind, "args": list(args)} for kind, *args in steps]
    for step in listed:
        if step["type"] == "COPY":
            step["filesHash"] = HASH
    recipe = parse_recipe({"fromTemplate": "base", "steps": listed, **more})
    return Order(
        id=name,
        scope="me",
        plan=plan(recipe, base, scope="me", disk_mb=LIMITS.disk_mb),
        limits=LIMITS,
        target=rooms.directory / "data" / f"{name}.img",
    )


async def inside(rooms: World, built: Built, source: str, name: str = "inside") -> Any:
    """What a room of the template answers."""
    layer = rooms.directory / "data" / f"{name}-layer.img"
    await rooms.driver.disks.create(layer, 64)
    room = await rooms.room(name, layer=layer, lower=built.layers)
    try:
        return await rooms.ask(room, source)
    finally:
        await room.destroy()


def texts(log: BuildLog) -> list[str]:
    return [line.text for line in log.page()]


async def test_a_template_has_what_its_steps_made(rooms: World, workshop: Workshop) -> None:
    workshop.upload("me", HASH, {"src": None, "src/app.py": "print(1)", "src/link": "-> app.py"})
    log = BuildLog()
    built = await workshop.builder.build(
        order(
            rooms,
            "one",
            ("ENV", "GREETING", "hello"),
            ("WORKDIR", "app"),
            ("COPY", "src", "code", "", "0750"),
            ("RUN", "echo $GREETING from $(whoami) in $PWD | tee greeting; echo careful >&2"),
            ("RUN", "touch /usr/bin/tool && rm /etc/hostname /usr/bin/env && mv /usr/games /usr/play", "root"),
            ("USER", "builder"),
            ("RUN", "whoami > /tmp/who; pwd >> /tmp/who; echo ~ >> /tmp/who"),
        ),
        log,
    )
    look = """
        import os, stat
        about = os.stat("/home/user/app/code/app.py")
        result = [open("/home/user/app/greeting").read(), open("/tmp/who").read().split(),
                  [about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)], os.readlink("/home/user/app/code/link"),
                  os.path.exists("/usr/bin/tool"), os.path.exists("/usr/bin/env"), os.path.isdir("/usr/play"),
                  os.path.exists("/run/build"), os.stat("/home/user/app").st_uid]
        """
    assert await inside(rooms, built, look) == [
        "hello from user in /home/user/app\n",
        ["builder", "/home/user/app", "/home/builder"],
        [1000, 1000, 0o750],
        "app.py",
        *(True, False, True, False),
        1000,
    ]
    assert (built.context.user, built.context.workdir, dict(built.context.env)) == (
        "builder",
        "/home/user/app",
        {"GREETING": "hello"},
    )
    assert built.layers == (rooms.directory / "data/one.img",)
    said = texts(log)
    assert "[4] [stdout]: hello from user in /home/user/app" in said and "[4] [stderr]: careful" in said
    assert said[0] == "[3] COPY src code"


async def test_a_second_build_does_only_what_is_new(rooms: World, workshop: Workshop) -> None:
    steps = (("RUN", "echo $RANDOM > a"), ("RUN", "echo $RANDOM > b"))
    first = await workshop.builder.build(order(rooms, "one", *steps), BuildLog())
    assert len(workshop.rooms.opened) == 2
    log = BuildLog()
    same = await workshop.builder.build(order(rooms, "two", *steps), log)
    assert len(workshop.rooms.opened) == 2 and all("CACHED" in text for text in texts(log))
    read = "result = open('/home/user/a').read() + open('/home/user/b').read()"
    content = await inside(rooms, first, read, "first")
    assert await inside(rooms, same, read, "same") == content
    third = await workshop.builder.build(order(rooms, "three", steps[0], ("RUN", "cp a b")), BuildLog())
    assert workshop.rooms.opened[2:] == ["three-2"]
    assert await inside(rooms, third, read, "third") == content.split()[0] + "\n" + content.split()[0] + "\n"
    forced = await workshop.builder.build(order(rooms, "four", *steps, force=True), BuildLog())
    assert workshop.rooms.opened[3:] == ["four-1", "four-2"]
    again = await workshop.builder.build(order(rooms, "five", *steps), BuildLog())
    assert len(workshop.rooms.opened) == 5
    assert await inside(rooms, forced, read, "forced") == await inside(rooms, again, read, "again") != content


async def test_a_template_stands_on_another(rooms: World, workshop: Workshop) -> None:
    first = await workshop.builder.build(order(rooms, "one", ("WORKDIR", "/srv"), ("RUN", "echo 1 > one")), BuildLog())
    base = Base(root="host", identity="one", layers=first.layers, context=first.context)
    second = await workshop.builder.build(order(rooms, "two", ("RUN", "cat one > two"), base=base), BuildLog())
    assert second.layers == (rooms.directory / "data/two.img", *first.layers)
    assert await inside(rooms, second, "result = open('/srv/two').read()") == "1\n"
    only_settings = await workshop.builder.build(order(rooms, "three", ("ENV", "A", "1"), base=base), BuildLog())
    assert only_settings.layers == first.layers and not (rooms.directory / "data/three.img").exists()


async def test_a_step_that_fails_is_named_and_leaves_nothing(rooms: World, workshop: Workshop) -> None:
    with pytest.raises(BuildFailed, match=r"step 2 failed with exit code 7: RUN echo why; exit 7") as failed:
        log = BuildLog()
        steps = (("RUN", "touch a"), ("RUN", "echo why; exit 7"), ("RUN", "touch b"))
        await workshop.builder.build(order(rooms, "one", *steps), log)
    assert failed.value.step == "2" and "[2] [stdout]: why" in texts(log)
    assert not (rooms.directory / "data/one.img").exists()
    assert list((rooms.directory / "data/builds/work").iterdir()) == []
    await workshop.builder.build(order(rooms, "two", ("RUN", "touch a"), ("RUN", "true")), BuildLog())
    assert workshop.rooms.opened == ["one-1", "one-2", "two-2"]


async def test_files_that_were_not_uploaded_are_named(rooms: World, workshop: Workshop) -> None:
    with pytest.raises(BuildFailed, match="COPY a b: its files were not uploaded"):
        await workshop.builder.build(order(rooms, "one", ("RUN", "true"), ("COPY", "a", "b")), BuildLog())
    workshop.upload("you", HASH, {"a": "text"})
    with pytest.raises(BuildFailed):
        await workshop.builder.build(order(rooms, "one", ("COPY", "a", "b")), BuildLog())
    workshop.upload("me", HASH, {"other": "text"})
    with pytest.raises(BuildFailed, match="step 1 failed with exit code 1: COPY a b"):
        await workshop.builder.build(order(rooms, "one", ("COPY", "a", "b")), BuildLog())
    assert workshop.rooms.opened == ["one-1"]


async def test_a_full_disk_fails_the_step_alone(rooms: World, workshop: Workshop) -> None:
    with pytest.raises(BuildFailed, match="step 1 failed"):
        await workshop.builder.build(order(rooms, "one", ("RUN", "head -c 100M /dev/zero > big")), BuildLog())
    await workshop.builder.build(order(rooms, "two", ("RUN", "head -c 1M /dev/zero > big")), BuildLog())


async def test_a_start_command_has_to_become_ready(rooms: World, workshop: Workshop) -> None:
    steps = (("RUN", "echo 1 > a"),)
    more = {"startCmd": "touch started; sleep 0.3; exec sleep 60", "readyCmd": "test -f started"}
    built = await workshop.builder.build(order(rooms, "one", *steps, **more), BuildLog())
    assert (built.start_command, built.ready_command) == (more["startCmd"], more["readyCmd"])
    assert not await inside(rooms, built, "import os\nresult = os.path.exists('/home/user/started')")
    with pytest.raises(BuildFailed, match="ended with exit code 3") as failed:
        await workshop.builder.build(order(rooms, "two", *steps, startCmd="exit 3", readyCmd="false"), BuildLog())
    assert failed.value.step == "finalize" and not (rooms.directory / "data/two.img").exists()


async def test_a_build_that_is_cancelled_leaves_no_room_and_no_file(rooms: World, workshop: Workshop) -> None:
    queue = BuildQueue(clock=lambda: 0.0)

    async def work(log: BuildLog) -> None:
        await workshop.builder.build(order(rooms, "one", ("RUN", "true"), ("RUN", "sleep 60")), log)

    build = queue.start("one", "template", work)
    async with asyncio.timeout(30):
        while len(workshop.runner.ran) < 2:
            await asyncio.sleep(0.01)
    assert build.status is BuildStatus.BUILDING
    await queue.cancel("one")
    assert build.status is BuildStatus.ERROR and build.message == "The build was cancelled."
    await queue.close()
    assert list((rooms.directory / "data/builds/work").iterdir()) == []
    assert not (rooms.directory / "data/one.img").exists()
    assert all(room.usage().pids == 0 or room._gone for room in rooms.rooms)


async def test_a_full_disk_of_the_host_is_told(
    rooms: World, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(layer: Path, target: Path) -> None:
        raise StorageFull(f"The disk that holds {target} is full.")

    monkeypatch.setattr(rooms.driver.disks, "snapshot", full)
    with pytest.raises(StorageFull):
        await workshop.builder.build(order(rooms, "one", ("RUN", "true")), BuildLog())
    assert list((rooms.directory / "data/builds/work").iterdir()) == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
from roost.isolation.bundle import Bundle
from roost.sandboxes.build_log import BuildLog
from tests.integration.test_driver_recovery import start
from tests.integration.test_sandbox_builds import furnish, order
from tests.support.builds import Workshop
from tests.support.rooms import World, host_template

async def main(directory, bundle):
    data_dir = directory / "data"
    driver = await start(data_dir, Bundle(bundle))
    rooms = World(driver, host_template(directory / "template"), directory)
    furnish(rooms.template.root)
    workshop = Workshop(rooms, data_dir)
    class Log(BuildLog):
        def add(self, at, level, text, step=""):
            if "stop" in text and "stdout" in text:
                os.kill(os.getpid(), 9)
    await workshop.builder.build(order(rooms, "one", *STEPS), Log())

STEPS = (("RUN", "echo 1 > /tmp/a", "root"), ("RUN", "echo stop; echo 2 > /tmp/b", "root"))
if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


async def test_what_a_killed_server_had_done_is_used_by_the_next(bundle: Bundle, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    command = [sys.executable, "-c", KILLED, tmp_path, bundle.root]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    driver = await start(data_dir, bundle)
    await driver.sweep(frozenset())
    await driver.close()
    assert killed.returncode == -signal.SIGKILL
    assert list((data_dir / "builds/work").iterdir()) != []
    steps: Mapping[str, Any] = {}
    exec(next(line for line in KILLED.splitlines() if line.startswith("STEPS")), steps)
    (tmp_path / "template").rename(tmp_path / "before")
    async with world(bundle, tmp_path) as rooms:
        furnish(rooms.template.root)
        workshop = Workshop(rooms, data_dir)
        assert list((data_dir / "builds/work").iterdir()) == []
        built = await workshop.builder.build(order(rooms, "two", *steps["STEPS"]), BuildLog())
        assert workshop.rooms.opened == ["two-2"]
        assert await inside(rooms, built, "result = open('/tmp/a').read() + open('/tmp/b').read()") == "1\n2\n"
