"""Sandboxes of a real server: their ports, their tokens, and what is left of them when the server or the room dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets import ConnectionClosed
from websockets.asyncio.client import connect

from tests.support.interpreter import data_packages
from tests.support.sandboxes import Box
from tests.support.server import NOTHING, Remains, Server, running, share_packages

SCRIPTED = "tests.support.scripted_sandboxes"
#: A WebSocket server of the room's own, in a few lines: it sends back what it gets.
ECHO = r"""
import base64, hashlib, socket
listener = socket.create_server(("127.0.0.1", 9001))
while True:
    sock, _ = listener.accept()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(4096)
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split(b": ")[1]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    while frame := sock.recv(2):
        length, mask = frame[1] & 127, sock.recv(4)
        data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(sock.recv(length)))
        sock.sendall(bytes([frame[0], length]) + data)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, module=SCRIPTED, config="max_sandboxes = 20\nsandbox_memory_mb = 128\n") as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def box(server: Server, client: httpx.Client) -> Iterator[Box]:
    box = Box.create(server, client)
    yield box
    client.delete(f"/sandboxes/{box.id}")


def ask(server: Server, host: str, path: str = "/", **headers: str) -> httpx.Response:
    """A request that names the sandbox by its host: the name need not resolve."""
    with server.client() as client:
        return client.get(path, headers={"Host": host, **headers})


def test_a_port_is_reached_by_the_name_of_the_host(server: Server, box: Box) -> None:
    host = f"8000-{box.id}.localhost:{server.url.rpartition(':')[2]}"
    assert ask(server, host).status_code == 403
    reply = ask(server, host, "/a?b=c", **{"e2b-traffic-access-token": box.traffic})
    assert reply.json()["path"] == "/a?b=c"
    assert reply.json()["port"] == 8000
    seen = {name.lower(): value for name, value in reply.json()["headers"].items()}
    assert seen["host"] == host
    assert box.traffic not in json.dumps(seen)
    assert ask(server, f"49983-{box.id}.localhost", "/x", **{"X-Access-Token": box.token}).json()["port"] == 49983


def test_a_public_sandbox_s_ports_are_open_and_its_daemon_is_not(server: Server, client: httpx.Client) -> None:
    box = Box.create(server, client, network={"allowPublicTraffic": True, "maskRequestHost": "app:${PORT}"})
    reply = ask(server, f"8000-{box.id}.localhost")
    assert reply.status_code == 200
    assert reply.json()["headers"]["Host"] == "app:8000"
    assert ask(server, f"49983-{box.id}.localhost", "/files?path=/etc/passwd").status_code == 401
    assert box.info()["network"]["allowPublicTraffic"] is True
    box.kill()


def test_a_closed_port_and_a_port_that_speaks_no_http(box: Box) -> None:
    reply = box.get("/", 8001)
    assert reply.status_code == 502
    assert reply.json() == {
        "sandboxId": box.id,
        "message": "The sandbox is running but port is not open",
        "port": 8001,
        "code": 502,
    }
    box.sh(
        "nohup python3 -c \"import socket; s = socket.create_server(('127.0.0.1', 8002));\n"
        "while True: c, _ = s.accept(); c.recv(100); c.sendall(b'no http here\\r\\n\\r\\n'); c.close()\" "
        ">/dev/null 2>&1 & until python3 -c \"import socket; socket.create_connection(('127.0.0.1', 8002))\" "
        "2>/dev/null; do :; done"
    )
    reply = box.get("/", 8002)
    assert reply.status_code == 502
    assert "does not speak HTTP" in reply.json()["message"]


def test_a_sandbox_that_never_was(client: httpx.Client) -> None:
    id = "i" + "0" * 19
    reply = client.get("/health", headers={"E2b-Sandbox-Id": id, "E2b-Sandbox-Port": "49983"})
    assert reply.status_code == 502
    assert reply.json() == {"sandboxId": id, "message": "The sandbox was not found", "code": 502}
    assert client.get(f"/sandboxes/{id}").status_code == 404
    reply = client.get("/health", headers={"E2b-Sandbox-Id": id})
    assert reply.status_code == 400


async def test_websockets_reach_a_port(server: Server, box: Box) -> None:
    box.sh(f"cat > /echo.py <<'END'\n{ECHO}\nEND\nnohup python3 /echo.py >/dev/null 2>&1 &")
    url = server.url.replace("http", "ws") + "/socket"
    async with asyncio.timeout(20):
        while box.sh("grep -c :2329 /proc/net/tcp") == "0\n":  # 9001, in hexadecimal
            await asyncio.sleep(0.02)
        async with connect(url, additional_headers=box.headers(9001)) as socket_of_room:
            for message in ("hello", "x" * 100):
                await socket_of_room.send(message)
                assert await socket_of_room.recv() == message
            box.call("pause")
            with pytest.raises(ConnectionClosed):
                await socket_of_room.recv()


def test_a_pause_breaks_streams_off_and_what_comes_meanwhile_is_told(box: Box) -> None:
    with box.client.stream("GET", "/slow", headers=box.headers()) as stream:
        pieces = stream.iter_raw()
        assert next(pieces)
        assert box.call("pause").status_code == 204
        with pytest.raises(httpx.HTTPError):
            for _ in pieces:
                pass
    reply = box.get("/health")
    assert reply.status_code == 502
    assert reply.json()["reason"] == "paused"
    assert "was not found" in reply.json()["message"]


@pytest.mark.parametrize(("death", "reason"), [("os._exit(3)", "exited"), ("bytearray(200 << 20)", "out_of_memory")])
def test_a_room_that_dies_is_paused_with_its_files_and_the_reason(box: Box, death: str, reason: str) -> None:
    box.sh("echo kept > /kept")
    lost = box.client.post("/python", content=death.encode(), headers=box.headers())
    assert lost.status_code == 502
    assert lost.json()["reason"] == reason
    assert "was not found" in lost.json()["message"]
    assert (box.info()["state"], box.info()["pauseReason"]) == ("paused", reason)
    assert box.get("/health").json()["reason"] == reason
    assert box.client.post(f"/v2/sandboxes/{box.id}/connect").status_code == 201
    assert box.sh("cat /kept") == "kept\n"


def test_a_full_server_answers_429_and_the_next_one_fits(tmp_path: Path) -> None:
    with running(tmp_path / "data", module=SCRIPTED, config="max_sandboxes = 1\n") as server, server.client() as client:
        box = Box.create(server, client)
        reply = client.post("/sandboxes", json={"templateID": "base"})
        assert reply.status_code == 429
        assert "max_sandboxes" in reply.json()["message"]
        box.kill()
        Box.create(server, client)
    assert Remains.of(tmp_path / "data") == NOTHING


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "templateID"),
        ({"templateID": ""}, "templateID"),
        ({"templateID": 7}, "templateID"),
        ({"templateID": "base", "timeout": -1}, "timeout"),
        ({"templateID": "base", "timeout": 1.5}, "timeout"),
        ({"templateID": "base", "timeout": True}, "timeout"),
        ({"templateID": "base", "metadata": {"a": 1}}, "metadata"),
        ({"templateID": "base", "metadata": ["a"]}, "metadata"),
        ({"templateID": "base", "envVars": {"": "x"}}, "envVars"),
        ({"templateID": "base", "envVars": {"a": "x\0"}}, "envVars"),
        ({"templateID": "base", "autoPause": "yes"}, "autoPause"),
        ({"templateID": "base", "autoResume": {"enabled": 1}}, "autoResume"),
        ({"templateID": "base", "network": {"allowOut": "x"}}, "network.allowOut"),
        ({"templateID": "base", "network": {"httpsPorts": [443]}}, "network.httpsPorts"),
        ({"templateID": "base", "volumeMounts": [{"name": "v", "path": "/a/../b"}]}, "volumeMounts[0].path"),
        ({"templateID": "base", "volumeMounts": [{"name": "v", "path": "a"}]}, "volumeMounts[0].path"),
        ({"templateID": "base", "autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}},
         "autoResume"),
    ],
)  # fmt: skip
def test_wrong_requests_name_the_field(client: httpx.Client, body: dict[str, object], field: str) -> None:
    reply = client.post("/v2/sandboxes", json=body)
    assert reply.status_code == 400
    assert reply.json()["code"] == 400
    assert reply.json()["message"].startswith(field), reply.json()


@pytest.mark.parametrize("body", [b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"templateID": "base", "a": NaN}'])
def test_bodies_that_are_no_object(client: httpx.Client, body: bytes) -> None:
    reply = client.post("/v2/sandboxes", content=body)
    assert reply.status_code == 400
    assert set(reply.json()) == {"code", "message"}


def test_other_wrong_requests(client: httpx.Client, box: Box) -> None:
    for path in (
        "/v2/sandboxes?limit=0",
        "/v2/sandboxes?limit=101",
        "/v2/sandboxes?state=dead",
        "/v2/sandboxes?order=x",
        "/v2/sandboxes?nextToken=x",
        "/v2/sandboxes?startedAfter=x",
        "/v2/sandboxes?startedAfter=2026-01-01",
        f"/sandboxes/{box.id}/metrics?start=x",
        f"/v2/sandboxes/{box.id}/logs?direction=up",
    ):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["code"]) == (400, 400), path
    assert (
        client.post("/v2/sandboxes", json={"templateID": "base"}, headers={"Idempotency-Key": "A_1"}).status_code == 400
    )
    for verb in ("fork", "rollback"):
        reply = box.call(verb, checkpointID="")
        assert (reply.status_code, reply.json()["message"].split(":")[0]) == (400, "checkpointID"), verb
    assert client.post("/v2/sandboxes", content=b"x" * (2 << 20)).status_code == 413
    assert client.get("/v2/nothing/here").json()["code"] == 404
    assert client.patch("/sandboxes").json()["code"] == 404
    unknown = client.post("/v2/sandboxes", json={"templateID": "base", "newField": 1, "other": None})
    assert unknown.headers["x-roost-ignored"] == "newField"
    client.delete(f"/sandboxes/{unknown.json()['sandboxID']}")


def test_the_old_paths_and_verbs(client: httpx.Client, server: Server) -> None:
    made = client.post("/sandboxes", json={"templateID": "base", "metadata": {"old": "1"}}).json()
    box = Box(server, client, made["sandboxID"], made["envdAccessToken"], made["trafficAccessToken"])
    assert [found["sandboxID"] for found in client.get("/sandboxes?metadata=old%3D1").json()] == [box.id]
    ends = box.info()["endAt"]
    assert box.call("refreshes", duration=10_000).status_code == 204
    assert box.info()["endAt"] > ends
    assert box.call("connect", timeout=20).status_code == 200
    assert box.call("resume").status_code == 409
    box.call("pause")
    assert client.get("/sandboxes?metadata=old%3D1").json() == []
    assert box.call("resume", timeout=20, autoPause=True).status_code == 201
    assert box.info()["lifecycle"]["onTimeout"] == "pause"
    assert [line["line"] for line in client.get(f"/sandboxes/{box.id}/logs").json()["logs"]] == [f"daemon of {box.id}"]
    newest = client.get(f"/v2/sandboxes/{box.id}/logs?direction=backward&limit=1&search=daemon&level=info").json()
    assert newest["logs"][0]["message"] == f"daemon of {box.id}"
    box.kill()


def test_usage_and_metrics_tell_of_sandboxes(client: httpx.Client, box: Box) -> None:
    box.call("pause")
    usage = client.get("/roost/usage", params={"function": "sandbox:base", "session": box.id}).json()
    assert usage["starting_ms"] > 0
    assert usage["cpu_ms"] > 0
    assert 'function="sandbox:base"' in client.get("/metrics").text
    [row] = [row for row in client.get("/roost/instances").json()["instances"] if row["id"] == box.id]
    assert (row["function"], row["state"]) == ("sandbox:base", "frozen")


def test_a_killed_server_leaves_sandboxes_to_the_next(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir, module=SCRIPTED).start()
    with server.client() as client:
        alive, held, dead, gone = (Box.create(server, client, timeout=3600) for _ in range(4))
        for box in (alive, held, dead):
            box.sh("echo $$ > /made; nohup sleep 1000 >/dev/null 2>&1 & echo $! > /pid")
        boot_id = held.sh("cat /proc/sys/kernel/random/boot_id")
        held.call("pause")
        gone.kill()
        dead.call("pause", memory=False)
    server.kill()
    server = Server(data_dir, module=SCRIPTED).start()
    with server.client() as client:
        alive, held, dead = (Box(server, client, box.id, box.token, box.traffic) for box in (alive, held, dead))
        assert alive.info()["state"] == "running"
        assert alive.sh("kill -0 $(cat /pid) && echo alive") == "alive\n"
        assert held.info()["state"] == "paused"
        assert held.info()["pauseMode"] == "full"
        reply = held.call("connect", timeout=60)
        assert (reply.status_code, reply.json()["restored"]) == (201, "memory")
        assert reply.headers["x-roost-sandbox-restored"] == "memory"
        assert "restored" not in held.call("connect", timeout=60).json()  # it ran
        assert held.sh("cat /proc/sys/kernel/random/boot_id; kill -0 $(cat /pid) && echo alive") == boot_id + "alive\n"
        assert dead.info()["pauseMode"] == "filesystem"
        reply = client.post(f"/v2/sandboxes/{dead.id}/connect")
        assert (reply.status_code, reply.json()["restored"]) == (201, "files")
        assert reply.headers["x-roost-sandbox-restored"] == "files"
        assert dead.sh("kill -0 $(cat /pid) || echo gone") == "gone\n"
        reply = client.get(f"/sandboxes/{gone.id}")
        assert (reply.status_code, reply.json()["reason"]) == (404, "killed")
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING
    # In order: all are paused, with their files.
    with running(data_dir, module=SCRIPTED) as again, again.client() as client:
        states = {found["sandboxID"]: found["state"] for found in client.get("/v2/sandboxes").json()}
        assert states == dict.fromkeys((alive.id, held.id, dead.id), "paused")
        box = Box(again, client, alive.id, alive.token, alive.traffic)
        assert box.info()["pauseReason"] == "shutdown"
        assert box.call("connect", timeout=60).status_code == 201
        assert box.sh("test -s /made && echo kept") == "kept\n"
        for id in states:
            client.delete(f"/sandboxes/{id}")
        assert list((data_dir / "sandboxes").iterdir()) == []


def test_a_sandbox_whose_time_is_up_when_the_next_server_comes_leaves_no_room(tmp_path: Path) -> None:
    """It is ended before it is adopted: that waits for the packages of its contexts."""
    data_dir = tmp_path / "data"
    server = Server(data_dir).start()
    share_packages(data_dir, data_packages())
    with server.client() as client:
        box = Box.create(server, client, templateID="code-interpreter-v1", timeout=2)
        pid = _init_of(box)
    server.kill()
    time.sleep(2.5)
    with running(data_dir) as again, again.client() as client:
        again.until(lambda: client.get(f"/sandboxes/{box.id}").status_code == 404)
        again.until(lambda: not Path(f"/proc/{pid}").exists(), timeout=5)
        assert list((data_dir / "sandboxes").iterdir()) == []
    assert Remains.of(data_dir) == NOTHING


def test_rooms_that_died_with_the_server_are_paused_with_their_files(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir, module=SCRIPTED).start()
    with server.client() as client:
        box = Box.create(server, client)
        box.sh("echo kept > /kept; sync")
        pid = _init_of(box)
    server.kill()
    os.kill(pid, signal.SIGKILL)
    with running(data_dir, module=SCRIPTED) as again, again.client() as client:
        box = Box(again, client, box.id, box.token, box.traffic)
        assert (box.info()["state"], box.info()["pauseReason"]) == ("paused", "lost")
        box.call("connect", timeout=60)
        assert box.sh("cat /kept") == "kept\n"
    assert Remains.of(data_dir) == NOTHING


def _init_of(box: Box) -> int:
    """The room's init, seen from the host."""
    [handle] = Path("/run/roost").glob(f"*/{box.id}/handle.json")
    return int(json.loads(handle.read_text())["room"]["pid"])


def test_with_keys_the_secret_is_the_api_key(tmp_path: Path) -> None:
    config = 'sandbox_domain = "sandbox.test"\n[keys]\nid = "the-secret"\n'
    with running(tmp_path / "data", module=SCRIPTED, config=config) as server, server.client() as client:
        body = {"templateID": "base"}
        for headers in ({}, {"X-API-KEY": "wrong"}, {"X-API-KEY": "id"}, {"Authorization": "Bearer wrong"}):
            reply = client.post("/v2/sandboxes", json=body, headers=headers)
            assert (reply.status_code, reply.json()["code"]) == (401, 401)
        client.headers["X-API-KEY"] = "the-secret"
        box = Box.create(server, client)
        assert client.get("/v2/sandboxes", headers={"X-API-KEY": "", "Authorization": "Bearer the-secret"}).json()
        # The data plane asks for the sandbox's tokens, not for keys.
        host = f"8000-{box.id}.sandbox.test"
        assert ask(server, host).status_code == 403
        assert ask(server, host, **{"e2b-traffic-access-token": box.traffic}).status_code == 200
        assert box.info()["domain"] == "sandbox.test"


def test_without_keys_strange_hosts_are_refused_but_the_domain_that_was_set(tmp_path: Path) -> None:
    config = 'sandbox_domain = "sandbox.test:80"\n'
    with running(tmp_path / "data", module=SCRIPTED, config=config) as server, server.client() as client:
        box = Box.create(server, client, network={"allowPublicTraffic": True})
        assert ask(server, f"8000-{box.id}.sandbox.test").status_code == 200
        assert ask(server, f"8000-{box.id}.evil.test").status_code == 403
        assert ask(server, "sandbox.test", "/v2/sandboxes").status_code == 403
        own = f"8000-{box.id}.sandbox.test"
        assert ask(server, own, Origin="http://evil.test").status_code == 403
        assert ask(server, own, Origin=f"http://{own}").status_code == 200


def test_half_a_request_and_a_client_that_goes_leave_the_sandbox_well(server: Server, box: Box) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    lines = "".join(f"{name}: {value}\r\n" for name, value in box.headers().items())
    for sent in (
        f"POST /sh HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: 100\r\n\r\nhalf",
        f"POST /sh HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: 100\r\n\r\nhalf",
        f"POST /sh HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        f"GET /slow HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(sent.encode())
    assert box.sh("echo well") == "well\n"
