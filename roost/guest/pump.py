"""Moves the worker's output, both pipes of it, into the outbox."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from roost.guest.logs import LineSplitter, Outbox, RateLimiter, to_text
from roost.guest.marks import MarkedOutput
from roost.guest.reactor import READ, Reactor

CHUNK = 64 << 10
#: A read that returned less than this is followed by a pause: under load the pipe collects, and one wake-up moves
#: the lines of many requests. No line waits longer than the pause.
SMALL_READ = 16 << 10
PAUSE_S = 0.02
REPORT_S = 0.5
AGE_S = 0.2


def log_message(stream: str, text: str) -> bytes:
    return json.dumps({"event": "log", "stream": stream, "text": text}).encode() + b"\n"


class Pipe:
    """The reading end of one stream, and what passes of its lines."""

    def __init__(self, reactor: Reactor, fd: int, stream: str, outbox: Outbox, bytes_per_s: int) -> None:
        self._reactor = reactor
        self._fd = fd
        self._stream = stream
        self._outbox = outbox
        self._limiter = RateLimiter(bytes_per_s, time.monotonic())
        self._reporting = False
        self.closed = False
        self.tail = ""  # the last output, for the error of a worker that ended before it was ready
        os.set_blocking(fd, False)

    def watch(self, callback: Callable[[int], None] | None) -> None:
        if not self.closed:
            self._reactor.watch(self._fd, READ if callback else 0, callback or self._ignore)

    def read(self) -> bytes | None:
        """What is there; b"" for nothing, None at the end."""
        if self.closed:
            return b""
        try:
            return os.read(self._fd, CHUNK) or None
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.watch(None)
        self.closed = True
        os.close(self._fd)
        if self._limiter.dropped_lines:
            self._send(self._limiter.report())

    def emit(self, lines: list[bytes]) -> None:
        if not lines:
            return
        now = time.monotonic()
        passed: list[bytes] = []
        for line in lines:
            if self._limiter.can_report(now):
                passed.append(self._limiter.report().encode())
            if self._limiter.admit(line, now):
                passed.append(line)
        if passed:
            self._send(to_text(passed))
        if self._limiter.dropped_lines and not self._reporting and not self.closed:
            self._reporting = True
            self._reactor.call_later(REPORT_S, self._report)

    def _report(self) -> None:
        self._reporting = False
        if self._limiter.can_report(time.monotonic()):
            self._send(self._limiter.report())
        elif self._limiter.dropped_lines and not self.closed:
            self._reporting = True
            self._reactor.call_later(REPORT_S, self._report)

    def _send(self, text: str) -> None:
        self.tail = (self.tail + text)[-2000:]
        self._outbox.put(log_message(self._stream, text), is_log=True)

    def _ignore(self, events: int) -> None:
        """Stands where a callback is required and none will be called."""


class OutputPump:
    """Owns both reading ends. Always reads on, whether or not the host listens: the worker never waits for it."""

    def __init__(self, reactor: Reactor, stdout: int, stderr: int, outbox: Outbox, bytes_per_s: int) -> None:
        self._reactor = reactor
        self._out = Pipe(reactor, stdout, "stdout", outbox, bytes_per_s)
        self._err = Pipe(reactor, stderr, "stderr", outbox, bytes_per_s)
        self._marks = MarkedOutput()
        self._err_lines = LineSplitter()
        self._aging = False
        self._resume()

    @property
    def tail(self) -> str:
        return self._out.tail + self._err.tail

    def drain(self) -> None:
        """Read what is in the pipes now, at most some megabytes: a worker that writes on cannot hold the loop here."""
        for _ in range(64):
            if not self._move():
                return

    def close(self) -> None:
        """The last lines go out even without their newline."""
        self._end_out()
        self._end_err()

    def _on_ready(self, events: int) -> None:
        if self._move() >= SMALL_READ:
            return
        self._out.watch(None)
        self._err.watch(None)
        if not (self._out.closed and self._err.closed):
            self._reactor.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._out.watch(self._on_ready)
        self._err.watch(self._on_ready)

    def _move(self) -> int:
        """How many bytes there were."""
        out = self._out.read()
        # Read after it, so that what was printed before a mark of `out` is in here.
        err = self._err.read()
        size = len(out or b"") + len(err or b"")
        waiting = err or b""
        for errors, run in self._marks.feed(out or b"", errors=len(waiting)):
            if errors:
                self._err.emit(self._err_lines.feed(waiting[:errors]))
                waiting = waiting[errors:]
            self._out.emit(run)
        if waiting:
            self._err.emit(self._err_lines.feed(waiting))
        if out is None:
            self._end_out()
        if err is None:
            self._end_err()
        if self._marks.hidden and not self._aging:
            self._aging = True
            self._reactor.call_later(AGE_S, self._age)
        return size

    def _age(self) -> None:
        self._aging = False
        if self._out.closed:
            return
        self._move()  # most of them have ended
        self._out.emit(self._marks.age())

    def _end_out(self) -> None:
        if not self._out.closed:
            self._out.emit(self._marks.finish())
            self._out.close()

    def _end_err(self) -> None:
        if not self._err.closed:
            self._err.emit(self._err_lines.finish())
            self._err.close()
