"""The examples that branch a live sandbox, run as they are against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interpreter import data_packages
from tests.support.scripted_openai import ScriptedOpenAI, Text
from tests.support.server import NOTHING, Remains, Server, running, share_packages

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMITS = "sandbox_memory_mb = 768\nsandbox_disk_mb = 512\n"


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=LIMITS) as server:
        share_packages(data_dir, data_packages())
        yield server
    assert Remains.of(data_dir) == NOTHING


def run(roost: Server, program: str, *arguments: str, **settings: str) -> str:
    addresses = {"E2B_API_URL": roost.url, "E2B_SANDBOX_URL": roost.url, "E2B_API_KEY": "any"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        env={"PATH": "/usr/bin:/bin", **addresses, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with roost.client() as client:
        assert client.get("/v2/sandboxes").json() == []
    return done.stdout


def test_a_tree_of_thoughts_with_a_scripted_proposer(roost: Server) -> None:
    out = run(roost, "tree-of-thought/agent.py", "4", "9", "10", "13")
    assert "a scripted proposer takes its place" in out
    assert out.count("->") == 28
    assert len(re.findall(r"^    (├|└)|^│   (├|└)", out, re.MULTILINE)) >= 4
    assert "24 was made." in out
    notes = out.partition("from its files:\n")[2].splitlines()[:3]
    assert [line.count("=") for line in notes] == [1, 1, 1]
    assert notes[-1].endswith("= 24")


def test_a_tree_of_thoughts_with_a_model(roost: Server) -> None:
    with ScriptedOpenAI(api_key="sesame") as model:
        model.add(Text("13 - 9\nrm -rf /\n"), Text("no idea"), Text("4 * 6\n4 * 7"))
        key = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "sesame", "OPENAI_MODEL": "scripted"}
        out = run(roost, "tree-of-thought/agent.py", "4", "9", "10", "13", "--beam", "1", "--branches", "2", **key)
        model.verify()
    assert "proposes." in out
    assert "13 - 9 ->" in out
    assert "the scripted proposer takes this turn" in out


def test_a_search_with_rollback_in_place_of_reset(roost: Server) -> None:
    out = run(roost, "gymnasium-rollback/search.py", "--map", "4x4")
    assert "The way: down down right down right right" in out
    numbers = dict(re.findall(r"^(Steps [a-z ]+): (\d+)$", out, re.MULTILINE))
    taken, with_reset, saved = map(int, numbers.values())
    assert with_reset == taken + saved
    assert saved > 0
