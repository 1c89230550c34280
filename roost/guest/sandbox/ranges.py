"""Parts of a file that a Range header asks for, as Go's file server reads it, which envd is. Pure."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

MOST_RANGES = 100
_RANGE = re.compile(r"([0-9]{0,18})\s*-\s*([0-9]{0,18})")
_EOL = "\r\n"


class BadRange(ValueError):
    """`overlaps`: whether something is wrong other than that nothing of the file is in it."""

    def __init__(self, message: str, *, overlaps: bool) -> None:
        super().__init__(message)
        self.overlaps = overlaps


@dataclass(frozen=True, slots=True)
class Range:
    """`first` byte and the one after the last."""

    first: int
    end: int

    def told(self, size: int) -> str:
        """As Content-Range says it, of a file of `size` bytes."""
        return f"bytes {self.first}-{self.end - 1}/{size}"


def parse_ranges(header: str, size: int) -> list[Range]:
    """Those that lie within the file, cut to it; empty if the whole file is to be sent: nothing is asked for, or more
    than there is, or more ranges than one may ask for at once. Raises BadRange."""
    if not header:
        return []
    unit, _, listed = header.partition("=")
    if unit != "bytes":
        raise BadRange("invalid range", overlaps=True)
    asked = [text for text in (item.strip() for item in listed.split(",", MOST_RANGES + 1)) if text]
    if len(asked) > MOST_RANGES:
        return []
    found = [one for one in (_parse(text, size) for text in asked) if one is not None]
    if asked and not found and size:
        raise BadRange("invalid range: failed to overlap", overlaps=False)
    return found if sum(one.end - one.first for one in found) <= size else []


class Multipart:
    """The body of a reply with several ranges, a part at a time."""

    def __init__(self, ranges: list[Range], size: int, content_type: str) -> None:
        self._boundary = secrets.token_hex(15)
        self.content_type = f"multipart/byteranges; boundary={self._boundary}"
        self.parts = [
            (
                f"{_EOL if number else ''}--{self._boundary}\r\n"
                f"Content-Range: {one.told(size)}\r\nContent-Type: {content_type}\r\n\r\n".encode("latin-1"),
                one,
            )
            for number, one in enumerate(ranges)
        ]
        self.last = f"{_EOL}--{self._boundary}--\r\n".encode()

    @property
    def length(self) -> int:
        return sum(len(head) + one.end - one.first for head, one in self.parts) + len(self.last)


def _parse(text: str, size: int) -> Range | None:
    """None for one that has nothing of the file."""
    match = _RANGE.fullmatch(text)
    if match is None or match[1] == match[2] == "" or (match[1] and match[2] and int(match[2]) < int(match[1])):
        raise BadRange("invalid range", overlaps=True)
    if not match[1]:
        return Range(max(0, size - int(match[2])), size) if int(match[2]) else None
    if int(match[1]) >= size:
        return None
    return Range(int(match[1]), min(size, int(match[2]) + 1) if match[2] else size)
