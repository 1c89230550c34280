"""Run the applications under `examples/` without a room: imported in this process, or as a process with a port."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextmanager
def example_modules(example: str, *names: str) -> Iterator[list[ModuleType]]:
    """Import top-level modules of one example, as a room does, and forget them afterwards: examples share names."""
    folder = str(EXAMPLES / example)
    sys.path.insert(0, folder)
    before = set(sys.modules)
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                del sys.modules[name]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asgi_command(handler: str, port: int) -> list[str]:
    """Serve an ASGI handler like `app.app` of the working directory; in a room the guest does this."""
    target = ":".join(handler.rsplit(".", 1))
    return [sys.executable, "-m", "uvicorn", target, "--port", str(port), "--log-level", "warning"]


@contextmanager
def example_server(
    example: str, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a web server of an example until the block ends; yields its base URL once it accepts connections."""
    settings = {**os.environ, "FC_SERVER_PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
    process = subprocess.Popen(list(command), cwd=EXAMPLES / example, env=settings)
    try:
        _await_port(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on port {port}")
