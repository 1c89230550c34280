"""Tails of recent requests: bounded, fair, and waited for."""

from __future__ import annotations

import asyncio

from roost.telemetry.request_tails import RequestTails

KEY = ("default", "f", "r")


def test_keeps_the_last_bytes() -> None:
    tails = RequestTails(limit_bytes=10)
    tails.add(KEY, "0123456789abc")
    tails.add(KEY, "xyz")
    assert tails.read(KEY) == b"89abc\nxyz\n"[-10:]
    assert tails.read(KEY, 4) == b"xyz\n"
    assert tails.read(KEY, 0) == b""
    assert tails.read(("default", "f", "unknown")) == b""


def test_a_function_that_invents_requests_loses_only_its_own() -> None:
    tails = RequestTails(requests=10, per_function=9)
    tails.add(KEY, "mine")
    for number in range(1000):
        tails.add(("default", "loud", str(number)), "x")
    assert tails.read(KEY) == b"mine\n"
    assert sum(tails.read(("default", "loud", str(number))) != b"" for number in range(1000)) == 9


def test_the_function_that_is_silent_for_longest_goes_first() -> None:
    tails = RequestTails(requests=3)
    for name in ("a", "b", "c", "a"):
        tails.add(("default", name, "r"), name)
    for number in range(2):
        tails.add(("default", "d", str(number)), "d")
    assert [tails.read(("default", name, "r")) for name in "abc"] == [b"a\na\n", b"", b""]
    assert tails._count == 3


async def test_waits_for_the_end_marker() -> None:
    tails = RequestTails()
    waiting = [asyncio.ensure_future(tails.read_when_ended(KEY, 4096, 30)) for _ in range(2)]
    await asyncio.sleep(0)
    tails.add(KEY, "work")
    tails.add(KEY, "end", ends=True)
    assert await asyncio.gather(*waiting) == [b"work\nend\n"] * 2
    assert await tails.read_when_ended(KEY, 3, 30) == b"nd\n"


async def test_returns_what_there_is_when_no_end_comes() -> None:
    tails = RequestTails()
    tails.add(KEY, "work")
    assert await tails.read_when_ended(KEY, 4096, 0.01) == b"work\n"


def test_forgets_a_function() -> None:
    tails = RequestTails(requests=2)
    tails.add(KEY, "x")
    tails.forget("default", "f")
    assert tails.read(KEY) == b""
    tails.add(("default", "g", "1"), "1")
    tails.add(("default", "g", "2"), "2")
    assert tails.read(("default", "g", "1")) == b"1\n"


def test_finds_a_request_by_its_id_unless_another_function_printed_it_too() -> None:
    tails = RequestTails()
    tails.add(KEY, "mine")
    assert tails.find("r") == b"mine\n"
    assert tails.find("r", 2) == b"e\n"
    tails.add(("other", "forger", "r"), "forged")
    assert tails.find("r") == b""
    assert tails.read(KEY) == b"mine\n"
    assert tails.find("unknown") == b""
