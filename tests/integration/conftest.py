from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import NOTHING, Remains, Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module; it must leave nothing behind."""
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING
