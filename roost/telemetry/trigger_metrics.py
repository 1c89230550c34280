"""Prometheus metrics of triggers. Labels are names that somebody gave to a trigger, never an event's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: Triggers with series of their own; the others are left out, and counted.
MAX_TRIGGERS = 1000
_LABELS = ("account", "function", "trigger", "type")


@dataclass(frozen=True, kw_only=True)
class TriggerCounts:
    """What one trigger has done since the server's start. `last_success` is Unix seconds, 0 for never."""

    account: str
    function: str
    trigger: str
    type: str
    up: bool
    delivered: int
    enqueued: int
    failed: int
    dead_lettered: int
    last_success: float


class TriggerMetrics(Collector):
    """Asks for `triggers` at each scrape; the answer is from memory."""

    def __init__(self, triggers: Callable[[], Iterable[TriggerCounts]], *, most: int = MAX_TRIGGERS) -> None:
        self._triggers = triggers
        self._most = most

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask for the present."""
        return ()

    def collect(self) -> Iterator[Metric]:
        counters = {
            "delivered": _counter("delivered", "Events that were run to success."),
            "enqueued": _counter("enqueued", "Events that became asynchronous tasks."),
            "failed": _counter("failed", "Events that the function failed on."),
            "dead_lettered": _counter("dead_lettered", "Events that were given up and put aside."),
        }
        up = _gauge("up", "Whether the source of events is being served.")
        last = _gauge("last_success_timestamp_seconds", "When an event last got through; 0: not yet.")
        hidden = 0
        for number, counts in enumerate(self._triggers()):
            if number >= self._most:
                hidden += 1
                continue
            labels = (counts.account, counts.function, counts.trigger, counts.type)
            for name, family in counters.items():
                family.add_metric(labels, getattr(counts, name))
            up.add_metric(labels, float(counts.up))
            last.add_metric(labels, counts.last_success)
        yield from (*counters.values(), up, last)
        yield GaugeMetricFamily("roost_triggers_hidden", "Triggers without series of their own.", value=hidden)


def _counter(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"roost_trigger_{name}", text, labels=_LABELS)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"roost_trigger_{name}", text, labels=_LABELS)
