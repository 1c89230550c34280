"""A handler's side of an asynchronous task: what it reports and puts out while it runs.

A task's reply is framed once there is more in it than a result: a kind of one byte, a length of four, so many bytes.
`o` is output, `p` a report of progress (JSON); one of `r` (the result), `f` (a fault) and `e` (no more) is the last.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from roost.guest.http1 import Head

CONTENT_TYPE = "application/vnd.roost.task"
FIELDS = [("content-type", CONTENT_TYPE)]
MAX_PROGRESS = 64 * 1024
#: Of one report. The kinds of frames.
OUTPUT, PROGRESS, RESULT, FAULT, END = (kind.encode() for kind in "oprfe")


def frame(kind: bytes, data: bytes = b"") -> bytes:
    return kind + len(data).to_bytes(4) + data


class Task:
    """`context.task`. `attempt` counts from 1; an invocation that is no task has the id "" and reports to nobody."""

    __slots__ = ("_report", "attempt", "id")

    def __init__(self, id: str, attempt: int, report: Callable[[bytes], None]) -> None:
        self.id = id
        self.attempt = attempt
        self._report = report

    def progress(self, value: Any) -> None:
        """Tell whoever watches how far it is: anything that JSON can say, up to 64 KiB. From any thread."""
        data = json.dumps(value, allow_nan=False).encode()
        if len(data) > MAX_PROGRESS:
            raise ValueError(f"a report of progress has at most {MAX_PROGRESS} bytes of JSON, not {len(data)}")
        self._report(data)


#: Of an invocation that is none.
NO_TASK = Task("", 0, lambda _: None)


def is_task(head: Head) -> bool:
    """An event that runs as a task."""
    headers = head.shape.headers
    return "x-fc-async-task-id" in headers and headers.get("x-fc-control-path") == "/invoke"


class Frames:
    """The framed reply of one task, begun by its first frame. `start` sends the head, `send` bytes of the body."""

    def __init__(self, head: Head, start: Callable[[], None], send: Callable[[bytes], None]) -> None:
        get = head.shape.headers.get
        attempt = get("x-roost-task-attempt", "")
        self.task = Task(get("x-fc-async-task-id", ""), int(attempt) if attempt.isdigit() else 1, self.report)
        self._begun = False
        self._over = False
        self._start = start
        self._send = send
        self._lock = threading.Lock()

    def put(self, kind: bytes, data: bytes = b"") -> None:
        """Nothing follows the last one: a thread that the handler left behind reports to nobody."""
        with self._lock:
            if self._over:
                return
            self._over = kind in (RESULT, FAULT, END)
            if not self._begun:
                self._begun = True
                self._start()
            self._send(frame(kind, data))

    def report(self, data: bytes) -> None:
        self.put(PROGRESS, data)

    def close(self) -> bool:
        """Whether frames have gone out, so that the rest of the reply is framed too; if none have, none will."""
        with self._lock:
            self._over = self._over or not self._begun
            return self._begun
