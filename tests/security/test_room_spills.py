"""Checkpoints on disk: what was in memory is there again, in a copy that is a process of its room and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost.isolation.driver import Branch
from tests.security.test_room_branches import Lab, _state
from tests.support.interpreter import lasting_data
from tests.support.interpreter_room import interpreter_driver
from tests.support.rooms import Remains, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST = 1 << 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    base: Path = tmp_path_factory.mktemp("spills")
    data_dir = base / "data"
    data_dir.mkdir()
    before = Remains.of(data_dir)
    async with interpreter_driver(data_dir, lasting_data()) as (driver, template):
        made = Lab(driver, template, base)
        try:
            yield made
        finally:
            for room in made.rooms.values():
                await room.destroy()
    await settled(data_dir, before)


async def kept(lab: Lab, name: str) -> tuple[Branch, Path]:
    image = lab._image(name)
    branch = await lab.rooms[name].branch(image, keep=True)
    assert branch.lost == (), branch.lost
    return branch, image


async def test_what_was_in_memory_is_there_again(lab: Lab) -> None:
    await lab.room("spilled")
    await lab.cell("spilled", "x = 41")
    branch, image = await kept(lab, "spilled")
    await lab.cell("spilled", "x = 0")
    size = await branch.spill(lab.directory, MOST)
    assert 0 < size < 100 << 20
    assert await branch.measure() == 0 and await branch.alive()
    await branch.recall()
    await lab.room("recalled", branch, (image,))
    assert await lab.cell("recalled", "x + 1") == "42"
    assert await lab.cell("spilled", "x") == "0"
    original, copied = (_state(lab.context(name), lab.rooms[name].pid) for name in ("spilled", "recalled"))
    assert copied == original
    await branch.close()
    await lab.gone("recalled")
    await lab.gone("spilled")
