"""What a task's reply brings while it comes: output, reports of progress, and how it ends. Pure; what comes is hostile.

Three kinds of body are told apart. One with a length is a result and nothing else. One that is streamed is output, as
it comes; in an event stream the events named `progress` are reports as well. And the guest's Python runtimes frame what
a handler puts out (`context.task`): a kind of one byte, a length of four, then so many bytes.
"""

from __future__ import annotations

import json
from typing import Protocol

from roost.gateway.head import BadMessage, ResponseHead

#: Content type of framed bodies.
FRAMED = b"application/vnd.roost.task"
_FRAME_HEAD = 5
_MAX_WHOLE = 8 << 20  # of a frame that is taken as a whole
_MAX_LINE = 64 * 1024


class Sink(Protocol):
    """Takes what comes."""

    def write(self, data: bytes) -> None: ...

    def progress(self, data: bytes) -> None:
        """JSON."""
        ...


class TaskBody(Protocol):
    """`fault`: the function's own, as JSON. `result`: in place of all that was output; None where there is none."""

    result: bytes | None
    fault: bytes | None

    def feed(self, data: bytes) -> bytes:
        """What of it is output. Raises BadMessage."""
        ...

    @property
    def whole(self) -> bool:
        """Nothing of it is missing."""
        ...


def body_of(head: ResponseHead, sink: Sink) -> TaskBody | None:
    """None for a body that is a result and nothing else."""
    kind = head.values.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind == FRAMED:
        return Framed(sink)
    if b"content-length" in head.values:
        return None
    return EventStream(sink) if kind == b"text/event-stream" else Plain(sink)


class Plain:
    """Streamed output."""

    whole = True

    def __init__(self, sink: Sink) -> None:
        self.result: bytes | None = None
        self.fault: bytes | None = None
        self._sink = sink

    def feed(self, data: bytes) -> bytes:
        self._sink.write(data)
        return data


class EventStream(Plain):
    """Output that is an event stream. A line that is too long, or data that is no JSON, is output only."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._line = b""
        self._skipping = False
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._sink.write(data)
        *lines, rest = (self._line + data).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            else:
                self._take(line.rstrip(b"\r"))
        if len(rest) > _MAX_LINE:
            self._skipping, rest = True, b""
        self._line = rest
        return data

    def _take(self, line: bytes) -> None:
        if not line:
            if self._name == b"progress" and self._data:
                self._report(b"\n".join(self._data))
            self._name, self._data = b"", []
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value
        elif name == b"data" and sum(map(len, self._data)) + len(value) <= _MAX_LINE:
            self._data.append(value)

    def _report(self, data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            text = json.dumps(text)
        self._sink.progress(text.encode())


class Framed:
    """`o` output, `p` progress, and at the end `r` the result, `f` a fault or `e`: what was output is the result."""

    def __init__(self, sink: Sink) -> None:
        self.result: bytes | None = None
        self.fault: bytes | None = None
        self.whole = False
        self._sink = sink
        self._buffer = bytearray()
        self._left = 0  # of an output frame that is passed on as it comes

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        output = bytearray()
        while self._buffer:
            if self._left:
                piece = bytes(self._buffer[: self._left])
                del self._buffer[: len(piece)]
                self._left -= len(piece)
                self._sink.write(piece)
                output += piece
            elif not self._next():
                break
        return bytes(output)

    def _next(self) -> bool:
        """Take a frame; False when not all of it is here. Raises BadMessage."""
        if len(self._buffer) < _FRAME_HEAD:
            return False
        kind, size = chr(self._buffer[0]), int.from_bytes(self._buffer[1:_FRAME_HEAD])
        if self.whole or kind not in "oprfe" or (kind != "o" and size > _MAX_WHOLE):
            raise BadMessage("The task's reply is not framed as it should be.")
        if kind == "o":
            del self._buffer[:_FRAME_HEAD]
            self._left = size
            return True
        if len(self._buffer) < _FRAME_HEAD + size:
            return False
        data = bytes(self._buffer[_FRAME_HEAD : _FRAME_HEAD + size])
        del self._buffer[: _FRAME_HEAD + size]
        if kind == "p":
            self._report(data)
            return True
        self.whole = True
        if kind == "r":
            self.result = data
        elif kind == "f":
            self.fault = data
        return True

    def _report(self, data: bytes) -> None:
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            raise BadMessage("A task's report of progress is not JSON.") from None
        self._sink.progress(data)
