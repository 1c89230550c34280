"""Submits tasks to one queue and prints when each was accepted.

    python -m bench.task_peers.produce MODULE --prefix a --count 5000 --producers 32 --seconds 10
    python -m bench.task_peers.produce MODULE --prefix a --rate 50 --seconds 8

Connects, prints `ready`, waits for a line of input, begins. The line is the time before which no task may run, for
queues that would (BENCH_RELEASE to the modules); else 0. Each producer waits until its task is accepted, and then
submits its next; with --rate tasks are submitted when it is time, however many are still under way. Prints one JSON
object: `accepted` (id and time of each), `failed`, the first `error`, `cpu` (seconds of this process).

MODULE has `Producer`: `submit(payload)`, a coroutine or not, returns when the task is durably accepted, as its library
means it; `open()`, if it has one, is awaited first.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

PAYLOAD_BYTES = 128


class Submissions:
    """What to submit, and what came of it; also for several threads."""

    def __init__(self, prefix: str, count: int, seconds: float) -> None:
        self._prefix = prefix
        self._count = count
        self._end = time.monotonic() + seconds
        self._numbers = itertools.count()  # each `next` is one step for all threads
        self.accepted: list[tuple[str, float]] = []
        self.errors: list[str] = []

    def names(self) -> Iterator[str]:
        while time.monotonic() < self._end and (number := next(self._numbers)) < self._count:
            yield f"{self._prefix}{number}"

    def took(self, name: str) -> None:
        self.accepted.append((name, time.time()))

    def refused(self, error: Exception) -> None:
        self.errors.append(f"{type(error).__name__}: {error}")


def payload(name: str, submitted: float) -> str:
    return f"{name} {submitted:.6f} ".ljust(PAYLOAD_BYTES, "x")


async def flood(submit: Callable[[str], Awaitable[None]], work: Submissions, producers: int) -> None:
    async def producer() -> None:
        for name in work.names():
            try:
                await submit(payload(name, time.time()))
            except Exception as error:
                work.refused(error)
            else:
                work.took(name)

    await asyncio.gather(*(producer() for _ in range(producers)))


def flood_in_threads(submit: Callable[[str], None], work: Submissions, producers: int) -> None:
    def producer() -> None:
        for name in work.names():
            try:
                submit(payload(name, time.time()))
            except Exception as error:
                work.refused(error)
            else:
                work.took(name)

    with ThreadPoolExecutor(producers) as pool:
        for done in [pool.submit(producer) for _ in range(producers)]:
            done.result()


async def pace(submit: Callable[[str], Awaitable[None]], work: Submissions, rate: float) -> None:
    """Times count from when a task was to be submitted, so that a queue which holds up its producer is charged."""

    async def one(name: str, at: float) -> None:
        try:
            await submit(payload(name, at))
        except Exception as error:
            work.refused(error)
        else:
            work.took(name)

    began = time.time()
    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(work.names()):
            at = began + number / rate
            await asyncio.sleep(max(0.0, at - time.time()))
            group.create_task(one(name, at))


async def run(options: argparse.Namespace) -> None:
    producer = importlib.import_module(options.module).Producer()
    if hasattr(producer, "open"):
        await producer.open()
    print("ready", flush=True)
    os.environ["BENCH_RELEASE"] = await asyncio.to_thread(sys.stdin.readline)
    work = Submissions(options.prefix, options.count, options.seconds)
    cpu = time.process_time()
    submit = producer.submit
    waits = inspect.iscoroutinefunction(submit)
    if options.rate:
        await pace(submit if waits else lambda text: asyncio.to_thread(submit, text), work, options.rate)
    elif waits:
        await flood(submit, work, options.producers)
    else:
        flood_in_threads(submit, work, options.producers)
    result = {
        "accepted": work.accepted,
        "failed": len(work.errors),
        "error": next(iter(work.errors), ""),
        "cpu": time.process_time() - cpu,
    }
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("--prefix", default="t")
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=3600.0, help="nothing is submitted after that")
    parser.add_argument("--producers", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.0, help="tasks a second")
    asyncio.run(run(parser.parse_args()))
    sys.stdout.flush()
    os._exit(0)  # clients' threads and pools are not what is measured


if __name__ == "__main__":
    main()
