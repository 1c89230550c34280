"""The official SDK, unmodified, against a real server: it is told the address as its users tell it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox
from e2b_code_interpreter import Sandbox as CodeSandbox

from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running, share_packages


@pytest.fixture(scope="module")
def roost(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module, without keys; it must leave nothing behind. `LIMITS` of the module are
    settings of a server whose sandboxes have contexts."""
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    limits = getattr(request.module, "LIMITS", "")
    with running(data_dir, config=limits) as server:
        if limits:
            share_packages(data_dir, data_packages())
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(autouse=True)
def environment(roost: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("E2B_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("E2B_API_URL", roost.url)
    monkeypatch.setenv("E2B_SANDBOX_URL", roost.url)
    monkeypatch.setenv("E2B_API_KEY", "anything")


@pytest.fixture
def sandbox(environment: None) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=60, metadata={"of": "test"})
    yield made
    made.kill()


@pytest.fixture
def box(request: pytest.FixtureRequest, environment: None) -> Iterator[CodeSandbox]:
    """One with the variables of the module's `STATE`."""
    made = CodeSandbox.create(timeout=300)
    assert made.run_code(request.module.STATE).error is None
    yield made
    made.kill()
