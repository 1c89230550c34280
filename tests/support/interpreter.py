"""The code interpreter as a process without a room; see `fake_daemon`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from roost.isolation.templates.data import build_data
from tests.support.guest import PATIENCE_S, ROOT, UnixConnection


class InterpreterProcess:
    """Leaving the `with` ends it, and with it every context."""

    def __init__(self, directory: Path, packages: Path | None = None, *, user: str = "root", **env: str) -> None:
        self.home = directory / "home"
        self.home.mkdir()
        self.path = directory / "app.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(64)
        fd = listener.fileno()
        command = [sys.executable, "-P", "-m", "tests.support.fake_daemon", f"--fd={fd}", f"--home={self.home}"]
        path = os.pathsep.join(str(place) for place in (ROOT, packages) if place is not None)
        self.process = subprocess.Popen(
            [*command, f"--user={user}", f"--env={json.dumps(env)}"],
            pass_fds=(fd,),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )
        listener.close()

    def request(self, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body."""
        connection = UnixConnection(self.path)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, target, data, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def run(self, code: str, **fields: Any) -> Execution:
        status, _, body = self.request("POST", "/execute", {"code": code, **fields})
        assert status == 200, body
        return Execution([json.loads(line) for line in body.splitlines()])

    @contextlib.contextmanager
    def stream(self, code: str, **fields: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The lines of an execution as they come. Leaving the `with` drops the connection."""
        connection = UnixConnection(self.path)
        try:
            connection.request("POST", "/execute", json.dumps({"code": code, **fields}))
            response = connection.getresponse()
            yield (json.loads(line) for line in response)
        finally:
            with contextlib.suppress(http.client.HTTPException, OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def context(self, **fields: Any) -> str:
        status, _, body = self.request("POST", "/contexts", fields)
        assert status == 200, body
        return str(json.loads(body)["id"])

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def __enter__(self) -> InterpreterProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Execution:
    """What an execution replied."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines
        assert lines[-1] == {"type": "end_of_execution"}, lines

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind]

    def text(self, stream: str = "stdout") -> str:
        return "".join(line["text"] for line in self.of(stream))

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of("result")

    @property
    def value(self) -> str | None:
        return next((line.get("text") for line in self.results if line["is_main_result"]), None)

    @property
    def error(self) -> dict[str, Any] | None:
        return next(iter(self.of("error")), None)

    @property
    def number(self) -> int | None:
        return next((line["execution_count"] for line in self.of("number_of_executions")), None)


def lasting_data() -> Path:
    """The data directory that keeps what takes long to make, beside the tests' own packages."""
    return Path(sys.prefix) / "share" / "roost-tests"


def data_packages() -> Path:
    """What the template `code-interpreter-v1` brings; installed once."""
    return build_data(lasting_data())
