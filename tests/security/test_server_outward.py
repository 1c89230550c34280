"""What functions and sandboxes reach of the world: nothing, but what their rules and the server's operator open."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox, Template

from tests.integration.test_server_audit import shown
from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running

#: In a room: through the proxy, whatever NO_PROXY says; then without it.
FETCH = """
import json, os, socket, sys, urllib.error, urllib.request
def through(url, data=None):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": "http://127.0.0.1:3129"}))
    try:
        return opener.open(url, data, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return type(error).__name__
def direct(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return type(error).__name__
    return "connected"
"""


class Canary(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, format: str, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def canary() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Canary) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config='egress_private = ["127.0.0.0/8", "::1"]\n') as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def sandbox(server: Server, **options: Any) -> Sandbox:
    return Sandbox.create("base", api_url=server.url, sandbox_url=server.url, api_key="e2b_" + "0" * 40, **options)


def run(box: Sandbox, source: str) -> Any:
    box.files.write("/tmp/probe.py", f"{FETCH}\nprint(json.dumps({source}))\n")
    return json.loads(box.commands.run("python3 /tmp/probe.py").stdout)


def test_a_sandbox_reaches_what_it_is_allowed_and_only_by_the_proxy(server: Server, canary: int) -> None:
    url = f"http://localhost:{canary}/"
    with sandbox(server, network={"allow_out": [f"localhost:{canary}"]}) as box:
        assert run(box, f"through({url!r})") == "reached"
        assert run(box, f"through('http://127.0.0.1:{canary}/')") == 403  # by another name
        assert run(box, "through('http://localhost:1/')") == 403
        assert run(box, f"direct('127.0.0.1', {canary})") == "ConnectionRefusedError"
        assert run(box, "direct('93.184.215.14', 80)") == "OSError"
        assert run(box, "direct('example.com', 80)") == "gaierror"
        assert run(box, "os.environ['HTTPS_PROXY']") == "http://127.0.0.1:3129"


def test_a_sandbox_without_rules_reaches_nothing(server: Server, canary: int) -> None:
    with sandbox(server) as box:
        assert run(box, f"through('http://localhost:{canary}/')") not in ("reached", 403)
        assert run(box, "os.environ.get('HTTPS_PROXY')") is None


def test_rules_change_while_a_sandbox_runs(server: Server, canary: int) -> None:
    url = f"http://localhost:{canary}/"
    with sandbox(server) as box, server.client() as client:
        path = f"/sandboxes/{box.sandbox_id}/network"
        assert client.put(path, json={"allowOut": [f"localhost:{canary}"]}).status_code == 204
        assert run(box, f"through({url!r})") == "reached"
        assert client.put(path, json={"allowOut": ["example.com"]}).status_code == 204
        assert run(box, f"through({url!r})") == 403
        assert client.put(path, json={"allowOut": ["not a rule"]}).status_code == 400
        assert (
            client.put(path, json={"allowOut": ["127.0.0.0/8"], "denyOut": [f"localhost:{canary}"]}).status_code == 204
        )
        assert run(box, f"through({url!r})") == "reached"  # what is allowed wins


def test_a_budget_is_of_the_rules_and_stays_when_they_change(server: Server, canary: int) -> None:
    url = f"http://localhost:{canary}/"
    often = f"[through({url!r}, data=bytes(300_000)) for _ in range(5)][-1]"
    with sandbox(server, network={"allow_out": [f"localhost:{canary}"]}) as box, server.client() as client:
        path = f"/sandboxes/{box.sandbox_id}/network"
        rules = {"allowOut": [f"localhost:{canary}"]}
        assert run(box, often) == "reached"  # the control: without a budget
        assert client.put(path, json={**rules, "egressMB": 1}).status_code == 204
        assert run(box, often) != "reached"
        assert client.put(path, json=rules).status_code == 204  # as the official clients have it, who know no budgets
        assert run(box, f"through({url!r})") != "reached"
        assert client.put(path, json={**rules, "egressMB": 100}).status_code == 204
        assert run(box, f"through({url!r})") == "reached"
        for wrong in ({"egressMB": 0}, {"egressMB": "1"}, {"egressConnections": 129}):
            assert client.put(path, json={**rules, **wrong}).status_code == 400


def test_rules_outlive_the_server(server: Server, canary: int) -> None:
    url = f"http://localhost:{canary}/"
    with sandbox(server, network={"allow_out": [f"localhost:{canary}"]}) as box:
        assert run(box, f"through({url!r})") == "reached"
        port = server.url.rpartition(":")[2]
        server.kill()
        server.start(port=port)
        assert run(box, f"through({url!r})") == "reached"
        assert run(box, "through('http://example.com/')") == 403


def test_a_function_reaches_what_it_is_allowed(server: Server, canary: int) -> None:
    fc = Sdk(server.url)
    code = f"{FETCH}\ndef handler(event, context):\n    return json.dumps(through(event.decode()))\n"
    open_one = {"roost": {"allowOut": [f"localhost:{canary}"]}}
    server.deploy("open", {"index.py": code}, **open_one)
    server.deploy("closed", {"index.py": code})
    url = f"http://localhost:{canary}/".encode()
    assert json.loads(fc.reply("open", url)) == "reached"
    assert json.loads(fc.reply("open", b"http://example.com/")) == 403
    assert json.loads(fc.reply("closed", url)) == "URLError"
    server.deploy("open", {"index.py": code}, roost={"allowOut": ["example.com"]})
    assert json.loads(fc.reply("open", url)) == 403
    with server.client() as client:
        bad = client.put("/2023-03-30/functions/open", json={"roost": {"allowOut": ["http://x"]}})
        assert bad.status_code == 400
        assert "no rule of egress" in bad.text


def test_what_was_asked_for_is_in_the_audit(server: Server, canary: int) -> None:
    with sandbox(server, network={"allow_out": [f"localhost:{canary}"]}) as box:
        run(box, f"[through('http://localhost:{canary}/'), through('http://secret.example.com/')]")
        actor = f"instance/{box.sandbox_id}"
        wanted = {(f"localhost:{canary}", "allowed"), ("secret.example.com:80", "denied")}

        def told() -> set[tuple[str, str]]:
            return {(one["target"], one["outcome"]) for one in shown(server.data_dir) if one["actor"] == actor}

        server.until(lambda: wanted <= told())


def test_what_is_open_to_all_is_open_to_builds_and_not_to_who_refuses_it(tmp_path: Path, canary: int) -> None:
    config = f'egress_private = ["127.0.0.0/8", "::1"]\nsandbox_allow_out = ["localhost:{canary}"]\n'
    url = f"http://localhost:{canary}/"
    with running(tmp_path / "data", config=config) as server:
        options = {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}
        code = f"{FETCH}\nopen('/tmp/found', 'w').write(str(through({url!r})))"
        (tmp_path / "fetch.py").write_text(code)
        template = Template(file_context_path=tmp_path).from_template("base").copy("fetch.py", "/tmp/fetch.py")
        Template.build(template.run_cmd("python3 /tmp/fetch.py"), "fetched", **options)
        with Sandbox.create("fetched", **options) as box:
            assert box.files.read("/tmp/found") == "reached"
            assert run(box, f"through({url!r})") == "reached"
        with sandbox(server, allow_internet_access=False) as box:
            assert run(box, f"through({url!r})") != "reached"
    assert Remains.of(tmp_path / "data") == NOTHING


def test_without_the_operator_s_leave_no_rule_opens_the_server_s_networks(tmp_path: Path, canary: int) -> None:
    with running(tmp_path / "data", config='sandbox_allow_out = ["*"]\n') as server, sandbox(server) as box:
        for url in (f"http://localhost:{canary}/", f"http://127.0.0.1:{canary}/", server.url):
            assert run(box, f"through({url!r})") == 403
        own = f"http://{socket.gethostbyname(socket.gethostname())}:{canary}/"
        assert run(box, f"through({own!r})") == 403
        assert run(box, "through('http://169.254.169.254/latest/meta-data/')") == 403
    assert Remains.of(tmp_path / "data") == NOTHING


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('egress_private = ["10.0.0.0/33"]\n', "'egress_private' lists networks"),
        ("egress_private = 1\n", "must be a list of strings"),
        ('sandbox_allow_out = ["http://x"]\n', "is no rule of egress"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, config: str, said: str) -> None:
    server = Server(tmp_path / "data", config=config)
    with pytest.raises(AssertionError, match="did not start"):
        server.start()
    assert said in server.log()


def test_while_its_server_is_dead_a_room_reaches_nothing(server: Server) -> None:
    """Without the proxy there is no way: it fails closed."""
    reached = threading.Event()

    class Watched(Canary):
        def do_GET(self) -> None:
            reached.set()
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Watched) as canary:
        threading.Thread(target=canary.serve_forever, daemon=True).start()
        url = f"http://localhost:{canary.server_port}/"
        # With pauses: a connection that was closed keeps its port for a minute, and there are 28,000.
        tries = f"""{FETCH}
import time
while not os.path.exists("/tmp/enough"):
    with open("/tmp/said", "a") as said:
        print(through({url!r}), direct("127.0.0.1", {canary.server_port}), file=said)
    time.sleep(0.01)
"""
        with sandbox(server, network={"allow_out": [f"localhost:{canary.server_port}"]}) as box:
            box.files.write("/tmp/tries.py", tries)
            box.commands.run("python3 /tmp/tries.py", background=True)
            server.until(reached.is_set)  # the control
            port = server.url.rpartition(":")[2]
            server.kill()
            time.sleep(0.2)  # what had got there before may still be served
            reached.clear()
            assert not reached.wait(1.0)
            server.start(port=port)
            server.until(reached.is_set, timeout=60)  # one try takes 20 s at most
            box.files.write("/tmp/enough", "")
            said = box.files.read("/tmp/said").split("\n")
            assert "reached ConnectionRefusedError" in said
            assert any(line and not line.startswith("reached") for line in said)
        canary.shutdown()
