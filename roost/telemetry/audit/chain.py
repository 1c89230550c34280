"""The chain of an audit log: records that name the one before them, and heads that are signed. Pure.

A record is a line of JSON; `prev` is the SHA-256 of the line before it (without its end), 64 zeros in the first one. So
whoever changes, removes, adds or moves a record breaks the chain behind it. A head says how far the log goes and where
it begins, signed with Ed25519 (RFC 8032): whoever cuts the log off at either end leaves a head that it does not reach.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from roost.model.audit import AuditEvent

#: `prev` of the very first record.
GENESIS = "0" * 64
_TEXT = 400  # characters of each text that a record has
_DETAILS = 16


class Broken(Exception):
    """The log is not as it was written. `message` says where, and how that is seen."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a log consists of: the records `first` to `last`. `base` is the digest of the one before `first`, `digest`
    that of `last` (which is `base` while there is none)."""

    first: int
    base: str
    last: int
    digest: str
    time: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found to be whole."""

    first: int
    last: int
    unsigned: int  # records behind the head: they were written when the server was killed, and are not signed yet


def timestamp(at: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(event: AuditEvent, *, seq: int, at: float, prev: str) -> bytes:
    """A record, without the end of its line. It is ASCII without control characters, whatever the event's texts are."""
    record = {
        "seq": seq,
        "time": timestamp(at),
        "action": event.action[:_TEXT],
        "account": event.account[:_TEXT],
        "actor": event.actor[:_TEXT],
        "target": event.target[:_TEXT],
        "outcome": event.outcome[:_TEXT],
        "detail": {
            name[:_TEXT]: value[:_TEXT] if isinstance(value, str) else value
            for name, value in list(event.detail.items())[:_DETAILS]
        },
        "prev": prev,
    }
    return json.dumps(record, separators=(",", ":")).encode("ascii")


def decode(line: bytes) -> dict[str, Any]:
    """Raises Broken for what `encode` can't have made."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or type(record.get("seq")) is not int or type(record.get("prev")) is not str:
        raise Broken("it is no record")
    return record


def digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def sign(head: Head, key: Ed25519PrivateKey) -> bytes:
    """The head as a line of JSON."""
    signature = base64.b64encode(key.sign(_message(head))).decode("ascii")
    return json.dumps({**asdict(head), "signature": signature}).encode("ascii") + b"\n"


def read_head(data: bytes, key: Ed25519PublicKey) -> Head:
    """What `sign` made. Raises Broken."""
    try:
        fields = json.loads(data)
        signature = base64.b64decode(fields.pop("signature"), validate=True)
        head = Head(**fields)
        key.verify(signature, _message(head))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error, InvalidSignature):
        raise Broken("The head is not signed with this key.") from None
    return head


def _message(head: Head) -> bytes:
    return b"roost audit head 1\n" + json.dumps(asdict(head), sort_keys=True).encode("ascii")


def verify(lines: Iterable[tuple[str, bytes]], head: Head, *, noted: tuple[int, str] | None = None) -> Verified:
    """Follow the chain through `lines`: (where it is, record), from the oldest on.

    `noted` are number and digest of a record, from a head that was kept elsewhere: it has to be there, as it was. What
    is older than the head's first record is not looked at. Raises Broken.
    """
    seq, prev = head.first - 1, head.base
    for place, line in lines:
        try:
            record = decode(line)
        except Broken as error:
            raise Broken(f"{place}: {error.message}.") from None
        if record["seq"] < head.first and seq < head.first:
            continue
        if record["seq"] != seq + 1:
            raise Broken(f"{place}: record {seq + 1} is expected and {record['seq']} is there.")
        if record["prev"] != prev:
            raise Broken(f"{place}: record {record['seq']} does not follow {_named(seq)}; one of them was changed.")
        seq, prev = seq + 1, digest(line)
        for number, wanted, whose in ((head.last, head.digest, "signed"), (*(noted or (0, "")), "noted")):
            if seq == number and prev != wanted:
                raise Broken(f"{place}: record {seq} is not the one that was {whose}.")
    if seq < head.last:
        raise Broken(f"The log ends at record {seq}; {head.last - seq} more were signed.")
    if noted is not None and not head.first <= noted[0] <= seq:
        raise Broken(f"Record {noted[0]}, which was noted, is not in the log: it has {head.first} to {seq}.")
    return Verified(first=head.first, last=seq, unsigned=seq - head.last)


def _named(seq: int) -> str:
    return f"record {seq}" if seq else "nothing, as the first one does"
