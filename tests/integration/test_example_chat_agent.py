"""The chat agent over HTTP, against a scripted model, without a room."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.example_app import asgi_command, example_server, free_port
from tests.support.scripted_openai import Call, Calls, Failure, HangUp, ScriptedOpenAI, Text


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(api_key="sesame") as server:
        yield server
        server.clear()


@pytest.fixture
def model(endpoint: ScriptedOpenAI) -> Iterator[ScriptedOpenAI]:
    """A fresh script on the module's endpoint."""
    endpoint.clear()
    yield endpoint
    endpoint.verify()


@pytest.fixture(scope="module")
def server(endpoint: ScriptedOpenAI) -> Iterator[httpx.Client]:
    key = {"OPENAI_BASE_URL": endpoint.base_url, "OPENAI_API_KEY": "sesame", "OPENAI_MODEL": "scripted"}
    with served(key) as client:
        yield client


@pytest.fixture
def agent(server: httpx.Client, model: ScriptedOpenAI, tmp_path: Path) -> httpx.Client:
    """The module's agent, in a session of the test's own."""
    server.headers["x-roost-session-dir"] = str(tmp_path / "session")
    return server


@contextmanager
def served(settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    """The agent with these environment variables."""
    port = free_port()
    server = example_server("chat-agent", asgi_command("app.app", port), port, settings)
    with server as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def chat(agent: httpx.Client, message: str, **headers: str) -> list[dict[str, Any]]:
    """All events of one turn."""
    with agent.stream("POST", "/chat", json={"message": message}, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "text")


def test_text_is_streamed_in_pieces(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Text("Hello, how are you?", piece=5))
    events = chat(agent, "Hi")
    assert [event["type"] for event in events] == ["text"] * 4 + ["done"]
    assert text_of(events) == "Hello, how are you?"
    request = model.requests[0]
    assert request["model"] == "scripted"
    assert request["messages"][-1] == {"role": "user", "content": "Hi"}
    assert {tool["function"]["name"] for tool in request["tools"]} >= {"run_python", "write_file", "install_package"}


def test_a_tool_call_its_result_and_the_answer(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Calls(Call("run_python", {"code": "x = 6\nx * 7"}), text="Let me see."), Text("42"))
    events = chat(agent, "What is six times seven?")
    assert {"type": "tool", "name": "run_python", "arguments": {"code": "x = 6\nx * 7"}} in events
    assert {"type": "result", "name": "run_python", "output": "42"} in events
    assert events[-1] == {"type": "done"}
    assistant, tool = model.requests[1]["messages"][-2:]
    assert assistant["content"] == "Let me see."
    assert (tool["role"], tool["content"], tool["tool_call_id"]) == ("tool", "42", assistant["tool_calls"][0]["id"])


def test_variables_live_on_and_history_is_sent(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Calls(Call("run_python", {"code": "secret = 17"})), Text("kept"))
    chat(agent, "Remember 17")
    model.add(Calls(Call("run_python", {"code": "secret"})), Text("It was 17."))
    events = chat(agent, "What was it?")
    assert {"type": "result", "name": "run_python", "output": "17"} in events
    roles = [message["role"] for message in model.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    assert [message["role"] for message in agent.get("/history").json()] == [*roles[1:], "assistant"]


def test_parallel_tool_calls_all_get_their_result(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    calls = [Call("write_file", {"path": f"{name}.txt", "content": name}) for name in "abc"]
    model.add(Calls(*calls), Calls(Call("list_files")), Text("three"))
    events = chat(agent, "Make three files")
    results = [event["output"] for event in events if event["type"] == "result"]
    assert results[:3] == [f"wrote 1 bytes to {name}.txt" for name in "abc"]
    assert results[3].split("\n") == ["a.txt  1", "b.txt  1", "c.txt  1"]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (Call("run_python", '{"code": "1 +'), "are not valid JSON"),
        (Call("run_python", '["1"]'), "have to be a JSON object"),
        (Call("run_python", {}), "the argument 'code' is missing"),
        (Call("run_python", {"code": 1}), "has to be a string"),
        (Call("read_file", {"path": "a", "mode": "w"}), "unknown arguments ['mode']"),
        (Call("format_disk", {}), "there is no tool 'format_disk'"),
        (Call("read_file", {"path": "../history.jsonl"}), "outside the session's folder"),
        (Call("read_file", {"path": "missing.txt"}), "No such file"),
        (Call("install_package", {"name": "--index-url=http://x"}), "is not the name of a package"),
    ],
)
def test_bad_tool_calls_come_back_as_errors(
    agent: httpx.Client, model: ScriptedOpenAI, call: Call, complaint: str
) -> None:
    model.add(Calls(call), Text("sorry"))
    events = chat(agent, "Try")
    (result,) = [event for event in events if event["type"] == "result"]
    assert result["output"].startswith("error: ")
    assert complaint in result["output"]
    assert model.requests[1]["messages"][-1]["content"] == result["output"]
    assert events[-1] == {"type": "done"}


def test_errors_of_the_endpoint_are_one_sentence(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Failure(404, "The model `scripted` does not exist"))
    (event,) = chat(agent, "Hi")
    assert event["type"] == "error"
    assert event["message"] == (
        "The model endpoint answered 404: The model `scripted` does not exist. Check OPENAI_BASE_URL and OPENAI_MODEL."
    )
    model.add(HangUp("I was about to"))
    events = chat(agent, "Hi again")
    assert text_of(events) == "I was about to"
    assert "failed" in events[-1]["message"] or "broke off" in events[-1]["message"]
    model.add(Text("Here I am."))
    assert text_of(chat(agent, "And now?")) == "Here I am."


def test_an_endless_loop_of_tools_is_ended(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(*[Calls(Call("list_files"))] * 25)
    events = chat(agent, "Go on")
    assert events[-1] == {"type": "error", "message": "The agent stopped after 25 steps without an answer."}


def test_json_instead_of_a_stream(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    for path, headers in (("/chat", {"accept": "application/json"}), ("/invoke", {})):
        model.add(Calls(Call("run_python", {"code": "1 + 1"}), text="Hm."), Text("two"))
        answer = agent.post(path, json={"message": "1 + 1?"}, headers=headers).json()
        assert answer["reply"] == "two"
        assert [step["type"] for step in answer["steps"]] == ["tool", "result"]
        assert answer["steps"][1]["output"] == "2"


def test_the_session_directory_comes_with_the_request(
    agent: httpx.Client, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    model.add(Calls(Call("write_file", {"path": "notes/a.txt", "content": "mine"})), Text("done"))
    chat(agent, "Write", **{"x-roost-session-dir": str(tmp_path / "one")})
    assert (tmp_path / "one" / "files" / "notes" / "a.txt").read_text() == "mine"
    assert (tmp_path / "one" / "history.jsonl").exists()
    assert agent.get("/history", headers={"x-roost-session-dir": str(tmp_path / "two")}).json() == []


def test_a_client_that_leaves_stops_the_model(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Text("word " * 2000, piece=5, pause_s=0.01))
    with agent.stream("POST", "/chat", json={"message": "Talk"}) as response:
        next(response.iter_lines())
    assert model.abandoned.wait(10)
    model.add(Text("Yes?"))
    assert text_of(chat(agent, "Still there?")) == "Yes?"


def test_a_second_message_at_once_is_refused(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Text("slow " * 200, piece=5, pause_s=0.02))
    with agent.stream("POST", "/chat", json={"message": "Talk"}) as response:
        lines = response.iter_lines()
        next(lines)
        (event,) = chat(agent, "Me too")
    assert event == {"type": "error", "message": "This session is still answering the message before."}


def test_a_model_can_be_asked_for_by_name(agent: httpx.Client, model: ScriptedOpenAI) -> None:
    model.add(Text("ok"))
    agent.post("/invoke", json={"message": "Hi", "model": "local"})
    assert model.requests[0]["model"] == "local"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/chat", b"{", 400),
        ("POST", "/chat", b'{"text": "Hi"}', 400),
        ("POST", "/chat", b'{"message": " "}', 400),
        ("POST", "/chat", b'{"message": "Hi", "model": 1}', 400),
        ("POST", "/chat", b" " * (1 << 20) + b"{}", 413),
        ("PUT", "/chat", b"", 405),
        ("GET", "/elsewhere", b"", 404),
    ],
)
def test_bad_requests(agent: httpx.Client, method: str, path: str, body: bytes, status: int) -> None:
    response = agent.request(method, path, content=body)
    assert response.status_code == status
    assert response.json()["error"].endswith(".")


def test_the_page(agent: httpx.Client) -> None:
    response = agent.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<!doctype html>" in response.text


def test_without_a_model_it_says_how_to_get_one(tmp_path: Path) -> None:
    with served({"OPENAI_BASE_URL": "", "ROOST_SESSION_DIR": str(tmp_path)}) as agent:
        (event,) = chat(agent, "Hi")
        assert event["type"] == "error"
        assert event["message"].startswith("No model is configured: ")
        assert "--model local" in event["message"]
        answer = agent.post("/invoke", json={"message": "Hi"})
        assert answer.status_code == 502
        assert answer.json()["error"] == event["message"]


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}/v1"
    with served({"OPENAI_BASE_URL": endpoint, "ROOST_SESSION_DIR": str(tmp_path)}) as agent:
        (event,) = chat(agent, "Hi")
    assert event["message"].startswith(f"The connection to the model at {endpoint} failed: ")


def test_a_conversation_outlives_its_process(model: ScriptedOpenAI, tmp_path: Path) -> None:
    settings = {
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "sesame",
        "ROOST_SESSION_DIR": str(tmp_path),
    }
    model.add(Calls(Call("write_file", {"path": "a.txt", "content": "A"})), Text("written"))
    with served(settings) as agent:
        chat(agent, "Write A")
    model.add(Calls(Call("read_file", {"path": "a.txt"})), Text("It says A."))
    with served(settings) as agent:
        events = chat(agent, "What does it say?")
        assert len(agent.get("/history").json()) == 8
    assert {"type": "result", "name": "read_file", "output": "A"} in events
    assert model.requests[-1]["messages"][1] == {"role": "user", "content": "Write A"}
