"""Where an execution goes: lines to its client, as fast as that takes them, or nowhere once the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from roost.guest.async_server import Disconnected, Exchange
from roost.guest.framing import Fields
from roost.guest.sandbox.interpreter import lines
from roost.guest.sandbox.interpreter.text import Pieces

KEEPALIVE_S = 5.0
_NUMBER_S = 0.01  # a cell's number waits so long for something to go out with
FIELDS: Fields = [("content-type", "application/x-ndjson")]


class Sink:
    """One reply of `POST /execute`. `on_gone` is called once, when nobody reads it any more.

    `ends_apart`: the end of a line is a piece of its own.
    """

    def __init__(self, exchange: Exchange, fields: Fields, on_gone: Callable[[], None], *, ends_apart: bool) -> None:
        self._exchange = exchange
        self._fields = [*FIELDS, *fields]
        self._started = False
        self._on_gone = on_gone
        self._ends_apart = ends_apart
        self._loop = asyncio.get_running_loop()
        self._ready: list[bytes] = []
        self._first: float | None = None  # when what has been put in first must go at the latest
        self._pieces = {"stdout": Pieces(), "stderr": Pieces()}
        self._written = self._loop.time()
        self._timer = self._loop.call_later(KEEPALIVE_S, self._on_silence)
        self._keepalive: asyncio.Task[None] | None = None
        self.abandoned = False

    @property
    def deadline(self) -> float | None:
        """When `release_held` and `flush` are to be called although nothing came."""
        times = [self._first, *(piece.deadline for piece in self._pieces.values())]
        return min((time for time in times if time is not None), default=None)

    def number(self, count: int) -> None:
        """Goes out together with what follows it soon."""
        self._put(lines.number(count))
        self._first = self._loop.time() + _NUMBER_S

    def output(self, stream: str, data: bytes, now: float) -> None:
        if text := self._pieces[stream].feed(data, now):
            self._put_text(stream, text)

    def result(self, payload: bytes) -> None:
        """A result or an error; what was printed before it comes before it."""
        self._release()
        self._put(lines.passed_on(payload))

    def error(self, name: str, value: str) -> None:
        self._release()
        self._put(lines.error(name, value))

    def release_due(self, now: float) -> None:
        for stream, piece in self._pieces.items():
            if piece.deadline is not None and piece.deadline <= now:
                self._put_text(stream, piece.take())

    async def flush(self) -> None:
        """Send what is ready; returns when the client has taken enough of it."""
        self._first = None
        data = b"".join(self._ready)
        self._ready.clear()
        if data and not self.abandoned:
            self._written = self._loop.time()
            with self._sending():
                await self._exchange.write(data)

    async def finish(self) -> None:
        """The end, in one packet with what is ready."""
        self._timer.cancel()
        if self._keepalive is not None:
            await asyncio.wait([self._keepalive])
        for stream, piece in self._pieces.items():
            self._put_text(stream, piece.finish())
        data = b"".join([*self._ready, lines.END])
        self._ready.clear()
        if not self.abandoned:
            with self._sending():
                await self._exchange.write_last(data)

    def abandon(self) -> None:
        """The client has gone: from now on nothing is kept or sent."""
        if not self.abandoned:
            self.abandoned = True
            self._timer.cancel()
            self._ready.clear()
            self._on_gone()

    def _release(self) -> None:
        for stream, piece in self._pieces.items():
            self._put_text(stream, piece.take())

    def _put_text(self, stream: str, text: str) -> None:
        cut = len(text) - 1 if self._ends_apart and text.endswith("\n") else len(text)
        for piece in (text[:cut], text[cut:]):
            if piece:
                self._put(lines.output(stream, piece, datetime.now(UTC)))

    def _put(self, line: bytes) -> None:
        if not self.abandoned:
            self._ready.append(line)

    def _on_silence(self) -> None:
        left = self._written + KEEPALIVE_S - self._loop.time()
        self._timer = self._loop.call_later(left if left > 0 else KEEPALIVE_S, self._on_silence)
        if left <= 0 and (self._keepalive is None or self._keepalive.done()):
            self._keepalive = self._loop.create_task(self._send_keepalive())

    async def _send_keepalive(self) -> None:
        self._written = self._loop.time()
        with self._sending():
            await self._exchange.write(lines.KEEPALIVE)

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        if not self._started:  # not before there is something to send: the head and that are one packet
            self._started = True
            self._exchange.start(200, self._fields)
        try:
            yield
        except Disconnected:
            self.abandon()
