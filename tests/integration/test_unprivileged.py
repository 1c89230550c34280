"""A whole server of a user without root: no account, no home, no capability. Official clients use it as any other."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, Sandbox

from roost.isolation.unprivileged.preflight import preflight
from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.support import users
from tests.support.sdk import Sdk, refused
from tests.support.server import Server

WHO = """
import os, subprocess
def handler(event, context):
    told = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    return f"{os.getuid()} {told} {os.environ['HOME']} {event.decode()}"
"""
PORT = """
import http.server, time
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(3):
            text = f"data: {number}\\n\\n".encode()
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(text), text))
            self.wfile.flush()
        self.wfile.write(b"0\\r\\n\\r\\n")
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with users.place_of() as directory:
        yield directory


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    """It leaves no process and no socket behind."""
    made = Server(place / "data", user=users.SOMEBODY).start()
    try:
        yield made
    except BaseException:
        print(made.log()[-8000:])
        raise
    finally:
        assert made.stop() == 0, made.log()[-4000:]
    assert not users.processes(containing=str(place))
    for folder in ("rooms", "layers/.trash", "layers/.fresh"):
        assert not list((place / "data" / folder).iterdir())


def test_it_says_at_its_start_what_its_rooms_lack(server: Server) -> None:
    assert "not root: rooms without hard limits" in server.ready_line
    status = users.fields(Path(f"/proc/{server.pid}/status"))
    assert status["Uid"].split() == [str(users.SOMEBODY)] * 4 and int(status["CapEff"], 16) == 0


def test_the_official_sdk_invokes_functions(server: Server) -> None:
    sdk = Sdk(server.url)
    sdk.create("who", {"index.py": WHO})
    assert sdk.reply("who", b"asks") == b"0 root /root asks"
    [instance] = [one for one in server.instances() if one["function"] == "who"]
    assert instance["driver"] == "unprivileged" and instance["memoryBytes"] > 0
    assert users.fields(Path(f"/proc/{instance['pid']}/status"))["Uid"].split()[0] == str(users.SOMEBODY)
    with server.client() as client:
        assert client.get("/roost/info").json()["drivers"] == ["unprivileged"]


def test_a_web_server_of_the_function_s_own_streams_events(server: Server) -> None:
    server.deploy(
        "web",
        {"bootstrap": "#!/bin/sh\nexec python3 server.py\n", "server.py": PORT},
        runtime="custom",
        customRuntimeConfig={"command": ["/code/bootstrap"], "port": 9000},
    )
    reply = httpx.get(f"{server.url}/web/events", trust_env=False, timeout=60)
    assert reply.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_sessions_keep_their_files_over_pauses_and_instances(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)

    def say(session: str, text: str) -> str:
        return server.invoke("notes", text, x_chat_id=session).text

    assert say("ann", "add a1") == "a1|a1;|a1;" and say("bob", "add b1") == "b1|b1;|b1;"
    with server.client() as client:
        base = "/2023-03-30/functions/notes/sessions/ann"
        paused = client.put(f"{base}/pause")
        # Memory can't be kept here, and the reply says so.
        assert paused.status_code == 200 and paused.headers["x-roost-paused"] == "files"
        [instance] = [one for one in server.instances() if "ann" in one["sessions"]]
        assert instance["state"] == "paused" and instance["memoryBytes"] == 0
        assert client.put(f"{base}/resume").headers["x-roost-resumed"] == "files"
    assert say("ann", "read") == "|a1;|a1;"
    [instance] = [one for one in server.instances() if "bob" in one["sessions"]]
    os.kill(instance["pid"], signal.SIGKILL)
    server.until(lambda: not [one for one in server.instances() if one["id"] == instance["id"]])
    assert say("bob", "read") == "|b1;|b1;"
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/notes/sessions/bob").status_code == 204
    assert say("bob", "read") == "||"


def test_idle_instances_stay_as_they_are_until_they_are_stopped(server: Server) -> None:
    idle = {"freezeAfter": 0.1, "idleTimeout": 1.0}
    server.deploy("brief", {"index.py": WHO}, roost=idle)
    server.invoke("brief")

    def mine() -> list[Any]:
        return [one for one in server.instances() if one["function"] == "brief"]

    states = {one["state"] for one in mine()}
    while found := mine():
        states |= {one["state"] for one in found}
    assert "frozen" not in states
    assert "can't be frozen" not in server.log()


def test_what_it_can_not_give_is_refused_at_deployment(server: Server) -> None:
    sdk = Sdk(server.url)
    with server.client() as client:
        for fields, said in (
            ({"roost": {"isolation": "gvisor"}}, "take root"),
            (
                {
                    "nasConfig": {"mountPoints": [{"serverAddr": "small:/", "mountDir": "/mnt/small"}]},
                    "roost": {"volumeQuotaMB": 16},
                },
                "quota",
            ),
        ):
            body = {"functionName": "asks", "runtime": "python3.12", "handler": "index.handler", **fields}
            reply = client.post("/2023-03-30/functions", json={**body, "code": {"zipFile": _empty()}})
            assert reply.status_code == 400 and said in reply.json()["Message"], reply.text
    assert refused(lambda: sdk.invoke("asks")).status_code == 404


def _empty() -> str:
    return "UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="


def test_memory_of_a_process_has_an_end(server: Server) -> None:
    code = "def handler(event, context):\n    return len(bytes(1 << 30))\n"
    server.deploy("eats", {"index.py": code}, memorySize=128)
    reply = server.invoke("eats")
    assert reply.headers["x-fc-error-type"] == "MemoryError" or "MemoryError" in reply.text


def test_a_sandbox_by_the_official_sdk(server: Server) -> None:
    options: dict[str, Any] = {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}
    box = Sandbox.create("base", **options)
    try:
        box.files.write("notes.txt", "kept")
        assert box.commands.run("cat ~/notes.txt; echo $HOME $USER").stdout == "kept/home/user user\n"
        # There is one id in its room, whoever asks.
        assert box.commands.run("id -u").stdout == box.commands.run("sudo id -u").stdout == "0\n"
        with pytest.raises(CommandExitException):
            box.commands.run("curl -s --max-time 3 http://192.0.2.1")
        with pytest.raises(Exception, match="can't be paused with memory"):
            box.pause()
        with pytest.raises(Exception, match="Snapshots of files take root"):
            box.create_snapshot()
        with server.client() as client:
            built = client.post("/v3/templates", json={"name": "built"}, headers={"x-api-key": options["api_key"]})
            assert built.status_code == 503 and "take root" in built.text, built.text
            reply = client.post(
                f"/sandboxes/{box.sandbox_id}/pause", json={"memory": False}, headers={"x-api-key": options["api_key"]}
            )
            assert reply.status_code == 204, reply.text
        again = box.connect()
        assert again.files.read("notes.txt") == "kept"
    finally:
        assert box.kill()


def test_a_killed_server_s_instances_are_the_next_one_s(place: Path) -> None:
    data_dir = place / "killed"
    server = Server(data_dir, user=users.SOMEBODY).start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    assert server.invoke("notes", "add 1", x_chat_id="s").text == "1|1;|1;"
    server.kill()
    again = Server(data_dir, user=users.SOMEBODY).start()
    # The instance lived on, and so did its memory.
    assert again.invoke("notes", "read", x_chat_id="s").text == "1|1;|1;"
    [instance] = again.instances()
    assert again.stop() == 0
    assert not users.processes(containing=str(data_dir))
    assert not Path(f"/proc/{instance['pid']}").exists() or users.fields(Path(f"/proc/{instance['pid']}/status"))[
        "State"
    ].startswith("Z")
    assert not list((data_dir / "rooms").iterdir())


def test_the_doctor_of_a_user_makes_a_room_of_his(place: Path) -> None:
    process = users.start("roost.isolation.doctor", ["--json"], place, stdout=PIPE, stderr=PIPE)
    said, complaints = process.communicate(timeout=120)
    report = json.loads(said)
    assert process.returncode == 0, complaints
    assert report["ready"] and not report["root"]
    assert not report["drivers"]["namespaces"]["usable"] and not report["drivers"]["gvisor"]["usable"]
    own = report["drivers"]["unprivileged"]
    assert own["usable"] and own["problems"] == [] and "no hard limits" in own["level"]


def test_the_doctor_of_root_has_somebody_else_try_it() -> None:
    found = preflight()
    # Where others can't read this installation, they can't have rooms by it, and that is said.
    assert found.usable or "put it where they can read it" in found.problems[0]


def test_a_user_without_a_home_is_told_to_name_a_directory(place: Path) -> None:
    process = users.start("roost.server", ["--port", "0"], place, stdout=PIPE, stderr=PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and "--data-dir" in said
