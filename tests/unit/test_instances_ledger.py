from hypothesis import given
from hypothesis import strategies as st

from roost.instances.ledger import Ledger


def test_busy_and_held_time_of_a_stay() -> None:
    ledger = Ledger(10.0)
    ledger.busy(11.0)
    ledger.idle(13.0)
    ledger.busy(14.0)
    first = ledger.turn(15.0, 500)
    assert (first.held_s, first.leased_s, first.cpu_us) == (5.0, 3.0, 500)
    second = ledger.turn(18.0, 700)
    assert (second.held_s, second.leased_s, second.cpu_us) == (3.0, 3.0, 200)
    ledger.idle(19.0)
    assert ledger.turn(20.0, None).leased_s == 1.0
    assert ledger.idle_since == 19.0


def test_a_new_room_counts_cpu_from_nothing() -> None:
    ledger = Ledger(0.0)
    ledger.turn(1.0, 900)
    ledger.new_room()
    assert ledger.turn(2.0, 50).cpu_us == 50


@given(st.lists(st.tuples(st.sampled_from(["busy", "turn"]), st.floats(0, 10)), max_size=30))
def test_all_time_is_held_and_never_more_than_all_of_it_leased(steps: list[tuple[str, float]]) -> None:
    now = 0.0
    ledger, leased, total = Ledger(now), False, 0.0
    for what, pause in steps:
        now += pause
        if what == "turn":
            spent = ledger.turn(now, None)
            total += spent.held_s
            assert -1e-9 <= spent.leased_s <= spent.held_s + 1e-9
        elif leased:
            ledger.idle(now)
            leased = False
        else:
            ledger.busy(now)
            leased = True
    assert abs(total + ledger.turn(now, None).held_s - now) < 1e-6
