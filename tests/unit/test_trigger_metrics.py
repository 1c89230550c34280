"""The metrics of triggers: what is counted, and that their number is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from roost.telemetry.trigger_metrics import TriggerMetrics
from roost.triggers.status import Statuses
from tests.support.triggers import record


def page(statuses: Statuses, most: int = 1000) -> list[str]:
    registry = CollectorRegistry()
    registry.register(TriggerMetrics(statuses.counts, most=most))
    return generate_latest(registry).decode().splitlines()


def test_what_a_source_reports_is_what_is_shown() -> None:
    statuses = Statuses(clock=lambda: 1_800_000_000.0)
    status = statuses.of(record("redis", {}))
    labels = '{account="a",function="f",trigger="t",type="redis"}'
    assert f"roost_trigger_delivered_total{labels} 0.0" in page(statuses), "a rate sees the first increase"
    status.connected()
    status.delivered(3)
    status.enqueued(2)
    status.failed(1, "why")
    status.dead_lettered(1)
    lines = page(statuses)
    for name, value in (
        ("delivered_total", "3.0"), ("enqueued_total", "2.0"), ("failed_total", "1.0"), ("dead_lettered_total", "1.0"),
        ("up", "1.0"), ("last_success_timestamp_seconds", "1.8e+09"),
    ):  # fmt: skip
        assert f"roost_trigger_{name}{labels} {value}" in lines
    status.trouble("the broker is down")
    assert f"roost_trigger_up{labels} 0.0" in page(statuses)
    statuses.forget("id-1")
    assert labels not in "".join(page(statuses))


def test_more_triggers_than_series_are_counted() -> None:
    statuses = Statuses()
    for number in range(7):
        statuses.of(record("timer", {}, id=str(number), name=f"t{number}"))
    lines = page(statuses, most=5)
    assert sum(line.startswith("roost_trigger_up{") for line in lines) == 5
    assert "roost_triggers_hidden 2.0" in lines
