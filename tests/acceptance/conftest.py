from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for the tests of a module, without keys; it must leave nothing behind."""
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config="queue_timeout = 2\n") as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def sdk(roost: Server) -> Sdk:
    return Sdk(roost.url)
