"""The names of files in an upload as it goes by, for the audit: one request may bring many. Pure.

What becomes of the body is the daemon's affair, and that there was a request is told anyway; so what is not understood
here is passed by.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from roost.gateway.connection import BodySink
from roost.gateway.head import RequestHead

_BOUNDARY = re.compile(rb'multipart/form-data\s*;.*boundary="?([^";]{1,70})"?', re.IGNORECASE | re.DOTALL)
_NAME = re.compile(rb'^content-disposition:.*?filename="((?:[^"\\\r\n]|\\.)*)"', re.IGNORECASE | re.MULTILINE)
_HEAD = 8192  # of a part: what is longer is none
_MOST = 1000


def boundary_of(head: RequestHead) -> bytes:
    """Of a body in parts; b"" for another."""
    found = _BOUNDARY.match(head.values.get(b"content-type", b""))
    return found[1].strip() if found else b""


class UploadNames:
    """Stands between a request and the sink of its body, and tells the name of each part that has one."""

    def __init__(self, sink: BodySink, boundary: bytes, tell: Callable[[str], None]) -> None:
        self._sink = sink
        self._mark = b"\r\n--" + boundary
        self._tell = tell
        self._left = _MOST
        self._in_head = False
        self._held = b"\r\n"  # the first mark may be the body's first line

    def body(self, data: bytes) -> None:
        if self._left:
            self._look(self._held + data)
        self._sink.body(data)

    def body_end(self) -> None:
        self._sink.body_end()

    def _look(self, data: bytes) -> None:
        while self._left:
            mark = b"\r\n\r\n" if self._in_head else self._mark
            at = data.find(mark)
            if at < 0:
                self._in_head = self._in_head and len(data) <= _HEAD
                self._held = data if self._in_head else data[-len(self._mark) + 1 :]
                return
            if self._in_head and (named := _NAME.search(data[:at])):
                self._left -= 1
                self._tell(re.sub(rb"\\(.)", rb"\1", named[1]).decode("utf-8", "replace"))
            # A part's head may be empty: its end is then the line end of its mark, and more.
            data = data[at + len(mark) :] if not self._in_head else data[at + 2 :]
            self._in_head = not self._in_head
