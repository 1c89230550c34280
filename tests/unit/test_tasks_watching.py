"""The order in which a watcher is told what happened to a task."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roost.functions.tasks.watching import Moment, Place, merged, place_of
from roost.model.task import MAX_EVENTS, Task, TaskEvent, TaskState
from roost.store.task_outputs import Entry, Kind


def task(*times: float) -> Task:
    events = tuple(TaskEvent(state=TaskState.RUNNING, at=at) for at in times)
    return Task(account="a", function="f", id="t", qualifier="LATEST", request_id="r", enqueued=0.0, ready=0.0, due=0.0,
                events=events)  # fmt: skip


def rows(*times: float) -> list[Entry]:
    return [Entry(kind=Kind.OUTPUT, attempt=1, at=at, data=b"", number=n) for n, at in enumerate(times, 1)]


def times(moments: list[Moment]) -> list[float]:
    return [(moment.event or moment.entry).at for moment in moments]  # type: ignore[union-attr]


def test_what_happened_is_told_in_order_and_of_the_same_moment_the_state_first() -> None:
    found = merged(task(1, 2, 5), rows(2, 3, 4), Place(), more=False)
    assert times(found) == [1, 2, 2, 3, 4, 5]
    assert [str(moment.place) for moment in found] == ["1-0", "2-0", "2-1", "2-2", "2-3", "3-3"]


def test_states_wait_for_the_rows_before_them() -> None:
    found = merged(task(1, 9), rows(2, 3), Place(), more=True)
    assert times(found) == [1, 2, 3]


@given(
    st.lists(st.integers(0, 20), max_size=20).map(sorted),
    st.lists(st.integers(0, 20), max_size=20).map(sorted),
    st.integers(0, 60),
)
def test_whoever_comes_back_anywhere_misses_nothing_and_sees_nothing_twice(
    events: list[int], entries: list[int], cut: int
) -> None:
    whole = merged(task(*events), rows(*entries), Place(), more=False)
    seen = whole[:cut]
    place = place_of(str(seen[-1].place)) if seen else Place()
    rest = merged(task(*events), rows(*entries)[place.number :], place, more=False)
    assert [*seen, *rest] == whole


def test_the_end_of_a_shortened_history_is_told_again() -> None:
    known = Place(events=MAX_EVENTS, number=3)
    assert len(merged(task(*range(MAX_EVENTS)), [], known, more=False)) == 1
