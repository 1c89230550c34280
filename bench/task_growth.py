"""What asynchronous tasks leave on the disk: SQLite's file after 100,000 of them, pruned, and after as many again.

Pages of tasks that are forgotten are used again, so the file does not shrink, and does not grow either: the third
figure is the one that says whether it is bounded. Submitted over HTTP while the server runs them.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import _harness, _queues, _servers, tasks

_DEADLINE_S = 1800.0
_FEW = 10


class Keeping(_queues.Roost):
    """A server that keeps so many finished tasks."""

    keep = 0

    def command(self) -> list[str]:
        config = self.directory / "roost.toml"
        config.write_text(f"keep_tasks = {self.keep}\n")
        return [*super().command(), "--config", str(config)]

    @property
    def database(self) -> Path:
        return self.directory / "data" / "roost.db"

    def stop(self) -> None:
        _servers.stop(self._servers.pop())

    def size_mb(self) -> float:
        return sum(file.stat().st_size for file in self.database.parent.glob("roost.db*")) / 1e6

    def finished(self) -> int:
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            count: int = database.execute("SELECT count(*) FROM tasks WHERE ended > 0").fetchone()[0]
            return count


def run_all(queue: Keeping, prefix: str, count: int) -> None:
    """Submit them, and return when the record of each has its end."""
    before = queue.finished()
    each = -(-count // tasks.PROCESSES)
    submitted = tasks.submit(queue, prefix, count=each, producers=tasks.PRODUCERS)
    if submitted.failed:
        raise RuntimeError(f"{submitted.failed} tasks were refused: {submitted.error}")
    _until(lambda: queue.finished() >= before + len(submitted.accepted))


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"not done in {_DEADLINE_S:.0f} s")
        time.sleep(1.0)


def measure(count: int) -> dict[str, float]:
    found: dict[str, float] = {}
    queue = Keeping()
    try:
        queue.keep = 2 * count
        queue.start()
        queue.set_up()
        queue.stop()
        found["empty"] = queue.size_mb()
        queue.start()
        run_all(queue, "a", count)
        queue.stop()
        found[f"{count} finished tasks"] = queue.size_mb()
        queue.keep = 1
        queue.start()
        _until(lambda: queue.finished() <= _FEW)
        queue.stop()
        found["pruned"] = queue.size_mb()
        queue.keep = 2 * count
        queue.start()
        run_all(queue, "b", count)
        queue.stop()
        found["as many again"] = queue.size_mb()
    finally:
        queue.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not held")
    parser.add_argument("--runs", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, tasks.interrupted)
    print(f"## Tasks on the disk\n\n{_harness.machine()}; tasks of 128 bytes\n\n| SQLite's file | MB |\n|---|---:|")
    found = measure(options.tasks)
    for name, size in found.items():
        print(f"| {name} | {size:.1f} |")
    promises = _harness.Promises()
    first, again = found[f"{options.tasks} finished tasks"], found["as many again"]
    promises.at_most("growth by tasks whose forerunners were forgotten", again / first, 1.1, "times the file")
    sys.exit(1 if options.check and promises.broken else 0)


if __name__ == "__main__":
    main()
