"""Every example can be deployed as it is: its roost.toml is valid, and its handler or command is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.sdk import manifest
from tests.support.example_app import EXAMPLES

FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/roost.toml"))


def test_the_examples_are_found() -> None:
    names = {folder.name for folder in FOLDERS}
    assert names >= {"chat-agent", "web-app", "node-agent", "langgraph-agent", "pydantic-ai-agent"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.name))
def test_an_example_is_complete(folder: Path) -> None:
    settings = manifest.load(folder)
    manifest.to_function(settings, {})
    assert settings["name"] == folder.name
    assert (folder / "README.md").is_file()
    if settings.get("runtime") == "custom":
        assert (folder / settings["command"][1]).is_file()
    else:
        module, _, attribute = settings["handler"].rpartition(".")
        assert f"\n{attribute} = " in (folder / f"{module}.py").read_text()
