"""The agent on Node.js against a scripted model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.example_app import example_server, free_port
from tests.support.scripted_openai import Call, Calls, Failure, ScriptedOpenAI, Text

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="the example needs Node.js on this machine")


@contextmanager
def served(settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    port = free_port()
    server = example_server("node-agent", ["node", "server.mjs"], port, settings)
    with server as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(api_key="sesame") as server:
        yield server


@pytest.fixture
def agent(model: ScriptedOpenAI, tmp_path: Path) -> Iterator[httpx.Client]:
    key = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "sesame", "OPENAI_MODEL": "scripted"}
    with served({**key, "ROOST_SESSION_DIR": str(tmp_path)}) as client:
        yield client


def chat(agent: httpx.Client, message: str) -> list[dict[str, Any]]:
    with agent.stream("POST", "/chat", json={"message": message}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def test_the_loop_with_a_tool_whose_variables_live_on(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Calls(Call("run_javascript", {"code": "var x = 6; x * 7"})), Text("It is 42."))
    events = chat(agent, "6 * 7?")
    assert [event["type"] for event in events] == ["tool", "result", "text", "text", "text", "done"]
    assert events[1] == {"type": "result", "name": "run_javascript", "output": "42"}
    model.add(Calls(Call("run_javascript", {"code": "[x, 'é']"})), Text("ok"))
    assert chat(agent, "x?")[1]["output"] == '[6,"é"]'
    roles = [message["role"] for message in model.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]


def test_bad_calls_come_back_as_errors(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    broken, wrong, raising = Call("run_javascript", "{"), Call("fly"), Call("run_javascript", {"code": "nothing.here"})
    model.add(Calls(broken, wrong, raising), Text("sorry"))
    outputs = [event["output"] for event in chat(agent, "Try") if event["type"] == "result"]
    assert outputs[1:] == ["error: there is no tool fly", "error: nothing is not defined"]
    assert outputs[0].startswith("error: ")
    assert model.requests[1]["messages"][-1]["content"] == outputs[2]


def test_an_error_of_the_endpoint(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Failure(429, "Slow down"))
    (event,) = chat(agent, "Hi")
    assert event["type"] == "error"
    assert event["message"].startswith("The model endpoint answered 429: ")
    assert "Slow down" in event["message"]


def test_a_client_that_leaves_stops_the_model(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Text("word " * 2000, piece=5, pause_s=0.01))
    with agent.stream("POST", "/chat", json={"message": "Talk"}) as response:
        next(response.iter_lines())
    assert model.abandoned.wait(10)


def test_bad_requests(agent: httpx.Client) -> None:
    for body in (b"", b"{", b'{"message": 1}', b'{"message": "' + b"a" * (1 << 20) + b'"}'):
        assert agent.post("/chat", content=body).status_code == 400
    assert agent.get("/elsewhere").status_code == 404


def test_without_a_model_it_says_how_to_get_one(tmp_path: Path) -> None:
    with served({"OPENAI_BASE_URL": "", "ROOST_SESSION_DIR": str(tmp_path)}) as agent:
        (event,) = chat(agent, "Hi")
    assert event["type"] == "error"
    assert event["message"].startswith("No model is configured: ")
