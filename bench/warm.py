"""Warm requests: what Roost adds to a handler, and how many requests it carries.

The same `hello` handler behind Roost, behind uvicorn alone, behind functions-framework and behind Ray Serve, on the
same cores as the load generator. Ray Serve's own background work disturbs whatever runs beside it, so it has a phase of
its own, again beside uvicorn alone. A last table says where the CPU time of a request goes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import _harness, _load, _servers

REQUESTS = 200  # of one sample, at concurrency 1
SECONDS = 0.5  # of one sample, at concurrency 16
CONCURRENCY = 16


def load(port: int, path: str, *options: str | int | float) -> dict[str, Any]:
    done = subprocess.run(_load.command(port, path, *options), capture_output=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} of {result['failed'] + result['answered']} requests failed")
    return result


def latency(port: int, path: str) -> float:
    """Median milliseconds of one sample at concurrency 1."""
    result = load(port, path, "--connections", 1, "--requests", REQUESTS)
    return _harness.stats(result["latencies"]).median * 1000


def throughput(port: int, path: str) -> float:
    """Requests a second of one sample at concurrency 16."""
    result = load(port, path, "--connections", CONCURRENCY, "--seconds", SECONDS)
    return float(result["answered"] / result["seconds"])


def throughput_varied(port: int, path: str) -> float:
    """The same with no two heads alike: nothing that is remembered of a head helps."""
    result = load(port, path, "--connections", CONCURRENCY, "--seconds", SECONDS, "--vary")
    return float(result["answered"] / result["seconds"])


def compare(title: str, targets: Mapping[str, tuple[int, str]], runs: int) -> tuple[dict[str, list[float]], ...]:
    for port, path in targets.values():
        load(port, path, "--connections", CONCURRENCY, "--seconds", 1)  # imports, pools, caches
    measured = []
    for what, unit, measure, more in (
        ("p50 at concurrency 1", "ms", latency, False),
        (f"throughput at concurrency {CONCURRENCY}", "requests/s", throughput, True),
        (f"throughput at concurrency {CONCURRENCY}, no two heads alike", "requests/s", throughput_varied, True),
    ):
        series = _harness.interleave(_bind(measure, targets), runs)
        _harness.table(f"{title}: {what}", unit, series, reference="uvicorn alone", more_is_better=more)
        measured.append(series)
    return tuple(measured)


def _bind(
    measure: Callable[[int, str], float], targets: Mapping[str, tuple[int, str]]
) -> dict[str, Callable[[], float]]:
    return {name: (lambda port=port, path=path: measure(port, path)) for name, (port, path) in targets.items()}  # type: ignore[misc]


def cpu_seconds(process: int) -> float:
    """Of all threads of a process, to the microsecond."""
    tasks = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def descendants(process: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def budget(server: _servers.Roost) -> None:
    """The CPU time of a request at concurrency 16, by who spends it."""
    host, rooms = server.process.pid, descendants(server.process.pid)
    before = cpu_seconds(host), sum(map(cpu_seconds, rooms))
    result = load(server.port, "/warm/", "--connections", CONCURRENCY, "--seconds", 4)
    after = cpu_seconds(host), sum(map(cpu_seconds, rooms))
    spent = {
        "the server": after[0] - before[0],
        "the room": after[1] - before[1],
        "the load generator": result["cpu"],
    }
    print(f"\n### CPU time of a request to Roost at concurrency {CONCURRENCY}\n\n| | microseconds |\n|---|---:|")
    for who, seconds in spent.items():
        print(f"| {who} | {seconds / result['answered'] * 1e6:.0f} |")


@contextlib.contextmanager
def roost() -> Iterator[_servers.Roost]:
    with _servers.roost() as server:
        server.deploy("warm", {"main.py": _servers.ASGI_APP}, handler="main.app", instanceConcurrency=100)
        _servers.first_byte(server.port, "/warm/")
        yield server


def first_phase(options: argparse.Namespace, promises: _harness.Promises) -> None:
    with contextlib.ExitStack() as stack:
        targets = {"uvicorn alone": (stack.enter_context(_servers.bare_uvicorn()), "/")}
        server = stack.enter_context(roost())
        targets["Roost"] = (server.port, "/warm/")
        try:
            targets["functions-framework"] = (stack.enter_context(_servers.functions_framework()), "/")
        except _servers.Missing as missing:
            print(f"\nnot measured: {missing}")
        latencies, throughputs, _ = compare("Warm", targets, options.runs)
        budget(server)
    added = [r - b for r, b in zip(latencies["Roost"], latencies["uvicorn alone"], strict=True)]
    promises.at_most("p50 added at concurrency 1", _harness.stats(added).median, 1.0, "ms")
    ratios = [r / b for r, b in zip(throughputs["Roost"], throughputs["uvicorn alone"], strict=True)]
    promises.at_least("throughput at concurrency 16, of uvicorn alone", _harness.stats(ratios).median, 0.5, "times")


def second_phase(options: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        try:
            targets = {"Ray Serve": (stack.enter_context(_servers.ray_serve()), "/")}
        except _servers.Missing as missing:
            print(f"\nnot measured: {missing}")
            return
        targets["uvicorn alone"] = (stack.enter_context(_servers.bare_uvicorn()), "/")
        compare("Warm, beside Ray Serve", targets, options.runs)


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin("Warm requests", options)
    promises = _harness.Promises()
    first_phase(options, promises)
    second_phase(options)
    _harness.end(promises, options)


if __name__ == "__main__":
    main()
