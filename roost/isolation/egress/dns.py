"""Questions of the domain name system (RFC 1035) from a room, and answers to them. Pure.

Written here, as a room's question is hostile and so little of the protocol is wanted of it: one name, without
compression, in the class IN.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

A, IN = 1, 1
TTL_S = 30
#: A question with a name of the longest kind and an EDNS record needs less.
MOST = 1232

_HEADER = struct.Struct(">6H")
_IS_REPLY, _OPCODE, _RECURSE, _RECURSES = 0x8000, 0x7800, 0x0100, 0x0080
_FORMAT_ERROR, _NO_NAME, _NOT_IMPLEMENTED = 1, 3, 4
_LONGEST_NAME, _LONGEST_LABEL = 255, 63
_MOST_BESIDE = 2  # records beside the question: EDNS, a signature
_THE_NAME = 0xC00C  # a pointer to the question's


@dataclass(frozen=True, kw_only=True)
class Question:
    """`name` as it was written, without a dot at the end; None where a label holds what no host's name has."""

    id: int
    flags: int
    name: str | None
    kind: int
    raw: bytes  # to be repeated in the answer


class Unanswerable(Exception):
    """It is refused: `reply` says so, and is empty for what is no question at all."""

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__("no question that is answered here")
        self.reply = reply


def parse(data: bytes) -> Question:
    """Raises Unanswerable."""
    if not _HEADER.size <= len(data) <= MOST:
        raise Unanswerable
    id, flags, questions, answers, authorities, beside = _HEADER.unpack_from(data)
    if flags & _IS_REPLY:
        raise Unanswerable
    if flags & _OPCODE:
        raise Unanswerable(_head(id, flags, _NOT_IMPLEMENTED))
    try:
        if questions != 1 or answers or authorities or beside > _MOST_BESIDE:
            raise ValueError
        labels, end = _labels(data, _HEADER.size)
        kind, kind_of_net = struct.unpack_from(">2H", data, end)
    except (ValueError, IndexError, struct.error):
        raise Unanswerable(_head(id, flags, _FORMAT_ERROR)) from None
    if kind_of_net != IN:
        raise Unanswerable(_head(id, flags, _NOT_IMPLEMENTED))
    return Question(id=id, flags=flags, name=_text(labels), kind=kind, raw=data[_HEADER.size : end + 4])


def found(question: Question, address: ipaddress.IPv4Address) -> bytes:
    """The name has this address, and nothing else that one could ask for."""
    if question.kind != A:
        return _head(question.id, question.flags, 0, questions=1) + question.raw
    answer = struct.pack(">3HIH4s", _THE_NAME, A, IN, TTL_S, 4, address.packed)
    return _head(question.id, question.flags, 0, questions=1, answers=1) + question.raw + answer


def unknown(question: Question) -> bytes:
    """There is no such name."""
    return _head(question.id, question.flags, _NO_NAME, questions=1) + question.raw


def _labels(data: bytes, at: int) -> tuple[list[bytes], int]:
    """The labels of a name, and where it ends. Raises ValueError, IndexError."""
    labels: list[bytes] = []
    begin = at
    while length := data[at]:
        if length > _LONGEST_LABEL or at + 1 + length - begin >= _LONGEST_NAME:
            raise ValueError
        label = data[at + 1 : at + 1 + length]
        if len(label) != length:
            raise ValueError
        labels.append(label)
        at += 1 + length
    return labels, at + 1


def _text(labels: list[bytes]) -> str | None:
    if not all(label.isascii() and b"." not in label for label in labels):
        return None
    return b".".join(labels).decode("ascii")


def _head(id: int, flags: int, code: int, *, questions: int = 0, answers: int = 0) -> bytes:
    said = _IS_REPLY | flags & (_OPCODE | _RECURSE) | _RECURSES | code
    return _HEADER.pack(id, said, questions, answers, 0, 0)
