"""A real server's tasks while they run: progress and output of every kind of handler, seen late and after a crash."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from roost.sdk.sse import Event, events_of
from tests.support.server import NOTHING, Remains, Server
from tests.support.tasks import MOUNT, configure, finished, submit

TALK = """
import asyncio, threading, time

def plain(event, context):
    context.task.progress({"done": 1, "of": 2})
    other = threading.Thread(target=context.task.progress, args=("from a thread",))
    other.start(); other.join()
    if event == b"raise":
        raise ValueError("half done")
    return b"\\xff result"

def stream(event, context):
    yield "one "
    context.task.progress(0.5)
    yield {"two": 2}
    if event == b"raise":
        raise ValueError("half said")
    if event == b"wait":
        time.sleep(60)
    yield "drei\u00df"

async def coroutine(event, context):
    context.task.progress("begun")
    await asyncio.to_thread(context.task.progress, "from a thread")
    return {"attempt": context.task.attempt, "id": context.task.id == context.task_id}

async def generator(event, context):
    for number in range(3):
        context.task.progress(number)
        yield f"{number};"

def either(event, context):
    context.task.progress("told if it is a task")
    return f"{context.task.id}:{context.task.attempt}"
"""
WEB = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        step = 'event: progress\\ndata: {"step": 1}\\n\\n'
        for text in ("data: hello\\n\\n", step, "event: pro", "gress\\ndata: two\\n\\n"):
            self.wfile.write(text.encode()); self.wfile.flush(); time.sleep(0.02)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Handler).serve_forever()
"""


def path(function: str, id: str) -> str:
    return f"/2023-03-30/functions/{function}/async-tasks/{id}"


def events(server: Server, function: str, id: str, last: str = "", *, most: int = 10_000) -> list[Event]:
    found = []
    headers = {"last-event-id": last} if last else {}
    with server.client() as client, client.stream("GET", path(function, id) + "/events", headers=headers) as reply:
        if reply.status_code == 204:
            return []
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        for event in events_of(reply.iter_bytes()):
            found.append(event)
            if len(found) == most:
                break
    return found


def short(found: list[Event]) -> list[Any]:
    """What was said: states, [reports] and output, and how it ended."""
    said: list[Any] = []
    for event in found:
        about = json.loads(event.data)
        if event.name == "progress":
            said.append([about["progress"]])
        elif event.name == "output" and said and isinstance(said[-1], dict):
            said[-1] = {"out": said[-1]["out"] + about["data"]}
        elif event.name == "output":
            said.append({"out": about["data"]})
        else:
            said.append(about["status"] if event.name == "state" else event.name)
    return said


@pytest.fixture(scope="module")
def talk(server: Server) -> Server:
    for name in ("plain", "stream", "coroutine", "generator", "either"):
        server.deploy(name, {"index.py": TALK}, handler=f"index.{name}", timeout=90)
        configure(server, name, maxAsyncRetryAttempts=0)
    return server


@pytest.mark.parametrize(
    ("function", "event", "said", "result"),
    [
        ("plain", "", [[{"done": 1, "of": 2}], ["from a thread"], "Succeeded"], "\ufffd result"),
        ("plain", "raise", [[{"done": 1, "of": 2}], ["from a thread"], "Failed"], None),
        ("stream", "", [{"out": "one "}, [0.5], {"out": '{"two": 2}\ndrei\u00df'}, "Succeeded"],
         'one {"two": 2}\ndrei\u00df'),
        ("stream", "raise", [{"out": "one "}, [0.5], {"out": '{"two": 2}\n'}, "Failed"], None),
        ("coroutine", "", [["begun"], ["from a thread"], "Succeeded"], '{"attempt": 1, "id": true}'),
        ("generator", "", [[0], {"out": "0;"}, [1], {"out": "1;"}, [2], {"out": "2;"}, "Succeeded"], "0;1;2;"),
    ],
)  # fmt: skip
def test_python_handlers_tell_what_they_do(
    talk: Server, function: str, event: str, said: list[Any], result: str | None
) -> None:
    id = f"{function}-{event or 'good'}"
    assert submit(talk, function, event, id=id).status_code == 202
    found = events(talk, function, id)
    assert short(found) == ["Enqueued", "Running", *said, "end"]
    end = json.loads(found[-1].data)
    if result is not None:
        assert end["returnPayload"] == result
    else:
        assert (end["roost"]["errorType"], end["taskErrorMessage"].startswith("half")) == ("ValueError", True)
    with talk.client() as client:
        shown = client.get(path(function, id)).json()
    assert shown["roost"]["progress"] == [one[0] for one in said if isinstance(one, list)][-1]


def test_an_invocation_is_no_task(talk: Server) -> None:
    assert talk.invoke("either").text == ":0"
    assert talk.invoke("generator").text == "0;1;2;"
    assert submit(talk, "either", "", id="as-task").status_code == 202
    found = events(talk, "either", "as-task")
    assert short(found) == ["Enqueued", "Running", ["told if it is a task"], "Succeeded", "end"]
    assert json.loads(found[-1].data)["returnPayload"] == "as-task:1"


def test_a_web_server_tells_by_an_event_stream(server: Server) -> None:
    command = {"command": ["python3", "/code/app.py"], "port": 9000}
    server.deploy("web", {"app.py": WEB}, runtime="custom.debian12", customRuntimeConfig=command, timeout=30)
    assert submit(server, "web", "x", id="web").status_code == 202
    found = events(server, "web", "web")
    output = "".join(json.loads(event.data)["data"] for event in found if event.name == "output")
    assert output == 'data: hello\n\nevent: progress\ndata: {"step": 1}\n\nevent: progress\ndata: two\n\n'
    reports = [json.loads(event.data)["progress"] for event in found if event.name == "progress"]
    assert reports == [{"step": 1}, "two"]
    assert json.loads(found[-1].data)["returnPayload"] == output


def test_a_client_leaves_and_comes_back_and_the_task_does_not_notice(talk: Server) -> None:
    assert submit(talk, "stream", "wait", id="long").status_code == 202
    before = events(talk, "stream", "long", most=5)
    assert short(before) == ["Enqueued", "Running", {"out": "one "}, [0.5], {"out": '{"two": 2}\n'}]
    with talk.client() as client:
        assert client.get(path("stream", "long")).json()["status"] == "Running"
        assert client.put(path("stream", "long") + "/stop").status_code == 200
    after = events(talk, "stream", "long", before[-1].id)
    assert short(after) == ["Stopping", "Stopped", "end"]
    assert events(talk, "stream", "long", after[-1].id) == []
    with talk.client() as client:
        assert client.get(path("stream", "long") + "/events", headers={"last-event-id": "?"}).status_code == 400
        assert client.get(path("stream", "none") + "/events").status_code == 404


STUBBORN = """
import os, time
def handler(event, context):
    verb, fd = event.decode(), os.open("/mnt/effects/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"begins {context.task.attempt}\\n".encode())
    yield f"attempt {context.task.attempt}\\n"
    if context.task.attempt > 1:
        return
    while True:
        try:
            while True:
                time.sleep(0.02)
                os.write(fd, f"goes-on {context.task.attempt}\\n".encode())
        except BaseException:
            pass
"""


def test_what_ran_is_over_before_it_is_tried_again(tmp_path: Path) -> None:
    """A handler that ignores its interruption survives the server; its room is adopted."""
    server = Server(tmp_path / "data").start()
    try:
        server.deploy("stubborn", {"index.py": STUBBORN}, timeout=600, **MOUNT)
        assert submit(server, "stubborn", "x", id="t").status_code == 202
        log = server.data_dir / "volumes/default/effects/log"
        until(lambda: log.exists() and log.read_text().count("goes-on 1") > 3)
        assert short(events(server, "stubborn", "t", most=3)) == ["Enqueued", "Running", {"out": "attempt 1\n"}]
        instance = server.instances()[0]["id"]
        server.kill()
        time.sleep(1.0)
        grown = log.read_text().count("goes-on 1")
        assert grown > 20, "it goes on without a server"
        server.start()
        done = finished(server.data_dir, "stubborn", ["t"])["t"]
        assert (done.state, done.attempts) == ("Succeeded", 2)
        lines = log.read_text().splitlines()
        assert lines[-1] == "begins 2", "nothing of the first attempt runs beside or after the second"
        assert done.instance_id == instance, "the room was adopted, not thrown away"
        found = events(server, "stubborn", "t")
        assert short(found) == [
            "Enqueued", "Running", {"out": "attempt 1\n"}, "Retrying", "Running", {"out": "attempt 2\n"},
            "Succeeded", "end",
        ]  # fmt: skip
        attempts = [json.loads(event.data)["attempt"] for event in found if event.name == "output"]
        assert attempts == [1, 2]
        assert server.stop() == 0, server.log()[-3000:]
    finally:
        server.kill()
    assert Remains.of(server.data_dir) == NOTHING


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
