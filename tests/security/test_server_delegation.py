"""What starts from a key, a token or a room has never more than that: it asks for more here, in every way there is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.model.role import ROLES
from tests.support.server import NOTHING, Remains, Server, running, zip_base64
from tests.support.tenants import Who

FC = "/2023-03-30"
CONFIG = """
egress_private = ["127.0.0.0/8"]
[keys]
root = "the-secret-of-the-operator"
"""
MCP = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=CONFIG) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def operator(http: httpx.Client) -> Who:
    return Who(http, "root", "the-secret-of-the-operator")


@pytest.fixture(scope="module")
def roles(operator: Who) -> dict[str, Who]:
    return {role: operator.key("acme", role) for role in ROLES}


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(dict(self.headers)).encode())

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"localhost:{made.server_port}"
        made.shutdown()


def tool(who: Who, path: str, name: str, **given: Any) -> str:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": given}}
    reply = who.http.post(path, json=body, headers={**MCP, "authorization": f"Bearer {who.secret}"})
    return reply.text if reply.is_success else f"{reply.status_code} {reply.text}"


def run(who: Who, id: str, command: str) -> str:
    return tool(who, f"/sandboxes/{id}/mcp", "run_command", command=command)


def test_a_key_makes_no_key_that_may_more(roles: dict[str, Who], operator: Who) -> None:
    for role in ("viewer", "invoker", "developer"):
        assert roles[role].send("POST", "/roost/keys", {"name": "x", "role": "viewer"}).status_code == 403
    admin = roles["admin"]
    for asked in ({"account": "default"}, {"account": "other"}):
        assert admin.send("POST", "/roost/keys", {"name": "x", "role": "admin", **asked}).status_code == 404
    for more in ({"operator": True}, {"role": "operator"}):
        assert admin.send("POST", "/roost/keys", {"name": "x", "role": "admin", **more}).status_code == 400
    made = admin.key("acme", "admin")
    assert made.send("GET", "/roost/quotas").status_code == 404  # the operator's
    assert operator.send("GET", "/roost/quotas").status_code == 200


def test_an_invoker_says_not_what_a_session_reaches_or_mounts(roles: dict[str, Who]) -> None:
    function = {
        "functionName": "talk", "runtime": "python3.12", "handler": "index.handler",
        "code": {"zipFile": zip_base64({"index.py": "def handler(event, context):\n    return event\n"})},
        "sessionAffinity": "HEADER_FIELD", "sessionAffinityConfig": '{"affinityHeaderFieldName": "x-session"}',
        "instanceIsolationMode": "SESSION_EXCLUSIVE",
    }  # fmt: skip
    roles["developer"].ask("POST", f"{FC}/functions", function)
    nas = {"mountPoints": [{"serverAddr": "others:/", "mountDir": "/mnt/others"}]}
    for more in (
        {"network": {"allowOut": ["*"]}},
        {"allowInternetAccess": True},
        {"nasConfig": nas},
        {"ossMountConfig": {"mountPoints": [{"bucketName": "others", "mountDir": "/mnt/others"}]}},
    ):
        for role, status in (("invoker", 403), ("developer", 200)):
            reply = roles[role].send("POST", f"{FC}/functions/talk/sessions", {"sessionId": role, **more})
            assert reply.status_code == status, (role, more, reply.text)
            roles[role].send("DELETE", f"{FC}/functions/talk/sessions/{role}")
    roles["invoker"].ask("POST", f"{FC}/functions/talk/sessions", {"sessionId": "plain"})
    reply = roles["invoker"].send("PUT", f"{FC}/functions/talk/sessions/plain", {"network": {"allowOut": ["*"]}})
    assert reply.status_code == 403
    for name in ("create_sandbox", "kill_sandbox"):
        assert tool(roles["invoker"], "/roost/mcp", name).startswith("403 ")


def test_copies_have_the_rules_of_what_they_are_copies_of(roles: dict[str, Who], place: str) -> None:
    """And a token opens what it was given for alone: not the copy, not the original, not the next run."""
    who = roles["developer"]
    who.ask("POST", "/secrets", {"name": "copied", "value": "sk-of-acme", "metadata": {"hosts": f"http://{place}"}})
    header = {"transform": {"headers": {"X-Key": "${e2b.secrets.copied}"}}}
    network = {"allowOut": [place], "rules": {f"http://{place}": [header]}}
    box = who.ask("POST", "/sandboxes", {"templateID": "base", "network": network})
    closed = who.ask("POST", "/sandboxes", {"templateID": "base"})
    fetch = f"curl -sS -m 10 --noproxy '' -x http://127.0.0.1:3129 http://{place}/"
    ask_for_it = f"{fetch} -H 'X-Key: ${{e2b.secrets.copied}}'".replace("$", "\\$")
    assert "sk-of-acme" not in run(who, box["sandboxID"], fetch)  # it comes back as asterisks
    assert "**********" in run(who, box["sandboxID"], fetch)
    assert "**********" not in run(who, closed["sandboxID"], fetch)
    [forked] = who.ask("POST", f"/sandboxes/{closed['sandboxID']}/fork", {"count": 1})
    of_closed = forked["sandbox"]
    assert "**********" not in run(who, of_closed["sandboxID"], fetch)
    snapshot = who.ask("POST", f"/sandboxes/{box['sandboxID']}/snapshots", {})["snapshotID"]
    # what is made from a copy of the files has the files: no rule, no header, no secret
    made = [
        who.ask("POST", "/sandboxes", {"templateID": snapshot, **more})
        for more in ({}, {"network": {"allowOut": [place]}})
    ]
    assert "X-Key" not in run(who, made[0]["sandboxID"], fetch)
    assert "X-Key" not in run(who, made[1]["sandboxID"], fetch)
    assert "sk-of-acme" not in run(who, made[1]["sandboxID"], ask_for_it)
    everything = [box, closed, of_closed, *made]
    tokens = [one["envdAccessToken"] for one in everything]
    assert len(set(tokens)) == len(tokens)
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    for one in everything:
        for token in tokens:
            opened = who.http.post(
                f"/sandboxes/{one['sandboxID']}/mcp", json=ping, headers={**MCP, "x-access-token": token}
            )
            fields = {"E2b-Sandbox-Id": one["sandboxID"], "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
            files = who.http.get("/files?path=/etc/hostname&username=user", headers=fields)
            right = token == one["envdAccessToken"]
            assert (opened.status_code, files.status_code) == ((200, 200) if right else (401, 401))
    for one in everything:
        who.ask("DELETE", f"/sandboxes/{one['sandboxID']}")
        fields = {
            "E2b-Sandbox-Id": one["sandboxID"],
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": one["envdAccessToken"],
        }
        assert who.http.get("/files?path=/etc/hostname", headers=fields).status_code in (404, 502)


def test_no_way_of_making_rooms_leads_around_a_quota(roles: dict[str, Who], operator: Who) -> None:
    who = roles["developer"]
    operator.ask("PUT", "/roost/quotas/acme", {"sandboxes": 2})
    try:
        first = who.ask("POST", "/sandboxes", {"templateID": "base"})
        snapshot = who.ask("POST", f"/sandboxes/{first['sandboxID']}/snapshots", {})["snapshotID"]
        forks = who.ask("POST", f"/sandboxes/{first['sandboxID']}/fork", {"count": 3})
        up = [one["sandbox"]["sandboxID"] for one in forks if one.get("sandbox")]
        assert len(up) == 1
        assert sum("2 sandboxes at once" in json.dumps(one) for one in forks) == 2
        for body in ({"templateID": "base"}, {"templateID": snapshot}):
            assert who.send("POST", "/sandboxes", body).status_code == 429
        assert who.send("POST", f"/sandboxes/{first['sandboxID']}/fork", {"count": 1}).status_code == 429
        assert "2 sandboxes at once" in tool(who, "/roost/mcp", "create_sandbox", template="base")
        # one that is paused without its memory has no room, and gets none back
        who.ask("POST", f"/sandboxes/{up[0]}/pause", {"memory": False})
        third = who.ask("POST", "/sandboxes", {"templateID": "base"})
        assert who.send("POST", f"/sandboxes/{up[0]}/connect", {"timeout": 60}).status_code == 429
        for id in (first["sandboxID"], *up, third["sandboxID"]):
            who.ask("DELETE", f"/sandboxes/{id}")
    finally:
        operator.ask("DELETE", "/roost/quotas/acme")


LOOP = """
import json, urllib.error, urllib.request
def handler(event, context):
    def status():
        try:
            return urllib.request.urlopen("http://127.0.0.1:3128/openai/v1/models", timeout=20).status
        except urllib.error.HTTPError as error:
            return [error.code, json.load(error)["error"]["message"]]
    return [status() for _ in range(3)]
"""


def test_an_agent_that_goes_round_in_circles_ends_at_its_own_limit(operator: Who, place: str) -> None:
    who = operator
    function = {
        "functionName": "loop", "runtime": "python3.12", "handler": "index.handler", "timeout": 60,
        "code": {"zipFile": zip_base64({"index.py": LOOP})},
        "sessionAffinity": "HEADER_FIELD", "sessionAffinityConfig": '{"affinityHeaderFieldName": "x-session"}',
        "instanceIsolationMode": "SESSION_EXCLUSIVE", "environmentVariables": {"OPENAI_BASE_URL": f"http://{place}/v1"},
        "roost": {"modelCalls": 4},
    }  # fmt: skip
    who.ask("POST", f"{FC}/functions", function)

    def ask(session: str) -> Any:
        return who.ask("POST", f"{FC}/functions/loop/invocations", {}, x_session=session)

    over = [429, "This room has called its model 4 times, and may no more (model_calls)."]
    assert ask("ann") == [200, 200, 200]
    assert ask("ann") == [200, over, over]
    session = f"{FC}/functions/loop/sessions/ann"
    who.ask("PUT", f"{session}/pause?fileSystemOnly=true")
    who.ask("PUT", f"{session}/resume")
    assert ask("ann") == [over, over, over]  # in another room
    assert ask("bob") == [200, 200, 200]
    for name in ("ann", "bob"):
        who.ask("DELETE", f"{FC}/functions/loop/sessions/{name}")
    assert ask("ann") == [200, 200, 200]  # another of the same name
