from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.instances.decide import Action, View, decide, to_start
from roost.model.function import Idle
from roost.model.instance import TRANSITIONS, State, StopReason

NOW = 1000.0
READY = View(state=State.READY, leases=0, idle_since=NOW, idle=Idle(freeze_after_s=1, stop_after_s=10))
FROZEN = replace(READY, state=State.FROZEN)
NEVER = Idle(freeze_after_s=float("inf"), stop_after_s=float("inf"))


@pytest.mark.parametrize(
    ("view", "at", "action"),
    [
        (READY, 0.5, Action.WAIT),
        (READY, 1.0, Action.FREEZE),
        (FROZEN, 5.0, Action.WAIT),
        (FROZEN, 10.0, Action.STOP),
        (replace(FROZEN, kept=True), 1e6, Action.WAIT),
        (replace(FROZEN, leases=1), 0.0, Action.THAW),
        (replace(READY, leases=1), 100.0, Action.WAIT),
        (replace(READY, pause_wanted=True), 0.0, Action.FREEZE),
        (replace(FROZEN, pause_wanted=True), 0.0, Action.PAUSE),
        (replace(READY, pause_wanted=True, keep_memory=True), 0.0, Action.FREEZE),
        (replace(FROZEN, pause_wanted=True, keep_memory=True), 1e6, Action.WAIT),
        (replace(FROZEN, pause_wanted=True, keep_memory=True, leases=1), 0.0, Action.THAW),
        (replace(FROZEN, pause_wanted=True, keep_memory=True, stop_wanted=StopReason.SCALE_IN), 0.0, Action.STOP),
        (replace(READY, pause_wanted=True, leases=1), 0.0, Action.WAIT),
        (replace(READY, stop_wanted=StopReason.UPDATED), 0.0, Action.STOP),
        (replace(READY, stop_wanted=StopReason.UPDATED, leases=1), 0.0, Action.DRAIN),
        (replace(FROZEN, stop_wanted=StopReason.UPDATED, leases=1), 0.0, Action.THAW),
        (replace(READY, stop_wanted=StopReason.DELETED, leases=1, stop_deadline=NOW + 5), 5.0, Action.STOP),
        (replace(READY, exited=True, leases=3), 0.0, Action.STOP),
        (replace(READY, held=True), 0.0, Action.FREEZE),
        (replace(READY, held=True, leases=2), 0.0, Action.FREEZE),
        (replace(FROZEN, held=True), 1e6, Action.WAIT),
        (replace(FROZEN, held=True, leases=2), 0.0, Action.WAIT),
        (replace(FROZEN, held=True, stop_wanted=StopReason.KILLED), 0.0, Action.STOP),
        (replace(FROZEN, held=True, exited=True), 0.0, Action.STOP),
        (replace(FROZEN, idle=NEVER), 1e6, Action.THAW),  # let go
        (replace(READY, idle=NEVER), 1e6, Action.WAIT),
    ],
)
def test_next_step(view: View, at: float, action: Action) -> None:
    assert decide(view, NOW + at).action is action


views = st.builds(
    View,
    state=st.sampled_from([State.READY, State.FROZEN, State.DRAINING]),
    leases=st.integers(0, 3),
    idle_since=st.floats(0, 2000),
    idle=st.builds(Idle, freeze_after_s=st.floats(0, 5), stop_after_s=st.floats(0, 50)),
    kept=st.booleans(),
    held=st.booleans(),
    pause_wanted=st.booleans(),
    keep_memory=st.booleans(),
    stop_wanted=st.sampled_from([None, StopReason.UPDATED]),
)


@given(views, st.floats(0, 3000))
def test_a_lease_is_never_ended_by_idleness_or_scale_in(view: View, now: float) -> None:
    decision = decide(view, now)
    if view.leases:
        allowed = (Action.WAIT, Action.FREEZE) if view.held else (Action.WAIT, Action.THAW)
        assert decision.action in (*allowed, Action.DRAIN, Action.THAW)
    if decision.action is Action.WAIT:
        assert decision.wake_at > now, "a wait that is over at once would spin"


def test_the_table_has_a_way_to_stopped_from_everywhere() -> None:
    for state in State:
        seen, todo = set(), {state}
        while todo:
            current = todo.pop()
            seen.add(current)
            todo |= TRANSITIONS[current] - seen
        assert State.STOPPED in seen


@pytest.mark.parametrize(
    ("numbers", "count"),
    [
        ((0, 0, 0, 1, 0, 10), 0),
        ((5, 0, 0, 1, 0, 10), 5),
        ((5, 2, 2, 1, 0, 10), 3),
        ((5, 0, 8, 1, 0, 10), 2),
        ((5, 0, 0, 4, 0, 10), 2),
        ((0, 0, 1, 1, 3, 10), 2),
        ((9, 0, 3, 1, 0, 2), 0),
    ],
)
def test_how_many_to_start(numbers: tuple[int, int, int, int, int, int], count: int) -> None:
    waiting, starting, alive, slots, minimum, maximum = numbers
    assert (
        to_start(waiting=waiting, starting=starting, alive=alive, slots=slots, minimum=minimum, maximum=maximum)
        == count
    )
