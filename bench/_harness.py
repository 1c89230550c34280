"""What every benchmark shares: interleaved runs, medians of at least 30, the ratio first, a Markdown table."""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

MIN_RUNS = 30

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Of one series, in the unit of its values."""

    median: float
    p99: float
    least: float
    n: int


def stats(values: Sequence[float]) -> Stats:
    ordered = sorted(values)
    rank = max(0, math.ceil(0.99 * len(ordered)) - 1)
    return Stats(median=statistics.median(ordered), p99=ordered[rank], least=ordered[0], n=len(ordered))


def interleave(candidates: Mapping[str, Callable[[], T]], runs: int, *, seed: int = 1) -> dict[str, list[T]]:
    """Run every candidate `runs` times, in a new random order each round, so that a slow moment of the machine
    hits all alike."""
    shuffle = random.Random(seed).shuffle
    names = list(candidates)
    results: dict[str, list[T]] = {name: [] for name in names}
    for done in range(runs):
        shuffle(names)
        for name in names:
            results[name].append(candidates[name]())
        progress(f"round {done + 1} of {runs}")
    progress("")
    return results


def progress(text: str) -> None:
    """One line on standard error that overwrites itself; nothing when that is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def table(
    title: str, unit: str, series: Mapping[str, Sequence[float]], *, reference: str, more_is_better: bool = False
) -> None:
    """Print the series as a table; the first column of figures is the ratio of medians to `reference`."""
    base = stats(series[reference]).median
    print(f"\n### {title}\n")
    print(f"| | ratio to {reference} | median, {unit} | {'p99, the best' if more_is_better else 'p99'} | min | n |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in series.items():
        s = stats(values)
        print(
            f"| {name} | {s.median / base:.2f} | {_figure(s.median)} | {_figure(s.p99)} | {_figure(s.least)} | {s.n} |"
        )
    sys.stdout.flush()


def _figure(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Promises:
    """The limits of spec/SPECIFICATION.md that a script holds."""

    def __init__(self) -> None:
        self.broken = 0

    def at_most(self, what: str, measured: float, limit: float, unit: str) -> None:
        self._tell(measured <= limit, f"{what}: {_figure(measured)} {unit}, promised at most {limit:g}")

    def at_least(self, what: str, measured: float, limit: float, unit: str) -> None:
        self._tell(measured >= limit, f"{what}: {_figure(measured)} {unit}, promised at least {limit:g}")

    def _tell(self, held: bool, text: str) -> None:
        self.broken += not held
        print(f"\n{'held' if held else 'NOT HELD'}: {text}", flush=True)


def machine() -> str:
    """What it was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.release()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, load before the run {load:.1f}"
    )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options all scripts have; each adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=40, help=f"samples of each candidate, at least {MIN_RUNS}")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not held")
    return parser


def begin(title: str, options: argparse.Namespace) -> None:
    if options.runs < MIN_RUNS:
        sys.exit(f"--runs must be at least {MIN_RUNS}: a median of fewer says little.")
    print(f"## {title}\n\n{machine()}", flush=True)


def end(promises: Promises, options: argparse.Namespace) -> None:
    sys.exit(1 if options.check and promises.broken else 0)
