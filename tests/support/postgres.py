"""A real PostgreSQL server for tests: the Debian package's program, in a temporary folder, on a free port of loopback.

`postgres` is one server for all tests of a process, `postgres_url` a fresh database on it. Both come from
`tests/conftest.py`. A test that restarts or fills its server makes one of its own with `serving`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER, PASSWORD = "roost", "quiet-feathers"
#: Tests kill processes, not machines: what is written survives that without a sync of the disk.
SETTINGS = {"fsync": "off", "max_connections": "50", "shared_buffers": "32MB"}
_START_TIMEOUT_S = 60.0
_NUMBERS = itertools.count(1)
_PR_SET_PDEATHSIG = 1


class Postgres:
    """One server. `url(name)` opens a database over TCP, with the password."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.port = _free_port()
        self._programs = _programs()
        self._settings = {**SETTINGS, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it takes connections. Also after `stop` or `kill`, on the same port."""
        data = self.folder / "data"
        if not data.exists():
            self._make(data)
        command = [
            *("postgres", "-D", str(data), "-p", str(self.port), "-k", str(self.folder), "-h", "127.0.0.1"),
            *(word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")),
        ]
        # Processes of a server that was killed hold its memory for a moment longer: it may take another try.
        tries, deadline = 20, time.monotonic() + _START_TIMEOUT_S
        while True:
            if self._process is None or self._process.poll() is not None:
                assert (tries := tries - 1), self.log()
                self._process = self._popen(command)
            with contextlib.suppress(psycopg.OperationalError):
                self._connect("postgres").close()
                return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self, *, how: int = signal.SIGINT) -> None:
        """Ends every connection, then itself (SIGINT); or at once, as in a crash (SIGKILL)."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(30)

    def kill(self) -> None:
        """Its other processes end by themselves as soon as they see that it is gone."""
        self.stop(how=signal.SIGKILL)

    def execute(self, sql: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """As a superuser; the rows, if the statement has any."""
        with contextlib.closing(self._connect(database)) as connection:
            found = connection.execute(sql)
            return found.fetchall() if found.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database, which is dropped at the end, whoever is still connected."""
        name = f"test_{os.getpid()}_{next(_NUMBERS)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-8000:]

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.folder), port=self.port, user=USER, dbname=database, autocommit=True, connect_timeout=10
        )

    def _make(self, data: Path) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        command = ["initdb", "-D", str(data), "-U", USER, "-A", "trust", "--auth-host=scram-sha-256", "-E", "UTF8",
                   "--locale=C.UTF-8", "--no-sync", f"--pwfile={secret}"]  # fmt: skip
        assert self._popen(command).wait(_START_TIMEOUT_S) == 0, self.log()

    def _popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        """As its package's user: PostgreSQL refuses to run as root. It ends with this process, however that ends."""
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            entry = pwd.getpwnam("postgres")
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        prctl = ctypes.CDLL(None).prctl
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / command[0], *command[1:]],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGINT),  # noqa: PLW1509 (one call of libc)
                **user,
            )


@contextlib.contextmanager
def serving(**settings: str) -> Iterator[Postgres]:
    """A started server that is gone at the end, with its files. `settings` are postgresql.conf's."""
    folder = Path(tempfile.mkdtemp(prefix="roost-postgres-"))
    try:
        server = Postgres(folder, settings)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of this process."""
    with serving() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of this test's own."""
    with postgres.database() as url:
        yield url


def _programs() -> Path:
    """Where the newest installed version's programs are. Fails the test when there are none."""
    found = list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.fail("This test needs a real PostgreSQL server: apt-get install postgresql")
    return max(found, key=lambda program: int(program.parts[-3])).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
