"""`roost invoke --async` and `roost tasks` against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.tasks import configure, finished, records

CODE = """
import time
def handler(event, context):
    verb, _, rest = event.decode().partition(" ")
    if verb == "tell":
        context.task.progress({"said": rest})
    if verb == "sleep":
        time.sleep(float(rest))
    if verb == "raise":
        raise ValueError(rest)
    return "did " + event.decode()
"""


API = "/2023-03-30/functions"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(server: Server) -> Run:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROOST_", "OPENAI_"))}
    program = str(Path(sys.executable).parent / "roost")
    server.deploy("worker", {"index.py": CODE}, timeout=60)
    configure(server, "worker", maxAsyncRetryAttempts=0)

    def run(*words: str) -> Ended:
        done = subprocess.run(
            [program, *words], env=kept | {"ROOST_URL": server.url}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def test_a_task_is_queued_listed_shown_stopped_and_tried_again(run: Run, server: Server) -> None:
    made = run("invoke", "worker", "--async", "-d", "hello\x1b[2J")
    assert made.code == 0, made.err
    id = made.out.strip()
    assert run("invoke", "worker", "--async", "--task-id", "bad", "-d", "raise why").out == "bad\n"
    assert run("invoke", "worker", "--async", "--task-id", "late", "--delay", "300", "-d", "x").out == "late\n"
    finished(server.data_dir, "worker", [id, "bad"])
    listed = run("tasks", "worker").out
    rows = {line.split()[0]: line.split()[1] for line in listed.splitlines()[1:]}
    assert rows == {id: "Succeeded", "bad": "Failed", "late": "Enqueued"}
    assert "why" in listed
    assert [line.split()[0] for line in run("tasks", "worker", "--limit", "1").out.splitlines()[1:]] == ["late"]
    failed = json.loads(run("tasks", "worker", "--status", "failed", "--prefix", "b", "--json").out)["tasks"]
    assert [task["taskId"] for task in failed] == ["bad"]
    shown = run("tasks", "show", "worker", id).out
    assert "did hello[2J" in shown
    assert "\x1b" not in shown
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("  ")] == [
        "Enqueued", "Running", "Succeeded",
    ]  # fmt: skip
    assert json.loads(run("tasks", "show", "worker", "bad", "--json").out)["taskErrorMessage"] == "why"
    assert run("tasks", "stop", "worker", "late").out == "Stopping: late\n"
    assert records(server.data_dir, "worker")["late"].state == "Stopped"
    assert run("tasks", "retry", "worker", "late", "bad").out == "Queued again: late\nQueued again: bad\n"
    assert finished(server.data_dir, "worker", ["late"])["late"].state == "Succeeded"
    finished(server.data_dir, "worker", ["bad"])
    assert run("tasks", "retry", "worker", "--status", "Failed").out == "Queued again: bad\n"


def test_a_running_task_is_stopped(run: Run, server: Server) -> None:
    run("invoke", "worker", "--async", "--task-id", "long", "-d", "sleep 50")
    deadline = time.monotonic() + 20
    while records(server.data_dir, "worker")["long"].state != "Running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run("tasks", "stop", "worker", "long").code == 0
    assert finished(server.data_dir, "worker", ["long"])["long"].state == "Stopped"


TALK = """
import time
def handler(event, context):
    yield "one\\n"
    context.task.progress({"step": 2})
    time.sleep(float(event))
    yield "two"
"""


def test_a_task_is_watched_and_attached_to(run: Run, server: Server) -> None:
    server.deploy("talk", {"index.py": TALK}, timeout=60)
    assert run("invoke", "talk", "--async", "--task-id", "t", "-d", "0.5").code == 0
    live = run("tasks", "attach", "talk", "t")
    assert (live.code, live.out, live.err) == (0, "one\ntwo", "")
    late = run("tasks", "watch", "talk", "t")
    assert (late.code, late.out) == (0, "one\ntwo")
    assert [line.split()[2] for line in late.err.splitlines() if line] == [
        "Enqueued", "Running", "progress", "Succeeded",
    ]  # fmt: skip
    said = [json.loads(line) for line in run("tasks", "watch", "talk", "t", "--json").out.splitlines()]
    assert [one["event"] for one in said] == ["state", "state", "output", "progress", "output", "state", "end"]
    run("invoke", "worker", "--async", "--task-id", "wrong", "-d", "raise why")
    wrong = run("tasks", "watch", "worker", "wrong")
    assert (wrong.code, wrong.err.splitlines()[-1]) == (1, "Error: Task wrong: Failed why")
    assert run("tasks", "watch", "worker", "nothing").code == 1
    run("invoke", "worker", "--async", "--task-id", "told", "-d", "tell all")
    finished(server.data_dir, "worker", ["told"])
    assert 'progress:    {"said": "all"}' in run("tasks", "show", "worker", "told").out


def test_a_watcher_waits_for_a_server_that_is_started_anew(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    program = str(Path(sys.executable).parent / "roost")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROOST_", "OPENAI_"))}
    try:
        server.deploy("talk", {"index.py": TALK}, timeout=60)
        with server.client() as client:
            headers = {"x-fc-invocation-type": "Async", "x-fc-async-task-id": "t"}
            assert client.post(f"{API}/talk/invocations", content=b"3", headers=headers).status_code == 202
        watcher = subprocess.Popen(
            [program, "tasks", "watch", "talk", "t", "--json"], env=kept | {"ROOST_URL": server.url},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watcher.stdout is not None
        said = [json.loads(watcher.stdout.readline()) for _ in range(4)]
        assert [one["event"] for one in said] == ["state", "state", "output", "progress"]
        server.kill()
        server.start(port=server.url.rpartition(":")[2])
        rest = [json.loads(line) for line in watcher.communicate(timeout=60)[0].splitlines()]
        assert watcher.returncode == 0
        assert [one.get("status") or one.get("data") or one["event"] for one in rest] == [
            "Retrying", "Running", "one\n", "progress", "two", "Succeeded", "Succeeded",
        ]  # fmt: skip
        assert server.stop() == 0
    finally:
        server.kill()


def test_a_session_s_tasks_are_listed_and_told_to_make_way(run: Run, server: Server) -> None:
    header = json.dumps({"affinityHeaderFieldName": "x-chat-id"})
    fields = {"sessionAffinity": "HEADER_FIELD", "sessionAffinityConfig": header, "instanceConcurrency": 2}
    server.deploy("chat", {"index.py": CODE}, timeout=60, **fields)
    submitted = ("invoke", "chat", "--async", "--session", "s1")
    assert run(*submitted, "--task-id", "runs", "-d", "sleep 50").code == 0
    server.until(lambda: records(server.data_dir, "chat")["runs"].state == "Running")
    assert "1 task, 1 request" in run("sessions", "chat").out
    refused = run(*submitted, "--busy", "reject", "-d", "x")
    assert (refused.code, refused.err) == (1, "Error: Session s1 is busy: its task runs is Running.\n")
    assert run(*submitted, "--task-id", "now", "--busy", "interrupt", "-d", "x").code == 0
    assert finished(server.data_dir, "chat", ["runs", "now"])["runs"].state == "Stopped"
    assert run("invoke", "chat", "--async", "--session", "s2", "--task-id", "other", "-d", "x").code == 0
    listed = run("tasks", "chat", "--session", "s1").out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["now", "runs"]
    assert run("invoke", "chat", "--busy", "reject", "-d", "x").code == 2


def test_every_refusal_is_one_clear_sentence(run: Run, server: Server) -> None:
    run("invoke", "worker", "--async", "--task-id", "there", "-d", "x")
    finished(server.data_dir, "worker", ["there"])
    cases = {
        ("tasks", "worker", "--status", "odd"): (2, "--status"),
        ("tasks", "show", "worker"): (2, "lists"),
        ("tasks", "stop", "worker"): (2, "lists"),
        ("tasks", "paint", "worker", "x"): (2, "lists"),
        ("tasks", "watch", "worker"): (2, "lists"),
        ("tasks", "show", "worker", "nothing"): (1, "has no task 'nothing'"),
        ("tasks", "stop", "worker", "there"): (1, "is Succeeded"),
        ("tasks", "retry", "worker", "there"): (1, "is Succeeded"),
        ("tasks", "nobody"): (1, "no function 'nobody'"),
        ("invoke", "worker", "--async", "--task-id", "there", "-d", "y"): (1, "another payload"),
        ("invoke", "worker", "--async", "--task-id", "1", "-d", "y"): (1, "begins with a letter"),
        ("invoke", "nobody", "--async", "-d", "y"): (1, "no function 'nobody'"),
    }
    for words, (code, said) in cases.items():
        ended = run(*words)
        assert ended.code == code, (words, ended)
        assert ended.err.startswith("Error: "), (words, ended)
        assert said in ended.err, (words, ended)
        assert ended.err.count("\n") == 1, (words, ended)
    assert "has no such tasks" in run("tasks", "worker", "--status", "expired").err


def test_a_folder_says_how_its_tasks_are_treated(run: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "index.py").write_text(CODE)
    manifest = tmp_path / "roost.toml"
    manifest.write_text(
        'name = "onfile"\n[async]\nretries = 0\ndelivery = "at-most-once"\nbusy = "reject"\non_failure = "worker"\n'
    )
    assert run("deploy", str(tmp_path)).code == 0
    with server.client() as client:
        kept = client.get("/2023-03-30/functions/onfile/async-invoke-config").json()
    assert (kept["maxAsyncRetryAttempts"], kept["roost"]) == (
        0, {"delivery": "atMostOnce", "busy": "reject"},
    )  # fmt: skip
    assert kept["destinationConfig"] == {"onFailure": {"destination": "worker"}}
    manifest.write_text('name = "onfile"\n[async]\nretries = 99\n')
    ended = run("deploy", str(tmp_path))
    assert (ended.code, "`async.retries`" in ended.err) == (1, True), ended.err
