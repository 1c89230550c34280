"""How many invocations led to one, as the server knows it of rooms and is told of others."""

from __future__ import annotations

import pytest

from roost.instances.chains import LINGER_S, Chains
from roost.model.audit import AuditEvent
from roost.model.errors import InvalidArgument, LoopDetected

ROOM, STRANGER = ("127.0.0.1", 40001), ("127.0.0.1", 40002)
F = ("acme", "f")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chains(clock: Clock) -> Chains:
    made = Chains(3, clock)
    made.dialled(ROOM, "i")
    return made


def test_each_request_of_a_room_follows_from_the_one_it_works_on(chains: Chains) -> None:
    for hops in range(3):
        chains.enter("i", hops)
        assert chains.admit(ROOM, None, *F) == hops + 1
        assert chains.admit(STRANGER, None, *F) == 0
        chains.leave("i", hops)
    chains.enter("i", 3)
    with pytest.raises(LoopDetected, match="3 invocations"):
        chains.admit(ROOM, None, *F)
    assert chains.admit(STRANGER, None, *F) == 0


def test_what_a_room_says_makes_it_more_and_never_less(chains: Chains) -> None:
    chains.enter("i", 1)
    assert chains.admit(ROOM, b"0", *F) == chains.admit(ROOM, b"1", *F) == 2
    assert chains.admit(ROOM, b"2", *F) == 3
    assert chains.admit(STRANGER, b"0", *F) == 1
    with pytest.raises(LoopDetected):
        chains.admit(STRANGER, b"3", *F)
    for wrong in (b"", b"-1", b"1, 2", b"x", b"\xb2", b"9" * 10):
        with pytest.raises(InvalidArgument):
            chains.admit(ROOM, wrong, *F)


def test_nobody_is_refused_for_the_request_of_another(chains: Chains) -> None:
    """However long two functions that call each other once are used by many at a time."""
    for _ in range(100):
        chains.enter("i", 0)
        chains.enter("i", chains.admit(ROOM, None, *F))
        assert chains.admit(ROOM, None, *F) == 1
        chains.leave("i", 1)
        chains.leave("i", 0)
    assert chains.of("i") == 0


def test_a_room_that_answered_and_works_on_is_its_last_request_s_for_a_while(chains: Chains, clock: Clock) -> None:
    for hops in (1, 2):
        chains.enter("i", hops)
        chains.leave("i", hops)
        assert chains.admit(ROOM, None, *F) == hops + 1
    clock.now += LINGER_S
    assert chains.admit(ROOM, None, *F) == 1
    chains.enter("i", 0)
    chains.leave("i", 0)
    assert chains.of("i") == 0


def test_it_remembers_a_bounded_number_of_rooms_and_none_that_is_at_work(chains: Chains, clock: Clock) -> None:
    chains.enter("busy", 2)
    for number in range(10_000):
        chains.enter(f"i{number}", 1)
        chains.leave(f"i{number}", 1)
        clock.now += 1
    assert len(chains._rooms) <= 1024 + 1
    assert chains.of("busy") == 2


def test_an_address_is_a_stranger_s_again(chains: Chains) -> None:
    chains.enter("i", 2)
    chains.hung_up(ROOM)
    chains.hung_up(ROOM)
    assert chains.admit(ROOM, None, *F) == 0


def test_each_refusal_is_told_once_and_nothing_else_is(clock: Clock) -> None:
    told: list[AuditEvent] = []
    chains = Chains(3, clock, told.append)
    chains.dialled(ROOM, "i")
    chains.enter("i", 2)
    chains.admit(ROOM, None, *F)
    with pytest.raises(InvalidArgument):
        chains.admit(STRANGER, b"x", *F)
    assert told == []
    chains.enter("j", 3)
    chains.dialled(STRANGER, "j")
    for source, said in ((STRANGER, None), (ROOM, b"7"), (None, b"3")):
        with pytest.raises(LoopDetected):
            chains.admit(source, said, *F)
    assert [(one.actor, one.detail) for one in told] == [
        ("instance/j", {"hops": 4}), ("instance/i", {"hops": 8}), ("anonymous", {"hops": 4})
    ]  # fmt: skip
    assert {(one.action, one.account, one.target, one.outcome) for one in told} == {
        ("invocation.refuse", "acme", "function/f", "denied")
    }
