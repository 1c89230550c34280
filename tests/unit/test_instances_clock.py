"""The clock that does not jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.instances.clock import SteadyClock


class Machine:
    """Two clocks: one that is set at will, one that only runs."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.steady = 5.0

    def run(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1e6, 1e6)), max_size=20))
def test_time_passes_as_it_does_whatever_is_done_to_the_wall_clock(steps: list[tuple[float, float]]) -> None:
    machine = Machine()
    clock = SteadyClock(wall=lambda: machine.wall, steady=lambda: machine.steady)
    before = clock()
    for seconds, jump in steps:
        machine.run(seconds)
        machine.wall += jump
        now = clock()
        assert 0.99 * seconds - 1e-3 <= now - before <= 1.01 * seconds + 1e-3
        before = now


def test_a_difference_is_worked_off_without_going_beyond() -> None:
    machine = Machine()
    clock = SteadyClock(wall=lambda: machine.wall, steady=lambda: machine.steady)
    machine.wall -= 60
    assert clock() - machine.wall == pytest.approx(60)
    machine.run(3000)
    assert clock() - machine.wall == pytest.approx(30)
    machine.run(10_000)
    assert clock() == pytest.approx(machine.wall)
