"""Prometheus metrics, read back with the official parser."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.metrics import Drops, FunctionGauges, Metrics

INVOCATION = InvocationRecord(
    request_id="r", account="default", function="f", version="LATEST", qualifier="LATEST", instance_id="i-1",
    session_id="secret-session", outcome=Outcome.OK, status=200, started=90.0, wait_s=0.012, duration_s=2.0,
    memory_mb=512, cold=True,
)  # fmt: skip
TRANSITION = TransitionRecord(
    instance_id="i-1", account="default", function="f", version="LATEST", session_id="", generation=1,
    before=State.STARTING, after=State.READY, at=100.0, held_s=0.011, leased_s=0.0, cpu_us=9000, memory_mb=512,
)  # fmt: skip


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Samples by name and label values (in alphabetical order of the labels)."""
    page, _ = metrics.render()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_text(page.decode())
        for sample in family.samples
    }


def test_invocations_are_counted_by_outcome_and_timed() -> None:
    metrics = Metrics()
    metrics.invocation(INVOCATION)
    metrics.invocation(replace(INVOCATION, outcome=Outcome.THROTTLED, instance_id="", cold=False))
    found = values(metrics)
    assert found["roost_invocations_total", "default", "f", "ok"] == 1
    assert found["roost_invocations_total", "default", "f", "throttled"] == 1
    assert found["roost_invocations_total", "default", "f", "timeout"] == 0
    assert found["roost_cold_starts_total", "default", "f"] == 1
    assert found["roost_invocation_duration_seconds_count", "default", "f"] == 1
    assert found["roost_invocation_duration_seconds_bucket", "default", "f", "2.5"] == 1
    assert found["roost_invocation_wait_seconds_sum", "default", "true", "f"] == 0.012


def test_transitions_start_time_cpu_and_egress() -> None:
    metrics = Metrics()
    metrics.transition(TRANSITION)
    metrics.egress("default", "f", 4096)
    found = values(metrics)
    assert found["roost_transitions_total", "default", "ready", "starting", "f"] == 1
    assert found["roost_instance_start_seconds_sum", "default", "f"] == 0.011
    assert found["roost_cpu_seconds_total", "default", "f"] == 0.009
    assert found["roost_egress_bytes_total", "default", "f"] == 4096


def test_gauges_and_drops_are_those_of_the_moment() -> None:
    now = [
        FunctionGauges(
            account="default", function="f", instances={State.READY: 2, State.FROZEN: 1}, leases=3, waiting=4,
            memory_bytes=5, sessions=6,
        )
    ]  # fmt: skip
    metrics = Metrics(gauges=lambda: now, drops=lambda: Drops(log_lines=7, records=8))
    found = values(metrics)
    assert found["roost_instances", "default", "f", "ready"] == 2
    assert found["roost_instances", "default", "f", "frozen"] == 1
    assert [found[name, "default", "f"] for name in (
        "roost_leases", "roost_waiting", "roost_memory_bytes", "roost_sessions"
    )] == [3, 4, 5, 6]  # fmt: skip
    assert found["roost_log_lines_dropped_total",] == 7
    assert found["roost_records_dropped_total",] == 8
    now.clear()
    assert ("roost_leases", "default", "f") not in values(metrics)


def test_openmetrics_is_given_to_whom_asks_for_it() -> None:
    metrics = Metrics()
    metrics.invocation(INVOCATION)
    page, kind = metrics.render("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(page.decode())} >= {"roost_invocations", "roost_cold_starts"}
    assert metrics.render("text/html, */*")[1].startswith("text/plain")


def test_cardinality_is_bounded_and_free_of_sessions_and_requests() -> None:
    metrics = Metrics(max_functions=2)
    for number in range(50):
        metrics.invocation(replace(INVOCATION, function=f"f{number}", request_id=f"request-{number}"))
    page = metrics.render()[0].decode()
    found = values(metrics)
    assert found["roost_invocations_total", "default", "f1", "ok"] == 1
    assert found["roost_invocations_total", "_other", "_other", "ok"] == 48
    assert "f2" not in page
    assert "secret-session" not in page
    assert "request-" not in page


def test_a_deleted_function_leaves_no_series_and_makes_room() -> None:
    metrics = Metrics(max_functions=1)
    metrics.invocation(INVOCATION)
    metrics.transition(TRANSITION)
    metrics.egress("default", "f", 1)
    metrics.forget("default", "f")
    metrics.forget("default", "never-seen")
    assert not [key for key in values(metrics) if "default" in key]
    metrics.invocation(replace(INVOCATION, function="g"))
    assert values(metrics)["roost_invocations_total", "default", "g", "ok"] == 1


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.invocation(INVOCATION)
    assert not [key for key in values(second) if "default" in key]
