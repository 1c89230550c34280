"""The official npm SDKs, unmodified, against a real server: a Node.js program for each of their parts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.interpreter import data_packages
from tests.support.server import Server

HERE = Path(__file__).parent
PROGRAMS = ["sandboxes", "commands", "files", "terminals", "code", "ports", "snapshots", "templates", "storage"]


@pytest.fixture(scope="module")
def node() -> str:
    """The program; without it, or without the SDKs, tests fail and say what installs them."""
    found = shutil.which("node")
    if found is None:
        pytest.fail("The npm SDKs need Node.js 20.18.1 or newer and npm: install them from https://nodejs.org")
    installed, wanted = HERE / "node_modules/.package-lock.json", HERE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        pytest.fail(f"The npm SDKs are not installed, or not these: run npm ci --prefix {HERE}")
    return found


@pytest.fixture(scope="module", autouse=True)
def packages(roost: Server) -> None:
    (roost.data_dir / "packages").symlink_to(data_packages().parent)


def test_all_programs_are_run() -> None:
    assert sorted(PROGRAMS) == sorted(file.stem for file in HERE.glob("*.mjs") if file.stem != "check")


@pytest.mark.parametrize("program", PROGRAMS)
def test_npm_sdk(node: str, roost: Server, program: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "NODE_"))}
    env |= {"E2B_API_URL": roost.url, "E2B_SANDBOX_URL": roost.url, "E2B_VOLUME_API_URL": roost.url}
    done = subprocess.run(
        [node, f"{program}.mjs"],
        check=False,
        cwd=HERE,
        env=env | {"E2B_API_KEY": "anything"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
