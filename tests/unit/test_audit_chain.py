"""The chain of the audit log: whatever is done to its records is seen."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from roost.api.audited import action_of
from roost.gateway.head import parse_request
from roost.gateway.sandbox_audit import event_of
from roost.model.audit import AuditEvent
from roost.telemetry.audit.chain import GENESIS, Broken, Head, decode, digest, encode, read_head, sign, verify
from tests.support.sandboxes import record

KEY = Ed25519PrivateKey.generate()
COUNT = 6


def event(target: str = "sandbox/i1", **detail: str | int | bool) -> AuditEvent:
    return AuditEvent(action="file.write", account="acme", actor="RK1", target=target, outcome="allowed", detail=detail)


def chain(count: int = COUNT, *, first: int = 1, prev: str = GENESIS) -> list[bytes]:
    lines: list[bytes] = []
    for seq in range(first, first + count):
        lines.append(encode(event(number=seq), seq=seq, at=1000.0 + seq, prev=prev))
        prev = digest(lines[-1])
    return lines


def head(lines: list[bytes], *, first: int = 1, base: str = GENESIS) -> Head:
    last = first + len(lines) - 1
    return Head(first=first, base=base, last=last, digest=digest(lines[-1]) if lines else base, time="now")


def places(lines: list[bytes]) -> list[tuple[str, bytes]]:
    return [(f"log:{number}", line) for number, line in enumerate(lines, 1)]


def test_a_chain_is_whole() -> None:
    lines = chain()
    result = verify(places(lines), head(lines))
    assert (result.first, result.last, result.unsigned) == (1, COUNT, 0)
    assert verify(places(lines), head(lines[:4])).unsigned == 2
    assert verify([], head([])).last == 0


def changed(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at].replace(b'"RK1"', b'"RK2"'), *lines[at + 1 :]]


def forged(lines: list[bytes], at: int) -> list[bytes]:
    """Everything from there on written anew, as it would have to be."""
    prev = digest(lines[at - 1]) if at else GENESIS
    new: list[bytes] = []
    for seq in range(at + 1, len(lines) + 1):
        new.append(encode(event(number=-seq), seq=seq, at=1.0, prev=prev))
        prev = digest(new[-1])
    return lines[:at] + new


DAMAGE: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "edit": changed,
    "delete": lambda lines, at: lines[:at] + lines[at + 1 :],
    "repeat": lambda lines, at: [*lines[: at + 1], *lines[at:]],
    "reorder": lambda lines, at: [*lines[:at], *lines[at : at + 2][::-1], *lines[at + 2 :]],
    "truncate": lambda lines, at: lines[:at],
    "insert": lambda lines, at: [*lines[:at], encode(event(), seq=at + 1, at=1.0, prev=GENESIS), *lines[at:]],
    "spoil": lambda lines, at: [*lines[:at], b"{}", *lines[at + 1 :]],
    "forge": forged,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("at", range(COUNT))
def test_what_is_done_to_records_is_seen(how: str, at: int) -> None:
    lines = chain()
    damaged = DAMAGE[how](lines, at)
    if how == "reorder" and at == COUNT - 1:
        damaged = [lines[-1], *lines[:-1]]
    with pytest.raises(Broken):
        verify(places(damaged), head(lines))


def test_older_records_that_were_removed_in_order_are_not_missed() -> None:
    lines = chain()
    kept = head(lines[2:], first=3, base=digest(lines[1]))
    assert verify(places(lines[2:]), kept).first == 3
    assert verify(places(lines), kept).first == 3  # the server was killed before it removed them
    with pytest.raises(Broken, match="record 3 is expected"):
        verify(places(lines[3:]), kept)


def test_a_head_that_was_noted_finds_what_its_owner_wrote_anew() -> None:
    lines = chain()
    noted = (4, digest(lines[3]))
    assert verify(places(lines), head(lines), noted=noted).last == COUNT
    again = forged(lines, 2)
    assert verify(places(again), head(again)).last == COUNT  # all of it signed: without the note nobody sees it
    with pytest.raises(Broken, match="record 4 is not the one that was noted"):
        verify(places(again), head(again), noted=noted)
    with pytest.raises(Broken, match="which was noted, is not in the log"):
        verify(places(lines[:3]), head(lines[:3]), noted=noted)


def test_a_head_is_signed() -> None:
    made = head(chain())
    signed = sign(made, KEY)
    assert read_head(signed, KEY.public_key()) == made
    fields = json.loads(signed)
    other = sign(made, Ed25519PrivateKey.generate())
    for bad in (
        json.dumps({**fields, "last": 5}).encode(),
        json.dumps({**fields, "signature": ""}).encode(),
        json.dumps({**fields, "more": 1}).encode(),
        b"[]",
        b"",
        b"[" * 100_000,
        other,
    ):
        with pytest.raises(Broken, match="not signed with this key"):
            read_head(bad, KEY.public_key())


@given(st.text(max_size=50), st.text(max_size=50), st.integers())
def test_nothing_that_is_recorded_makes_another_record(target: str, value: str, number: int) -> None:
    line = encode(event(target, value=value, number=number), seq=1, at=0.0, prev=GENESIS)
    assert all(32 <= byte < 127 for byte in line)
    found = decode(line)
    assert (found["target"], found["detail"]) == (target, {"value": value, "number": number})


def test_records_are_bounded() -> None:
    many = {f"name{number}": "x" * 10_000 for number in range(1000)}
    assert len(encode(event("y" * 1_000_000, **many), seq=1, at=0.0, prev=GENESIS)) < 16_000


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("POST", "/2023-03-30/functions", "api.change"),
        ("GET", "/2023-03-30/functions", ""),
        ("GET", "/2023-03-30/functions/f/code", "file.read"),
        ("POST", "/2023-03-30/functions/f/triggers", "policy.change"),
        ("PUT", "/sandboxes/i1/network", "policy.change"),
        ("POST", "/secrets", "policy.change"),
        ("PUT", "/roost/objects/b/k", "file.write"),
        ("GET", "/roost/objects/b/k", "file.read"),
        ("GET", "/roost/objects/b", ""),
        ("POST", "/volumecontent/v/file", "file.write"),
        ("DELETE", "/sandboxes/i1", "api.change"),
        ("POST", "/roost/keys", ""),  # who makes keys tells more of it
        ("POST", "/sandboxes/i1/mcp", ""),
    ],
)
def test_what_requests_are_called(method: str, path: str, action: str) -> None:
    assert action_of(method, path) == action


@pytest.mark.parametrize(
    ("line", "port", "action", "detail"),
    [
        ("POST /process.Process/Start", 49983, "process.start", {"call": "/process.Process/Start"}),
        ("POST /process.Process/List", 49983, "", {}),
        ("POST /execute", 49999, "process.start", {"call": "/execute"}),
        ("POST /execute", 8000, "", {}),
        ("GET /files?path=%2Froot%2Fa%0Ab", 49983, "file.read", {"call": "/files", "path": "/root/a\nb"}),
        ("POST /files", 49983, "file.write", {"call": "/files"}),
    ],
)
def test_what_requests_to_sandboxes_are_called(line: str, port: int, action: str, detail: dict[str, str]) -> None:
    asked = parse_request(f"{line} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    found = event_of(record(), port, asked, refused=False)
    if not action:
        assert found is None
        return
    assert found is not None
    assert (found.action, found.actor, found.outcome, found.detail) == (action, "token", "allowed", detail)
    refused = event_of(record(), port, asked, refused=True)
    assert refused is not None
    assert (refused.actor, refused.outcome) == ("anonymous", "denied")
