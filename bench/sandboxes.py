"""Sandboxes with E2B's own Python SDK: create -> first `run_code("1+1")`, warm `run_code`, contexts, memory, a burst.

Beside it the same SDK against a server that does nothing: the difference is the server's share. And what else runs
untrusted Python: a kernel of the Jupyter Kernel Gateway, SWE-ReX's local deployment, `bwrap … python3 -c`, and gVisor's
`runsc do` where it is installed. Needs root, and the SDK (`make .venv/.installed-dev`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import _harness, _servers
from tests.support.server import Remains

FUNCTION = "sandbox:code-interpreter-v1"
CELL = "1+1"
SHARE_FACTOR = 3  # as many runs again, without the slow peers, for what is promised
PAUSE_S = 0.05
MEMORY_OF = 20
LIVES_S = 1800


class Sandboxes:
    """E2B's SDK, pointed at one server. `pair` makes a sandbox and ends the one before, which is not timed."""

    def __init__(self, port: int) -> None:
        from e2b_code_interpreter import Sandbox

        url = f"http://127.0.0.1:{port}"
        self._options = {"api_key": "e2b_" + "0" * 40, "api_url": url, "sandbox_url": url, "timeout": LIVES_S}
        self._make = Sandbox.create
        self._find = Sandbox.connect
        self._last: Any = None

    def create(self) -> Any:
        return self._make(**self._options)

    def connect(self, id: str) -> Any:
        return self._find(id, **self._options)

    def pair(self) -> float:
        self.end()
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        self._last = self.create()
        run(self._last)
        return (time.perf_counter() - started) * 1000

    def warm(self) -> float:
        started = time.perf_counter()
        run(self._last)
        return (time.perf_counter() - started) * 1000

    def context(self) -> float:
        started = time.perf_counter()
        context = self._last.create_code_context()
        milliseconds = (time.perf_counter() - started) * 1000
        self._last.remove_code_context(context)
        return milliseconds

    def end(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.kill()


def run(sandbox: Any) -> None:
    if (said := sandbox.run_code(CELL).text) != "2":
        raise RuntimeError(f"{CELL} gave {said!r}")


@dataclass
class Peers:
    """What is measured beside it: `pairs` from nothing to the first result, `warm` one more."""

    pairs: dict[str, Callable[[], float]] = field(default_factory=dict)
    warm: dict[str, Callable[[], float]] = field(default_factory=dict)


@contextlib.contextmanager
def peers(directory: Path) -> Iterator[Peers]:
    found = Peers()
    with contextlib.ExitStack() as stack:
        for add in (_jupyter, _swerex, _bwrap, _runsc):
            try:
                add(found, stack, directory)
            except _servers.Missing as missing:
                print(f"\nnot measured: {missing}")
        yield found


def _jupyter(found: Peers, stack: contextlib.ExitStack, directory: Path) -> None:
    program, port = _servers.peer("jupyter-kernelgateway"), _servers.free_port()
    command = [program, f"--port={port}", "--ip=127.0.0.1", "--KernelGatewayApp.api=kernel_gateway.jupyter_websocket"]
    gateway = _servers.spawn(command, cwd=directory, log=directory / "jupyter.log")
    stack.callback(_servers.stop, gateway)
    _servers.wait_until_served(port, "/api", gateway, pause_s=0.1, deadline_s=60)
    ask = _runner(stack, directory, "jupyter", str(port))
    found.pairs["Jupyter Kernel Gateway"] = lambda: ask("pair")
    found.warm["Jupyter Kernel Gateway"] = lambda: ask("warm")


def _swerex(found: Peers, stack: contextlib.ExitStack, directory: Path) -> None:
    _servers.peer("swerex-remote")
    ask = _runner(stack, directory, "swerex")
    found.pairs["SWE-ReX, local"] = lambda: ask("pair")
    found.warm["SWE-ReX, local"] = lambda: ask("warm")


def _runner(stack: contextlib.ExitStack, directory: Path, *arguments: str) -> Callable[[str], float]:
    command = [_servers.peer("python"), str(Path(__file__).with_name("_peer_runs.py")), *arguments]
    log = stack.enter_context((directory / f"{arguments[0]}-runs.log").open("w"))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    stack.callback(process.wait, 30)
    assert process.stdin is not None
    assert process.stdout is not None
    sent, said = process.stdin, process.stdout
    stack.callback(sent.close)

    def ask(what: str) -> float:
        sent.write(f"{what}\n")
        sent.flush()
        while line := said.readline():
            with contextlib.suppress(ValueError):  # what the library prints
                return float(line)
        raise RuntimeError(f"{arguments[0]} ended: {Path(log.name).read_text()[-1000:]}")

    return ask


def _bwrap(found: Peers, stack: contextlib.ExitStack, directory: Path) -> None:
    links = [("--symlink", f"usr{link}", link) for link in ("/lib", "/lib64", "/bin") if Path(link).is_symlink()]
    command = [
        _servers.bwrap(), "--ro-bind", "/usr", "/usr", *(word for link in links for word in link), "--proc", "/proc",
        "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all", "--die-with-parent", _python(), "-c", f"print({CELL})",
    ]  # fmt: skip
    found.pairs["bwrap … python3 -c"] = _command(command)


def _runsc(found: Peers, stack: contextlib.ExitStack, directory: Path) -> None:
    program = os.environ.get("ROOST_BENCH_RUNSC") or shutil.which("runsc")
    if program is None:
        raise _servers.Missing("runsc is not installed: apt-get install runsc")
    measure = _command([program, "--network=none", "do", _python(), "-c", f"print({CELL})"])
    try:
        measure()
    except RuntimeError as error:
        raise _servers.Missing(f"runsc does not run here: {error}") from error
    found.pairs["runsc do python3 -c"] = measure


def _python() -> str:
    if not Path("/usr/bin/python3").exists():
        raise _servers.Missing("/usr/bin/python3 is not installed")
    return "/usr/bin/python3"


def _command(command: list[str]) -> Callable[[], float]:
    """To the first byte of its output."""

    def once() -> float:
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.read(1)
            seconds = time.perf_counter() - started
            said = first + process.stdout.read() + process.stderr.read()
            if first != b"2":
                raise RuntimeError(said.decode(errors="replace").strip()[-300:])
        return seconds * 1000

    return once


@contextlib.contextmanager
def does_nothing(directory: Path) -> Iterator[int]:
    port = _servers.free_port()
    command = [sys.executable, str(Path(__file__).with_name("_nothing.py")), str(port)]
    process = _servers.spawn(command, cwd=directory, log=directory / "nothing.log")
    try:
        _servers.wait_until_served(port, "/execute", process, pause_s=0.05, deadline_s=30)
        yield port
    finally:
        _servers.stop(process)


# -- memory and the burst


@dataclass
class Burst:
    """What its clients saw."""

    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sandboxes: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, sandboxes: Sandboxes) -> None:
        started = time.perf_counter()
        try:
            sandbox = sandboxes.create()
            with self.lock:
                self.sandboxes.append(sandbox)
            run(sandbox)
        except Exception as error:
            with self.lock:
                self.errors.append(f"{type(error).__name__}: {error}")
        else:
            with self.lock:
                self.latencies.append((time.perf_counter() - started) * 1000)

    def kill(self, sandbox: Any) -> None:
        try:
            sandbox.kill()
        except Exception as error:
            with self.lock:
                self.errors.append(f"{type(error).__name__}: {error}")


def memory(server: _servers.Roost, sandboxes: Sandboxes) -> float:
    """What is charged to a sandbox that has run a cell, in MB."""
    burst = Burst()
    for _ in range(MEMORY_OF):
        burst.one(sandboxes)
    time.sleep(1)
    charged = server.metric("roost_memory_bytes", function=FUNCTION) / MEMORY_OF / 2**20
    for sandbox in burst.sandboxes:
        burst.kill(sandbox)
    if burst.errors:
        raise RuntimeError(burst.errors[0])
    return charged


def storm(server: _servers.Roost, sandboxes: Sandboxes, count: int, clients: int) -> tuple[Burst, float, Remains]:
    """Make all of them, then end them; the seconds it took to make them, and what is left of them that was not there
    before."""
    data_dir = server.data_dir / "data"
    before = Remains.of(data_dir)
    burst = Burst()
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        list(pool.map(lambda _: burst.one(sandboxes), range(count)))
        seconds = time.perf_counter() - started
        list(pool.map(burst.kill, burst.sandboxes))
    end = time.monotonic() + 30
    while True:  # the pools of what is made ahead fill up again, and a new zygote may take over from the last
        left = _difference(Remains.of(data_dir), before)
        if not any(left.values()) or time.monotonic() > end:
            return burst, seconds, Remains(**left)
        time.sleep(0.5)


def _difference(after: Remains, before: Remains) -> dict[str, int]:
    return {name: max(0, value - getattr(before, name)) for name, value in vars(after).items()}


def main() -> None:
    parser = _harness.arguments(__doc__)
    parser.add_argument("--sandboxes", type=int, default=500, help="of the burst")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--packages", type=Path, help="a data directory that has the packages of contexts already")
    options = parser.parse_args()
    _harness.begin("Sandboxes", options)
    promises = _harness.Promises()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-bench-")))
        server = stack.enter_context(_servers.roost(packages=True, packages_of=options.packages))
        ours = Sandboxes(server.port)
        floor = Sandboxes(stack.enter_context(does_nothing(directory)))
        beside = stack.enter_context(peers(directory))
        known = {"Roost": ours.pair, "the SDK alone": floor.pair}
        for measure in known.values():
            measure()
        series = _harness.interleave({**known, **beside.pairs}, options.runs)
        promised = _harness.interleave(known, options.runs * SHARE_FACTOR, seed=2)
        warm = _harness.interleave({"Roost": ours.warm, "the SDK alone": floor.warm, **beside.warm}, options.runs)
        contexts = _harness.interleave({"Roost": ours.context, "the SDK alone": floor.context}, options.runs)
        ours.end()
        charged = memory(server, ours)
        burst, seconds, left = storm(server, ours, options.sandboxes, options.clients)
    _harness.table("From nothing to the first result of 1+1", "ms", series, reference="Roost")
    _harness.table("The same without the others", "ms", promised, reference="Roost")
    _harness.table("One more run", "ms", warm, reference="Roost")
    _harness.table("A new context", "ms", contexts, reference="Roost")
    title = f"{options.sandboxes} sandboxes by {options.clients} clients, each to its first result"
    _harness.table(title, "ms", {"Roost": burst.latencies}, reference="Roost")
    print(f"\n{options.sandboxes / seconds:.1f} sandboxes a second; errors: {burst.errors[:3] or 'none'}; left: {left}")
    _tell(promises, promised, warm, contexts, charged, burst, left)
    _harness.end(promises, options)


def _tell(
    promises: _harness.Promises,
    pairs: Mapping[str, list[float]],
    warm: Mapping[str, list[float]],
    contexts: Mapping[str, list[float]],
    charged: float,
    burst: Burst,
    left: Remains,
) -> None:
    for name, values in (("the pair", pairs), ("one more run", warm), ("a new context", contexts)):
        share = _harness.stats(values["Roost"]).median - _harness.stats(values["the SDK alone"]).median
        print(f"\nThe server's share of {name}: {share:.1f} ms")
    first = _harness.stats(pairs["Roost"])
    promises.at_most("create to first result, median", first.median, 40.0, "ms")
    promises.at_most("create to first result, p99", first.p99, 120.0, "ms")
    promises.at_most("warm run_code, median", _harness.stats(warm["Roost"]).median, 4.0, "ms")
    promises.at_most("new context, median", _harness.stats(contexts["Roost"]).median, 10.0, "ms")
    promises.at_most("memory charged to a sandbox", charged, 10.0, "MB")
    promises.at_most("errors of the burst", len(burst.errors), 0, "errors")
    promises.at_most("what the burst left", sum(vars(left).values()), 0, "things")


if __name__ == "__main__":
    main()
