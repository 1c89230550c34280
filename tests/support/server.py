"""A real Roost server process for tests, with a data directory of its own and a count of what it leaves behind."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from roost.isolation.bundle import build_bundle
from tests.support import users

READY = re.compile(r"https?://([0-9.]+):(\d+)")


#: Whom servers run as that don't say; unset: root. So any test of servers can be tried without root, with a --basetemp
#: that this user can get to.
USER = int(os.environ["ROOST_TEST_USER"]) if os.environ.get("ROOST_TEST_USER") else None


class Server:
    """`python -m roost.server` on a free port, or another `module` that does the same. `url` is where it answers.

    `user`: the id of a user without root that it runs as; the data directory becomes that user's.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        config: str = "",
        env: Mapping[str, str] | None = None,
        module: str = "roost.server",
        user: int | None = USER,
    ) -> None:
        self.data_dir = data_dir
        self.user = user
        self._module = module
        self.url = ""
        self.ready_line = ""
        self._config = config
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "OTEL_", "ROOST_"))}
        self._env.update(env or {})
        self._process: subprocess.Popen[str] | None = None

    def start(self, *, port: str = "0") -> Server:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self.user is None:
            share_bundle(self.data_dir)
        else:
            share_user_bundle(self.data_dir, self.user)
        arguments = ["--port", port, "--data-dir", str(self.data_dir)]
        if self._config:
            file = self.data_dir.parent / f"{self.data_dir.name}.toml"
            file.write_text(self._config)
            arguments += ["--config", str(file)]
        log = (self.data_dir.parent / f"{self.data_dir.name}.log").open("a")
        if self.user is None:
            command = [sys.executable, "-m", self._module, *arguments]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._env)
        else:
            place, options = self.data_dir.parent, {"stdout": subprocess.PIPE, "stderr": log, "env": self._env}
            self._process = users.start(self._module, arguments, place, user=self.user, **options)
        log.close()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := READY.search(line):
                self.ready_line = line.strip()
                self.url = f"http://127.0.0.1:{found[2]}"
                return self
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        return (self.data_dir.parent / f"{self.data_dir.name}.log").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, *, timeout: float = 30) -> int:
        """SIGTERM, as an operator would; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def client(self, *, timeout: float = 60) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    # --- functions ---------------------------------------------------------------------------------------------

    def deploy(self, name: str, files: Mapping[str, str], **fields: Any) -> dict[str, Any]:
        """Create the function, or update it if it exists. `fields` are Function Compute's."""
        body: dict[str, Any] = {
            "functionName": name,
            "runtime": "python3.12",
            "handler": "index.handler",
            "code": {"zipFile": zip_base64(files)},
            **fields,
        }
        with self.client() as client:
            reply = client.post("/2023-03-30/functions", json=body)
            if reply.status_code == 409:
                del body["functionName"]
                reply = client.put(f"/2023-03-30/functions/{name}", json=body)
            assert reply.status_code == 200, reply.text
            return dict(reply.json())

    def invoke(self, name: str, event: bytes | str = b"", **headers: str) -> httpx.Response:
        with self.client() as client:
            sent = {k.replace("_", "-"): v for k, v in headers.items()}
            return client.post(f"/2023-03-30/functions/{name}/invocations", content=event, headers=sent)

    def instances(self) -> list[dict[str, Any]]:
        with self.client() as client:
            return list(client.get("/roost/instances").json()["instances"])

    def until(self, condition: Callable[[], bool], timeout: float = 15) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"timed out; instances: {self.instances()}"
            time.sleep(0.02)


def share_user_bundle(data_dir: Path, user: int) -> None:
    """The same for a user, whose bundle it has to be; the data directory becomes the user's too."""
    shared = Path(tempfile.gettempdir()) / f"roost-test-bundle-{user}" / "guest"
    shared.mkdir(parents=True, exist_ok=True)
    os.chown(shared, user, user)
    guest = data_dir / "guest"
    if not guest.exists():
        guest.symlink_to(shared)
        users.give(data_dir, user)
    for parent in data_dir.resolve().parents:  # pytest closes its own
        if parent.stat().st_mode & 0o001:
            break
        parent.chmod(parent.stat().st_mode | 0o011)


def share_bundle(data_dir: Path) -> None:
    """Lead the data directory to the guest bundle that tests have in common, instead of a copy for each."""
    guest = data_dir / "guest"
    if not guest.exists():
        guest.symlink_to(_shared_bundles())


@cache
def _shared_bundles() -> Path:
    shared = Path(tempfile.gettempdir()) / "roost-test-bundle"
    build_bundle(shared)
    return shared / "guest"


def share_packages(data_dir: Path, packages: Path) -> None:
    """Give the data directory the packages of code contexts that are installed already: hard links."""
    shelf = data_dir / "packages"
    if not shelf.exists():
        shelf.mkdir()
        subprocess.run(["cp", "-al", str(packages), str(shelf / packages.name)], check=True)


def zip_base64(files: Mapping[str, str]) -> str:
    """Text files as the base64 of a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o755 if text.startswith("#!") else 0o644) << 16
            archive.writestr(info, text)
    return base64.b64encode(buffer.getvalue()).decode()


@contextlib.contextmanager
def running(data_dir: Path, **options: Any) -> Iterator[Server]:
    """A server that is stopped, and must stop cleanly, at the end."""
    server = Server(data_dir, **options).start()
    try:
        yield server
    except BaseException:
        print(server.log()[-8000:])
        server.kill()
        raise
    code = server.stop()
    assert code == 0, server.log()[-4000:]


@dataclass(frozen=True)
class Remains:
    """What a server of `data_dir` has on this machine now."""

    processes: int
    cgroups: int
    mounts: int
    loops: int
    run: int

    @classmethod
    def of(cls, data_dir: Path) -> Remains:
        import hashlib

        digest = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:8]
        tree = Path("/sys/fs/cgroup")
        groups = [p for base in (tree, *tree.iterdir()) for p in base.glob(f"*roost*{digest}*/*/")]
        run = Path("/run/roost") / digest
        return cls(
            processes=_processes(str(data_dir), digest),
            cgroups=len(groups),
            mounts=sum(str(data_dir) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            loops=_loops(str(data_dir)),
            run=len(list(run.iterdir())) if run.exists() else 0,
        )


def _processes(data_dir: str, digest: str) -> int:
    """Processes whose cgroup or command line names the data directory."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = (entry / "cgroup").read_text() + (entry / "cmdline").read_text()
                # A room that outlived its server was inherited by the machine's init, which reaps it when it likes.
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                count += not zombie and (digest in text or data_dir in text)
    return count


def _loops(data_dir: str) -> int:
    count = 0
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            count += data_dir in file.read_text()
    return count


NOTHING = Remains(processes=0, cgroups=0, mounts=0, loops=0, run=0)
