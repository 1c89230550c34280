"""Questions that a room asks for names, hostile ones too, and what is answered."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.isolation.egress import dns
from roost.isolation.egress.names import NETWORK, RESOLVER, Names

HOUSE = ipaddress.IPv4Address("198.18.7.7")


def wire(*labels: bytes) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def ask(
    name: bytes = wire(b"good", b"test"),
    kind: int = 1,
    net: int = 1,
    *,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    rest: bytes = b"",
) -> bytes:
    return struct.pack(">6H", 77, flags, *counts) + name + struct.pack(">2H", kind, net) + rest


def head(reply: bytes) -> tuple[int, ...]:
    return struct.unpack_from(">6H", reply)


def code(data: bytes) -> int:
    with pytest.raises(dns.Unanswerable) as refused:
        dns.parse(data)
    assert head(refused.value.reply)[0] == 77
    return head(refused.value.reply)[1] & 0xF


def test_a_question_for_an_address() -> None:
    question = dns.parse(ask(wire(b"GooD", b"test"), rest=b"\0\0\x29\x04\xd0\0\0\0\0\0\0", counts=(1, 0, 0, 1)))
    assert question.name == "GooD.test"
    reply = dns.found(question, HOUSE)
    assert head(reply) == (77, 0x8180, 1, 1, 0, 0)
    assert reply[12:].startswith(wire(b"GooD", b"test") + b"\0\1\0\1\xc0\x0c\0\1\0\1")
    assert reply.endswith(b"\0\4" + HOUSE.packed)


@pytest.mark.parametrize("kind", [28, 15, 16, 65, 255])
def test_a_name_that_is_there_has_nothing_but_an_address(kind: int) -> None:
    reply = dns.found(dns.parse(ask(kind=kind)), HOUSE)
    assert head(reply) == (77, 0x8180, 1, 0, 0, 0)
    assert HOUSE.packed not in reply


def test_an_unknown_name() -> None:
    question = dns.parse(ask())
    assert dns.unknown(question) == struct.pack(">6H", 77, 0x8183, 1, 0, 0, 0) + question.raw


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (ask(counts=(0, 0, 0, 0)), 1),
        (ask(counts=(2, 0, 0, 0)), 1),
        (ask(counts=(1, 1, 0, 0)), 1),
        (ask(counts=(1, 0, 1, 0)), 1),
        (ask(counts=(1, 0, 0, 3)), 1),
        (ask(b"\xc0\x0c"), 1),  # a pointer, to itself
        (ask(b"\x40" + bytes(64) + b"\0"), 1),
        (ask(wire(*(b"a" * 63,) * 4)), 1),  # longer than a name may be
        (ask()[:-5], 1),
        (ask()[:14], 1),
        (ask(net=3), 4),  # CHAOS
        (ask(flags=0x2800), 4),  # an update
    ],
)
def test_what_is_no_good_question_is_refused(data: bytes, wanted: int) -> None:
    assert code(data) == wanted


@pytest.mark.parametrize("data", [b"", bytes(11), ask(flags=0x8180), ask() + bytes(dns.MOST)])
def test_what_is_no_question_has_no_reply(data: bytes) -> None:
    with pytest.raises(dns.Unanswerable) as refused:
        dns.parse(data)
    assert refused.value.reply == b""


@pytest.mark.parametrize("labels", [(b"good.test",), (b"g\xc3\xb6d", b"test"), (b"\xff",)])
def test_labels_that_no_host_has(labels: tuple[bytes, ...]) -> None:
    assert dns.parse(ask(wire(*labels))).name is None


def test_the_root_has_no_name() -> None:
    assert dns.parse(ask(b"\0")).name == ""


@given(st.binary(max_size=600))
def test_nothing_that_a_room_sends_breaks_it(data: bytes) -> None:
    try:
        question = dns.parse(data)
    except dns.Unanswerable as refused:
        assert len(refused.reply) in (0, 12)
    else:
        assert len(question.raw) <= 259
        assert dns.parse(b"\0\1\0\0\0\1" + bytes(6) + question.raw).name == question.name
        assert len(dns.found(question, HOUSE)) <= len(data) + 16  # no amplification to speak of


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=8))
def test_names_come_through_as_they_are(labels: list[bytes]) -> None:
    raw = wire(*labels)
    if len(raw) > 255:
        return
    question = dns.parse(ask(raw))
    if question.name is not None:
        assert question.name.encode() == b".".join(labels)
    else:
        assert any(not label.isascii() or b"." in label for label in labels)


# --- addresses that stand for names ---------------------------------------------------------------------------------


def test_a_name_has_one_address_which_leads_back_to_it() -> None:
    names = Names()
    first = names.address("good.test")
    assert first in NETWORK
    assert first > ipaddress.IPv4Address(RESOLVER)
    assert names.address("good.test") == first
    assert names.address("bad.test") != first
    assert names.name(first) == "good.test"
    assert names.name(ipaddress.IPv4Address(RESOLVER)) is None
    assert Names().address("good.test") == first  # also for the next server


def test_the_table_has_a_bound_and_forgets_the_oldest() -> None:
    names = Names(most=100)
    kept = names.address("kept.test")
    for number in range(5000):
        names.address(f"{number}.test")
        assert names.address("kept.test") == kept
    assert len(names._addresses) == len(names._names) <= 100
    assert names.name(kept) == "kept.test"
    assert names.name(names.address("1.test")) == "1.test"


@given(st.lists(st.sampled_from([f"{number}.test" for number in range(40)]), max_size=200))
def test_an_address_never_stands_for_two_names(asked: list[str]) -> None:
    names = Names(most=8)
    for name in asked:
        assert names.name(names.address(name)) == name
        assert {names.name(address) for address in names._names} == set(names._addresses)
        assert len(names._names) == len(names._addresses) <= 8
