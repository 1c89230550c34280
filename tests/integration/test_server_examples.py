"""The examples as a newcomer runs them: deployed with the command line, in rooms, against a scripted model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.support.scripted_openai import Call, Calls, ScriptedOpenAI, Text
from tests.support.server import NOTHING, Remains, Server, running

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "sk-never-seen-in-a-room"


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(api_key=KEY) as scripted:
        yield scripted


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, model: ScriptedOpenAI) -> Iterator[Server]:
    """A server whose model is the scripted one."""
    data_dir = tmp_path_factory.mktemp("examples") / "data"
    env = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": KEY, "OPENAI_MODEL": "scripted"}
    with running(data_dir, env=env) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def deploy(server: Server, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "roost.sdk.cli", "deploy", str(EXAMPLES / name)],
        check=False, env={**os.environ, "ROOST_URL": server.url}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def chat(server: Server, name: str, session: str, message: str) -> list[dict[str, Any]]:
    headers = {"x-roost-session": session}
    with (
        server.client() as client,
        client.stream("POST", f"/{name}/chat", json={"message": message}, headers=headers) as reply,
    ):
        assert reply.status_code == 200, reply.read()
        return [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]


def said(events: list[dict[str, Any]]) -> str:
    return "".join(e["text"] for e in events if e["type"] == "text")


def test_a_chat_agent_runs_python_installs_packages_and_remembers(agents: Server, model: ScriptedOpenAI) -> None:
    deploy(agents, "chat-agent")
    model.add(Calls(Call("run_python", {"code": "x = 6 * 7\nx"})), Text("It is 42."))
    events = chat(agents, "chat-agent", "ann", "What is six times seven?")
    assert {"type": "result", "name": "run_python", "output": "42"} in events
    assert said(events) == "It is 42."

    # The interpreter's variables live on, and a package is one tool call away.
    model.add(
        Calls(Call("install_package", {"name": "six"})),
        Calls(Call("run_python", {"code": "import six\nx, six.__name__"})),
        Text("Done."),
    )
    events = chat(agents, "chat-agent", "ann", "Now with six")
    assert {"type": "result", "name": "install_package", "output": "installed six"} in events
    assert "(42, 'six')" in str([e for e in events if e["type"] == "result"][-1])

    # Another conversation has a room of its own: other variables, other packages, no secret in either.
    model.add(
        Calls(Call("run_python", {"code": "import os\n'x' in globals(), os.environ['OPENAI_API_KEY']"})), Text("No.")
    )
    events = chat(agents, "chat-agent", "bob", "Do you know x?")
    [result] = [e for e in events if e["type"] == "result"]
    assert "False" in result["output"]
    assert KEY not in json.dumps(events)

    # The room dies; the conversation does not.
    [instance] = [i for i in agents.instances() if "ann" in i["sessions"]]
    os.kill(instance["pid"], 9)
    agents.until(lambda: not any(i["id"] == instance["id"] for i in agents.instances()))
    model.add(Text("You asked about six times seven."))
    assert said(chat(agents, "chat-agent", "ann", "What did I ask?")) == "You asked about six times seven."
    assert "What is six times seven?" in json.dumps(model.requests[-1]["messages"])


def test_many_conversations_at_once(agents: Server, model: ScriptedOpenAI) -> None:
    deploy(agents, "chat-agent")
    model.add(*(Text("Hello.") for _ in range(20)))
    replies: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: replies.append(said(chat(agents, "chat-agent", f"many-{n}", "Hi"))))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == ["Hello."] * 20


def test_an_agent_on_node(agents: Server, model: ScriptedOpenAI) -> None:
    deploy(agents, "node-agent")
    model.add(Calls(Call("run_javascript", {"code": "[1,2,3].map(n => n * n)"})), Text("Squares."))
    events = chat(agents, "node-agent", "ann", "Square them")
    assert any(e["type"] == "result" and "[1,4,9]" in str(e["output"]) for e in events)
    assert said(events) == "Squares."


@pytest.mark.timeout(600)
def test_an_agent_on_langgraph(agents: Server, model: ScriptedOpenAI) -> None:
    deploy(agents, "langgraph-agent")
    model.add(Calls(Call("run_python", {"code": "print(6 * 7)"})), Text("It is 42."))
    events = chat(agents, "langgraph-agent", "ann", "What is six times seven?")
    assert any(e["type"] == "result" and "42" in str(e["output"]) for e in events)
    assert said(events) == "It is 42."


@pytest.mark.timeout(600)
def test_an_agent_on_pydantic_ai(agents: Server, model: ScriptedOpenAI) -> None:
    deploy(agents, "pydantic-ai-agent")
    model.add(Calls(Call("write_note", {"title": "milk", "text": "two bottles"})), Text("Noted."))
    events = chat(agents, "pydantic-ai-agent", "ann", "Note the milk")
    assert said(events) == "Noted."


@pytest.mark.timeout(600)
def test_a_web_application(agents: Server) -> None:
    deploy(agents, "web-app")
    with agents.client() as client:
        assert "<html" in client.get("/web-app/").text.lower()
        events = client.get("/web-app/events", params={"count": 3}).text
        assert events.count("data:") == 3
        body = os.urandom(8 << 20)
        sent = client.post("/web-app/upload", content=body)
        assert hashlib.sha256(body).hexdigest() in sent.text
    with connect(agents.url.replace("http", "ws") + "/web-app/ws") as socket:
        socket.send("hei")
        assert "hei" in str(socket.recv(timeout=10))
