"""What labels let a room reach: they only grow, and whatever comes in whatever order, nobody gets all three."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.isolation.egress.guard import Guard
from roost.isolation.egress.refusal import Refused
from roost.isolation.egress.rules import Target
from roost.isolation.egress.taint import TaintPolicy, taint_policy
from roost.model.errors import InvalidArgument, StorageFull
from roost.model.sandbox import Foundation
from roost.model.taint import AUDIT, BLOCK, LABELS, NONE, PRIVATE, UNTRUSTED, Holder, Labels, TaintRules, stricter
from roost.sandboxes.assembly import taint_of
from tests.support.sandboxes import record

ADDRESS = ipaddress.ip_address("93.184.215.14")
WEB, WIKI, MAIL, OWN = (
    Target(name=f"{name}.test", address=ADDRESS, port=443) for name in ("web", "wiki", "mail", "own")
)
PLACES = (WEB, WIKI, MAIL, OWN)
RULES = TaintRules(mode=BLOCK, trusted=("wiki.test", "own.test"), private=("mail.test", "own.test"))
POLICY = taint_policy(RULES)


@pytest.mark.parametrize(("place", "labels"), [(WEB, {UNTRUSTED}), (WIKI, set()), (MAIL, LABELS), (OWN, {PRIVATE})])
def test_what_a_reply_makes_of_a_room(place: Target, labels: set[str]) -> None:
    assert POLICY.heard(place) == labels


@pytest.mark.parametrize("labels", [NONE, frozenset({UNTRUSTED}), frozenset({PRIVATE})])
def test_with_one_label_everything_is_reached(labels: Labels) -> None:
    assert all(POLICY.may_send(labels, place) for place in PLACES)
    assert POLICY.may_fetch_packages(labels) is (PRIVATE not in labels)  # whoever can publish wrote them


def test_with_both_trusted_and_private_places_are_left() -> None:
    assert [POLICY.may_send(LABELS, place) for place in PLACES] == [False, True, True, True]
    assert not POLICY.may_fetch_packages(LABELS)
    assert taint_policy(TaintRules(mode=BLOCK, trusted=("packages",))).may_fetch_packages(LABELS)


def test_a_private_room_opens_no_tunnel_that_would_make_it_both() -> None:
    private = frozenset({PRIVATE})
    assert [POLICY.may_tunnel(private, place) for place in PLACES] == [False, True, True, True]
    assert all(POLICY.may_tunnel(frozenset({UNTRUSTED}), place) for place in PLACES)


def test_a_name_is_not_resolved_for_a_network_that_it_may_lead_to() -> None:
    policy = taint_policy(TaintRules(mode=BLOCK, trusted=("93.184.0.0/16", "wiki.test")))
    assert policy.may_send(LABELS, WEB)  # the address is trusted
    assert not policy.may_resolve(LABELS, "data.web.test", 443)
    assert policy.may_resolve(LABELS, "wiki.test", 443)
    assert policy.may_resolve(frozenset({UNTRUSTED}), "data.web.test", 443)


@pytest.mark.parametrize(
    ("rules", "field_"),
    [
        (TaintRules(mode="on"), "taint.mode"),
        (TaintRules(start=("secret",)), "taint.start"),
        (TaintRules(trusted=("http://x",)), "taint.trusted"),
        (TaintRules(private=("GET wiki.test/x",)), "taint.private"),
        (TaintRules(private=("packages:0",)), "taint.private"),
        (TaintRules(volumes=("",)), "taint.volumes"),
    ],
)
def test_what_is_no_policy_is_told_by_its_field(rules: TaintRules, field_: str) -> None:
    with pytest.raises(InvalidArgument, match=field_):
        taint_policy(rules)


def test_the_stricter_of_two_modes() -> None:
    assert [stricter(*pair) for pair in (("off", "audit"), ("block", "audit"), ("off", "off"))] == [
        "audit",
        "block",
        "off",
    ]


@pytest.mark.parametrize(
    ("one", "other", "touch"),
    [
        ("a/v", "a/v", True),
        ("a/v", "a/v/x/y", True),
        ("a/v/x", "a/v", True),
        ("a/v", "a/vw", False),
        ("a/v/x", "a/v/y", False),
    ],
)
def test_what_lies_within_something_touches_it(one: str, other: str, touch: bool) -> None:
    assert Holder(name=one).touches(other) is touch


@pytest.mark.parametrize(
    ("given", "below", "usual", "expected"),
    [
        (None, "off", "off", ("off", "usual")),
        (None, "off", "block", ("block", "usual")),
        (None, "audit", "off", ("audit", "below")),
        (None, "audit", "block", ("block", "below")),
        ("block", "off", "off", ("block", "given")),
        ("off", "off", "block", ("off", "given")),
        ("off", "block", "off", ("block", "given")),
        ("audit", "block", "off", ("block", "given")),
    ],
)
def test_whose_policy_holds_for_a_sandbox(given: str | None, below: str, usual: str, expected: tuple[str, str]) -> None:
    """A copy's is never looser than that of what it is a copy of."""
    box = record(
        foundation=Foundation(taint=TaintRules(mode=below, trusted=("below",))),
        network={} if given is None else {"taint": {"mode": given, "trusted": ["given"]}},
    )
    found = taint_of(box, TaintRules(mode=usual, trusted=("usual",)))
    assert (found.mode, *found.trusted) == expected


@dataclass
class Room:
    """A guarded room, and what has really come to it and gone out of it."""

    policy: TaintPolicy
    labels: Labels = NONE
    received: set[str] = field(default_factory=set)
    leaked: bool = False
    told: list[tuple[str, bool]] = field(default_factory=list)
    tunnels: set[Target] = field(default_factory=set)  # they are cut some time later: none is here
    begun: set[Target] = field(default_factory=set)  # requests

    def __post_init__(self) -> None:
        self.guard = Guard(
            self.policy,
            labels=lambda: self.labels,
            add=self.add,
            on_refused=lambda place, refused: self.told.append((place, refused)),
        )

    async def add(self, labels: Labels, why: str) -> None:
        before, self.labels = self.labels, self.labels | labels
        assert before <= self.labels

    def sent(self, place: Target) -> None:
        """Something of the room's own making has left it for there."""
        if self.received >= LABELS and place is WEB:
            self.leaked = True

    async def step(self, event: str, place: Target) -> None:
        try:
            match event:
                case "request":
                    self.guard.admit_name(place.name, place.port)
                    self.sent(place)  # whoever owns the name hears of it
                    self.guard.admit(place, tunnel=False)
                    self.begun.add(place)
                case "body" if place in self.begun:
                    self.guard.go_on(place)
                    self.sent(place)
                    await self.guard.heard(place)
                    self.received |= POLICY.heard(place)
                case "secret":
                    await self.guard.secret(place)
                    self.sent(place)
                    self.received.add(PRIVATE)  # what is there is the secret's owner's
                    await self.guard.heard(place)
                    self.received |= POLICY.heard(place)
                case "open":
                    self.guard.admit(place, tunnel=True)
                    self.tunnels.add(place)
                case "say" if place in self.tunnels:
                    self.guard.go_on(place, tunnel=True)
                    self.sent(place)
                case "hear" if place in self.tunnels | self.begun:
                    await self.guard.heard(place)
                    self.received |= POLICY.heard(place)
                case "neighbour":  # something private, or untrusted, comes by a volume that is shared
                    await self.add(POLICY.heard(place), "a volume")
                    self.received |= POLICY.heard(place)
        except Refused:
            pass


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["request", "body", "secret", "open", "say", "hear", "neighbour"]), st.sampled_from(PLACES)
    ),
    max_size=30,
)


@given(EVENTS)
def test_no_order_of_events_lets_the_third_through(events: list[tuple[str, Target]]) -> None:
    room = Room(POLICY)

    async def run() -> None:
        for event, place in events:
            before = room.labels
            await room.step(event, place)
            assert room.labels >= before | room.received

    asyncio.run(run())
    assert not room.leaked


def test_without_a_policy_the_same_events_do_leak() -> None:
    room = Room(taint_policy(TaintRules(mode=AUDIT, trusted=RULES.trusted, private=RULES.private)))

    async def run() -> None:
        for event, place in [("request", WEB), ("hear", WEB), ("request", MAIL), ("hear", MAIL), ("request", WEB)]:
            await room.step(event, place)

    asyncio.run(run())
    assert room.leaked
    assert (f"{WEB.name}:443", False) in room.told


async def test_what_can_not_be_noted_is_not_read() -> None:
    async def full(labels: Labels, why: str) -> None:
        raise StorageFull("The disk is full.")

    guard = Guard(POLICY, labels=lambda: NONE, add=full)
    await guard.heard(WIKI)
    with pytest.raises(Refused, match="disk is full"):
        await guard.heard(WEB)
