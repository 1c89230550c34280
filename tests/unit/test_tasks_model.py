"""The states of a task: only the moves of the table happen, and only by whoever knows the present epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model.errors import InvalidArgument
from roost.model.task import (
    FINISHED,
    HELD,
    MAX_EVENTS,
    PENDING,
    TASK_TRANSITIONS,
    Fenced,
    Task,
    TaskState,
    Verdict,
    begun,
    check_delay,
    check_task_id,
    concluded,
    moved,
    redriven,
    stopped,
)


def task(**fields: object) -> Task:
    made = Task(
        account="a", function="f", id="t", qualifier="LATEST", request_id="r", enqueued=100.0, ready=100.0, due=100.0
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_every_state_is_pending_held_or_finished_and_in_the_table() -> None:
    assert PENDING | HELD | FINISHED == set(TaskState) == set(TASK_TRANSITIONS)
    assert not PENDING & HELD | HELD & FINISHED | PENDING & FINISHED
    assert all(TASK_TRANSITIONS[state] <= {TaskState.ENQUEUED} for state in FINISHED)
    assert TASK_TRANSITIONS[TaskState.SUCCEEDED] == frozenset()


@pytest.mark.parametrize("before", TaskState)
@pytest.mark.parametrize("after", TaskState)
def test_a_move_happens_when_the_table_has_it_and_never_else(before: TaskState, after: TaskState) -> None:
    if after in TASK_TRANSITIONS[before]:
        found = moved(task(state=before), after, epoch=0, now=5.0, detail="why")
        assert (found.state, found.events[-1].state, found.events[-1].detail) == (after, after, "why")
        assert found.ended == (5.0 if after in FINISHED else 0.0)
    else:
        with pytest.raises(Fenced):
            moved(task(state=before), after, epoch=0, now=5.0)


@pytest.mark.parametrize("epoch", [2, 4])
def test_who_knows_another_epoch_moves_nothing(epoch: int) -> None:
    for state in TaskState:
        for target in TASK_TRANSITIONS[state]:
            with pytest.raises(Fenced):
                moved(task(state=state, epoch=3), target, epoch=epoch, now=1.0)
    with pytest.raises(Fenced):
        concluded(task(epoch=3), Verdict(state=TaskState.ENQUEUED, due=9.0), epoch=epoch, now=1.0)


def test_a_start_and_an_end_each_make_the_epoch_of_before_useless() -> None:
    first = begun(task(), epoch=0, instance_id="i", now=1.0)
    assert (first.epoch, first.attempts, first.started, first.instance_id) == (1, 1, 1.0, "i")
    again = concluded(first, Verdict(state=TaskState.RETRYING, due=3.0), epoch=1, now=2.0)
    assert (again.epoch, again.due) == (2, 3.0)
    for stale in (0, 1):
        with pytest.raises(Fenced):
            concluded(again, Verdict(state=TaskState.FAILED), epoch=stale, now=2.0)
    second = begun(again, epoch=2, instance_id="j", now=4.0)
    assert (second.epoch, second.attempts, second.started) == (3, 2, 1.0)


def test_a_stop_ends_what_waits_and_asks_what_runs() -> None:
    assert stopped(task(), now=1.0).state is TaskState.STOPPED
    running = begun(task(), epoch=0, instance_id="i", now=1.0)
    stopping = stopped(running, now=2.0)
    assert (stopping.state, stopping.epoch) == (TaskState.STOPPING, running.epoch)
    assert stopped(stopping, now=3.0) is stopping
    with pytest.raises(Fenced):
        stopped(task(state=TaskState.SUCCEEDED), now=1.0)


def test_a_retry_by_hand_starts_anew_and_keeps_the_history() -> None:
    failed = moved(begun(task(), epoch=0, instance_id="i", now=1.0), TaskState.FAILED, epoch=1, now=2.0, error="e")
    again = redriven(failed, now=50.0)
    assert (again.state, again.attempts, again.error, again.due, again.ended) == (TaskState.ENQUEUED, 0, "", 50.0, 0.0)
    assert [event.state for event in again.events] == [TaskState.RUNNING, TaskState.FAILED, TaskState.ENQUEUED]
    assert again.epoch > failed.epoch
    for state in (*HELD, *PENDING, TaskState.SUCCEEDED):
        with pytest.raises(Fenced):
            redriven(task(state=state), now=1.0)


@given(st.lists(st.sampled_from(TaskState), max_size=200))
def test_whatever_is_asked_for_the_record_stays_bounded_and_the_epoch_never_falls(asked: list[TaskState]) -> None:
    now, present = 0.0, task()
    for target in asked:
        now += 1
        before = present
        try:
            if target is TaskState.RUNNING:
                present = begun(present, epoch=present.epoch, instance_id="i", now=now)
            elif target is TaskState.ENQUEUED:
                present = redriven(present, now=now)
            elif target is TaskState.STOPPING:
                present = stopped(present, now=now)
            else:
                present = concluded(present, Verdict(state=target), epoch=present.epoch, now=now)
        except Fenced:
            assert present is before
        assert present.epoch >= before.epoch
        assert len(present.events) <= MAX_EVENTS
        assert bool(present.ended) == (present.state in FINISHED)


@pytest.mark.parametrize("value", ["", "1a", "-a", "a b", "a/b", "..", "a" * 129, "é", "a\n"])
def test_an_id_that_a_caller_may_not_choose_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="x-fc-async-task-id"):
        check_task_id(value)


def test_ids_and_delays_that_are_good() -> None:
    assert check_task_id("_a-1" + "b" * 124) == "_a-1" + "b" * 124
    assert [check_delay(text) for text in ("", "0", "3600")] == [0, 0, 3600]


@pytest.mark.parametrize("value", ["3601", "-1", "1.5", "1e3", "x", "٣", "1" * 99])
def test_a_delay_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="x-fc-async-delay"):
        check_delay(value)
