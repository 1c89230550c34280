"""Cold start: a request for a function at zero, from opening the connection to the first byte of the reply.

Each sample of Roost asks a function that never ran for its first reply; the template is warm, as it is after the first
function of any kind. Beside it: `bwrap … python3` that runs the same handler once, to its first byte of output, and
functions-framework, from the start of its process to its first reply.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import _harness, _servers

HANDLER = """
def handler(event, context):
    return {"statusCode": 200, "headers": {"content-type": "text/plain"}, "body": "hello"}
"""
ONCE = "import sys; sys.path.insert(0, '/code'); import index; print(index.handler(b'{}', None)['body'], flush=True)"


def roost_cold(server: _servers.Roost, runs: int) -> Callable[[], float]:
    names = [f"cold-{number}" for number in range(runs)]
    for name in ["warm-up", *names]:
        server.deploy(name, {"index.py": HANDLER}, handler="index.handler")
    _servers.first_byte(server.port, "/warm-up/")
    waiting = iter(names)
    return lambda: _servers.first_byte(server.port, f"/{next(waiting)}/") * 1000


def bwrap_python(directory: Path) -> Callable[[], float]:
    program = _servers.bwrap()
    (directory / "index.py").write_text(HANDLER)
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    base = Path(sys.base_prefix)
    binds = ["--ro-bind", "/usr", "/usr"]
    if not python.startswith("/usr/"):
        python = str(base / "bin" / "python3")
        binds += ["--ro-bind", str(base), str(base)]
    for link in ("/lib", "/lib64", "/bin"):
        if Path(link).is_symlink():
            binds += ["--symlink", f"usr{link}", link]
    command = [
        program, *binds, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind", str(directory), "/code",
        "--unshare-all", "--die-with-parent", python, "-c", ONCE,
    ]  # fmt: skip

    def once() -> float:
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            seconds = time.perf_counter() - started
            if first + process.stdout.read() != b"hello\n":
                raise RuntimeError("bwrap's python3 did not run the handler")
            return seconds * 1000

    return once


def functions_framework(directory: Path) -> Callable[[], float]:
    _servers.peer("functions-framework")
    (directory / "main.py").write_text(_servers.FUNCTIONS_FRAMEWORK_APP)

    def once() -> float:
        port = _servers.free_port()
        started = time.perf_counter()
        process = _servers.spawn(_servers.functions_framework_command(port), cwd=directory, log=directory / "log")
        try:
            _servers.wait_until_served(port, "/", process, pause_s=0.002, deadline_s=60)
            return (time.perf_counter() - started) * 1000
        finally:
            _servers.stop(process)

    return once


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin("Cold start", options)
    promises = _harness.Promises()
    with _servers.roost() as server, tempfile.TemporaryDirectory(prefix="roost-bench-") as name:
        candidates = {"Roost": roost_cold(server, options.runs)}
        for title, make in (("bwrap … python3", bwrap_python), ("functions-framework", functions_framework)):
            directory = Path(name) / make.__name__
            directory.mkdir()
            try:
                candidates[title] = make(directory)
            except _servers.Missing as missing:
                print(f"\nnot measured: {missing}")
        series = _harness.interleave(candidates, options.runs)
    _harness.table("Request to first byte, from zero", "ms", series, reference="Roost")
    promises.at_most("cold start, median", _harness.stats(series["Roost"]).median, 25.0, "ms")
    _harness.end(promises, options)


if __name__ == "__main__":
    main()
