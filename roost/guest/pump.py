"""Moves one output pipe of the worker into the outbox."""

from __future__ import annotations

import json
import os
import time

from roost.guest.logs import LineSplitter, Outbox, RateLimiter, to_text
from roost.guest.reactor import READ, Reactor

CHUNK = 64 << 10
#: A read that returned less than this is followed by a pause: under load the pipe collects, and one wake-up moves
#: the lines of many requests. No line waits longer than the pause.
SMALL_READ = 16 << 10
PAUSE_S = 0.02
REPORT_S = 0.5


def log_message(stream: str, text: str) -> bytes:
    return json.dumps({"event": "log", "stream": stream, "text": text}).encode() + b"\n"


class LogPump:
    """Owns `fd`, the reading end. Always reads on, whether or not the host listens: the worker never waits for it."""

    def __init__(self, reactor: Reactor, fd: int, stream: str, outbox: Outbox, bytes_per_s: int) -> None:
        self._reactor = reactor
        self._fd = fd
        self._stream = stream
        self._outbox = outbox
        self._lines = LineSplitter()
        self._limiter = RateLimiter(bytes_per_s, time.monotonic())
        self._reporting = False
        self._closed = False
        self.tail = ""  # the last output, for the error of a worker that ended before it was ready
        os.set_blocking(fd, False)
        reactor.watch(fd, READ, self._on_ready)

    def drain(self) -> None:
        """Read what is in the pipe now, at most some megabytes: a worker that writes on cannot hold the loop here."""
        for _ in range(64):
            if self._closed or not self._read():
                return

    def close(self) -> None:
        """The last line goes out even without its newline."""
        if self._closed:
            return
        self._closed = True
        self._reactor.watch(self._fd, 0, self._on_ready)
        os.close(self._fd)
        self._emit(self._lines.finish())
        if self._limiter.dropped_lines:
            self._send(self._limiter.report())

    def _on_ready(self, events: int) -> None:
        if self._read() >= SMALL_READ or self._closed:
            return
        self._reactor.watch(self._fd, 0, self._on_ready)
        self._reactor.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._reactor.watch(self._fd, READ, self._on_ready)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return 0
        if not data:
            self.close()
            return 0
        self._emit(self._lines.feed(data))
        return len(data)

    def _emit(self, lines: list[bytes]) -> None:
        now = time.monotonic()
        passed: list[bytes] = []
        for line in lines:
            if self._limiter.can_report(now):
                passed.append(self._limiter.report().encode())
            if self._limiter.admit(line, now):
                passed.append(line)
        if passed:
            self._send(to_text(passed))
        if self._limiter.dropped_lines and not self._reporting and not self._closed:
            self._reporting = True
            self._reactor.call_later(REPORT_S, self._report)

    def _report(self) -> None:
        self._reporting = False
        if self._limiter.can_report(time.monotonic()):
            self._send(self._limiter.report())
        elif self._limiter.dropped_lines and not self._closed:
            self._reporting = True
            self._reactor.call_later(REPORT_S, self._report)

    def _send(self, text: str) -> None:
        self.tail = (self.tail + text)[-2000:]
        self._outbox.put(log_message(self._stream, text), is_log=True)
