"""Prometheus metrics. Labels are an account and a function, never a session or a request: cardinality is bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.trigger_metrics import TriggerCounts, TriggerMetrics

#: Functions with series of their own; what comes on top is counted under OTHER.
MAX_FUNCTIONS = 1000
OTHER = "_other"

_OK = Outcome.OK  # for every request: Python 3.11 is slow to find, and to hash, a member of an enum
_LABELS = ("account", "function")
_DURATION = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_START = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, kw_only=True)
class FunctionGauges:
    """What is true of one function now."""

    account: str
    function: str
    instances: Mapping[State, int] = field(default_factory=dict)
    leases: int = 0
    waiting: int = 0
    memory_bytes: int = 0
    sessions: int = 0


@dataclass(frozen=True, kw_only=True)
class Drops:
    """What telemetry itself has lost since the start."""

    log_lines: int = 0
    records: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskGauges:
    """Unfinished asynchronous tasks of one function now, and how long the oldest has been waiting, in seconds."""

    account: str
    function: str
    tasks: Mapping[str, int]  # by state
    oldest_s: float


class _Histogram:
    """Counts by bucket; the last is for what is over all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        value = max(value, 0.0)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as the exposition format has them."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class _Function:
    """One function's counts. Plain attributes: each request adds to them, on the event loop."""

    def __init__(self) -> None:
        # A series that is there from the start lets a rate see its first increase.
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.good = 0  # those of Outcome.OK: nearly all
        self.duration = _Histogram(_DURATION)
        self.waits = {False: _Histogram(_START), True: _Histogram(_START)}
        self.cold_starts = 0
        self.transitions: dict[tuple[State, State], int] = {}
        self.start = _Histogram(_START)
        self.cpu_us = 0
        self.egress_bytes = 0
        self.task_ends: dict[str, int] = {}


class Metrics:
    """One server's metrics, in a registry of its own. A sink of the Observer.

    `gauges`, `drops`, `tasks` and `triggers` are asked at each scrape, on the event loop; they must answer from memory.
    """

    def __init__(
        self,
        *,
        gauges: Callable[[], Iterable[FunctionGauges]] = tuple,
        drops: Callable[[], Drops] = Drops,
        tasks: Callable[[], Iterable[TaskGauges]] = tuple,
        triggers: Callable[[], Iterable[TriggerCounts]] = tuple,
        max_functions: int = MAX_FUNCTIONS,
    ) -> None:
        self._registry = CollectorRegistry()
        self._functions: dict[tuple[str, str], _Function] = {}
        self._max_functions = max_functions
        self._registry.register(_Counts(self._functions))
        self._registry.register(_Now(gauges, drops, tasks))
        self._registry.register(TriggerMetrics(triggers))

    def invocation(self, record: InvocationRecord) -> None:
        counts = self._of(record.account, record.function)
        outcome = record.outcome
        if outcome is _OK:
            counts.good += 1
        else:
            counts.outcomes[outcome] += 1
        counts.waits[record.cold].observe(record.wait_s)
        if record.instance_id:
            counts.duration.observe(record.duration_s)
        if record.cold:
            counts.cold_starts += 1

    def transition(self, record: TransitionRecord) -> None:
        counts = self._of(record.account, record.function)
        change = (record.before, record.after)
        counts.transitions[change] = counts.transitions.get(change, 0) + 1
        counts.cpu_us += max(record.cpu_us, 0)
        if change == (State.STARTING, State.READY):
            counts.start.observe(record.held_s)

    def egress(self, account: str, function: str, count: int) -> None:
        """Count `count` bytes through the package proxy."""
        self._of(account, function).egress_bytes += max(count, 0)

    def task_ended(self, account: str, function: str, state: str) -> None:
        """Count an asynchronous task that ended."""
        ends = self._of(account, function).task_ends
        ends[state] = ends.get(state, 0) + 1

    def forget(self, account: str, function: str) -> None:
        """Drop a deleted function's series."""
        self._functions.pop((account, function), None)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page for `/metrics` and its content type: OpenMetrics if `accept` asks for it, else Prometheus text."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _of(self, account: str, function: str) -> _Function:
        counts = self._functions.get((account, function))
        if counts is None:
            key = (account, function)
            if len(self._functions) >= self._max_functions:
                key = (OTHER, OTHER)
            counts = self._functions.setdefault(key, _Function())
        return counts


class _Counts(Collector):
    """What has been counted, in the exposition's terms."""

    def __init__(self, functions: Mapping[tuple[str, str], _Function]) -> None:
        self._functions = functions

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known from `collect`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        invocations = _counter("invocations", "Invocations by how they ended.", "outcome")
        duration = _histogram("invocation_duration_seconds", "From the lease to its end.")
        wait = _histogram("invocation_wait_seconds", "Until an instance took the invocation.", "cold")
        cold = _counter("cold_starts", "Invocations that waited for an instance to start.")
        transitions = _counter("transitions", "Transitions of instances.", "before", "after")
        start = _histogram("instance_start_seconds", "From the start of the room to ready.")
        cpu = _counter("cpu_seconds", "CPU time of instances.")
        egress = _counter("egress_bytes", "Bytes between rooms and package indexes.")
        ends = _counter("task_ends", "Asynchronous tasks by how they ended.", "state")
        for labels, counts in self._functions.items():
            for state, count in counts.task_ends.items():
                ends.add_metric((*labels, state), count)
            for outcome, count in {**counts.outcomes, _OK: counts.good}.items():
                invocations.add_metric((*labels, outcome.value), count)
            duration.add_metric(labels, counts.duration.buckets(), counts.duration.total)
            for was_cold, waits in counts.waits.items():
                wait.add_metric((*labels, "true" if was_cold else "false"), waits.buckets(), waits.total)
            cold.add_metric(labels, counts.cold_starts)
            for (before, after), count in counts.transitions.items():
                transitions.add_metric((*labels, before.value, after.value), count)
            start.add_metric(labels, counts.start.buckets(), counts.start.total)
            cpu.add_metric(labels, counts.cpu_us / 1e6)
            egress.add_metric(labels, counts.egress_bytes)
        yield from (invocations, duration, wait, cold, transitions, start, cpu, egress, ends)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"roost_{name}", text, labels=(*_LABELS, *labels))


def _histogram(name: str, text: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"roost_{name}", text, labels=(*_LABELS, *labels))


class _Now(Collector):
    """Asks for the present at each scrape, so that no gauge can drift."""

    def __init__(
        self,
        gauges: Callable[[], Iterable[FunctionGauges]],
        drops: Callable[[], Drops],
        tasks: Callable[[], Iterable[TaskGauges]],
    ) -> None:
        self._gauges = gauges
        self._drops = drops
        self._tasks = tasks

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask for the present."""
        return ()

    def collect(self) -> Iterator[Metric]:
        instances = GaugeMetricFamily("roost_instances", "Instances by state.", labels=(*_LABELS, "state"))
        leases = GaugeMetricFamily("roost_leases", "Requests being served.", labels=_LABELS)
        waiting = GaugeMetricFamily("roost_waiting", "Requests that wait for an instance.", labels=_LABELS)
        memory = GaugeMetricFamily("roost_memory_bytes", "Memory of instances.", labels=_LABELS)
        sessions = GaugeMetricFamily("roost_sessions", "Sessions that have not ended.", labels=_LABELS)
        for now in self._gauges():
            labels = (now.account, now.function)
            for state, count in now.instances.items():
                instances.add_metric((*labels, state.value), count)
            leases.add_metric(labels, now.leases)
            waiting.add_metric(labels, now.waiting)
            memory.add_metric(labels, now.memory_bytes)
            sessions.add_metric(labels, now.sessions)
        yield from (instances, leases, waiting, memory, sessions)
        yield from self._of_tasks()
        drops = self._drops()
        yield CounterMetricFamily("roost_log_lines_dropped", "Lines of output lost.", value=drops.log_lines)
        yield CounterMetricFamily("roost_records_dropped", "Usage records lost.", value=drops.records)

    def _of_tasks(self) -> Iterator[Metric]:
        tasks = GaugeMetricFamily("roost_tasks", "Unfinished tasks by state.", labels=(*_LABELS, "state"))
        oldest = GaugeMetricFamily("roost_tasks_oldest_seconds", "How long the oldest task waits.", labels=_LABELS)
        for now in self._tasks():
            labels = (now.account, now.function)
            for state, count in now.tasks.items():
                tasks.add_metric((*labels, state), count)
            oldest.add_metric(labels, now.oldest_s)
        yield from (tasks, oldest)
