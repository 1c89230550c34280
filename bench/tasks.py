"""Queues of durable tasks side by side: Roost beside Celery and arq on Redis, DBOS, Temporal and Restate.

    .venv/bin/python -m bench.tasks [--tasks 10000] [--only NAME]

Every queue has a task that appends a line to a file and does nothing else; a task counts as run when its line is
there. One after the other goes through the same on this machine, with servers, workers and producers in processes of
their own. What a queue needs is installed below `.venv-bench` at first. A run takes about seven minutes.

1. *End to end*: 100 tasks a second, from when a task was to be submitted to when it ran.
2. *Enqueue*: 64 producers in two processes, each submits a task of 128 bytes and waits until it is accepted, until
   `--tasks` are or `--seconds` are over. Nothing is run meanwhile: the workers are stopped, or, where the server itself
   starts tasks (Roost, Restate), they are delayed.
3. *Recovery*: at the last acceptance everything is killed with SIGKILL (servers, database, workers) and started again;
   the time until the first task runs. The starts of all programs are in it.
4. *Drain*: from there on, until half of the tasks have run.
5. Everything is killed once more, in the middle of running tasks, and started again, and is given `--finish` seconds
   for the rest. It is over when all have run, and what a killed worker had would have been delivered again.

Enqueue and drain: the first figure is that of the whole; then of 30 slices of equally many tasks. "Lost" were accepted
and never ran, though nothing else was left to run; "ran twice" counts the runs over one of each. At least once is what
all promise here, so the few that a kill interrupted are no fault. SIGKILL leaves the page cache in place: a queue can
survive it and still lose the last second in a power failure. The settings say which sync before they accept
(strace saw one fdatasync for each task that a single producer submits, none with everysec, eight fsyncs in Temporal).

Celery, arq, DBOS and Temporal are called with their own clients in Python, Roost and Restate over HTTP with one small
client on asyncio. "Producers' CPU" is what a submission costs the client: that is part of the two cores here, and the
reason why a queue with a heavy client accepts fewer. *Roost, SQLite, client httpx* shows it: the same server, another
client.

- *Roost, SQLite*: an async handler, 64 tasks in an instance; *an instance a task*: a plain handler, as by default.
- *Roost, PostgreSQL* and *DBOS, PostgreSQL*: a PostgreSQL of their own with its default durability.
- *Celery, Redis* with acks_late, without results; *everysec*: Redis syncs once a second, as by its default.
- *arq*: 64 jobs at once, looks for new ones every 20 ms.
- *DBOS*: 64 workflows at once, looks for new ones every 50 ms.
- *Temporal*: the development server on an SQLite file; each task is an activity without a workflow, its lightest form.
- *Restate*: a service's handler, sent one-way; at most 1000 at once, its default.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType

from bench import _harness, _queues, _servers

PROCESSES, PRODUCERS = 2, 32
RATE = 100.0
SLICES = 30
_FIRST_S = 60.0


@dataclass(frozen=True)
class Effect:
    name: str
    submitted: float
    ran: float


class Waited(Enum):
    DONE = "all have run"
    QUIET = "nothing has run for a while, and not all have"
    LATE = "the time was up"


class Effects:
    """The lines that tasks wrote, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.all: list[Effect] = []

    def look(self) -> list[Effect]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode().splitlines():
                name, submitted, ran = line.split()
                self.all.append(Effect(name, float(submitted), float(ran)))
        return self.all

    def wait(self, names: Collection[str], *, quiet_s: float, deadline_s: float, count: int | None = None) -> Waited:
        """Until all of these, or `count` of them, have run."""
        wanted, had, end = set(names), -1, time.monotonic() + deadline_s
        changed = time.monotonic()
        while True:
            ran = self.look()
            if len(ran) != had:
                had, changed = len(ran), time.monotonic()
                if len(wanted & {effect.name for effect in ran}) >= (len(wanted) if count is None else count):
                    return Waited.DONE
            if time.monotonic() > end:
                return Waited.LATE
            if time.monotonic() - changed > quiet_s:
                return Waited.QUIET
            time.sleep(0.05)


@dataclass
class Submitted:
    accepted: list[tuple[str, float]] = field(default_factory=list)
    failed: int = 0
    error: str = ""
    cpu: float = 0.0
    release: float = 0.0

    @functools.cached_property
    def names(self) -> set[str]:
        return {name for name, _ in self.accepted}


@dataclass(kw_only=True)
class Outcome:
    """Of one queue. Times of acceptance and of runs, latencies in milliseconds."""

    latencies: list[float]
    accepted: list[float]
    drained: list[float]
    recovery_s: float
    queued: int
    total: int
    missing: int
    late: bool
    twice: int
    cpu_ms: float
    refused: str


def submit(queue: _queues.Queue, prefix: str, *, hold_s: float = 0.0, **options: float) -> Submitted:
    """Run the producers: all begin at once, and it returns as soon as the last task is accepted.

    `hold_s`: no task runs in the first so many seconds, of a queue that has no other way to hold them.
    """
    processes: list[subprocess.Popen[str]] = []
    found = Submitted()
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, **queue.environment}
    try:
        for number in range(PROCESSES):
            command = [queue.python, "-m", "bench.task_peers.produce", f"bench.task_peers.{queue.module}"]
            command += ["--prefix", f"{prefix}{number}-", "--producers", str(PRODUCERS), *arguments]
            with (queue.directory / "producer.log").open("ab") as log:
                process = subprocess.Popen(
                    command, cwd=queue.directory, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=log, text=True, start_new_session=True,
                )  # fmt: skip
            processes.append(process)
        for process in processes:
            _line(process, "ready")
        found.release = time.time() + hold_s if hold_s else 0.0
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{found.release}\n")
            process.stdin.flush()
        for process in processes:
            said = json.loads(_line(process))
            found.accepted += [(name, at) for name, at in said["accepted"]]
            found.failed += said["failed"]
            found.error = found.error or said["error"]
            found.cpu += said["cpu"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return found


def _line(process: subprocess.Popen[str], wanted: str = "") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line or (wanted and line.strip() != wanted):
        raise RuntimeError(f"a producer ended: {line[:300]}")
    return line


def rate(times: Sequence[float]) -> float:
    """Events a second."""
    return (len(times) - 1) / max(1e-6, max(times) - min(times))


def slices(times: Sequence[float]) -> list[float]:
    """The rates of SLICES parts, one after the other, of equally many."""
    ordered = sorted(times)
    size = (len(ordered) - 1) // SLICES
    return [rate(ordered[at : at + size + 1]) for at in range(0, size * SLICES, size)]


def measure(queue: _queues.Queue, options: argparse.Namespace) -> Outcome:
    quiet_s = queue.redelivers_s + options.quiet
    effects = Effects(queue.effects)
    queue.start()
    queue.set_up()

    _harness.progress(f"{queue.name}: end to end")
    warm = submit(queue, "w", count=8, producers=4)
    effects.wait(warm.names, quiet_s=_FIRST_S, deadline_s=_FIRST_S)
    seconds = options.latency_seconds
    paced = submit(queue, "l", rate=RATE / PROCESSES, count=int(RATE / PROCESSES * seconds), seconds=2 * seconds)
    effects.wait(paced.names, quiet_s=quiet_s, deadline_s=options.finish)
    latencies = [(one.ran - one.submitted) * 1000 for one in effects.all if one.name in paced.names]

    _harness.progress(f"{queue.name}: enqueue")
    hold_s = 0.0
    if queue.delays_at is None:
        queue.stop_workers()
    else:
        hold_s = 1 + min(options.seconds, options.tasks / queue.delays_at)
    flood = submit(queue, "q", hold_s=hold_s, count=options.tasks // PROCESSES, seconds=options.seconds)
    queue.kill()
    if len(flood.names) <= 2 * SLICES:
        raise RuntimeError(f"{len(flood.names)} tasks were accepted, {flood.failed} refused: {flood.error[:300]}")
    already = {one.name for one in effects.look()} & flood.names
    time.sleep(max(0.0, flood.release + 1 - time.time()))

    _harness.progress(f"{queue.name}: recovery and drain of {len(flood.names)}")
    began = time.time()
    queue.start()
    half = (len(flood.names) + len(already)) // 2
    effects.wait(flood.names, count=len(already) + 1, quiet_s=_FIRST_S, deadline_s=_FIRST_S)
    effects.wait(flood.names, count=half, quiet_s=quiet_s, deadline_s=options.finish)
    queue.kill()
    drained = [one.ran for one in effects.look() if one.ran >= began and one.name in flood.names]
    if len(drained) <= SLICES:
        raise RuntimeError(f"{len(drained)} of {len(flood.names)} tasks ran after the restart")

    _harness.progress(f"{queue.name}: the rest, after another SIGKILL")
    again = time.monotonic()
    queue.start()
    ended = effects.wait(flood.names, quiet_s=quiet_s, deadline_s=options.finish)
    time.sleep(max(0.0, again + queue.redelivers_s - time.monotonic()))

    names = warm.names | paced.names | flood.names
    runs = Counter(one.name for one in effects.look())
    failed = warm.failed + paced.failed + flood.failed
    return Outcome(
        latencies=latencies,
        accepted=[at for _, at in flood.accepted],
        drained=drained,
        recovery_s=min(drained) - began,
        queued=len(flood.names - already),
        total=len(names),
        missing=sum(name not in runs for name in names),
        late=ended is Waited.LATE,
        twice=sum(runs.values()) - len(runs),
        cpu_ms=flood.cpu / len(flood.names) * 1000,
        refused=f"{failed}: {flood.error or paced.error or warm.error}" if failed else "",
    )


def run(kind: type[_queues.Queue], options: argparse.Namespace) -> Outcome:
    """Raises Missing, RuntimeError with the last words of its programs."""
    _harness.progress(f"{kind.name}: installed if it is missing")
    queue = kind()
    try:
        return measure(queue, options)
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{queue.said()}") from error
    finally:
        queue.close()
        _harness.progress("")


def report(rows: dict[type[_queues.Queue], Outcome]) -> None:
    reference = next(iter(rows))
    _rates("Durable enqueue, 64 producers", {kind.name: o.accepted for kind, o in rows.items()})
    _rates("Drain", {kind.name: o.drained for kind, o in rows.items()})
    _harness.table(
        f"End to end at {RATE:.0f}/s", "ms", {kind.name: o.latencies for kind, o in rows.items()},
        reference=reference.name,
    )  # fmt: skip
    first = rows[reference].recovery_s
    print("\n### SIGKILL: with all of them queued; and again in the middle of the drain\n")
    print(
        f"| | ratio to {reference.name} | s to the first run | queued then | accepted | lost | ran twice | survived |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for kind, o in rows.items():
        recovery = f"{o.recovery_s / first:.2f} | {o.recovery_s:.2f} | {o.queued}"
        lost, survived = (f"{o.missing} not run in time", "?") if o.late else (o.missing, "no" if o.missing else "yes")
        print(f"| {kind.name} | {recovery} | {o.total} | {lost} | {o.twice} | {survived} |")
    print("\n### Settings, and what a submission costs its client\n\n| | durability | producers' CPU, ms a task |")
    print("|---|---|---:|")
    for kind, o in rows.items():
        print(f"| {kind.name} | {kind.settings} | {o.cpu_ms:.2f} |")
    for kind, o in rows.items():
        if o.refused:
            print(f"\n{kind.name} refused {o.refused[:300]}")
    sys.stdout.flush()


def _rates(title: str, series: dict[str, list[float]]) -> None:
    reference = next(iter(series))
    base = rate(series[reference])
    print(f"\n### {title}\n\n| | ratio to {reference} | tasks/s | median slice | slowest slice | tasks |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, times in series.items():
        parts = slices(times)
        figures = f"{rate(times):.0f} | {statistics.median(parts):.0f} | {min(parts):.0f} | {len(times)}"
        print(f"| {name} | {rate(times) / base:.2f} | {figures} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000, help="to be queued")
    parser.add_argument("--seconds", type=float, default=10.0, help="no longer than that are they submitted")
    parser.add_argument("--latency-seconds", type=float, default=8.0, help=f"of {RATE:.0f} tasks each")
    parser.add_argument("--finish", type=float, default=40.0, help="seconds for each half of the drain")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds without a run after which none is expected")
    parser.add_argument("--only", action="append", default=[], help="queues whose name has this")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not held")
    parser.add_argument("--runs", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    print(f"## Queues of durable tasks\n\n{_harness.machine()}; up to {options.tasks} tasks of 128 bytes", flush=True)
    rows: dict[type[_queues.Queue], Outcome] = {}
    missing: dict[str, str] = {}
    for kind in _queues.QUEUES:
        if options.only and not any(part.lower() in kind.name.lower() for part in options.only):
            continue
        try:
            rows[kind] = run(kind, options)
        except _servers.Missing as error:
            missing[kind.name] = str(error)
        except RuntimeError as error:
            missing[kind.name] = f"failed: {error}"
    if rows:
        report(rows)
    for name, reason in missing.items():
        print(f"\nNot measured: {name}: {reason}")
    promises = _harness.Promises()
    if (roost := rows.get(_queues.Roost)) is not None:
        promises.at_least("durable enqueue over HTTP", rate(roost.accepted), 5000, "a second")
        promises.at_least("drain of an empty handler", rate(roost.drained), 1500, "a second")
        promises.at_most("tasks of Roost that a SIGKILL lost", roost.missing, 0, "tasks")
    sys.exit(1 if options.check and promises.broken else 0)


def interrupted(number: int, frame: FrameType | None) -> None:
    """Ends like Ctrl-C: everything that was started is ended, and its files are removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
