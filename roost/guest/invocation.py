"""What blocking and asynchronous event handlers share: request to event, result to reply, log markers."""

from __future__ import annotations

import io
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from roost.guest import marks
from roost.guest.events import Reply, head_of, http_event, http_reply, invoke_reply, reply_parts, to_bytes
from roost.guest.faults import print_fault, to_json
from roost.guest.http1 import Head

MAX_EVENT = 64 << 20
FAULT = "UnhandledInvocationError"


def is_http(head: Head) -> bool:
    """An HTTP request, in contrast to an event from InvokeFunction."""
    return head.shape.headers.get("x-fc-control-path") != "/invoke"


def event_of(head: Head, body: bytes, account: str) -> bytes:
    return http_event(head, body, account) if is_http(head) else body


def reply_of(head: Head, result: object) -> Reply:
    """Raises BadReply."""
    return http_reply(result) if is_http(head) else invoke_reply(result)


def fault_reply(head: Head, error: BaseException) -> Reply:
    return Reply(
        status=502 if is_http(head) else 200,
        headers=[("content-type", "application/json"), ("x-fc-error-type", FAULT)],
        body=to_json(error),
    )


def is_fault(reply: Reply) -> bool:
    """It was made by `fault_reply`."""
    return ("x-fc-error-type", FAULT) in reply.headers


def stream_head(head: Head, first: object) -> tuple[Reply, bytes, bool]:
    """From a stream's first item: status and headers, the first bytes, whether the head goes out ahead of them.

    On HTTP a first `{"statusCode", "headers"}` (perhaps with a `body`) sets the reply's head. Raises BadReply.
    """
    parts = reply_parts(first) if is_http(head) and isinstance(first, dict) else None
    if parts is not None:
        body, content_type = to_bytes(parts.get("body"))
        reply = head_of(parts)
        if not any(name == "content-type" for name, _ in reply.headers):
            reply.headers.append(("content-type", content_type))
        return reply, body, not body
    data, content_type = to_piece(first), to_bytes(first)[1]
    return Reply(headers=[("content-type", content_type)]), data, False


def to_piece(item: object) -> bytes:
    """One item of a stream: bytes and text as they are, anything else as a line of JSON."""
    data, _ = to_bytes(item)
    return data if item is None or isinstance(item, str | bytes | bytearray | memoryview) else data + b"\n"


class Output:
    """The worker's standard output and error. Lines go out at once; `begin` and `end` stand around a request's."""

    def __init__(self) -> None:
        self._marks = os.dup(1)  # of its own: the user's code may close or redirect standard output
        self._late: deque[bytes] = deque()  # marks that go out before anything else does; any thread may send them
        self._out = _line_buffered(_Raw(1, before=self.send_late))
        self._err = _line_buffered(_Raw(2, before=self.send_late, after=self._mark_error))
        sys.stdout = self._out
        sys.stderr = self._err

    @property
    def stream(self) -> io.TextIOWrapper:
        return self._out

    def begin(self, head: Head) -> None:
        """From here on, what is printed may be this request's."""
        mark = marks.begins(head.request_id)
        self._mark(mark + marks.SHOW if "x-fc-log-type" in head.shape.headers else mark)

    def end(self, head: Head) -> None:
        """After all that was printed before it."""
        self.flush()
        self._mark(marks.ends(head.request_id))

    def end_soon(self, head: Head, later: Callable[[Callable[[], None]], None]) -> None:
        """As `end`, with a mark that goes out in one with the next request's begin, or when `later` calls."""
        self.flush()
        if not self._late:
            later(self.send_late)
        self._late.append(marks.ends(head.request_id))

    def send_late(self) -> None:
        if self._late:
            self._mark(b"")

    def line(self, text: str) -> None:
        """Write one line after all that was printed before it."""
        self.flush()
        self._mark(text.encode() + b"\n")

    def fault(self, error: BaseException) -> None:
        """The traceback, to standard error."""
        try:
            self._err.write(print_fault(error))
        except (OSError, ValueError):
            return

    def flush(self) -> None:
        for stream in (self._out, self._err):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue

    def _mark(self, data: bytes) -> None:
        while self._late:
            try:
                data = self._late.pop() + data
            except IndexError:  # another thread was quicker
                break
        try:
            os.write(self._marks, data)
        except OSError:
            return  # the user's code closed it: its own loss

    def _mark_error(self, count: int) -> None:
        """Standard error was written to. Said on standard output, so that the order of the two is not lost."""
        self._mark(marks.errors(count))


class _Raw(io.FileIO):
    """A standard stream that calls `before` and `after` around each write."""

    def __init__(self, fd: int, *, before: Callable[[], None], after: Callable[[int], None] | None = None) -> None:
        super().__init__(fd, "w", closefd=False)
        self._before = before
        self._after = after

    def write(self, data: Any) -> int:
        self._before()
        written = super().write(data)
        if self._after is not None:
            self._after(written or 0)
        return written


def _line_buffered(raw: io.FileIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
