"""What becomes of a task: a decision table, with time and chance as arguments."""

from __future__ import annotations

import pytest

from roost.functions.tasks.policy import (
    TROUBLE_S,
    Kind,
    Run,
    TaskSettings,
    after,
    expired,
    interrupted,
    retry_delay,
    settings_of,
    trouble_delay,
)
from roost.model.task import Delivery, TaskState, begun
from tests.unit.test_tasks_model import task

RUNNING = begun(task(), epoch=0, instance_id="i", now=100.0)
FAULT = Run(kind=Kind.FAULT, error_type="KeyError", error="missing")
TROUBLE = Run(kind=Kind.TROUBLE, error_type="ResourceThrottled", error="full")
ONCE = TaskSettings(delivery=Delivery.AT_MOST_ONCE, max_retries=0)


def attempt(number: int) -> object:
    return begun(task(attempts=number - 1), epoch=0, instance_id="i", now=100.0)


def test_a_good_end() -> None:
    verdict = after(RUNNING, Run(kind=Kind.SUCCEEDED), TaskSettings(), now=1.0, chance=0.5)
    assert (verdict.state, verdict.error) == (TaskState.SUCCEEDED, "")


def test_faults_are_tried_again_three_times_then_it_has_failed() -> None:
    states = [after(attempt(n), FAULT, TaskSettings(), now=100.0, chance=1.0).state for n in range(1, 6)]  # type: ignore[arg-type]
    assert states == [TaskState.RETRYING] * 3 + [TaskState.FAILED] * 2
    last = after(attempt(4), FAULT, TaskSettings(), now=100.0, chance=1.0)  # type: ignore[arg-type]
    assert (last.error_type, last.error) == ("KeyError", "missing")


def test_the_waits_between_tries_double_up_to_a_bound_and_chance_spreads_them() -> None:
    assert [retry_delay(n, 1.0) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]
    assert retry_delay(1, 0.0) == 0.5
    assert retry_delay(10_000, 1.0) == trouble_delay(10_000, 1.0) == 300.0
    assert [trouble_delay(n, 1.0) for n in (0, 1, 2)] == [0.5, 1.0, 2.0]


def test_trouble_of_the_system_uses_no_attempt_up_for_five_hours() -> None:
    settings = TaskSettings(max_age_s=1e6)
    first = after(RUNNING, TROUBLE, settings, now=200.0, chance=1.0)
    assert (first.state, first.spared, first.troubles, first.troubled) == (TaskState.RETRYING, 1, 1, 200.0)
    waits = after(task(), Run(kind=Kind.TROUBLE, begun=False), settings, now=200.0, chance=1.0)
    assert (waits.state, waits.spared) == (TaskState.ENQUEUED, 0)
    at_last = after(task(troubled=200.0), TROUBLE, settings, now=201.0 + TROUBLE_S, chance=1.0)
    assert (at_last.state, at_last.error_type) == (TaskState.FAILED, "ResourceThrottled")


def test_what_is_started_at_most_once_is_not_started_again() -> None:
    for run in (FAULT, TROUBLE):
        assert after(RUNNING, run, ONCE, now=100.0, chance=1.0).state is TaskState.FAILED
    waits = Run(kind=Kind.TROUBLE, begun=False)
    assert after(task(), waits, ONCE, now=100.0, chance=1.0).state is TaskState.ENQUEUED
    for orderly in (True, False):
        found = interrupted(RUNNING, ONCE, now=100.0, chance=1.0, orderly=orderly)
        assert found.state is TaskState.FAILED
        assert found.error_type == "Interrupted"
        assert "atMostOnce" in found.error


def test_a_crash_counts_as_an_attempt_and_an_orderly_end_does_not() -> None:
    crash = interrupted(RUNNING, TaskSettings(), now=100.0, chance=1.0, orderly=False)
    assert (crash.state, crash.spared, crash.due) == (TaskState.RETRYING, 0, 101.0)
    stop = interrupted(RUNNING, TaskSettings(max_retries=0), now=100.0, chance=1.0, orderly=True)
    assert (stop.state, stop.spared, stop.due) == (TaskState.RETRYING, 1, 100.0)
    assert (
        interrupted(RUNNING, TaskSettings(max_retries=0), now=1.0, chance=1.0, orderly=False).state is TaskState.FAILED
    )


def test_a_stop_that_was_asked_for_wins_over_all_but_success() -> None:
    for run in (FAULT, TROUBLE, Run(kind=Kind.STOPPED)):
        assert after(RUNNING, run, TaskSettings(), now=1.0, chance=0.0, stopping=True).state is TaskState.STOPPED
    done = after(RUNNING, Run(kind=Kind.SUCCEEDED), TaskSettings(), now=1.0, chance=0.0, stopping=True)
    assert done.state is TaskState.SUCCEEDED


def test_what_nothing_can_run_has_failed_at_once() -> None:
    gone = Run(kind=Kind.REFUSED, begun=False, error_type="VersionNotFound", error="no version 3")
    assert after(task(), gone, TaskSettings(), now=1.0, chance=0.0).state is TaskState.FAILED


def test_too_old_is_expired_in_the_queue_and_before_a_retry() -> None:
    settings = TaskSettings(max_age_s=10.0)
    assert expired(task(), settings, now=110.0) is None
    found = expired(task(error="last words"), settings, now=110.5)
    assert found is not None
    assert found.state is TaskState.EXPIRED
    assert "last words" in found.error
    assert expired(task(ready=105.0), settings, now=110.5) is None, "the caller's delay does not count"
    assert after(RUNNING, FAULT, settings, now=109.5, chance=1.0).state is TaskState.EXPIRED


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({}, TaskSettings()),
        ({"maxAsyncRetryAttempts": 0, "maxAsyncEventAgeInSeconds": 5}, TaskSettings(max_retries=0, max_age_s=5.0)),
        ({"roost": {"delivery": "atMostOnce"}}, ONCE),
        (
            {"destinationConfig": {"onSuccess": {"destination": "g"}, "onFailure": {}}},
            TaskSettings(on_success="g"),
        ),
    ],
)
def test_settings_are_read_from_what_the_api_keeps(config: dict[str, object], settings: TaskSettings) -> None:
    assert settings_of(config) == settings


def test_a_destination_is_for_a_success_or_a_failure() -> None:
    both = TaskSettings(on_success="s", on_failure="f")
    assert {state: both.destination(state) for state in TaskState if both.destination(state)} == {
        TaskState.SUCCEEDED: "s",
        TaskState.FAILED: "f",
        TaskState.EXPIRED: "f",
    }
