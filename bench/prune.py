"""Does the store shrink when finished tasks age out? 100,000 of them are stored, finished and pruned, on each backend.

SQLite's file is measured with its log, PostgreSQL's table with its indexes (pg_total_relation_size): SQLite gives what
is free back to the disk, PostgreSQL keeps it for later rows. The longest wait is that of another's writes meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import uvloop

from bench import _harness
from roost.model.task import Task, TaskEvent, TaskState, Verdict
from roost.store.functions import FunctionRecord
from roost.store.store import Store
from tests.support.postgres import serving

PAYLOAD = b"x" * 128
CALLERS = 256
#: Of SQLite's file, what may be left at the end.
SPARE_MB = 10.0


async def each(count: int, work: Callable[[int], Awaitable[object]]) -> float:
    """All numbers, CALLERS at a time; how many a second."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count / (time.perf_counter() - began)


async def measured(store: Store, count: int, size_mb: Callable[[], float]) -> dict[str, float]:
    await store.open()
    try:
        await store.functions.put(FunctionRecord(account="a", name="f", id="f", config={}, created=1.0, modified=1.0))
        now = time.time()
        tasks = [
            Task(
                account="a", function="f", id=f"t{number:06}", qualifier="LATEST", request_id=f"r{number}",
                enqueued=now, ready=now, due=now, digest="d" * 64,
                events=(TaskEvent(state=TaskState.ENQUEUED, at=now),),
            )
            for number in range(count)
        ]  # fmt: skip

        async def finish(number: int) -> None:
            claimed, _ = await store.tasks.claim(tasks[number], instance_id="i", now=now)
            await store.tasks.conclude(claimed, Verdict(state=TaskState.SUCCEEDED), now=now + number, result=b"")

        found = {"enqueued a second": await each(count, lambda number: store.tasks.enqueue(tasks[number], PAYLOAD))}
        found["finished a second"] = await each(count, finish)
        found["before, MB"] = size_mb()
        waits: list[float] = []

        async def other() -> None:
            while True:
                began = time.perf_counter()
                await store.settings.put("other", len(waits))
                waits.append(time.perf_counter() - began)
                await asyncio.sleep(0.01)

        beside = asyncio.create_task(other())
        began = time.perf_counter()
        while await store.tasks.prune(keep=0, ended_before=0.0):
            pass
        found["pruned in, s"] = time.perf_counter() - began
        await asyncio.sleep(2)
        beside.cancel()
        found["longest wait, ms"] = 1000 * max(waits)
        await asyncio.sleep(2)
        found["after, MB"] = size_mb()
        return found
    finally:
        await store.close()


def sqlite(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        path = Path(folder) / "roost.db"
        files = (path, path.with_name("roost.db-wal"))
        return uvloop.run(
            measured(Store(path), count, lambda: sum(file.stat().st_size for file in files if file.exists()) / 1e6)
        )


def postgres(count: int) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory(prefix="roost-bench-") as folder,
        serving(fsync="on", shared_buffers="128MB", max_wal_size="1GB") as server,
        server.database() as url,
    ):

        def size_mb() -> float:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM tasks")
                row = connection.execute("SELECT pg_total_relation_size('tasks')").fetchone()
            return float(row[0]) / 1e6 if row else 0.0

        return uvloop.run(measured(Store(Path(folder) / "roost.db", url), count, size_mb))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not held")
    parser.add_argument("--runs", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(f"## Pruning of finished tasks\n\n{_harness.machine()}; {options.tasks} tasks of {len(PAYLOAD)} bytes")
    print("\nSQLite: synchronous=FULL. PostgreSQL: fsync=on, synchronous_commit=on, over loopback.", flush=True)
    rows = {"SQLite": sqlite(options.tasks), "PostgreSQL": postgres(options.tasks)}
    names = list(rows["SQLite"])
    print(f"\n| store | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for title, found in rows.items():
        print(f"| {title} | {' | '.join(f'{found[name]:.4g}' for name in names)} |")
    promises = _harness.Promises()
    promises.at_most("SQLite's file after pruning", rows["SQLite"]["after, MB"], SPARE_MB, "MB")
    sys.exit(1 if options.check and promises.broken else 0)


if __name__ == "__main__":
    main()
