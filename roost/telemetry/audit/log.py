"""Writes the audit log: from memory to the disk by one thread, which syncs and signs a few times a second.

What was recorded before the last sync outlives a power cut, what was written the death of the process. An event that
finds too many before it, or a disk that stays full, is lost; how many were is the next thing that is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from roost.model.audit import AuditEvent
from roost.model.errors import Unavailable
from roost.telemetry.audit import folder as files
from roost.telemetry.audit.chain import GENESIS, Broken, Head, decode, digest, encode, sign, timestamp

_log = logging.getLogger(__name__)

#: Events that wait for the disk.
QUEUE_LIMIT = 20_000
_BATCH = 1000
_FILE_BYTES = 16 << 20
_RETRY_S = 1.0
#: A sync for each event would cost each command in a sandbox a millisecond.
_SYNC_S = 0.2
_COMPLAIN_S = 60.0


class AuditLog:
    """`await start()` before `record`, `await close()` at the end. One server at a time has the folder."""

    def __init__(
        self, folder: Path, *, clock: Callable[[], float], most_bytes: int, file_bytes: int = _FILE_BYTES
    ) -> None:
        """The oldest files go when all have more than `most_bytes`; `clock` is in Unix seconds."""
        self._folder = folder
        self._clock = clock
        self._most_bytes = most_bytes
        self._file_bytes = file_bytes
        self._queue: SimpleQueue[tuple[float, AuditEvent] | None] = SimpleQueue()
        self._taken = 0  # events that came, and those that are done with: each is counted by one thread alone
        self._done = 0
        self._lost = 0
        self._told = 0  # of those lost
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._file = -1
        self._size = 0
        self._unsynced_since: float | None = None  # of `time.monotonic`
        self._complained = 0.0

    async def start(self) -> None:
        """Raises Unavailable when the folder can't be used. A log that is not whole is gone on with: the break stays
        in it, and the first record says so."""
        await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._serve, name="roost-audit")
        self._thread.start()

    async def close(self) -> None:
        """Write what waits. May be called again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)
            os.close(self._file)

    def record(self, event: AuditEvent) -> None:
        """Never waits, never raises. On the event loop."""
        if self._thread is None or self._taken - self._done >= QUEUE_LIMIT:
            self._lost += 1
            return
        self._taken += 1
        self._queue.put((self._clock(), event))

    # --- what is there at the start ------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key: Ed25519PrivateKey = files.signing_key(self._folder)
            found = self._continue()
            self._open_file()
        except OSError as error:
            raise Unavailable(f"The audit log {self._folder} can't be used: {error.strerror}.") from error
        self._taken += 1
        self._queue.put((self._clock(), found))

    def _continue(self) -> AuditEvent:
        """Find the end of the chain; what is to be told of it."""
        detail: dict[str, str | int | bool] = {}
        head: Head | None = None
        existing = files.record_files(self._folder)
        try:
            head = files.head_of(self._folder, self._key.public_key())
        except Broken as error:
            if existing:
                detail["problem"] = error.message
        last, line = self._last(existing, detail)
        self._first, self._base = (head.first, head.base) if head is not None else self._beginning(existing)
        if head is None:
            self._seq, self._prev = last, digest(line) if line else self._base
        elif last > head.last:
            # Written, and not signed yet when the server was killed.
            self._seq, self._prev = last, digest(line)
            detail["unsigned"] = last - head.last
        else:
            # The number goes on behind what was signed, so that a gap, or another record in its place, stays one.
            self._seq, self._prev = head.last, head.digest
            if last < head.last or digest(line) != head.digest:
                detail.setdefault("problem", f"the log ends at record {last}, its head at another {head.last}")
        if "problem" in detail:
            _log.error("the audit log %s is not whole: %s", self._folder, detail["problem"])
        outcome = "failed" if "problem" in detail else "allowed"
        return AuditEvent(
            action="audit.start", account="", actor="system", target="server", outcome=outcome, detail=detail
        )

    def _last(self, existing: list[Path], detail: dict[str, str | int | bool]) -> tuple[int, bytes]:
        """Number and text of the last whole record, (0, b"") without one."""
        for file in reversed(existing):
            if line := files.last_record(file):
                try:
                    return decode(line)["seq"], line
                except Broken as error:
                    detail["problem"] = f"{file.name}, its last line: {error.message}"
                    break
        return 0, b""

    def _beginning(self, existing: list[Path]) -> tuple[int, str]:
        """Of a log without a head."""
        for file in existing:
            if line := files.first_record(file):
                try:
                    record = decode(line)
                except Broken:
                    break
                return record["seq"], record["prev"]
        return 1, GENESIS

    def _open_file(self) -> None:
        """The newest, without what a killed server left in its last line; a new one where there is none."""
        existing = files.record_files(self._folder)
        path = existing[-1] if existing else self._folder / f"{self._seq + 1:016d}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = path.read_bytes()
        self._size = data.rfind(b"\n") + 1
        if self._size < len(data):
            os.ftruncate(self._file, self._size)

    # --- the writer's thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._gather()
            if self._lost > self._told:
                batch.append((self._clock(), self._loss()))
            if batch:
                self._write_sometime(batch)
            if ended or self._wait() == 0:
                self._sync()

    def _gather(self) -> tuple[list[tuple[float, AuditEvent]], bool]:
        """What has come, when something has or it is time to sync; whether it is the last."""
        batch: list[tuple[float, AuditEvent]] = []
        with contextlib.suppress(Empty):
            item = self._queue.get(timeout=self._wait())
            while item is not None:
                batch.append(item)
                if len(batch) >= _BATCH:
                    return batch, False
                item = self._queue.get_nowait()
            return batch, True
        return batch, False

    def _wait(self) -> float | None:
        """Seconds until the next sync; None while there is nothing to sync."""
        since = self._unsynced_since
        return None if since is None else max(0.0, since + _SYNC_S - time.monotonic())

    def _loss(self) -> AuditEvent:
        count, self._told = self._lost - self._told, self._lost
        return AuditEvent(
            action="audit.lost", account="", actor="system", target="audit", outcome="failed", detail={"records": count}
        )

    def _write_sometime(self, batch: list[tuple[float, AuditEvent]]) -> None:
        """A full disk is waited for, until the server ends."""
        while True:
            try:
                self._write(batch)
                break
            except OSError as error:
                self._complain(error)
                if self._stopping.wait(_RETRY_S):
                    _log.error("%d events are missing in the audit log", len(batch))
                    break
        self._done += len(batch)

    def _write(self, batch: list[tuple[float, AuditEvent]]) -> None:
        """All of it, or nothing. Raises OSError."""
        seq, prev, lines = self._seq, self._prev, []
        for at, event in batch:
            seq += 1
            lines.append(encode(event, seq=seq, at=at, prev=prev))
            prev = digest(lines[-1])
        data = b"\n".join(lines) + b"\n"
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._seq, self._prev = seq, prev
        self._size += len(data)
        if self._unsynced_since is None:
            self._unsynced_since = time.monotonic()

    def _sync(self) -> None:
        """What is written outlives the machine, and is signed. What fails is tried again with what comes next."""
        try:
            os.fdatasync(self._file)
            self._sign()
            if self._size >= self._file_bytes:
                self._turn()
            self._unsynced_since = None
        except OSError as error:
            self._complain(error)
            self._unsynced_since = time.monotonic()

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_S or not self._complained:
            self._complained = now
            _log.error("the audit log can't be written: %s", error.strerror)

    def _sign(self) -> None:
        head = Head(
            first=self._first, base=self._base, last=self._seq, digest=self._prev, time=timestamp(self._clock())
        )
        files.replace(self._folder / files.HEAD, sign(head, self._key))

    def _turn(self) -> None:
        """To a new file; the oldest go, once the head does without them."""
        path = self._folder / f"{self._seq + 1:016d}.jsonl"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.close(self._file)
        self._file, self._size = file, 0
        sizes = [(old, old.stat().st_size) for old in files.record_files(self._folder)]
        total = sum(size for _, size in sizes)
        kept = sizes
        while len(kept) > 2 and total > self._most_bytes:
            total -= kept[0][1]
            kept = kept[1:]
        if len(kept) < len(sizes):
            record = decode(files.first_record(kept[0][0]))
            self._first, self._base = record["seq"], record["prev"]
            self._sign()
            for old, _ in sizes[: len(sizes) - len(kept)]:
                old.unlink()
