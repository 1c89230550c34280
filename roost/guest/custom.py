"""Custom runtime: the user's own web server on 127.0.0.1."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from roost.guest.config import Hook, StartConfig
from roost.guest.environment import worker_environment
from roost.guest.faults import StartFailed

#: How long the server may take until it accepts connections.
LISTEN_LIMIT_S = 30.0
POLL_S = (0.005, 0.1)  # first and longest pause between two tries


def exec_server(config: StartConfig, status: socket.socket) -> None:
    """Become the user's server. A process beside it waits for the port, initializes, and reports to `status`."""
    env = worker_environment(config)
    command = list(config.command) or [f"{config.code}/bootstrap"]
    if _fork_orphan():
        _report(config, env, status)
        return
    try:
        os.chdir(config.code)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would pass that on
        os.execvpe(command[0], command, env)  # noqa: S606  a shell is the user's to name
    except OSError as error:
        text = f"The start command {command[0]!r} can't be run: {error.strerror}."
        _send(status, "failed", error=_error("StartFailed", text))


def run_pre_stop(config: StartConfig) -> None:
    """GET /pre-stop, or the hook's command; its own process, whose end is the answer."""
    hook = config.pre_stop
    if hook is None:
        return
    print("FC PreStop Start", flush=True)
    try:
        if hook.command:
            _run_command(hook, config)
        else:
            _request(config, "GET", "/pre-stop", hook.timeout)
    finally:
        print("FC PreStop End", flush=True)


def _fork_orphan() -> bool:
    """True in a process that is no child of this one: the user's server must not find a child it didn't start."""
    child = os.fork()
    if child == 0:
        if os.fork():
            os._exit(0)
        return True
    os.waitpid(child, 0)
    return False


def _report(config: StartConfig, env: Mapping[str, str], status: socket.socket) -> None:
    started = time.monotonic()
    try:
        hook = config.initializer
        limit = LISTEN_LIMIT_S if hook is None else max(LISTEN_LIMIT_S, hook.timeout)
        _wait_for_port(config.port, limit)
        if hook is not None:
            _send(status, "phase", what="the initializer", limit_s=hook.timeout)
            _initialize(hook, config)
    except StartFailed as error:
        _send(status, "failed", error=_error(error.kind, error.message))
        return
    _send(status, "ready", init_ms=round((time.monotonic() - started) * 1000, 3))


def _wait_for_port(port: int, limit: float) -> None:
    deadline = time.monotonic() + limit
    pause, longest = POLL_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                text = f"The server does not accept connections on port {port} after {limit:g} seconds."
                raise StartFailed("ServerNotListening", text) from None
        time.sleep(pause)
        pause = min(pause * 1.5, longest)


def _initialize(hook: Hook, config: StartConfig) -> None:
    print("FC Initialize Start", flush=True)
    try:
        if hook.command:
            _run_command(hook, config)
        else:
            code, body = _request(config, "POST", "/initialize", hook.timeout)
            if not 200 <= code < 300:
                raise StartFailed("InitializerFailed", f"POST /initialize was answered with {code}: {body}")
    except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
        raise StartFailed("InitializerFailed", f"The initializer failed: {error}") from error
    finally:
        print("FC Initialize End", flush=True)


def _run_command(hook: Hook, config: StartConfig) -> None:
    env = worker_environment(config)
    subprocess.run(hook.command, check=True, timeout=hook.timeout, env=env, cwd=config.code)


def _request(config: StartConfig, method: str, path: str, timeout: float) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", config.port, timeout=timeout)
    try:
        connection.request(method, path, headers=_headers(config, path))
        response = connection.getresponse()
        return response.status, response.read(2000).decode("utf-8", "replace")
    finally:
        connection.close()


def _headers(config: StartConfig, path: str) -> dict[str, str]:
    return {
        "x-fc-control-path": path,
        "x-fc-function-name": config.function.name,
        "x-fc-function-handler": config.function.handler,
        "x-fc-function-memory": str(config.function.memory),
        "x-fc-region": config.region,
        "x-fc-account-id": config.account,
        "x-fc-qualifier": config.function.qualifier,
        "x-fc-version-id": config.function.version,
    }


def _error(kind: str, text: str) -> dict[str, Any]:
    return {"errorType": kind, "errorMessage": text, "stackTrace": []}


def _send(status: socket.socket, event: str, **fields: object) -> None:
    status.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")
