"""Prometheus metrics. Labels are an account and a function, never a session or a request: cardinality is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord

#: Functions with series of their own; what comes on top is counted under OTHER.
MAX_FUNCTIONS = 1000
OTHER = "_other"

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


class Metrics:
    """One server's metrics, in a registry of its own. A sink of the Observer.

    `gauges` and `drops` are asked at each scrape, on the event loop; both must answer from memory.
    """

    def __init__(
        self,
        *,
        gauges: Callable[[], Iterable[FunctionGauges]] = tuple,
        drops: Callable[[], Drops] = Drops,
        max_functions: int = MAX_FUNCTIONS,
    ) -> None:
        self._registry = CollectorRegistry()
        self._functions: set[tuple[str, str]] = set()
        self._max_functions = max_functions
        registry = self._registry
        self._invocations = Counter(
            "roost_invocations", "Invocations by how they ended.", (*_LABELS, "outcome"), registry=registry
        )
        self._duration = Histogram(
            "roost_invocation_duration_seconds",
            "From the lease to its end.",
            _LABELS,
            buckets=_DURATION,
            registry=registry,
        )
        self._wait = Histogram(
            "roost_invocation_wait_seconds",
            "Until an instance took the invocation.",
            (*_LABELS, "cold"),
            buckets=_START,
            registry=registry,
        )
        self._cold_starts = Counter(
            "roost_cold_starts", "Invocations that waited for an instance to start.", _LABELS, registry=registry
        )
        self._transitions = Counter(
            "roost_transitions",
            "Transitions of instances.",
            (*_LABELS, "before", "after"),
            registry=registry,
        )
        self._start = Histogram(
            "roost_instance_start_seconds",
            "From the start of the room to ready.",
            _LABELS,
            buckets=_START,
            registry=registry,
        )
        self._cpu = Counter("roost_cpu_seconds", "CPU time of instances.", _LABELS, registry=registry)
        self._egress = Counter(
            "roost_egress_bytes", "Bytes between rooms and package indexes.", _LABELS, registry=registry
        )
        registry.register(_Now(gauges, drops))

    def invocation(self, record: InvocationRecord) -> None:
        labels = self._labels(record.account, record.function)
        self._invocations.labels(*labels, record.outcome.value).inc()
        self._wait.labels(*labels, "true" if record.cold else "false").observe(max(record.wait_s, 0.0))
        if record.instance_id:
            self._duration.labels(*labels).observe(max(record.duration_s, 0.0))
        if record.cold:
            self._cold_starts.labels(*labels).inc()

    def transition(self, record: TransitionRecord) -> None:
        labels = self._labels(record.account, record.function)
        self._transitions.labels(*labels, record.before.value, record.after.value).inc()
        self._cpu.labels(*labels).inc(max(record.cpu_us, 0) / 1e6)
        if record.before is State.STARTING and record.after is State.READY:
            self._start.labels(*labels).observe(max(record.held_s, 0.0))

    def egress(self, account: str, function: str, count: int) -> None:
        """Count `count` bytes through the package proxy."""
        self._egress.labels(*self._labels(account, function)).inc(max(count, 0))

    def forget(self, account: str, function: str) -> None:
        """Drop a deleted function's series."""
        if (account, function) not in self._functions:
            return
        self._functions.discard((account, function))
        where = {"account": account, "function": function}
        for metric in (self._invocations, self._wait, self._transitions):
            metric.remove_by_labels(where)
        for metric in (self._duration, self._cold_starts, self._start, self._cpu, self._egress):
            metric.remove_by_labels(where)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page for `/metrics` and its content type: OpenMetrics if `accept` asks for it, else Prometheus text."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _labels(self, account: str, function: str) -> tuple[str, str]:
        key = (account, function)
        if key in self._functions:
            return key
        if len(self._functions) >= self._max_functions:
            return (OTHER, OTHER)
        self._functions.add(key)
        for outcome in Outcome:
            # A series that is there from the start lets a rate see its first increase.
            self._invocations.labels(*key, outcome.value)
        return key


class _Now(Collector):
    """Asks for the present at each scrape, so that no gauge can drift."""

    def __init__(self, gauges: Callable[[], Iterable[FunctionGauges]], drops: Callable[[], Drops]) -> None:
        self._gauges = gauges
        self._drops = drops

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
        drops = self._drops()
        yield CounterMetricFamily("roost_log_lines_dropped", "Lines of output lost.", value=drops.log_lines)
        yield CounterMetricFamily("roost_records_dropped", "Usage records lost.", value=drops.records)
