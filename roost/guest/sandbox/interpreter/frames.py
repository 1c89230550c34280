"""Messages between the daemon and a context's process: a line `<kind> <length>` and as many bytes. Pure.

| kind | from | payload |
|---|---|---|
| HOLD | daemon | a number: stand still, to be copied |
| GO | daemon | empty: that is over |
| BORN | daemon | the same, to a copy: `{"env"}`, variables that are its own |
| RENEW | daemon | the same, where the whole room is the copy: threads and open files are there too |
| HELD | context | that number: it stands still, until GO, BORN or RENEW comes. Not said where GO is here already |
| STAYS | context | that number, a space and why it can't be copied; it goes on |
| RUN | daemon | a cell: `{"code", "env"}` |
| ACK | daemon | empty: a display has been passed on; the cell may go on |
| READY | context | `{"next"}`: the number that its next cell will have |
| FAILED | context | `{"error"}`: it can't start, and ends |
| DISPLAY | context | one result, a JSON object; waits for ACK, so that output keeps its place before and after |
| RESULT | context | the same for the value of the cell itself, without ACK |
| ERROR | context | `{"name", "value", "traceback"}` |
| DONE | context | `{"next"}`: the cell has ended |
"""

from __future__ import annotations

RUN = b"X"
ACK = b"A"
HOLD = b"H"
GO = b"G"
BORN = b"B"
RENEW = b"N"
HELD = b"L"
STAYS = b"S"
READY = b"Y"
FAILED = b"F"
DISPLAY = b"P"
RESULT = b"R"
ERROR = b"E"
DONE = b"D"

MAX_FRAME = 40 << 20  # of a context; a result is at most 32 MB
_MAX_HEAD = 12
_KINDS = frozenset((RUN, ACK, HOLD, GO, BORN, RENEW, HELD, STAYS, READY, FAILED, DISPLAY, RESULT, ERROR, DONE))

Frame = tuple[bytes, bytes]


class BadFrame(ValueError):
    """The other side does not keep to the protocol."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return b"%s %d\n%s" % (kind, len(payload), payload)


class FrameReader:
    """Takes bytes as they come and gives out whole frames."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._kind = b""
        self._length = -1  # of the payload that is awaited; none yet

    def feed(self, data: bytes) -> list[Frame]:
        """Raises BadFrame."""
        self._buffer += data
        frames: list[Frame] = []
        while self._read_head() and len(self._buffer) >= self._length:
            frames.append((self._kind, bytes(self._buffer[: self._length])))
            del self._buffer[: self._length]
            self._length = -1
        return frames

    def _read_head(self) -> bool:
        if self._length >= 0:
            return True
        end = self._buffer.find(b"\n", 0, _MAX_HEAD)
        if end < 0:
            if len(self._buffer) >= _MAX_HEAD:
                raise BadFrame("no head of a frame")
            return False
        kind, _, length = bytes(self._buffer[:end]).partition(b" ")
        if kind not in _KINDS or not length.isdigit() or int(length) > self._limit:
            raise BadFrame("a wrong head of a frame")
        self._kind, self._length = kind, int(length)
        del self._buffer[: end + 1]
        return True
