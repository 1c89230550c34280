"""Strict rooms: what they don't share with others, and that everything else is as in any room."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from e2b_code_interpreter import Sandbox

from roost.isolation.namespaces.room import NamespacesRoom
from tests.support.interpreter import data_packages
from tests.support.rooms import World, probe_bundle, world
from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running

Rooms = dict[str, NamespacesRoom]

#: Where the C library, the heap and the stack of the room's init are; what a text hashes to.
LAYOUT = """
maps = open("/proc/1/maps").read().splitlines()
def begin(name):
    return next(line.partition("-")[0] for line in maps if line.endswith(name))
heap = open("/proc/1/stat").read().rpartition(")")[2].split()[44]  # start_brk, the 47th field
result = [next(line.partition("-")[0] for line in maps if "libc" in line), heap, begin("[stack]"), hash("x")]
"""
STATUS = """
import os
fields = dict(line.split(":\\t", 1) for line in open("/proc/1/status").read().splitlines() if ":\\t" in line)
names = ("Uid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
held = {fd: os.readlink("/proc/1/fd/" + fd).partition(":")[0] for fd in os.listdir("/proc/1/fd")}
result = [{name: fields[name].split() for name in names}, sorted(set(held.values())), sorted(held)[:5]]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    bundle = probe_bundle(tmp_path_factory)
    async with world(bundle, tmp_path_factory.mktemp("rooms"), alone=False) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooms(made: World) -> Rooms:
    return {
        "one": await made.room("one"),
        "two": await made.room("two"),
        "strict-one": await made.room("strict-one", isolation="strict"),
        "strict-two": await made.room("strict-two", isolation="strict"),
    }


@pytest.mark.asyncio(loop_scope="module")
async def test_a_strict_room_tells_nothing_of_where_things_are_in_others(made: World, rooms: Rooms) -> None:
    layouts = {name: await made.ask(room, LAYOUT) for name, room in rooms.items()}
    assert layouts["one"] == layouts["two"]  # forks of one process
    for other in ("one", "strict-two"):
        same = [a for a, b in zip(layouts["strict-one"], layouts[other], strict=True) if a == b]
        assert same == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_strict_room_has_the_same_walls(made: World, rooms: Rooms) -> None:
    plain, strict = [await made.ask(rooms[name], STATUS) for name in ("one", "strict-one")]
    assert strict[0] == plain[0]
    assert strict[0]["CapBnd"] == ["0000000000000000"]
    assert (strict[0]["NoNewPrivs"], strict[0]["Seccomp"]) == (["1"], ["2"])
    assert strict[1:] == plain[1:]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    data_dir.mkdir()
    subprocess.run(["cp", "-al", str(data_packages().parent), str(data_dir / "packages")], check=True)
    with running(data_dir, config='sandbox_isolation = "strict"\n') as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def test_a_strict_function_works_as_any(server: Server) -> None:
    fc = Sdk(server.url)
    code = "import os\ndef handler(event, context):\n    return event + hex(id(os)).encode()\n"
    for name, isolation in (("strict", "strict"), ("plain", "namespaces")):
        server.deploy(name, {"index.py": code}, roost={"isolation": isolation})
        assert fc.reply(name, b"hello").startswith(b"hello0x")
    levels = {one["function"]: one["isolation"] for one in server.instances()}
    assert levels == {"strict": "strict", "plain": "namespaces"}
    with server.client() as client:
        refused = client.put("/2023-03-30/functions/plain", json={"roost": {"isolation": "magic"}})
        assert refused.status_code == 400
        assert "only namespaces, strict and gvisor" in refused.text


def test_a_strict_sandbox_works_as_any(server: Server) -> None:
    options = {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}
    with Sandbox.create(**options) as box:
        assert box.commands.run("id -un; sudo id -un").stdout == "user\nroot\n"
        box.files.write("/home/user/note", "kept")
        box.run_code("x = open('/home/user/note').read()")
        assert box.run_code("x").text == "kept"
        layout = "next(line.split('-')[0] for line in open('/proc/self/maps') if 'libc' in line)"
        first = box.run_code(layout).text
        assert first is not None
        box.pause()
        again = Sandbox.connect(box.sandbox_id, **options)
        assert again.run_code("x").text == "kept"
        with Sandbox.create(**options) as other:
            assert other.run_code(layout).text not in (None, first)
