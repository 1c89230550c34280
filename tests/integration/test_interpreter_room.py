"""The template `code-interpreter-v1` in real rooms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.isolation.driver import RoomSpec
from roost.model.function import Limits
from tests.support.interpreter import lasting_data
from tests.support.interpreter_room import interpreter_driver, request, run_code
from tests.support.rooms import Remains, settled


@pytest.fixture
async def room(tmp_path: Path):
    """The run directory of a room, and the room."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    before = Remains.of(data_dir)
    async with interpreter_driver(data_dir, lasting_data()) as (driver, template):
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        limits = Limits(memory_mb=512, disk_mb=512)
        made = await driver.create(RoomSpec(id="i0", template=template, limits=limits, run_dir=run_dir))
        try:
            await made.settled()
            yield run_dir, made
        finally:
            await made.destroy()
    await settled(data_dir, before)


async def test_contexts_belong_to_the_user_and_share_the_zygotes_libraries(room):
    run_dir, made = room
    first = await run_code(run_dir, "1 + 1")
    assert first.value == "2"
    # What a room is charged for with one context that ran a cell; its libraries alone have ten times as much.
    assert made.usage().memory_bytes < 14 << 20
    who = await run_code(
        run_dir, "import os, getpass, sys; (os.getuid(), os.getcwd(), 'pandas' in sys.modules, sys.executable)"
    )
    assert who.value == "(1000, '/home/user', True, '/.roost/bin/python3')"
    [figure] = (await run_code(run_dir, "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()")).results
    assert figure["png"].startswith("iVBOR")
    assert figure["chart"]["type"] == "line"


async def test_programs_of_the_room_have_the_same_packages(room):
    run_dir, _ = room
    code = "python3 -c 'import numpy, sys; print(numpy.__file__)'; python3 -m pip list | grep ^pandas"
    execution = await run_code(run_dir, code, language="bash")
    assert execution.text().startswith("/.roost-data/numpy/__init__.py\npandas ")
    assert (await run_code(run_dir, "touch /.roost-data/x", language="bash")).error is not None


async def test_what_the_user_installs_is_imported_and_wins_in_the_next_context(room):
    run_dir, _ = room
    install = """
    import os
    place = os.path.expanduser("~/.local/lib/python{}.{}/site-packages").format(*__import__("sys").version_info)
    os.makedirs(place + "/orjson")
    open(place + "/orjson/__init__.py", "w").write("mine = True")
    open(place + "/mine.py", "w").write("x = 'installed'")
    import mine
    mine.x
    """
    assert (await run_code(run_dir, install)).value == "installed"
    status, body = await request(run_dir, "POST", "/contexts", {})
    assert status == 200, body
    context = json.loads(body)["id"]
    assert (await run_code(run_dir, "import orjson; orjson.mine", context_id=context)).value == "True"


async def test_a_memory_bomb_ends_its_context_and_nothing_else(room):
    run_dir, made = room
    status, body = await request(run_dir, "POST", "/contexts", {})
    assert status == 200, body
    await run_code(run_dir, "kept = 'kept'")
    bomb = await run_code(run_dir, "x = b'x' * (2 << 30)", context_id=json.loads(body)["id"])
    assert bomb.error["name"] == "ContextRestarting"
    assert "memory" in bomb.error["value"]
    assert made.usage().oom_kills >= 1
    assert (await run_code(run_dir, "kept")).value == "kept"


async def test_the_other_languages_run(room):
    run_dir, _ = room
    assert (await run_code(run_dir, "await Promise.resolve(process.cwd())", language="js")).value == "/home/user"
    assert (await run_code(run_dir, "const x: number = 3; x", language="ts")).value == "3"
    assert (await run_code(run_dir, "id -un; pwd", language="bash")).text() == "user\n/home/user\n"
