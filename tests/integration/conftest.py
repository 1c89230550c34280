from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roost.functions.tasks import endings
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.stores import Place
from tests.support.task_world import NewWorld, worlds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module; it must leave nothing behind."""
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture
async def new_world(place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NewWorld]:
    """A queue of tasks with its worker, on a store that is the test's own: the test runs on each backend."""
    monkeypatch.setattr(endings, "_PAUSE_S", 0.05)
    async for new_world in worlds(place):
        yield new_world
