"""Which request a line of an instance's output belongs to.

The guest sends `FC Invoke Start RequestId: X` and `FC Invoke End RequestId: X` around what is printed while X is open,
and neither for one that is soon done without it. Between the markers of just one open request, every line is that
request's. With several open, a line is a request's only if it names its id near its beginning, as `context.logger`
does. The text is the guest's and may lie: it can mislead about
requests of its own function, never about another's, since whoever keeps the lines keys them by function first.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import NamedTuple

#: More than the highest instance concurrency (200); a guest that opens more loses its oldest.
MAX_OPEN = 256
#: Requests just ended whose late lines (stderr read after stdout) are still recognised when they name their id.
MAX_CLOSED = 64
#: How far into a line its request id and level are looked for.
PREFIX = 160

#: Most lines taken of one piece of output: a megabyte of empty lines must not hold the host up.
MAX_LINES = 1000

_MARKER = re.compile(r"^FC Invoke (Start|End) RequestId: ([A-Za-z0-9_-]{1,128})\s*$", re.MULTILINE)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LEVEL = re.compile(r"\[(DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\]")


class Line(NamedTuple):
    """One attributed line. `ends` is true for the request's end marker: no line of it between markers follows."""

    text: str
    request_id: str
    level: str = ""
    ends: bool = False


class Attributor:
    """One instance's open requests, as its output tells them. Feed it the output in order.

    With `exclusive` (instance concurrency 1) a start marker ends what was open: its worker was killed in mid-request.
    """

    def __init__(self, *, exclusive: bool = False) -> None:
        self._exclusive = exclusive
        self._open: OrderedDict[str, None] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()

    def attribute(self, text: str) -> list[Line]:
        """The lines of `text` (a final newline is no line of its own), each with its request id or "".

        After MAX_LINES the rest becomes one line that counts them; markers among them still count.
        """
        lines = text.removesuffix("\n").split("\n", MAX_LINES)
        rest = lines.pop() if len(lines) > MAX_LINES else None
        found = [self._line(line) for line in lines]
        if rest is not None:
            marks = [self._mark(match[0], match[1], match[2]) for match in _MARKER.finditer(rest)]
            count = rest.count("\n") + 1 - len(marks)
            found += marks
            if count:
                found.append(Line(f"[{count} lines dropped: too many at once]", "", "WARNING"))
        return found

    def abandon(self, request_id: str) -> None:
        """The host has given this request up; no end marker may come."""
        if request_id in self._open:
            self._close(request_id)

    def _line(self, text: str) -> Line:
        marker = _MARKER.fullmatch(text) if text.startswith("FC Invoke ") else None
        if marker is not None:
            return self._mark(text, marker[1], marker[2])
        prefix = text[:PREFIX]
        level = _LEVEL.search(prefix) if "[" in prefix else None
        return Line(text, self._owner(prefix), level[1] if level else "")

    def _mark(self, text: str, kind: str, request_id: str) -> Line:
        if kind == "Start":
            if self._exclusive:
                self._open.clear()
            self._open[request_id] = None
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return Line(text, request_id)
        known = request_id in self._open
        self._close(request_id)
        return Line(text, request_id, ends=known)

    def _close(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        self._closed[request_id] = None
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    def _owner(self, prefix: str) -> str:
        if len(self._open) == 1:
            return next(iter(self._open))
        if not self._open and not self._closed:
            return ""
        for token in _TOKEN.findall(prefix):
            if token in self._open or token in self._closed:
                return str(token)
        return ""
