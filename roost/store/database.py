"""One SQLite file, one thread that touches it, and group commit.

Every statement runs on the writer thread. It takes what has queued up, runs each write in a savepoint of its own, and
commits once for all of them: a burst of writes costs one sync of the disk. A write is acknowledged only after that
commit. Reads are rare (at start, everything is loaded into memory), so they take the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from roost.model.errors import RoostError, StorageFull, Throttled, Unavailable
from roost.store.migrate import migrate

T = TypeVar("T")

#: Writes that may wait; beyond it the caller is told to come back (a disk that stalls must not eat the memory).
QUEUE_LIMIT = 10_000
#: Writes in one commit; bounds how long the first of them waits for the rest.
BATCH_LIMIT = 500


@dataclass(frozen=True, kw_only=True)
class _Work:
    run: Callable[[sqlite3.Connection], Any]
    done: Future[Any]
    synced: bool
    single: bool


class Database:
    """The file and its writer thread. Methods are safe from any task of one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[_Work | None] = queue.Queue(maxsize=QUEUE_LIMIT)
        self._thread: threading.Thread | None = None
        self._lock_fd = -1

    async def open(self) -> None:
        """Lock, open and migrate the file.

        Raises Unavailable when another server holds it, when it is damaged, or when a newer Roost made it.
        """
        connection = await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._serve, args=(connection,), name="roost-store")
        self._thread.start()

    async def close(self) -> None:
        """Finish what is queued, then close. May be called again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await asyncio.to_thread(self._queue.put, None)
        await asyncio.to_thread(thread.join)
        os.close(self._lock_fd)

    async def run(self, work: Callable[[sqlite3.Connection], T], *, synced: bool = True, single: bool = False) -> T:
        """Run `work` on the writer thread inside a transaction; return when it is committed.

        All of `work` takes effect or none of it. `synced` waits for the disk too, so that it outlives a power cut;
        without it a commit outlives the death of the process only. `single` promises that `work` changes something with
        one statement at most, which takes effect or none by itself: it then needs no savepoint.

        Raises StorageFull, Throttled (the queue is full), Unavailable, or what `work` raises.
        """
        if self._thread is None:
            raise Unavailable("The store is closed.")
        item = _Work(run=work, done=Future(), synced=synced, single=single)
        item.done.set_running_or_notify_cancel()  # from here on nobody can cancel it; the writer thread relies on it
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise Throttled("Too many changes wait for the disk.", retry_after=1.0) from None
        # Shielded: a caller that is cancelled must not cancel a write that others share a commit with.
        result: T = await asyncio.shield(asyncio.wrap_future(item.done))
        return result

    def _open(self) -> sqlite3.Connection:
        self._lock_fd = _lock(self._path.with_name(self._path.name + ".lock"))
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=FULL")
            migrate(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            os.close(self._lock_fd)
            if isinstance(error, sqlite3.Error | OSError):
                raise _translate(error, self._path) from error
            raise
        return connection

    def _serve(self, connection: sqlite3.Connection) -> None:
        try:
            while (first := self._queue.get()) is not None:
                batch, ended = self._gather(first)
                self._commit(connection, batch)
                if ended:
                    break
        finally:
            connection.close()

    def _gather(self, first: _Work) -> tuple[list[_Work], bool]:
        batch = [first]
        while len(batch) < BATCH_LIMIT:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _commit(self, connection: sqlite3.Connection, batch: list[_Work]) -> None:
        outcomes: list[tuple[_Work, Any, BaseException | None]] = []
        try:
            synced = any(item.synced for item in batch)
            connection.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            outcomes.extend(self._attempt(connection, item) for item in batch)
            connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            for item in batch:
                item.done.set_exception(_translate(error, self._path))
            return
        for item, result, fault in outcomes:
            if fault is None:
                item.done.set_result(result)
            else:
                item.done.set_exception(fault)

    def _attempt(self, connection: sqlite3.Connection, item: _Work) -> tuple[_Work, Any, BaseException | None]:
        if not item.single:
            connection.execute("SAVEPOINT work")
        try:
            result = item.run(connection)
        except Exception as error:
            if not connection.in_transaction:
                # SQLite has rolled everything back by itself (a full disk does that): the whole batch fails.
                raise
            if not item.single:
                connection.execute("ROLLBACK TO work")
                connection.execute("RELEASE work")
            known = isinstance(error, sqlite3.Error | OSError)
            return item, None, _translate(error, self._path) if known else error
        if not item.single:
            connection.execute("RELEASE work")
        return item, result, None


def _lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _translate(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EWOULDBLOCK:
            raise _translate(error, path) from error
        raise Unavailable(f"Another Roost uses the data directory {path.parent}.") from error
    return descriptor


def _translate(error: Exception, path: Path) -> RoostError:
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StorageFull(f"No room left on the disk of {path.parent}.")
        return Unavailable(f"Can't use {path}: {error.strerror}.")
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"No room left on the disk of {path.parent}.")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Unavailable(f"Another program holds {path} locked.")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return Unavailable(f"{path} is damaged or not a Roost store: {error}.")
    return Unavailable(f"The store {path} failed: {error}.")
