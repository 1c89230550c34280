"""What becomes of the worker's output: lines, a rate limit, and a bounded queue towards the host. Pure."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

MAX_LINE = 16 << 10  # bytes; a longer line is cut into lines of this length


class LineSplitter:
    """Bytes in, whole lines out (newline included), with memory for at most one line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        if not self._rest and len(data) <= MAX_LINE and data.find(b"\n") == len(data) - 1:
            return [data] if data else []  # one line, as most prints are
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        lines = [line + b"\n" for line in lines]
        if len(self._rest) >= MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        return [piece for line in lines for piece in _cut(line)]

    def finish(self) -> list[bytes]:
        """The last line, if it came without a newline."""
        rest, self._rest = self._rest, b""
        return _cut(rest) if rest else []


def _cut(line: bytes) -> list[bytes]:
    if len(line) <= MAX_LINE:
        return [line if line.endswith(b"\n") else line + b"\n"]
    pieces = [line[start : start + MAX_LINE] for start in range(0, len(line), MAX_LINE)]
    return [piece if piece.endswith(b"\n") else piece + b"\n" for piece in pieces]


class RateLimiter:
    """A token bucket of bytes that holds one second's worth. What doesn't fit is counted."""

    def __init__(self, bytes_per_s: int, now: float) -> None:
        self._rate = bytes_per_s
        self._tokens = float(bytes_per_s)
        self._at = now
        self.dropped_bytes = 0
        self.dropped_lines = 0

    def admit(self, line: bytes, now: float) -> bool:
        """True if the line may pass. While lines have been dropped and not reported, nothing passes before
        half a second's worth is free, so that a flood costs two marker lines a second and not one a line."""
        self._refill(now)
        if self.dropped_lines and not self.can_report(now):
            self._drop(line)
            return False
        if len(line) > self._tokens:
            self._drop(line)
            return False
        self._tokens -= len(line)
        return True

    def can_report(self, now: float) -> bool:
        """Lines were dropped, and there is room again."""
        self._refill(now)
        return self.dropped_lines > 0 and self._tokens >= self._rate / 2

    def report(self) -> str:
        """The marker line for what was dropped; starts a new count."""
        text = (
            f"[roost] {self.dropped_bytes} bytes in {self.dropped_lines} lines of output were dropped: "
            f"the limit is {self._rate} bytes per second\n"
        )
        self.dropped_bytes = self.dropped_lines = 0
        return text

    def _drop(self, line: bytes) -> None:
        self.dropped_bytes += len(line)
        self.dropped_lines += 1

    def _refill(self, now: float) -> None:
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = max(self._at, now)


def to_text(lines: list[bytes]) -> str:
    """Invalid UTF-8 becomes U+FFFD."""
    return codecs.decode(b"".join(lines), "utf-8", "replace")


class Outbox:
    """Messages on their way to the host, in order. Log messages are bounded in bytes (the oldest go first);
    events are few, and kept. `notify` is called when there is something to send."""

    def __init__(self, notify: Callable[[], None] = lambda: None, max_log_bytes: int = 256 << 10) -> None:
        self._notify = notify
        self._queue: deque[tuple[bool, bytes]] = deque()
        self._log_bytes = 0
        self._max_log_bytes = max_log_bytes
        self.lost_logs = 0

    def put(self, message: bytes, *, is_log: bool) -> None:
        self._queue.append((is_log, message))
        if is_log:
            self._log_bytes += len(message)
            while self._log_bytes > self._max_log_bytes:
                self._drop_oldest_log()
        self._notify()

    def head(self) -> bytes | None:
        """The next message; it stays until `pop`, so that a broken connection loses nothing."""
        return self._queue[0][1] if self._queue else None

    def pop(self) -> None:
        is_log, message = self._queue.popleft()
        if is_log:
            self._log_bytes -= len(message)

    def _drop_oldest_log(self) -> None:
        for index, (is_log, message) in enumerate(self._queue):
            if is_log:
                del self._queue[index]
                self._log_bytes -= len(message)
                self.lost_logs += 1
                return
