"""Rotated, bounded log files of functions: `<root>/<account>/<function>/<n>.jsonl`, 0 the newest.

A function has two series of them: what it printed, and, in the folder `requests`, what became of its requests. Each has
bounds of its own, so that neither a flood of output nor one of requests pushes the other out.

Blocking and single-threaded by contract: `FunctionLogs` calls it on one thread of its own.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from enum import StrEnum
from operator import attrgetter
from pathlib import Path

from roost.model.errors import InvalidArgument
from roost.telemetry.log_record import LogRecord, decode

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BLOCK = 64 * 1024


class Series(StrEnum):
    """The values are folders below a function's."""

    OUTPUT = ""
    REQUESTS = "requests"


class LogFiles:
    """Files of whole lines. What one series can take is `files * max_bytes_per_file` and one batch of lines."""

    def __init__(self, root: Path, *, max_bytes_per_file: int, files: int) -> None:
        if files < 1 or max_bytes_per_file < 1:
            raise InvalidArgument("Logs need at least one file of at least one byte per function.")
        self._root = root
        self._max_bytes = max_bytes_per_file
        self._files = files

    def directory(self, account: str, function: str) -> Path:
        """Where a function's files are. Raises InvalidArgument for a name that is no plain file name."""
        for name in (account, function):
            if not _NAME.fullmatch(name):
                raise InvalidArgument(f"{name!r} can't name a log directory.")
        return self._root / account / function

    def write(self, account: str, function: str, series: Series, lines: Sequence[str]) -> tuple[int, Exception | None]:
        """Append whole lines of ASCII, rotating where a file is full: how many were written, what stopped the others.

        Whatever happens, the files end with whole lines.
        """
        written = 0
        try:
            directory = self.directory(account, function) / series
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while written < len(lines):
                written += self._fill(directory, lines[written:])
        except (OSError, InvalidArgument) as error:
            return written, error
        return written, None

    def _fill(self, directory: Path, lines: Sequence[str]) -> int:
        """Write as many lines as the newest file takes, at least one; how many."""
        descriptor = os.open(directory / "0.jsonl", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = _whole_lines(descriptor)
            full, taken = size, 0
            for line in lines:
                if full + len(line) > self._max_bytes and full > 0:
                    break
                full += len(line)
                taken += 1
            _write_all(descriptor, "".join(lines[:taken]).encode("ascii"), size)
        finally:
            os.close(descriptor)
        if taken < len(lines):
            self._rotate(directory)
        return taken

    def _rotate(self, directory: Path) -> None:
        (directory / f"{self._files - 1}.jsonl").unlink(missing_ok=True)
        for number in range(self._files - 2, -1, -1):
            with contextlib.suppress(FileNotFoundError):
                (directory / f"{number}.jsonl").replace(directory / f"{number + 1}.jsonl")

    def tail(self, account: str, function: str, lines: int, request_id: str | None = None) -> list[LogRecord]:
        """The newest `lines` records of both series, oldest first; with `request_id` only that request's."""
        directory = self.directory(account, function)
        if lines < 1:
            return []
        newest = [self._tail(directory / series, lines, request_id) for series in Series]
        return list(heapq.merge(*newest, key=attrgetter("time")))[-lines:]

    def _tail(self, directory: Path, lines: int, request_id: str | None) -> list[LogRecord]:
        wanted = None if request_id is None else f'"requestId":"{request_id}"'.encode("utf-8", "replace")
        found: list[LogRecord] = []
        for raw in self._newest_first(directory):
            if wanted is not None and wanted not in raw:
                continue
            record = decode(raw)
            if record is None or (request_id is not None and record.request_id != request_id):
                continue
            found.append(record)
            if len(found) == lines:
                break
        found.reverse()
        return found

    def _newest_first(self, directory: Path) -> Iterator[bytes]:
        for number in range(self._files):
            try:
                with (directory / f"{number}.jsonl").open("rb") as file:
                    yield from _lines_backwards(file.fileno())
            except FileNotFoundError:
                continue

    def delete(self, account: str, function: str) -> None:
        """Remove a function's logs; none is fine."""
        directory = self.directory(account, function)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)


def _whole_lines(descriptor: int) -> int:
    """Cut a torn last line (a crash in mid-write) off; the size then."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    os.ftruncate(descriptor, end)
    return end


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    written = 0
    try:
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], offset + written)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise


def _lines_backwards(descriptor: int) -> Iterator[bytes]:
    """The file's whole lines, last first, without their newline."""
    position = os.fstat(descriptor).st_size
    rest = b""
    while position > 0:
        start = max(0, position - _BLOCK)
        chunk = os.pread(descriptor, position - start, start) + rest
        position = start
        rest, *lines = chunk.split(b"\n")
        yield from (line for line in reversed(lines) if line)
    if rest:
        yield rest
