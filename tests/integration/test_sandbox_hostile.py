"""Bad input, floods and clients that vanish: each is answered, and the sandbox serves on."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.guest import dial, read_all
from tests.support.sandbox import SandboxGuest, basic, envelope, envelopes

START = "process.Process/Start"
STREAM = {"content-type": "application/connect+json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxGuest]:
    with SandboxGuest(tmp_path_factory.mktemp("guest")) as guest:
        yield guest.ready_sandbox()


@pytest.fixture
def guest(served: SandboxGuest) -> Iterator[SandboxGuest]:
    """Serves a command before and after."""
    yield served
    *_, end, done = served.stream(START, command("exit 3"))
    assert (end["event"]["end"]["exitCode"], done) == (3, {})


def command(text: str, **more: object) -> dict[str, object]:
    return {"process": {"cmd": "/bin/bash", "args": ["-c", text]}, **more}


def post(path: str, body: bytes, **headers: str) -> bytes:
    fields = {"host": "x", "content-length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "unimplemented"),
        (envelope(b"{}") * 2, "unimplemented"),
        (envelope(b"{}")[:-1], "unimplemented"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
        (envelope(b"{}", 1), "internal"),
        (envelope(b"{}", 4), "invalid_argument"),
        (envelope(b"[]"), "invalid_argument"),
        (envelope(b"{" * 5000), "invalid_argument"),
        (envelope(b"{}"), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": 1}}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "a\0b"}}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "/not/there"}}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "not-there"}}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "/etc/passwd"}}).encode()), "invalid_argument"),
        (envelope(json.dumps(command("true") | {"stdin": "yes"}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "true", "envs": {"A=B": "1"}}}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "true", "cwd": "~root"}}).encode()), "invalid_argument"),
        (envelope(json.dumps({"process": {"cmd": "true", "args": ["x" * 200_000]}}).encode()), "invalid_argument"),
    ],
)
def test_starts_that_are_refused(guest: SandboxGuest, body: bytes, code: str) -> None:
    status, headers, data = guest.request("POST", f"/{START}", body, STREAM)
    assert (status, headers["content-type"]) == (200, "application/connect+json")
    ((flags, end),) = envelopes(data)
    assert (flags, json.loads(end)["error"]["code"]) == (2, code)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "application/proto"}, "unimplemented"),
        ({"content-type": ""}, "unimplemented"),
        ({"content-encoding": "br"}, "unimplemented"),
        ({"content-encoding": "gzip"}, "invalid_argument"),
        ({"connect-timeout-ms": "soon"}, "invalid_argument"),
        ({"authorization": basic("nobody-here")}, "unauthenticated"),
    ],
)
def test_calls_that_are_refused(guest: SandboxGuest, headers: dict[str, str], code: str) -> None:
    fields = {"content-type": "application/json"} | headers
    status, _, data = guest.request("POST", "/filesystem.Filesystem/Stat", b'{"path":"/"}', fields)
    assert status >= 400
    assert json.loads(data)["code"] == code


@pytest.mark.parametrize(
    ("method", "message", "code"),
    [
        ("process.Process/SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGKILL"}, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": -1}}, "invalid_argument"),
        ("process.Process/SendSignal", {}, "unimplemented"),
        ("process.Process/SendInput", {"process": {"tag": "none"}}, "not_found"),
        ("process.Process/Update", {"process": {"pid": 4294967296}}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "/a\0b"}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "x" * 5000}, "internal"),
        ("filesystem.Filesystem/Stat", {"path": "/" + "x/" * 5000}, "internal"),
        ("filesystem.Filesystem/ListDir", {"path": "/etc", "depth": "deep"}, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/etc/passwd/x"}, "internal"),
        ("filesystem.Filesystem/MakeDir", {"path": "/etc/passwd"}, "invalid_argument"),
        ("filesystem.Filesystem/MakeDir", {"path": "/proc/x"}, "internal"),
        ("filesystem.Filesystem/Move", {"source": "/tmp", "destination": "/tmp/below/itself"}, "internal"),
        ("filesystem.Filesystem/Remove", {"path": "/proc/1"}, "internal"),
        ("filesystem.Filesystem/Remove", {"path": "~other/x"}, "invalid_argument"),
        ("filesystem.Filesystem/GetWatcherEvents", {"watcherId": "w0"}, "not_found"),
        ("filesystem.Filesystem/RemoveWatcher", {}, "not_found"),
        ("filesystem.Filesystem/CreateWatcher", {"path": "/dev/null"}, "invalid_argument"),
    ],
)
def test_messages_that_are_refused(guest: SandboxGuest, method: str, message: object, code: str) -> None:
    status, reply = guest.unary(method, message)
    assert status >= 400
    assert reply["code"] == code
    assert reply["message"]


def test_bodies_over_the_limit(guest: SandboxGuest) -> None:
    status, reply = guest.unary("process.Process/SendInput", b" " * (17 << 20))
    assert (status, reply["code"]) == (429, "resource_exhausted")


def test_compressed_messages(guest: SandboxGuest) -> None:
    """Of the protocol, which the SDKs do not send; one that unpacks to more than the limit is not unpacked."""
    stat = {"content-type": "application/json", "content-encoding": "gzip"}
    status, _, data = guest.request("POST", "/filesystem.Filesystem/Stat", gzip.compress(b'{"path":"/etc"}'), stat)
    assert (status, json.loads(data)["entry"]["name"]) == (200, "etc")
    bomb = gzip.compress(b" " * (64 << 20), 9)
    status, _, data = guest.request("POST", "/filesystem.Filesystem/Stat", bomb, stat)
    assert (status, json.loads(data)["code"]) == (429, "resource_exhausted")
    start = STREAM | {"connect-content-encoding": "gzip"}
    packed = envelope(gzip.compress(json.dumps(command("echo packed")).encode()), 1)
    said = [json.loads(message) for _, message in envelopes(guest.request("POST", f"/{START}", packed, start)[2])]
    assert base64.b64decode(said[1]["event"]["data"]["stdout"]) == b"packed\n"
    _, _, data = guest.request("POST", f"/{START}", envelope(bomb, 1), start)
    assert json.loads(envelopes(data)[0][1])["error"]["code"] == "resource_exhausted"


def test_doors_of_the_machine_are_shut(guest: SandboxGuest) -> None:
    for path in ("/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"):
        status, _, body = guest.request("POST", path, b"{}")
        assert (status, json.loads(body)["code"]) == (403, 403)
    assert guest.request("GET", "/nothing")[0] == 404
    assert guest.request("POST", "/process.Process/Nothing")[0] == 404
    assert guest.request("DELETE", "/files?path=/etc/passwd")[0] == 405
    status, _, body = guest.request("GET", "/health", headers={"x-roost-port": "49999"})
    assert (status, json.loads(body)["port"]) == (502, 49999)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/files?path=%00", 400),
        ("/files?path=%ff%fe", 404),
        ("/files?path=" + "x" * 5000, 500),
        ("/files?path=/etc", 400),
        ("/files?path=~root/x", 400),
        ("/files?path=x&username=%00", 401),
        ("/files?" + "&".join(["path=x"] * 200), 400),
    ],
)
def test_files_that_cannot_be_had(guest: SandboxGuest, path: str, status: int) -> None:
    got, _, body = guest.request("GET", path)
    assert got == status
    assert json.loads(body)["code"] == status


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "text/plain"}, b"x", 400),
        ({"content-type": "multipart/form-data"}, b"x", 500),
        ({"content-type": "multipart/form-data; boundary=B"}, b"x" * 100_000, 500),
        (
            {"content-type": "multipart/form-data; boundary=B"},
            b'--B\r\ncontent-disposition: x; name="file"\r\n\r\nx',
            400,
        ),
        ({"content-type": "application/octet-stream", "content-encoding": "gzip"}, b"no gzip", 400),
        (
            {"content-type": "application/octet-stream", "content-encoding": "gzip"},
            gzip.compress(b"x" * 99, mtime=0)[:-4],
            400,
        ),
        ({"content-type": "application/octet-stream", "content-encoding": "br"}, b"x", 400),
        ({"content-type": "application/octet-stream", "x-metadata-" + "k" * 300: "v"}, b"x", 400),
    ],
)
def test_uploads_that_are_refused(guest: SandboxGuest, headers: dict[str, str], body: bytes, status: int) -> None:
    target = "/files?path=up" if "octet" in headers["content-type"] else "/files"
    got, _, reply = guest.request("POST", target, body, headers)
    assert (got, json.loads(reply)["code"]) == (status, status)


def test_files_that_would_keep_the_daemon_waiting(guest: SandboxGuest) -> None:
    fifo = guest.home / "fifo"
    os.mkfifo(fifo)
    for target in ("fifo", "/dev/tty", "/dev/zero", "/run/roost-sudo.sock"):
        assert guest.request("GET", f"/files?path={target}")[0] == 400
    headers = {"content-type": "application/octet-stream"}
    for target in ("fifo", "/dev/full", "/proc/self/status"):
        assert guest.request("POST", f"/files?path={target}", b"x", headers)[0] in (400, 500)


def test_a_flood_stops_where_the_client_stops_reading(guest: SandboxGuest) -> None:
    """The command waits in its write, and the daemon's memory does not grow with what it would print."""
    pid_file = guest.home / "flood.pid"
    body = envelope(json.dumps(command(f"echo $$ > {pid_file.name}; exec yes", tag="flood")).encode())
    before = resident(guest)
    with contextlib.closing(dial(guest.app_path)) as client:
        client.sendall(post(f"/{START}", body, **STREAM))
        until(lambda: pid_file.exists() and pid_file.read_text().strip())
        until(lambda: state_of(guest, "flood") == "S" and state_of(guest, "flood") == "S")
        assert resident(guest) - before < 8 << 20
        assert guest.unary("process.Process/SendSignal", {"process": {"tag": "flood"}, "signal": 9})[0] == 200
    until(lambda: not guest.unary("process.Process/List")[1]["processes"])


def test_a_client_that_vanishes_lets_the_command_go_on(guest: SandboxGuest) -> None:
    marker = guest.home / "printed"
    body = envelope(json.dumps(command("for i in $(seq 3); do seq 100000; done; echo done > printed")).encode())
    client = dial(guest.app_path)
    client.sendall(post(f"/{START}", body, **STREAM))
    client.recv(10)
    client.close()
    until(lambda: marker.exists() and marker.read_text() == "done\n")


def test_clients_that_vanish_at_any_moment(guest: SandboxGuest) -> None:
    start = post(f"/{START}", envelope(json.dumps(command("sleep 0.05; seq 10000")).encode()), **STREAM)
    watch = post("/filesystem.Filesystem/WatchDir", envelope(b'{"path":"/home/user","recursive":true}'), **STREAM)
    upload = post("/files?path=cut", b"x" * 100_000, content_type="application/octet-stream")
    before = descriptors(guest)
    for request in (start, watch, upload):
        for cut in (10, len(request) // 2, len(request) - 1, len(request)):
            for abort in (False, True):
                client = dial(guest.app_path)
                client.sendall(request[:cut])
                if cut == len(request):
                    client.recv(1)
                if abort:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
    until(lambda: not guest.unary("process.Process/List")[1]["processes"])
    until(lambda: descriptors(guest) <= before)


def test_input_that_nobody_reads(guest: SandboxGuest) -> None:
    """The sender waits, not the daemon; it is told when the command has gone."""
    body = envelope(json.dumps(command("sleep 600", tag="deaf", stdin=True)).encode())
    with contextlib.closing(dial(guest.app_path)) as starter:
        starter.sendall(post(f"/{START}", body, **STREAM))
        starter.recv(10)
        message = {"process": {"tag": "deaf"}, "input": {"stdin": "eHh4" * 100_000}}
        with contextlib.closing(dial(guest.app_path)) as sender:
            send = json.dumps(message).encode()
            sender.sendall(
                post("/process.Process/SendInput", send, content_type="application/json", connection="close")
            )
            limited = {"content-type": "application/json", "connect-timeout-ms": "200"}
            status, _, _ = guest.request("POST", "/process.Process/SendInput", send, limited)
            assert status == 504
            guest.unary("process.Process/SendSignal", {"process": {"tag": "deaf"}, "signal": "SIGNAL_SIGKILL"})
            assert b"error writing to stdin" in read_all(sender)


def test_a_slow_follower_does_not_lose_output(guest: SandboxGuest) -> None:
    body = envelope(json.dumps(command("seq 200000", tag="slow")).encode())
    with contextlib.closing(dial(guest.app_path)) as client:
        client.sendall(post(f"/{START}", body, connection="close", **STREAM))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        time.sleep(0.3)
        assert guest.unary("process.Process/List")[1]["processes"]
        data = read_all(client)
    assert data.count(b'"end"') == 1


def test_what_holds_the_output_open_does_not_hold_the_end_of_a_kill(guest: SandboxGuest) -> None:
    text = "setsid sleep 603 & echo $!; wait"
    body = envelope(json.dumps(command(text, tag="held")).encode())
    with contextlib.closing(dial(guest.app_path)) as client:
        client.sendall(post(f"/{START}", body, connection="close", **STREAM))
        received = b""
        while b"stdout" not in received:
            received += client.recv(1000)
        guest.unary("process.Process/SendSignal", {"process": {"tag": "held"}, "signal": "SIGNAL_SIGTERM"})
        assert b"signal: terminated" in read_all(client)
    guest.stream(START, {"process": {"cmd": "pkill", "args": ["-f", "sleep 603"]}})


def daemon(guest: SandboxGuest) -> Path:
    """/proc of the daemon: the namespace's first process, the child of `unshare`."""
    pid = guest.process.pid
    return Path(f"/proc/{Path(f'/proc/{pid}/task/{pid}/children').read_text().split()[0]}")


def resident(guest: SandboxGuest) -> int:
    return int((daemon(guest) / "statm").read_text().split()[1]) * 4096


def descriptors(guest: SandboxGuest) -> int:
    return len(list((daemon(guest) / "fd").iterdir()))


def state_of(guest: SandboxGuest, tag: str) -> str:
    """The process state of the command with the tag."""
    numbers = [each["pid"] for each in guest.unary("process.Process/List")[1]["processes"] if each.get("tag") == tag]
    (_, data, *_) = guest.stream(START, {"process": {"cmd": "cat", "args": [f"/proc/{numbers[0]}/stat"]}})
    return base64.b64decode(data["event"]["data"]["stdout"]).decode().rpartition(")")[2].split()[0]


def until(condition: Callable[[], object], patience_s: float = 15.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
