"""`roost up` and `roost down`: the server in the background, known by a pid file in its data directory."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from roost.sdk.client import Server
from roost.sdk.errors import Failed, UsageError

MODULE = "roost.server"
START_TIMEOUT = 120.0  # with a local model, that has to be loaded too
STOP_TIMEOUT = 60.0


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What `serve` and `up` pass on; None leaves it to the server."""

    host: str | None = None
    port: int | None = None
    data_dir: Path | None = None
    config: Path | None = None
    model: str | None = None
    database: str | None = None

    def arguments(self) -> list[str]:
        """As the server's own command line takes them."""
        given = {
            "--host": self.host,
            "--port": self.port,
            "--data-dir": self.data_dir,
            "--config": self.config,
            "--database": self.database,
        }
        return [part for option, value in given.items() if value is not None for part in (option, str(value))]

    def command(self) -> list[str]:
        """The server as a process; with a local model by way of `roost serve`, which starts that first."""
        if self.model is None:
            return [sys.executable, "-m", MODULE, *self.arguments()]
        return [sys.executable, "-m", "roost.sdk.cli", "serve", "--model", self.model, *self.arguments()]


def data_directory(given: Path | None, config: Path | None, environment: Mapping[str, str]) -> Path:
    """The data directory: the given one, the configuration file's, or what the server takes by default."""
    chosen = given or _settings(config).get("data_dir")
    if chosen:
        return Path(str(chosen)).expanduser().absolute()
    base = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return (Path(base) / "roost").absolute()


def address(
    host: str | None, port: int | None, config: Path | None, environment: Mapping[str, str]
) -> tuple[str, int | None]:
    """Where the server with these options is reached, and the port to tell it, if any.

    The command line wins over the configuration file, and that over a ROOST_URL of this machine: who has set it means
    the server to be there. Raises UsageError when ROOST_URL is another machine's, or the port is any.
    """
    settings = _settings(config)
    if (settings.get("port") if port is None else port) == 0:
        raise UsageError("Port 0: a server in the background needs a number by which it can be found.")
    host = host or settings.get("host")
    given = port or settings.get("port")
    if host is None and given is None and environment.get("ROOST_URL"):
        url = httpx.URL(Server.from_environment(environment).url)
        if url.scheme != "http" or url.host not in {"127.0.0.1", "localhost", "::1"} or url.path != "/":
            raise UsageError(f"ROOST_URL is {url}; a server can be started on this machine only, so unset it first.")
        return str(url).rstrip("/"), url.port or 80
    reached = "127.0.0.1" if host in {None, "0.0.0.0", "::"} else str(host)  # noqa: S104 - compared, not bound
    scheme = "https" if settings.get("tls") else "http"
    return f"{scheme}://{f'[{reached}]' if ':' in reached else reached}:{given or 8700}", port


def _settings(config: Path | None) -> Mapping[str, Any]:
    """The configuration file as far as it is right; the server itself says what is wrong with it."""
    try:
        settings = tomllib.loads(config.read_text()) if config else {}
    except (OSError, ValueError):
        return {}
    kinds = {"host": str, "port": int, "data_dir": str, "tls": dict}
    return {name: settings[name] for name, kind in kinds.items() if type(settings.get(name)) is kind}


class Daemon:
    """The background server of one data directory."""

    def __init__(self, data_dir: Path, url: str) -> None:
        self.url = url
        self.log = data_dir / "server.log"
        self._pid_file = data_dir / "server.pid"

    def pid(self) -> int | None:
        """Process id of the server that was started here and still runs."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # The number may long be another process's: ours is recognised by what it runs.
        ours = {MODULE.encode(), b"roost.sdk.cli"}
        return pid if ours & set(command.split(b"\0")) else None

    def healthy(self) -> bool:
        """Whether a server answers at the address."""
        try:
            # Whose certificate it is does not matter here: nothing is told but that we ask.
            return httpx.get(f"{self.url}/healthz", timeout=2.0, trust_env=False, verify=False).is_success  # noqa: S501
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):  # a name or port that no server can have
            return False

    def start(self, options: ServerOptions) -> int:
        """Start it and return its pid when it answers. Raises Failed with the last line of its log."""
        running = self.pid()
        if running is not None:
            raise Failed(
                f"A server with the data directory {self.log.parent} runs already (pid {running}), "
                f"but not at {self.url}; stop it with `roost down`, or use its address."
            )
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            log = self.log.open("ab")
        except OSError as error:
            why = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
            raise Failed(f"The data directory {self.log.parent} can't be used: {why}.") from error
        with log:
            position = log.tell()
            process = subprocess.Popen(
                options.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        try:
            self._pid_file.write_text(f"{process.pid}\n")
            self._wait_ready(process, position)
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
            self._pid_file.unlink(missing_ok=True)
            raise
        return process.pid

    def _wait_ready(self, process: subprocess.Popen[bytes], position: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self.healthy():
            if process.poll() is not None:
                raise Failed(f"The server did not start: {self._said(position)}")
            if time.monotonic() > deadline:
                raise Failed(f"The server did not answer at {self.url} in {START_TIMEOUT:.0f} s; see {self.log}.")
            time.sleep(0.05)

    def _said(self, position: int) -> str:
        with self.log.open("rb") as log:
            log.seek(position)
            lines = log.read()[-4000:].decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else f"it said nothing; see {self.log}."
        return said.removeprefix("roost: ").removeprefix("Error: ")

    def stop(self) -> bool:
        """Ask it to end and wait until it has; False when none runs. Raises Failed when it does not end."""
        pid = self.pid()
        if pid is None:
            self._pid_file.unlink(missing_ok=True)
            return False
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            ended, _, _ = select.select([handle], [], [], STOP_TIMEOUT)
        except PermissionError as error:
            raise Failed(f"The server (pid {pid}) belongs to another user; try with sudo.") from error
        finally:
            os.close(handle)
        if not ended:
            raise Failed(f"The server (pid {pid}) has not ended in {STOP_TIMEOUT:.0f} s; see {self.log}.")
        self._pid_file.unlink(missing_ok=True)
        return True
