"""The agents built with frameworks, each with its own `requirements.txt` installed as `roost deploy` does it.

The packages come from the configured package index, once: they are kept where `roost deploy` keeps them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.sdk.vendor import cache_directory, vendor
from tests.support.example_app import EXAMPLES, asgi_command, example_server, free_port
from tests.support.scripted_openai import Call, Calls, Failure, ScriptedOpenAI, Text

FRAMEWORKS = ("langgraph-agent", "pydantic-ai-agent")
TOOL_CALLS = {
    "langgraph-agent": Call("run_python", {"code": "print(6 * 7); open('kept.txt', 'w').write('x')"}),
    "pydantic-ai-agent": Call("write_note", {"title": "milk", "text": "two bottles"}),
}
OUTPUTS = {"langgraph-agent": "42\n", "pydantic-ai-agent": "noted milk"}
FILES = {"langgraph-agent": ["checkpoints.sqlite", "kept.txt"], "pydantic-ai-agent": ["history.json", "notes.json"]}


@pytest.fixture(params=FRAMEWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def packages(name: str) -> Path:
    """A folder with what the example requires."""
    cache = cache_directory(os.environ) / "requirements"
    folder = vendor(EXAMPLES / name, f"{sys.version_info.major}.{sys.version_info.minor}", cache)
    assert folder is not None
    return folder


@pytest.fixture
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@contextmanager
def served(name: str, packages: Path, settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    port = free_port()
    server = example_server(name, asgi_command("app.app", port), port, {"PYTHONPATH": str(packages), **settings})
    with server as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def chat(agent: httpx.Client, message: str) -> list[dict[str, Any]]:
    with agent.stream("POST", "/chat", json={"message": message}) as response:
        assert response.status_code == 200
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "text")


@pytest.mark.timeout(600)
def test_the_tool_loop_streams_and_the_conversation_outlives_the_process(
    name: str, packages: Path, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    # As in a room: the endpoint is a proxy that has the key, and the agent has none.
    endpoint = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "", "OPENAI_MODEL": "scripted"}
    settings = {**endpoint, "ROOST_SESSION_DIR": str(tmp_path)}
    with served(name, packages, settings) as agent:
        model.add(Calls(TOOL_CALLS[name]), Text("That is done.", piece=5))
        events = chat(agent, "Do it")
        assert text_of(events) == "That is done."
        assert [e["type"] for e in events] == ["tool", "result", "text", "text", "text", "done"]
        assert events[0]["name"] == TOOL_CALLS[name].name
        assert events[1] == {"type": "result", "name": TOOL_CALLS[name].name, "output": OUTPUTS[name]}
        assert model.requests[1]["messages"][-1]["content"] == OUTPUTS[name]
        assert {file.name for file in tmp_path.iterdir()} >= set(FILES[name])

        model.add(Failure(400, "The context is too long"))
        error = chat(agent, "And now?")[-1]
        assert error["type"] == "error"
        assert "The context is too long" in error["message"]
        assert agent.post("/chat", content=b"{").status_code == 400

    with served(name, packages, settings) as agent:
        model.add(Text("I remember."))
        assert text_of(chat(agent, "Do you remember?")) == "I remember."
    said = [m["content"] for m in model.requests[-1]["messages"] if m["role"] == "user"]
    assert said[0] == "Do it"
    assert said[-1] == "Do you remember?"


@pytest.mark.timeout(600)
def test_without_a_model_it_says_how_to_get_one(name: str, packages: Path, tmp_path: Path) -> None:
    with served(name, packages, {"OPENAI_BASE_URL": "", "ROOST_SESSION_DIR": str(tmp_path)}) as agent:
        (event,) = chat(agent, "Hi")
    assert event["type"] == "error"
    assert event["message"].startswith("No model is configured: ")
