"""Warm requests: what Roost adds to a handler, and how many requests it carries.

The same `hello` handler behind Roost, behind uvicorn alone, behind functions-framework and behind Ray Serve, on the
same cores as the load generator. Ray Serve's own background work disturbs whatever runs beside it, so it has a phase of
its own, again beside uvicorn alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
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


def compare(title: str, targets: Mapping[str, tuple[int, str]], runs: int) -> tuple[dict[str, list[float]], ...]:
    for port, path in targets.values():
        load(port, path, "--connections", CONCURRENCY, "--seconds", 1)  # imports, pools, caches
    measured = []
    for what, unit, measure, more in (
        ("p50 at concurrency 1", "ms", latency, False),
        (f"throughput at concurrency {CONCURRENCY}", "requests/s", throughput, True),
    ):
        series = _harness.interleave(_bind(measure, targets), runs)
        _harness.table(f"{title}: {what}", unit, series, reference="uvicorn alone", more_is_better=more)
        measured.append(series)
    return tuple(measured)


def _bind(
    measure: Callable[[int, str], float], targets: Mapping[str, tuple[int, str]]
) -> dict[str, Callable[[], float]]:
    return {name: (lambda port=port, path=path: measure(port, path)) for name, (port, path) in targets.items()}  # type: ignore[misc]


@contextlib.contextmanager
def roost() -> Iterator[tuple[int, str]]:
    with _servers.roost() as server:
        server.deploy("warm", {"main.py": _servers.ASGI_APP}, handler="main.app", instanceConcurrency=100)
        _servers.first_byte(server.port, "/warm/")
        yield server.port, "/warm/"


def first_phase(options: argparse.Namespace, promises: _harness.Promises) -> None:
    with contextlib.ExitStack() as stack:
        targets = {"uvicorn alone": (stack.enter_context(_servers.bare_uvicorn()), "/")}
        targets["Roost"] = stack.enter_context(roost())
        try:
            targets["functions-framework"] = (stack.enter_context(_servers.functions_framework()), "/")
        except _servers.Missing as missing:
            print(f"\nnot measured: {missing}")
        latencies, throughputs = compare("Warm", targets, options.runs)
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
