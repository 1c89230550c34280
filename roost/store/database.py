"""The store's database: one thread that touches it, and group commit. What kind it is, its backend knows.

Every statement runs on the writer thread. It takes what has queued up, has the backend run all of it in one
transaction, and so a burst of writes costs one sync of the disk. A write is acknowledged only after that commit. Reads
are rare (at start, everything is loaded into memory), so they take the same way.

SQL here is what SQLite and PostgreSQL both understand: `?` for values, `INSERT ... ON CONFLICT`, `RETURNING`, truth as
0 and 1; no `rowid`, no PRAGMA, no conversion of types.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from roost.model.errors import RoostError, Throttled, Unavailable
from roost.store.trouble import of_file

T = TypeVar("T")

#: Writes that may wait; beyond it the caller is told to come back (a disk that stalls must not eat the memory).
QUEUE_LIMIT = 10_000
#: Writes in one commit; bounds how long the first of them waits for the rest.
BATCH_LIMIT = 500


class Cursor(Protocol):
    """What a statement found or changed."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Runs statements in the transaction that is open."""

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Cursor: ...
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object: ...


def rows_changed(connection: Connection, cursor: Cursor) -> int:
    """The plain `then` of a change."""
    return cursor.rowcount


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """Statements, of which all take effect or none. May be run more than once; what the last run did counts."""

    run: Callable[[Connection], Any]
    synced: bool
    done: asyncio.Future[Any]  # of the loop, and touched there alone


@dataclass(slots=True, kw_only=True, eq=False)
class Change:
    """One statement that changes something, and what to make of its cursor."""

    sql: str
    values: Sequence[Any]
    then: Callable[[Connection, Cursor], Any]
    synced: bool
    done: asyncio.Future[Any]


Item = Work | Change
#: What an item returned, or raised.
Outcome = tuple[Any, Exception | None]


class Backend(Protocol):
    """One kind of database. Apart from `hurry` and `renew`, all is called by one thread at a time."""

    def open(self) -> None:
        """Connect, and bring the schema up to date. Raises RoostError: one sentence for the operator."""

    def commit(self, batch: Sequence[Item]) -> list[Outcome]:
        """Run all in one transaction; what became of each, once it is committed.

        One that fails is undone by itself. Raises RoostError when nothing of the batch took effect.
        """

    def tidy(self) -> bool:
        """Nobody waits: give a little of the unused space back. Whether there is more to do."""

    def renew(self, tables: Sequence[str]) -> None:
        """Write at least these tables anew, so that the database's files have nothing of what their rows once held.

        Called by any thread, while nothing else is asked for. Raises RoostError: that may still be there.
        """

    def hurry(self) -> None:
        """The store is closing: wait for nothing any more. Called by any thread."""

    def close(self) -> None:
        """Let go of everything; may be called in any state."""


class Database:
    """A backend and its writer thread. Methods are safe from any task of one event loop.

    `lock` is a file that one server at a time holds, whatever its backend: other files of its folder are that server's.
    """

    def __init__(self, backend: Backend, *, lock: Path) -> None:
        self._backend = backend
        self._lock = lock
        self._queue: SimpleQueue[list[Item] | None] = SimpleQueue()
        self._gathering: list[Item] = []  # of this turn of the loop
        self._waiting = 0  # items that are not settled
        self._thread: threading.Thread | None = None
        self._lock_fd = -1

    async def open(self) -> None:
        """Lock, open and migrate.

        Raises Unavailable when another server holds it, when it is damaged, or when a newer Roost made it.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._serve, name="roost-store")
        self._thread.start()

    async def close(self) -> None:
        """Finish what is queued, then close. May be called again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._backend.hurry()
        self._hand_over()
        self._queue.put(None)
        await asyncio.to_thread(thread.join)
        os.close(self._lock_fd)

    async def renew(self, tables: Sequence[str]) -> None:
        """See `Backend.renew`."""
        await asyncio.to_thread(self._backend.renew, tables)

    def run(self, work: Callable[[Connection], T], *, synced: bool = True) -> asyncio.Future[T]:
        """Run `work` on the writer thread inside a transaction; what it returns, once it is committed.

        All of `work` takes effect or none of it. It may be run again from its beginning (when the transaction that
        it was part of came to nothing), so it keeps nothing outside. `synced` waits for the disk too, so that it
        outlives a power cut; without it a commit outlives the death of the process only.

        Raises StorageFull, Throttled (the queue is full), Unavailable, or what `work` raises.
        """
        return self._submit(Work(run=work, synced=synced, done=self._future()))

    def change(
        self, sql: str, values: Sequence[Any], then: Callable[[Connection, Cursor], T], *, synced: bool = True
    ) -> asyncio.Future[T]:
        """Run one statement that changes something; what `then` makes of it, once it is committed.

        The fast way: many changes of many callers cost one exchange with the database. `then` may read, and may be
        called again as `work` of `run` may. What it raises does not undo the statement: raise where that had no effect.
        """
        return self._submit(Change(sql=sql, values=values, then=then, synced=synced, done=self._future()))

    def _future(self) -> asyncio.Future[Any]:
        if self._thread is None:
            raise Unavailable("The store is closed.")
        return self._loop.create_future()

    def _submit(self, item: Item) -> asyncio.Future[Any]:
        """A caller that is cancelled leaves its future behind; the write, which others share a commit with, goes on."""
        if self._waiting >= QUEUE_LIMIT:
            raise Throttled("Too many changes wait for the disk.", retry_after=1.0)
        self._waiting += 1
        self._gathering.append(item)
        if len(self._gathering) == 1:
            # What comes in one turn goes together: each waking of the writer would take the interpreter from the loop.
            self._loop.call_soon(self._hand_over)
        return item.done

    def _hand_over(self) -> None:
        if self._gathering:
            self._queue.put(self._gathering)
            self._gathering = []

    def _open(self) -> None:
        self._lock_fd = _lock(self._lock)
        try:
            self._backend.open()
        except BaseException:
            self._backend.close()
            os.close(self._lock_fd)
            raise

    def _serve(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                batch, ended = self._gather(first)
                self._settle(batch)
                if ended:
                    break
                while self._queue.empty() and self._backend.tidy():
                    pass
        finally:
            self._backend.close()

    def _gather(self, batch: list[Item]) -> tuple[list[Item], bool]:
        """All that waits, but for more than BATCH_LIMIT and what came in one turn; whether it is the last."""
        while len(batch) < BATCH_LIMIT:
            try:
                items = self._queue.get_nowait()
            except Empty:
                return batch, False
            if items is None:
                return batch, True
            batch += items
        return batch, False

    def _settle(self, batch: list[Item]) -> None:
        try:
            outcomes = self._backend.commit(batch)
        except Exception as error:
            # Each caller its own: a traceback grows where it is raised.
            outcomes = [(None, copy.copy(error) if isinstance(error, RoostError) else error) for _ in batch]
        # One call for all: to wake the loop costs more than a statement does.
        self._loop.call_soon_threadsafe(self._tell, batch, outcomes)

    def _tell(self, batch: list[Item], outcomes: list[Outcome]) -> None:
        """On the loop."""
        self._waiting -= len(batch)
        for item, (result, fault) in zip(batch, outcomes, strict=True):
            done = item.done
            if done.done():
                continue  # its caller was cancelled
            if fault is None:
                done.set_result(result)
            else:
                done.set_exception(fault)


def _lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise of_file(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EWOULDBLOCK:
            raise of_file(error, path) from error
        raise Unavailable(f"Another Roost uses the data directory {path.parent}.") from error
    return descriptor
