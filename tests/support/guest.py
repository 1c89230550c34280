"""The real guest as a process without a room, spoken to over its two unix sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0  # of every wait: only a broken guest makes a test wait so long


class UnixConnection(http.client.HTTPConnection):
    """http.client over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("function", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = dial(self._path)


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    sock.connect(str(path))
    return sock


class Control:
    """The host's end of a control connection."""

    def __init__(self, path: Path) -> None:
        self._sock = dial(path)
        self._file = self._sock.makefile("rb")
        self._sock.sendall(b"control\n")
        self.logs: list[tuple[str, str]] = []

    def send(self, **message: Any) -> None:
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> dict[str, Any] | None:
        """The next message; None at the end."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def wait_for(self, *events: str) -> dict[str, Any]:
        """The next message that is one of `events`; logs on the way are kept."""
        while (message := self.read()) is not None:
            if message["event"] == "log":
                self.logs.append((message["stream"], message["text"]))
            if message["event"] in events:
                return message
        raise AssertionError(f"the guest closed its control connection before {events}")

    def wait_for_text(self, text: str) -> str:
        """Read logs until `text` has come; all of the output so far."""
        while text not in self.text():
            self.wait_for("log")
        return self.text()

    def text(self, stream: str = "") -> str:
        return "".join(text for name, text in self.logs if stream in ("", name))

    def close(self) -> None:
        self._file.close()
        self._sock.close()


class Guest:
    """A guest process. Leaving the `with` ends it and everything it started."""

    def __init__(self, directory: Path, *options: str, wrapper: Sequence[str] = ()) -> None:
        """`wrapper`: a command that runs the guest, given after it."""
        self.directory = directory
        self.code = directory / "code"
        self.code.mkdir()
        self.app_path = directory / "app.sock"
        self.guest_path = directory / "guest.sock"
        listeners = [_listen(self.guest_path), _listen(self.app_path)]
        guest_fd, app_fd = (listener.fileno() for listener in listeners)
        command = [sys.executable, "-m", "roost.guest.main", f"--guest-fd={guest_fd}", f"--app-fd={app_fd}"]
        self.process = subprocess.Popen([*wrapper, *command, *options], pass_fds=(guest_fd, app_fd), cwd=ROOT)
        for listener in listeners:
            listener.close()
        self.control = Control(self.guest_path)

    def write(self, name: str, source: str) -> None:
        path = self.code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    def start(self, source: str = "", **fields: Any) -> dict[str, Any]:
        """Start `source` as index.py; the `ready` or `failed` event."""
        if source:
            self.write("index.py", source)
        message = {
            "instance": "i-1",
            "runtime": "python",
            "handler": "index.handler",
            "code": str(self.code),
            "concurrency": 1,
            "timeout": 30,
            "env": {"HOME": str(self.directory / "home")},
            "function": {"name": "f", "version": "LATEST", "qualifier": "LATEST", "memory": 512},
            "region": "local",
            "account": "1",
            "output_bytes_per_s": 1 << 20,
            "entropy": "00" * 64,
        }
        self.control.send(op="start", **(message | fields))
        return self.control.wait_for("ready", "failed")

    def ready(self, source: str = "", **fields: Any) -> Guest:
        """As `start`, but it must become ready."""
        event = self.start(source, **fields)
        assert event["event"] == "ready", event
        return self

    def connect(self) -> UnixConnection:
        return UnixConnection(self.app_path)

    def request(
        self,
        method: str = "GET",
        target: str = "/",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP request on a connection of its own: status, headers (lower case), body."""
        connection = self.connect()
        try:
            fields = {"x-fc-control-path": "/http-invoke", "x-fc-request-id": "r-1"} | dict(headers or {})
            connection.request(method, target, body, fields)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def invoke(self, event: bytes = b"", request: str = "r-1") -> tuple[int, dict[str, str], bytes]:
        """One InvokeFunction."""
        headers = {"x-fc-control-path": "/invoke", "x-fc-request-id": request}
        return self.request("POST", "/invoke", event, headers)

    def raw(self, path: str = "/invoke", body: bytes = b"", *, control: str = "/invoke") -> socket.socket:
        """A connection on which one request was sent, nothing read yet."""
        sock = dial(self.app_path)
        head = f"POST {path} HTTP/1.1\r\nhost: f\r\nx-fc-control-path: {control}\r\nx-fc-request-id: r-raw\r\n"
        sock.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        return sock

    def close(self) -> None:
        """Closes what it opened and waits for the guest's orderly end, or kills it."""
        self.control.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _kill_children(self.process.pid, self.code)

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer closes."""
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def workers_of(code: Path) -> list[int]:
    """Processes whose working directory is the code of one test's guest."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(code):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _kill_children(parent: int, code: Path) -> None:
    for pid in workers_of(code):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(512)
    return sock
