"""Usage is made of records alone, by the stated rules."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model.instance import TRANSITIONS, State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.metering import FROZEN_WEIGHT, Meter, Usage, gb_seconds_of_invocation

TRANSITION = TransitionRecord(
    instance_id="i-1", account="default", function="f", version="LATEST", session_id="", generation=1,
    before=State.READY, after=State.FROZEN, at=100.0, held_s=10.0, leased_s=4.0, cpu_us=1_500_000, memory_mb=512,
)  # fmt: skip
INVOCATION = InvocationRecord(
    request_id="r", account="default", function="f", version="LATEST", qualifier="LATEST", instance_id="i-1",
    session_id="", outcome=Outcome.OK, status=200, started=90.0, wait_s=0.01, duration_s=2.0, memory_mb=512, cold=True,
)  # fmt: skip


def metered(*records: InvocationRecord | TransitionRecord) -> Meter:
    meter = Meter()
    for record in records:
        if isinstance(record, InvocationRecord):
            meter.invocation(record)
        else:
            meter.transition(record)
    return meter


def test_ready_time_is_busy_or_idle() -> None:
    assert metered(TRANSITION).usage("default", "f") == Usage(
        busy_ms=4000, idle_ms=6000, cpu_ms=1500, gb_seconds=5.0
    )  # fmt: skip


def test_frozen_memory_counts_a_tenth_and_apart() -> None:
    frozen = replace(TRANSITION, before=State.FROZEN, after=State.READY, leased_s=0.0, cpu_us=0)
    assert metered(frozen).usage("default", "f") == Usage(frozen_ms=10_000, frozen_gb_seconds=5.0 * FROZEN_WEIGHT)


def test_paused_time_costs_no_memory() -> None:
    paused = replace(TRANSITION, before=State.PAUSED, after=State.RESUMING, leased_s=0.0, cpu_us=0)
    assert metered(paused).usage("default", "f") == Usage(paused_ms=10_000)


@pytest.mark.parametrize("state", [State.STARTING, State.RESUMING])
def test_starting_counts_memory(state: State) -> None:
    starting = replace(TRANSITION, before=state, after=State.READY, leased_s=0.0, cpu_us=0)
    assert metered(starting).usage("default", "f") == Usage(starting_ms=10_000, gb_seconds=5.0)


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING, State.SNAPSHOTTING])
def test_what_runs_on_after_ready_counts_memory_and_no_idle_time(state: State) -> None:
    [target] = [target for target in TRANSITIONS[state] if target is not State.READY]
    usage = metered(replace(TRANSITION, before=state, after=target)).usage("default", "f")
    assert (usage.gb_seconds, usage.busy_ms, usage.idle_ms) == (5.0, 4000, 0)


def test_an_invocation_adds_its_time_but_not_the_memory_of_its_instance() -> None:
    assert metered(INVOCATION).usage("default", "f") == Usage(invocation_ms=2000, invocations=1, cold_starts=1)
    assert gb_seconds_of_invocation(INVOCATION) == 1.0


def test_outcomes_are_told_apart() -> None:
    usage = metered(
        replace(INVOCATION, outcome=Outcome.TIMEOUT, cold=False),
        replace(INVOCATION, outcome=Outcome.CANCELLED, cold=False),
        replace(INVOCATION, outcome=Outcome.THROTTLED, instance_id="", cold=False, duration_s=0),
    ).usage("default", "f")
    assert (usage.invocations, usage.failed, usage.rejected, usage.cold_starts) == (2, 1, 1, 0)


def test_totals_of_session_function_and_account() -> None:
    meter = metered(
        replace(INVOCATION, session_id="a"),
        replace(INVOCATION, session_id="b"),
        replace(TRANSITION, session_id="a"),
        replace(INVOCATION, function="g"),
        replace(INVOCATION, account="other"),
    )
    assert meter.usage("default", "f", "a").invocations == 1
    assert meter.usage("default", "f", "a").gb_seconds == 5.0
    assert meter.usage("default", "f", "b").gb_seconds == 0.0
    assert meter.usage("default", "f").invocations == 2
    assert meter.usage("default").invocations == 3
    assert meter.usage("other", "f").invocations == 1
    assert meter.usage("nobody") == Usage()


def test_usage_is_a_copy() -> None:
    meter = metered(INVOCATION)
    meter.usage("default", "f").add(Usage(invocations=100))
    assert meter.usage("default", "f").invocations == 1


def test_an_evicted_session_stays_in_its_function() -> None:
    meter = Meter(max_sessions=2, max_functions=1)
    for session in ("a", "b", "a", "c"):
        meter.invocation(replace(INVOCATION, session_id=session))
    assert [meter.usage("default", "f", session).invocations for session in "abc"] == [2, 0, 1]
    assert meter.usage("default", "f").invocations == 4
    meter.invocation(replace(INVOCATION, function="g"))
    assert meter.usage("default", "f") == Usage()
    assert meter.usage("default").invocations == 5


def test_a_snapshot_restores_and_goes_on() -> None:
    meter = metered(replace(INVOCATION, session_id="s"), TRANSITION)
    again = Meter()
    again.restore(json.loads(json.dumps(meter.snapshot())))
    assert again.snapshot() == meter.snapshot()
    again.invocation(INVOCATION)
    assert again.usage("default", "f").invocations == 2


def test_an_empty_snapshot_is_a_new_meter() -> None:
    meter = metered(INVOCATION)
    meter.restore({})
    assert meter.snapshot() == Meter().snapshot()


@pytest.mark.parametrize(
    "bad", [{"functions": []}, {"accounts": 1}, {"accounts": [], "functions": [["f"]], "sessions": []}]
)
def test_what_is_no_snapshot_is_refused_and_changes_nothing(bad: dict[str, object]) -> None:
    meter = metered(INVOCATION)
    with pytest.raises(ValueError, match="no snapshot"):
        meter.restore(bad)
    assert meter.usage("default").invocations == 1


def test_damaged_figures_in_a_snapshot_count_as_zero() -> None:
    meter = Meter()
    values = {"busy_ms": -1, "idle_ms": float("nan"), "invocations": 2, "cpu_ms": "x", "unknown": 3}
    meter.restore({"accounts": [["default", values]], "functions": [], "sessions": []})
    assert meter.usage("default") == Usage(invocations=2)


_times = st.floats(allow_nan=True, allow_infinity=True)


@given(_times, _times, st.sampled_from(State), st.integers(-10, 10**9))
def test_no_clock_can_make_usage_negative_or_endless(held: float, leased: float, state: State, cpu: int) -> None:
    record = replace(TRANSITION, before=state, held_s=held, leased_s=leased, cpu_us=cpu)
    values = metered(record).usage("default").to_json().values()
    assert all(0 <= value < float("inf") or value == pytest.approx(max(held, 0) * 1000) for value in values)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6)), max_size=40))
def test_sessions_add_up_to_their_function(parts: list[tuple[str, float]]) -> None:
    meter = metered(*[replace(INVOCATION, session_id=session, duration_s=seconds) for session, seconds in parts])
    total = sum(meter.usage("default", "f", session).invocation_ms for session in "abc")
    assert total == pytest.approx(meter.usage("default", "f").invocation_ms)
