"""multipart/form-data as a stream: the headers of each part, then its bytes as they come. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BOUNDARY = 200
MAX_PART_HEAD = 16 << 10
MAX_PREAMBLE = 64 << 10
_PARAMETER = re.compile(r';\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_ESCAPED = re.compile(r'\\(["\\])')


class BadMultipart(ValueError):
    """Not a form; the text says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part begins. `filename` with the folders that the client named; None for a field that is no file."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the part that began last."""

    data: bytes


class PartEnd:
    """The part that began last has ended."""


Item = Part | Data | PartEnd


class MultipartParser:
    """Feed it the body. Holds no more than the head of a part and a boundary."""

    def __init__(self, content_type: str) -> None:
        boundary = parameters(content_type).get("boundary", "")
        if not boundary or len(boundary) > MAX_BOUNDARY:
            raise BadMultipart("no multipart boundary param in Content-Type")
        # Each boundary starts a line. One at the very beginning gets the line end that it lacks.
        self._mark = b"\r\n--" + boundary.encode("latin-1", "replace")
        self._buffer = b"\r\n"
        self._state = "preamble"

    @property
    def done(self) -> bool:
        """The last boundary has come; what follows means nothing."""
        return self._state == "end"

    def feed(self, data: bytes) -> Iterator[Item]:
        """Raises BadMultipart."""
        self._buffer += data
        while self._state != "end":
            if self._state == "head":
                part = self._head()
                if part is None:
                    return
                yield part
            elif self._state == "boundary":
                if not self._boundary():
                    return
            else:
                found = self._buffer.find(self._mark)
                yield from self._content(found)
                if found < 0:
                    return
                self._buffer = self._buffer[found + len(self._mark) :]
                self._state = "boundary"
        self._buffer = b""

    def _content(self, found: int) -> Iterator[Item]:
        """What surely belongs to the part: all before the mark, or before what may be the beginning of one."""
        sure = found if found >= 0 else max(0, len(self._buffer) - len(self._mark) + 1)
        if self._state == "preamble":
            if sure > MAX_PREAMBLE:
                raise BadMultipart("no boundary where the form begins")
            return
        if sure:
            yield Data(self._buffer[:sure])
        if found >= 0:
            yield PartEnd()
        else:
            self._buffer = self._buffer[sure:]

    def _boundary(self) -> bool:
        """What follows the boundary: two dashes at the very end, else a line end, perhaps after spaces."""
        if self._buffer.startswith(b"--"):
            self._state = "end"
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_BOUNDARY:
                raise BadMultipart("malformed boundary")
            return False
        if self._buffer[:end].strip(b" \t"):
            raise BadMultipart("malformed boundary")
        self._buffer = self._buffer[end:]  # the line end stays: a head without lines is the line end alone
        self._state = "head"
        return True

    def _head(self) -> Part | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_PART_HEAD:
                raise BadMultipart("the head of a part is too large")
            return None
        lines = self._buffer[2:end].decode("utf-8", "surrogateescape").split("\r\n")
        self._buffer = self._buffer[end + 4 :]
        self._state = "data"
        disposition = ""
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-disposition":
                disposition = value.strip()
        fields = parameters(disposition)
        return Part(fields.get("name", ""), fields.get("filename"))


def parameters(header: str) -> dict[str, str]:
    """The parameters of a header such as Content-Type, by lower-case name."""
    found: dict[str, str] = {}
    for name, value in _PARAMETER.findall(header):
        text = value.strip()
        if text.startswith('"'):
            text = _ESCAPED.sub(r"\1", text[1:-1])
        found.setdefault(name.lower(), text)
    return found
