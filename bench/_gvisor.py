"""gVisor's own checkpoints, of a program with a heap: what a live branch is compared with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bench import _servers

_PROGRAM = """
import time
heap = bytearray({mb} << 20)
for at in range(0, len(heap), 4096): heap[at] = 1
while True:
    try: print(len(heap), flush=True)
    except OSError: pass
    time.sleep(0.002)
"""
_WAIT_S = 60.0


class Checkpoints:
    """Leaving the `with` removes what was made. Raises Missing."""

    def __init__(self, mb: int) -> None:
        self._mb = mb
        self._number = 0
        self._kept = ""

    def __enter__(self) -> Checkpoints:
        found = os.environ.get("ROOST_BENCH_RUNSC") or shutil.which("runsc")
        if found is None:
            raise _servers.Missing("runsc is not installed: apt-get install runsc")
        self._directory = Path(tempfile.mkdtemp(prefix="roost-bench-"))
        state = self._directory / "state"
        self._runsc = [found, f"--root={state}", "--network=none", "--rootless=false", "--ignore-cgroups"]
        config = {
            "ociVersion": "1.0.0",
            "root": {"path": "/", "readonly": True},
            "process": {
                "args": ["/usr/bin/python3", "-c", _PROGRAM.format(mb=self._mb)],
                "cwd": "/",
                "env": ["PATH=/usr/bin:/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/tmp", "type": "tmpfs"}],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
        }
        (self._directory / "config.json").write_text(json.dumps(config))
        try:
            self._end(self._run("run"))
            self.checkpoint()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.__exit__(None, None, None)
            raise _servers.Missing(f"runsc does not do this here: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def checkpoint(self) -> float:
        """To an image on the disk. The program ends with it: not to is more than this version can do."""
        name = self._run("restore", f"--image-path={self._kept}") if self._kept else self._run("run")
        image = str(self._directory / f"image-of-{name}")
        started = time.perf_counter()
        self._call("checkpoint", f"--image-path={image}", name)
        took = (time.perf_counter() - started) * 1000
        self._end(name)
        if self._kept:
            shutil.rmtree(self._kept)
        self._kept = image
        return took

    def restore(self) -> float:
        """To the first thing that the copy says."""
        started = time.perf_counter()
        name = self._run("restore", f"--image-path={self._kept}")
        took = (time.perf_counter() - started) * 1000
        self._end(name)
        return took

    def _run(self, verb: str, *options: str) -> str:
        """A container that has said something; its name. Raises RuntimeError."""
        self._number += 1
        name = f"roost-bench-{os.getpid()}-{self._number}"
        ours, theirs = os.pipe()
        try:
            self._call(verb, "--detach", f"--bundle={self._directory}", *options, name, stdout=theirs)
        finally:
            os.close(theirs)
            with os.fdopen(ours, "rb") as output:
                said = output.read(1)
        if not said:
            self._end(name)
            raise RuntimeError("the program said nothing")
        return name

    def _end(self, name: str) -> None:
        subprocess.run([*self._runsc, "delete", "--force", name], capture_output=True, check=False, timeout=_WAIT_S)

    def _call(self, *arguments: str, stdout: int = subprocess.DEVNULL) -> None:
        with (self._directory / "log").open("w+") as log:
            done = subprocess.run([*self._runsc, *arguments], stdout=stdout, stderr=log, check=False, timeout=_WAIT_S)
            if done.returncode:
                log.seek(0)
                raise RuntimeError(log.read().strip()[-300:])
