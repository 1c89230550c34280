"""A real server's tasks by other ways in and out: a function's own address, busy sessions, webhooks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.store.sealed import SETTING
from roost.store.sealing import Sealer
from tests.support.crashing_server import CrashingServer
from tests.support.hook import Hook
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.tasks import configure, finished, submit

ECHO = """
import json, time
def handler(event, context):
    event = json.loads(event)
    if event["rawPath"] == "/fail":
        return {"statusCode": 503, "body": "busy"}
    return {"statusCode": 200, "body": json.dumps({
        "method": event["requestContext"]["http"]["method"], "path": event["rawPath"],
        "query": event["queryParameters"], "body": event["body"], "binary": event["isBase64Encoded"],
        "client": event["requestContext"]["http"]["sourceIp"],
        "headers": {name.lower(): value for name, value in event["headers"].items()},
    })}
"""
WSGI = """
def handler(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    for word in (environ["REQUEST_METHOD"], environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]):
        yield (word + "|").encode()
    yield environ["wsgi.input"].read()
"""
SLEEPER = (
    "import time\ndef handler(event, context):\n    time.sleep(float(event or 0))\n    return context.session_id\n"
)
SESSIONS = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
    "instanceConcurrency": 5,
}
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=f'webhook_secret = "{SECRET}"\n') as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


# -- a function's own address


def asked(server: Server, method: str, target: str, **options: Any) -> Any:
    headers = {"x-fc-invocation-type": "Async", **options.pop("headers", {})}
    with server.client() as client:
        return client.request(method, target, headers=headers, **options)


def test_a_request_to_a_function_s_own_address_is_made_later(server: Server) -> None:
    server.deploy("echo", {"index.py": ECHO})
    headers = {"x-fc-async-task-id": "put", "x-mine": "yes", "authorization": "Bearer of-the-app", "cookie": "a=1; b=2"}
    headers |= {"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https"}
    reply = asked(server, "PUT", "/echo/some/path?x=1&y=a%20b", headers=headers, content=b"\xff\x00")
    assert (reply.status_code, reply.content) == (202, b"")
    assert reply.headers["x-fc-async-task-id"] == "put"
    assert reply.headers["x-fc-request-id"]
    done = finished(server.data_dir, "echo", ["put"])["put"]
    assert done.state == "Succeeded", done
    seen = json.loads(done.result or b"")
    assert (seen["method"], seen["path"], seen["query"]) == ("PUT", "/some/path", {"x": "1", "y": "a b"})
    assert (seen["body"], seen["binary"]) == (base64.b64encode(b"\xff\x00").decode(), True)
    for name in ("x-mine", "authorization", "cookie"):
        assert seen["headers"][name] == headers[name]
    assert seen["client"] == "192.0.2.7"
    assert seen["headers"]["x-forwarded-proto"] == "https"
    with server.client() as client:
        shown = client.get("/2023-03-30/functions/echo/async-tasks/put").json()
    assert shown["roost"]["request"] == "PUT /some/path?x=1&y=a%20b"
    same = asked(server, "PUT", "/echo/some/path?x=1&y=a%20b", headers=headers, content=b"\xff\x00")
    assert same.headers["x-fc-request-id"] == reply.headers["x-fc-request-id"]
    for method, target in (("POST", "/echo/some/path?x=1&y=a%20b"), ("PUT", "/echo/some/path?x=2")):
        assert asked(server, method, target, headers=headers, content=b"\xff\x00").status_code == 409
    assert asked(server, "GET", "/echo/x", headers={"x-fc-invocation-type": "Later"}).status_code == 400
    assert asked(server, "POST", "/echo", content=b"x" * (128 * 1024 + 1)).status_code == 413


def test_a_status_says_that_it_failed(server: Server) -> None:
    server.deploy("failing", {"index.py": ECHO})
    configure(server, "failing", maxAsyncRetryAttempts=0)
    assert asked(server, "GET", "/failing/fail", headers={"x-fc-async-task-id": "t"}).status_code == 202
    done = finished(server.data_dir, "failing", ["t"])["t"]
    assert (done.state, done.error, done.result) == ("Failed", "busy", b"busy")


def test_a_web_application_gets_it_below_its_prefix(server: Server) -> None:
    server.deploy("wsgi", {"index.py": WSGI})
    reply = asked(server, "POST", "/wsgi:LATEST/a/b?c=d", headers={"x-fc-async-task-id": "t"}, content=b"body")
    assert reply.status_code == 202
    done = finished(server.data_dir, "wsgi", ["t"])["t"]
    with server.client() as client:
        now = client.post("/wsgi:LATEST/a/b?c=d", content=b"body")
    assert done.result == now.content
    assert done.result.endswith(b"|/a/b|c=d|body")


# -- sessions


def work(server: Server, session: str) -> dict[str, Any]:
    with server.client() as client:
        found = client.get(f"/2023-03-30/functions/sleeper/sessions/{session}")
        assert found.status_code == 200, found.text
        listed = client.get("/2023-03-30/functions/sleeper/sessions").json()["sessions"]
    assert [one["roost"] for one in listed if one["sessionId"] == session] == [found.json()["roost"]]
    return dict(found.json()["roost"])


def test_a_session_says_whether_it_is_busy(server: Server) -> None:
    server.deploy("sleeper", {"index.py": SLEEPER}, timeout=60, **SESSIONS)
    assert server.invoke("sleeper", "0", x_chat_id="chat").text == "chat"
    assert work(server, "chat") == {"busy": False, "tasks": 0, "requests": 0}
    assert submit(server, "sleeper", "30", id="runs", x_chat_id="chat").status_code == 202
    server.until(lambda: work(server, "chat") == {"busy": True, "tasks": 1, "requests": 1})
    refused = submit(server, "sleeper", "0", id="no", x_chat_id="chat", x_roost_task_busy="reject")
    assert (refused.status_code, refused.json()["Code"]) == (409, "SessionBusy")
    assert submit(server, "sleeper", "0", id="waits", x_chat_id="chat").status_code == 202
    assert work(server, "chat")["tasks"] == 2
    urgent = submit(server, "sleeper", "0", id="urgent", x_chat_id="chat", x_roost_task_busy="interrupt")
    assert urgent.status_code == 202
    done = finished(server.data_dir, "sleeper", ["runs", "waits", "urgent"])
    assert [done[id].state for id in ("runs", "waits", "urgent")] == ["Stopped", "Stopped", "Succeeded"]
    assert done["runs"].events[-2][2] == "interrupted by task urgent"
    with server.client() as client:
        listed = client.get("/2023-03-30/functions/sleeper/async-tasks", params={"sessionId": "chat"}).json()["tasks"]
    assert [task["taskId"] for task in listed] == ["urgent", "waits", "runs"]
    assert work(server, "chat") == {"busy": False, "tasks": 0, "requests": 0}


def test_a_request_that_runs_makes_a_session_busy(server: Server) -> None:
    server.deploy("sleeper", {"index.py": SLEEPER}, timeout=60, **SESSIONS)
    configure(server, "sleeper", roost={"busy": "reject"})
    request = threading.Thread(target=server.invoke, args=("sleeper", "1.5"), kwargs={"x_chat_id": "sync"})
    request.start()
    try:
        server.until(lambda: bool([s for s in sessions(server) if s["sessionId"] == "sync"]))
        server.until(lambda: work(server, "sync") == {"busy": True, "tasks": 0, "requests": 1})
        refused = submit(server, "sleeper", "0", x_chat_id="sync")
        assert (refused.status_code, refused.json()["Code"]) == (409, "SessionBusy")
    finally:
        request.join()
    assert submit(server, "sleeper", "0", x_chat_id="sync").status_code == 202
    with server.client() as client:
        path = "/2023-03-30/functions/sleeper/async-invoke-config"
        assert client.put(path, json={"roost": {"busy": "never"}}).status_code == 400


def sessions(server: Server) -> list[dict[str, Any]]:
    with server.client() as client:
        return list(client.get("/2023-03-30/functions/sleeper/sessions").json()["sessions"])


# -- webhooks


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


def destinations(url: str) -> dict[str, Any]:
    return {"onSuccess": {"destination": url}, "onFailure": {"destination": url}}


def settled(server: Server, function: str, id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    with server.client() as client:
        while True:
            task = client.get(f"/2023-03-30/functions/{function}/async-tasks/{id}").json()
            if task["destinationStatus"] in ("Succeeded", "Failed"):
                return dict(task)
            assert time.monotonic() < deadline, task
            time.sleep(0.05)


CODE = """
def handler(event, context):
    if event == b"raise":
        raise ValueError("why")
    return "did " + event.decode()
"""


def test_webhooks_get_signed_events(server: Server, hook: Hook) -> None:
    server.deploy("source", {"index.py": CODE})
    configure(server, "source", destinationConfig=destinations(hook.url), maxAsyncRetryAttempts=0)
    hook.statuses = [500, 302]
    submit(server, "source", "hello", id="good")
    assert settled(server, "source", "good")["destinationStatus"] == "Succeeded"
    tries = hook.of("good")
    assert len(tries) == 3, "a status that is no success is tried again, and a redirect is none"
    assert len({headers["webhook-id"] for headers, _ in tries}) == 1
    submit(server, "source", "raise", id="bad")
    shown = settled(server, "source", "bad")
    assert shown["events"][-1]["eventDetail"] == f"delivered to {hook.url}"
    assert shown["status"] == "Failed"
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    for headers, body in hook.came:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        assert (headers["ce-specversion"], headers["content-type"]) == ("1.0", "application/json")
        assert headers["ce-id"] == headers["webhook-id"]
    (headers, event), (bad_headers, bad) = hook.of("good")[0], hook.of("bad")[0]
    assert (event["requestPayload"], event["responsePayload"]) == ("hello", "did hello")
    assert (headers["ce-type"], headers["ce-subject"]) == ("roost.task.succeeded", "good")
    assert headers["ce-source"] == event["requestContext"]["functionArn"]
    assert (bad_headers["ce-type"], bad["responsePayload"]) == ("roost.task.failed", "why")


def test_a_webhook_that_is_gone_is_given_up(server: Server, hook: Hook) -> None:
    server.deploy("source", {"index.py": CODE})
    configure(server, "source", destinationConfig=destinations(hook.url))
    hook.statuses = [410]
    submit(server, "source", "x", id="gone")
    shown = settled(server, "source", "gone")
    assert (shown["status"], shown["destinationStatus"]) == ("Succeeded", "Failed")
    assert "410" in shown["events"][-1]["eventDetail"]
    assert len(hook.came) == 1


def test_addresses_are_checked_and_their_passwords_not_shown(server: Server) -> None:
    server.deploy("source", {"index.py": CODE})
    path = "/2023-03-30/functions/source/async-invoke-config"
    with server.client() as client:

        def put(url: str) -> Any:
            return client.put(path, json={"destinationConfig": destinations(url)})

        secret = "https://me:hunter2@hook.example:8443/x"
        shown = put(secret).json()["destinationConfig"]["onSuccess"]["destination"]
        assert shown == "https://me:***@hook.example:8443/x"
        assert put(shown).status_code == 200
        assert "hunter2" not in client.get(path).text
        assert "hunter2" not in client.get("/2023-03-30/async-invoke-configs").text
        with contextlib.closing(sqlite3.connect(server.data_dir / "roost.db")) as database:
            row = database.execute("SELECT config, qualifier, kind FROM provision WHERE function='source'").fetchone()
        sealer = Sealer(server.data_dir / "keys.sealing")
        sealer.open(may_make=False)
        kept = SETTING.unseal(sealer, row[0], "default", "source", *row[1:])
        assert secret in kept, "the password is kept when what was shown comes back"
        for url, why in (("ftp://x/y", "ftp://"), ("http://", "no destination"), ("http://x:99999/", "not an address"),
                         ("http://:80/", "not an address")):  # fmt: skip
            refused = put(url)
            assert (refused.status_code, why in refused.json()["Message"]) == (400, True), (url, refused.text)


def test_a_crash_on_the_way_loses_no_event(tmp_path: Path, hook: Hook) -> None:
    """It comes after an event was delivered, and before that was written down."""
    server = CrashingServer(tmp_path / "data", "outbox.done:before", 3)
    server.start()
    accepted: list[str] = []
    again = Server(server.data_dir)
    try:
        server.deploy("source", {"index.py": CODE})
        configure(server, "source", destinationConfig=destinations(hook.url), maxAsyncRetryAttempts=8)
        with contextlib.suppress(Exception):
            for number in range(8):
                if submit(server, "source", f"{number}", id=f"t{number}").status_code == 202:
                    accepted.append(f"t{number}")
                time.sleep(0.1)
        server.died()
        again.start()
        for id in accepted:
            assert settled(again, "source", id)["destinationStatus"] == "Succeeded"
            assert len(hook.ids(id)) == 1, "each event has one id"
        assert len(accepted) >= 2
        assert len(hook.came) > len({headers["webhook-id"] for headers, _ in hook.came}), "one came twice"
        assert again.stop() == 0
    finally:
        server.kill()
        again.kill()
