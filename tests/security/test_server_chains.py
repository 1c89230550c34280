"""Functions that start each other, or themselves, without end: each way there is, and what stops it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import NOTHING, Remains, Server, running

MOST = 4
FC = "/2023-03-30/functions"
AGAIN = """
import http.client, json, os, socket, urllib.request

def sent(told, method, path, body, headers):
    server, way = told["server"], told["way"]
    if way == "socks":
        connection = http.client.HTTPConnection("127.0.0.1", server)
        connection.sock = socket.create_connection(("127.0.0.1", 3129))
        connection.sock.sendall(b"\\x05\\x01\\x00")
        assert connection.sock.recv(2) == b"\\x05\\x00"
        connection.sock.sendall(b"\\x05\\x01\\x00\\x01\\x7f\\x00\\x00\\x01" + server.to_bytes(2, "big"))
        assert connection.sock.recv(10)[1] == 0
    else:
        connection = http.client.HTTPConnection("127.0.0.1", 3129, timeout=60)
        if way == "tunnel":
            connection.set_tunnel("127.0.0.1", server)
        else:
            path = f"http://127.0.0.1:{server}{path}"
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read() or b"{}")

def handler(event, context):
    told = json.loads(event)
    told = told.get("told") or json.loads(told["body"])  # of a webhook
    more = {**told, "depth": told["depth"] + 1}
    path = "/2023-03-30/functions/again/invocations"
    headers = {"content-type": "application/json", **told.get("headers", {})}
    if told["way"] == "webhook":
        path, body = "/webhooks/default/again/hook", json.dumps(more)
    else:
        body = json.dumps({"told": more})
    status, said = sent(told, "POST", path, body, headers)
    return said if status == 200 else {"depth": told["depth"], "status": status, "code": said.get("Code")}
"""
#: Its model is itself.
MODEL = """
import json, os, urllib.error, urllib.request

def handler(environ, start_response):
    url, kind = os.environ["OPENAI_BASE_URL"] + "/chat/completions", {"content-type": "application/json"}
    ask = urllib.request.Request(url, b"{}", kind)
    try:
        said = json.loads(urllib.request.urlopen(ask, timeout=60).read())
        said["calls"] += 1
    except urllib.error.HTTPError as error:
        said = {"calls": 1, "status": error.code, "code": json.loads(error.read()).get("Code")}
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(said).encode()]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=f'max_hops = {MOST}\negress_private = ["127.0.0.0/8"]\n') as server:
        server.deploy("again", {"index.py": AGAIN}, roost={"allowOut": ["127.0.0.1"]})
        hook = {"triggerName": "hook", "triggerType": "webhook", "triggerConfig": json.dumps({"authType": "none"})}
        with server.client() as client:
            assert client.post(f"{FC}/again/triggers", json=hook).is_success
        yield server
    assert Remains.of(data_dir) == NOTHING


def refusals(server: Server) -> list[dict[str, Any]]:
    """Of the function that goes round in circles, in the audit."""
    command = [sys.executable, "-m", "roost.sdk.cli", "audit", "show", "--json", "-n", "10000", "--action",
               "invocation.refuse", "--data-dir", str(server.data_dir)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [one for one in found if one["target"] == "function/again"]


def check_refusal(server: Server, before: int) -> None:
    """One more than there were, and by a room."""
    server.until(lambda: len(refusals(server)) > before)
    found = refusals(server)[before:]
    seen = [(one["account"], one["outcome"], one["detail"]) for one in found]
    assert seen == [("default", "denied", {"hops": MOST + 1})]
    assert found[0]["actor"].startswith("instance/")


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def begin(server: Server, way: str, *, depth: int = 0, headers: dict[str, str] | None = None, **own: str) -> Any:
    told = {"server": port(server), "way": way, "depth": depth, "headers": headers or {}}
    return server.invoke("again", json.dumps({"told": told}), **own)


def tasks(server: Server, function: str, wanted: int) -> list[dict[str, Any]]:
    """All that the function has, once there are so many and all of them are over."""

    def page() -> list[dict[str, Any]]:
        with server.client() as client:
            return list(client.get(f"{FC}/{function}/async-tasks", params={"limit": 100}).json()["tasks"])

    server.until(lambda: [one["status"] for one in page()].count("Succeeded") >= wanted, timeout=60)
    found = page()
    assert {one["status"] for one in found} == {"Succeeded"}
    return found


@pytest.mark.parametrize("way", ["proxy", "tunnel", "socks"])
def test_a_function_that_calls_itself_is_stopped_whatever_it_says(server: Server, way: str) -> None:
    for headers in ({}, {"x-roost-hops": "0"}):
        known = len(refusals(server))
        reply = begin(server, way, headers=headers)
        assert reply.json() == {"depth": MOST, "status": 400, "code": "LoopDetected"}
        check_refusal(server, known)
    # Control: who begins anew is not counted with those before.
    known = len(refusals(server))
    assert begin(server, way, depth=100).json()["depth"] == 100 + MOST
    check_refusal(server, known)


def test_tasks_that_start_tasks_are_stopped(server: Server) -> None:
    known = len(refusals(server))
    begin(server, "tunnel", headers={"x-fc-invocation-type": "Async"}, x_fc_invocation_type="Async")
    assert len(tasks(server, "again", MOST + 1)) == MOST + 1
    check_refusal(server, known)
    with server.client() as client:
        client.delete(f"{FC}/again/async-tasks")


def test_a_webhook_that_calls_itself_is_stopped(server: Server) -> None:
    before, known = len(tasks(server, "again", 0)), len(refusals(server))
    assert begin(server, "webhook").json() == {"depth": 0, "status": 202, "code": None}
    assert len(tasks(server, "again", before + MOST)) == before + MOST
    check_refusal(server, known)


def test_a_function_that_is_its_own_model_is_stopped(server: Server) -> None:
    address = f"http://127.0.0.1:{port(server)}/thinks"
    server.deploy(
        "thinks", {"index.py": MODEL}, environmentVariables={"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "k"}
    )
    with server.client() as client:
        assert client.get("/thinks/").json() == {"calls": MOST + 1, "status": 400, "code": "LoopDetected"}


def test_functions_that_are_each_other_s_destinations_are_stopped(server: Server) -> None:
    ring = {"there": "back", "back": "there"}
    for function in ring:
        server.deploy(function, {"index.py": "def handler(event, context): return 'round'"})
    with server.client() as client:
        for function, other in ring.items():
            itself = {"destinationConfig": {"onSuccess": {"destination": function}}}
            assert client.put(f"{FC}/{function}/async-invoke-config", json=itself).status_code == 400
            config = {"destinationConfig": {"onSuccess": {"destination": other}}}
            assert client.put(f"{FC}/{function}/async-invoke-config", json=config).is_success
    server.invoke("there", "go", x_fc_invocation_type="Async")
    found = tasks(server, "there", MOST // 2 + 1) + tasks(server, "back", MOST // 2)
    assert len(found) == MOST + 1
    (last,) = [one for one in found if one["destinationStatus"] == "Failed"]
    with server.client() as client:
        told = client.get(f"{FC}/there/async-tasks/{last['taskId']}").json()
    assert told["events"][-1]["eventDetail"].startswith(f"{MOST} invocations led to this one")


def test_who_calls_through_others_may_say_how_far_it_has_come(server: Server) -> None:
    server.deploy("told", {"index.py": TOLD})
    with server.client() as client:
        assert client.get("/told/").text == "0"
        assert client.get("/told/", headers={"x-roost-hops": "2"}).text == "3"
        refused = client.get("/told/", headers={"x-roost-hops": str(MOST)})
        assert (refused.status_code, refused.json()["Code"]) == (400, "LoopDetected")
        assert client.get("/told/", headers={"x-roost-hops": "many"}).json()["Code"] == "InvalidArgument"


TOLD = """
def handler(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [environ["HTTP_X_ROOST_HOPS"].encode()]
"""
