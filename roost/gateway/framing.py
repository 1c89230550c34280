"""Where a message body ends: by length, by chunks, or by the end of the stream. Pure, strict, bounded."""

from __future__ import annotations

import re
from typing import Protocol

from roost.gateway.head import BadMessage

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_WHOLE_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_MAX_LINE = 1024
#: Lines of framing taken in one step: about a millisecond's work.
_STEP = 1024
_MAX_TRAILERS = 16 * 1024


class Body(Protocol):
    """Cuts a body out of the bytes that follow a head."""

    done: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(body bytes with the framing taken off, the rest). Raises BadMessage.

        The rest is what comes after the body's end if that is reached (`done`), else what is to be fed again: a body
        in tiny chunks is taken in steps, so that others get their turn between them.
        """
        ...


class LengthBody:
    """`Content-Length: n`."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) < self._left:
            self._left -= len(data)
            return data, b""
        cut, self._left, self.done = self._left, 0, True
        return (data, b"") if cut == len(data) else (data[:cut], data[cut:])


class EndlessBody:
    """A response without a length: it lasts until the connection ends."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class ChunkedBody:
    """`Transfer-Encoding: chunked`. Extensions and trailers are read, bounded, and dropped."""

    __slots__ = ("_left", "_line", "_state", "_trailers", "done")

    _SIZE_LINE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE_LINE
        self._left = 0
        self._line = b""
        self._trailers = 0
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        pieces: list[bytes] = []
        at = steps = 0
        while at < len(data) and not self.done and steps < _STEP:
            steps += 1
            if self._state == self._SIZE_LINE and not self._line and (match := _WHOLE_SIZE.match(data, at)):
                # The usual case, fast: a chunk that is here as a whole.
                start, size = match.end(), int(match[1], 16)
                end = start + size
                if size and data[end : end + 2] == b"\r\n":
                    pieces.append(data[start:end])
                    at = end + 2
                    continue
            if self._state == self._DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = self._DATA_END
            else:
                at = self._take_line(data, at)
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return body, data[at:] if at < len(data) else b""

    def _take_line(self, data: bytes, at: int) -> int:
        """Read up to the next line end, act on a whole line; where to go on."""
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        if len(self._line) + stop - at > _MAX_LINE:
            raise BadMessage("A chunk's head line is too long.")
        self._line += data[at:stop]
        if end < 0:
            return stop
        if not self._line.endswith(b"\r\n"):
            raise BadMessage("A chunk's line does not end in CRLF.")
        line, self._line = self._line[:-2], b""
        if self._state == self._SIZE_LINE:
            self._begin_chunk(line)
        elif self._state == self._DATA_END:
            if line:
                raise BadMessage("A chunk is longer than its size says.")
            self._state = self._SIZE_LINE
        elif not line:
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS:
                raise BadMessage("Too many trailer fields.")
        return stop

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadMessage("A chunk's size is not a hexadecimal number.")
        self._left = int(match[1], 16)
        self._state = self._DATA if self._left else self._TRAILER


def chunk(data: bytes) -> bytes:
    """One chunk. `data` must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
