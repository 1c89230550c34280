"""Structured logs of functions: JSON lines on disk, live followers, and the tails of recent requests.

Appending touches memory alone. A task hands what has gathered to one writer thread, a few times a second; what does not
fit in the buffer, or on the disk, is dropped, counted, and named by a line of stream `roost` once lines can be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from roost.model.errors import Throttled
from roost.model.usage import InvocationRecord
from roost.telemetry.attribution import Line
from roost.telemetry.log_files import LogFiles, Series
from roost.telemetry.log_record import Clock, LogRecord, Source, clip, encode_notice, notice, visible
from roost.telemetry.request_lines import RequestLines, to_record
from roost.telemetry.request_tails import TAIL_BYTES, RequestTails

_log = logging.getLogger(__name__)

MIB = 1024 * 1024
#: Lines waiting for the writer, of one function's series and of all: a flood by one leaves room for the others.
SERIES_BUFFER_BYTES = 2 * MIB
BUFFER_BYTES = 16 * MIB
FLUSH_EVERY_S = 0.2
FOLLOWERS_PER_FUNCTION = 32
FOLLOWER_QUEUE = 1000
#: Most records that one `tail` returns.
MAX_TAIL_LINES = 10_000

_REQUESTS = Series.REQUESTS  # an enumeration's members are slow to look up, and every request needs this one
_DROPPED = {
    Series.OUTPUT: "{} lines of output were dropped",
    Series.REQUESTS: "{} requests have no line here: too many at once",
}
_Function = tuple[str, str]  # account, function
_Key = tuple[str, str, Series]
#: Per series that could not be written: its lines lost, drops still to be announced, and why.
_Written = list[tuple[_Key, int, int, Exception]]


@dataclass
class _Pending:
    """Lines of one series that wait for the writer."""

    lines: list[str] = field(default_factory=list)
    size: int = 0
    dropped: int = 0


class _Follower:
    """One reader's bounded queue."""

    def __init__(self) -> None:
        self._records: deque[LogRecord] = deque()
        self._missed = 0
        self._closed = False
        self._wake = asyncio.Event()

    def offer(self, record: LogRecord) -> None:
        if len(self._records) >= FOLLOWER_QUEUE:
            self._missed += 1
        else:
            self._records.append(record)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def next(self) -> LogRecord | None:
        """The next record, a gap notice, or None at the end."""
        while True:
            if self._records:
                return self._records.popleft()
            if self._missed:
                missed, self._missed = self._missed, 0
                return notice(f"{missed} lines skipped: the reader is too slow")
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()


class FunctionLogs:
    """The logs of every function of this server. `start` before use, `close` at the end."""

    def __init__(self, directory: Path, *, max_bytes_per_file: int = 8 * MIB, files: int = 4) -> None:
        self._files = LogFiles(directory, max_bytes_per_file=max_bytes_per_file, files=files)
        self._tails = RequestTails()
        self._requests = RequestLines()
        self._clock = Clock()
        self._pending: dict[_Key, _Pending] = {}
        self._buffered = 0
        self._followers: dict[_Function, set[_Follower]] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._writing = 0  # bytes handed to the writer and not yet written
        self._complained = 0.0
        #: Lines lost since the start, by any bound or a full disk.
        self.dropped = 0

    async def start(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="roost-logs")
        self._flusher = asyncio.create_task(self._flush_periodically(), name="roost-logs")

    async def close(self) -> None:
        """End the followers, write what is buffered, stop the writer. Idempotent."""
        for followers in self._followers.values():
            for follower in followers:
                follower.close()
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
            self._flusher = None
        if self._writer is not None:
            await self.flush()
            writer, self._writer = self._writer, None
            writer.shutdown(wait=True)

    def append(
        self,
        account: str,
        function: str,
        instance: str,
        stream: str,
        text: str,
        *,
        request_id: str = "",
        version: str = "",
        session_id: str = "",
        level: str = "",
        ends: bool = False,
    ) -> None:
        """Add output, one record per line of `text`. Never blocks and never raises for what the text holds.

        `ends` marks the request's last line (its end marker); see `tail_for_ended_request`.
        """
        source = Source(account=account, function=function, instance=instance, version=version, session_id=session_id)
        lines = visible(text).removesuffix("\n").split("\n")
        self.write(source, stream, [Line(line, request_id, level, ends) for line in lines])

    def write(self, source: Source, stream: str, lines: Sequence[Line]) -> None:
        """Add lines that `visible` has made harmless already; the fast way for an instance's output."""
        now = time.time()
        text = self._clock.text(now)
        key = (source.account, source.function, Series.OUTPUT)
        followers = self._followers.get(key[:2], ())
        for line in lines:
            clipped = clip(line.text)
            encoded = source.encode(text, stream, clipped, line.request_id, line.level)
            if self._add(key, encoded):
                for follower in followers:
                    follower.offer(source.record(now, stream, clipped, line.request_id, line.level))
            if line.request_id:
                self._tails.add((source.account, source.function, line.request_id), clipped, ends=line.ends)
        self._wake.set()

    def invocation(self, record: InvocationRecord) -> None:
        """Add the line about an invocation that ended. A sink of the Observer."""
        now = time.time()
        line = self._requests.encode(self._clock.text(now), record)
        function = (record.account, record.function)
        if self._add((*function, _REQUESTS), line) and function in self._followers:
            for follower in self._followers[function]:
                follower.offer(to_record(now, record))
        self._wake.set()

    async def tail(self, account: str, function: str, lines: int, request_id: str | None = None) -> list[LogRecord]:
        """The newest `lines` records (at most MAX_TAIL_LINES), oldest first; with `request_id` only that request's.

        Everything appended before the call is included. Raises InvalidArgument for an impossible name.
        """
        return await self._flush_and_tail((account, function), lines, request_id)

    async def follow(self, account: str, function: str, lines: int = 10) -> AsyncIterator[LogRecord]:
        """The newest `lines` records, then each one as it comes, none twice, until `close` or `delete`.

        A reader that falls FOLLOWER_QUEUE records behind gets one record of stream `roost` that counts what it missed.
        Raises Throttled when the function has FOLLOWERS_PER_FUNCTION followers already.
        """
        key = (account, function)
        followers = self._followers.setdefault(key, set())
        if len(followers) >= FOLLOWERS_PER_FUNCTION:
            raise Throttled(f"The logs of {function} have {FOLLOWERS_PER_FUNCTION} followers already.")
        follower = _Follower()
        followers.add(follower)
        try:
            # Nothing is awaited before both are with the writer, so the tail ends exactly where the queue starts.
            for record in await self._flush_and_tail(key, lines, None):
                yield record
            while (live := await follower.next()) is not None:
                yield live
        finally:
            followers.discard(follower)
            if not followers and self._followers.get(key) is followers:
                del self._followers[key]

    def tail_for_request(self, account: str, function: str, request_id: str, limit_bytes: int = TAIL_BYTES) -> bytes:
        """The last output of a recent request, from memory: lines of UTF-8 text, cut at the front."""
        return self._tails.read((account, function, request_id), limit_bytes)

    async def tail_for_ended_request(
        self, account: str, function: str, request_id: str, limit_bytes: int = TAIL_BYTES, timeout_s: float = 0.25
    ) -> bytes:
        """As `tail_for_request`, after waiting up to `timeout_s` for the request's end marker."""
        return await self._tails.read_when_ended((account, function, request_id), limit_bytes, timeout_s)

    def tail_for_known_request(self, request_id: str, limit_bytes: int = TAIL_BYTES) -> bytes:
        """As `tail_for_request`, found by the request id alone; empty when more than one function printed that id."""
        return self._tails.find(request_id, limit_bytes)

    async def delete(self, account: str, function: str) -> None:
        """Remove a function's logs from memory and disk, and end their followers."""
        key = (account, function)
        for series in Series:
            pending = self._pending.pop((*key, series), None)
            if pending is not None:
                self._buffered -= pending.size
        self._tails.forget(account, function)
        for follower in self._followers.pop(key, set()):
            follower.close()
        await asyncio.get_running_loop().run_in_executor(self._writer, self._files.delete, account, function)

    async def flush(self) -> None:
        """Write what is buffered now; return when it is on the disk, or dropped and counted."""
        await asyncio.shield(self._submit())

    def _add(self, key: _Key, line: str) -> bool:
        """Buffer one encoded line, or count it as dropped."""
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending()
        size = len(line)
        over = pending.size + size > SERIES_BUFFER_BYTES
        if over or self._buffered + self._writing + size > BUFFER_BYTES:
            pending.dropped += 1
            self.dropped += 1
            return False
        pending.lines.append(line)
        pending.size += size
        self._buffered += size
        return True

    def _submit(self) -> asyncio.Future[_Written]:
        """Hand what is buffered to the writer, in this very step of the loop."""
        batches, self._pending = list(self._pending.items()), {}
        size, self._buffered = self._buffered, 0
        self._writing += size
        done = asyncio.get_running_loop().run_in_executor(self._writer, self._write, batches)
        done.add_done_callback(lambda future: self._written(size, future))
        return done

    def _write(self, batches: list[tuple[_Key, _Pending]]) -> _Written:
        """On the writer thread."""
        lost: _Written = []
        for key, pending in batches:
            lines = pending.lines
            if pending.dropped:
                lines = [*lines, encode_notice(_DROPPED[key[2]].format(pending.dropped))]
            written, error = self._files.write(*key, lines)
            if error is not None:
                lost.append((key, len(pending.lines) - written, pending.dropped, error))
        return lost

    def _written(self, size: int, future: asyncio.Future[_Written]) -> None:
        self._writing -= size
        if future.cancelled():
            return
        for key, lines, unannounced, error in future.result():
            self.dropped += lines
            self._pending.setdefault(key, _Pending()).dropped += lines + unannounced
            self._complain(error)

    async def _flush_and_tail(self, key: _Function, lines: int, request_id: str | None) -> list[LogRecord]:
        self._files.directory(*key)
        # Both are given to the one writer thread before anything else can be appended.
        written = self._submit()
        records = asyncio.get_running_loop().run_in_executor(
            self._writer, self._files.tail, *key, min(lines, MAX_TAIL_LINES), request_id
        )
        await asyncio.shield(written)
        return await records

    async def _flush_periodically(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_EVERY_S)
            self._wake.clear()
            await self.flush()

    def _complain(self, reason: Exception) -> None:
        now = time.monotonic()
        if now - self._complained > 60 or not self._complained:
            self._complained = now
            _log.warning("Logs of functions can't be written: %s", reason)
