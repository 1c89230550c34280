"""Asynchronous tasks on SQLite with synchronous=FULL: how fast they are accepted, and how fast they are run.

- *enqueue, store*: the verb alone, 256 callers at once, each waiting for its commit.
- *enqueue, HTTP*: InvokeFunction with `x-fc-invocation-type: Async` over 64 kept connections, to the 202.
- *drain*: a server is started on a store in which tasks of an empty handler wait; from the first start of a task to the
  record of the last one's end, so each is claimed durably, run in a room and ended durably.
- *recovery*: from the start of that server's process to its first claim.
- the file's size, before and after the finished tasks are pruned.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench import _harness, _servers
from roost.model.task import Task, TaskEvent, TaskState
from roost.store.store import Store

HANDLERS = {
    "one at a time": ("def handler(event, context):\n    return b''\n", {}),
    "many at once": ("async def handler(event, context):\n    return b''\n", {"instanceConcurrency": 64}),
}
PAYLOAD = b"x" * 128
CALLERS = 256
CONNECTIONS = 64


async def enqueue(path: Path, function: str, count: int) -> float:
    """Tasks a second."""
    store = Store(path)
    await store.open()
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            now = time.time()
            task = Task(
                account="default", function=function, id=f"t{number}", qualifier="LATEST", request_id=f"r{number}",
                enqueued=now, ready=now, due=now, digest="d" * 64,
                events=(TaskEvent(state=TaskState.ENQUEUED, at=now),),
            )  # fmt: skip
            await store.tasks.enqueue(task, PAYLOAD)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    seconds = time.perf_counter() - began
    await store.close()
    return count / seconds


async def submit(port: int, function: str, count: int) -> float:
    """Tasks a second, over HTTP; each is delayed, so that none runs meanwhile."""
    request = (
        f"POST /2023-03-30/functions/{function}/invocations HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"x-fc-invocation-type: Async\r\nx-fc-async-delay: 3600\r\ncontent-length: {len(PAYLOAD)}\r\n\r\n"
    ).encode() + PAYLOAD
    numbers = iter(range(count))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in numbers:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 202"):
                raise RuntimeError(head.decode())
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - began)


@contextlib.contextmanager
def server(data_dir: Path) -> Iterator[_servers.Roost]:
    port = _servers.free_port()
    command = [sys.executable, "-m", "roost.server", "--port", str(port), "--data-dir", str(data_dir / "data")]
    process = _servers.spawn(command, cwd=_servers.ROOT, log=data_dir / "server.log")
    try:
        _servers.wait_until_served(port, "/healthz", process, pause_s=0.02, deadline_s=120)
        yield _servers.Roost(port, process, data_dir)
    finally:
        _servers.stop(process)


def drain(data_dir: Path, count: int) -> tuple[float, float]:
    """(tasks a second, seconds from the process' start to the first claim)."""
    began = time.time()
    with server(data_dir) as roost:
        while roost.metric("roost_task_ends_total", state="Succeeded") < count:
            time.sleep(0.25)
    with contextlib.closing(sqlite3.connect(data_dir / "data" / "roost.db")) as database:
        first, last = database.execute("SELECT min(started), max(ended) FROM tasks").fetchone()
    return count / (last - first), first - began


async def prune(path: Path) -> None:
    store = Store(path)
    await store.open()
    while await store.tasks.prune(keep=0, ended_before=0.0):
        pass
    await store.close()


def size_mb(path: Path) -> float:
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*")) / 1e6


def measured(title: str, count: int) -> dict[str, float]:
    code, config = HANDLERS[title]
    data_dir = Path(tempfile.mkdtemp(prefix="roost-bench-"))
    path = data_dir / "data" / "roost.db"
    try:
        with server(data_dir) as roost:
            roost.deploy("empty", {"index.py": code}, handler="index.handler", **config)
        found = {"enqueue, store": uvloop.run(enqueue(path, "empty", count))}
        found["drain"], found["recovery, s"] = drain(data_dir, count)
        found["file, MB"] = size_mb(path)
        uvloop.run(prune(path))
        found["pruned, MB"] = size_mb(path)
        with server(data_dir) as roost:
            command = [sys.executable, "-m", "bench.tasks", "--submit", f"{roost.port} empty {count}"]
            done = subprocess.run(command, cwd=_servers.ROOT, check=True, capture_output=True, text=True)
            found["enqueue, HTTP"] = float(done.stdout)
        return found
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="how many, of each kind")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not held")
    parser.add_argument("--submit", default="", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.submit:
        port, function, count = options.submit.split()
        print(uvloop.run(submit(int(port), function, int(count))))
        return
    print(f"## Asynchronous tasks\n\n{_harness.machine()}; {options.tasks} tasks of {len(PAYLOAD)} bytes", flush=True)
    rows = {title: measured(title, options.tasks) for title in HANDLERS}
    names = ["enqueue, store", "enqueue, HTTP", "drain", "recovery, s", "file, MB", "pruned, MB"]
    print(f"\n| an instance takes | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for title, found in rows.items():
        print(f"| {title} | {' | '.join(f'{found[name]:.4g}' for name in names)} |")
    promises = _harness.Promises()
    promises.at_least("durable enqueue", max(row["enqueue, store"] for row in rows.values()), 5000, "a second")
    promises.at_least("drain of an empty handler", max(row["drain"] for row in rows.values()), 1500, "a second")
    sys.exit(1 if options.check and promises.broken else 0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(_servers.ROOT))
    main()
