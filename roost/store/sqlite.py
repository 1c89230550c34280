"""The store in one SQLite file: nothing to install, nothing to run."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from roost.model.errors import RoostError, Unavailable
from roost.store.database import Change, Item, Outcome
from roost.store.migrate import migrate_sqlite
from roost.store.trouble import no_room, of_file

#: Unused pages that the file keeps for what comes next, and how many one step gives back: others wait for it.
_SPARE_PAGES, _STEP_PAGES = 1000, 500
#: A file from before space was given back is written anew at its next start, when that takes a second at most.
_REWRITE_BYTES = 64 << 20
_INCREMENTAL = 2
#: Changes after which what is in the log is copied to where it belongs, beside the writer; the log's pages at which the
#: writer does it himself, if it comes to that; the bytes that the log's file keeps once it has been emptied.
_COPY_AFTER, _MOST_LOG_PAGES, _KEPT_LOG_BYTES = 2_000, 16_384, 4 << 20


class SqliteBackend:
    """The connection is used by one thread at a time; which one it is changes once, after `open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._given_back = False
        self._copier = Copier(path)

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    def open(self) -> None:
        try:
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
            self._path.chmod(0o600)
            self._open.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")  # of a new file; an old one is as it is
            self._open.execute("PRAGMA journal_mode=WAL")
            self._open.execute("PRAGMA foreign_keys=ON")
            self._open.execute("PRAGMA synchronous=FULL")
            self._open.execute(f"PRAGMA wal_autocheckpoint={_MOST_LOG_PAGES}")
            self._open.execute(f"PRAGMA journal_size_limit={_KEPT_LOG_BYTES}")
            migrate_sqlite(self._open)
            self._rewrite()
            self._copier.start()
        except (sqlite3.Error, OSError) as error:
            raise _translate(error, self._path) from error

    def close(self) -> None:
        self._copier.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def renew(self, tables: Sequence[str]) -> None:
        """The file as a whole: parts of former rows are left wherever a page had room."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, isolation_level=None, timeout=5.0)) as connection:
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        if busy:
            raise Unavailable(f"Another program reads {self._path}.")

    def hurry(self) -> None:
        """Nothing here waits for long."""

    def commit(self, batch: Sequence[Item]) -> list[Outcome]:
        connection = self._open
        try:
            synced = any(item.synced for item in batch)
            connection.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(connection, item) for item in batch]
            connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise _translate(error, self._path) from error
        self._copier.changed(len(batch))
        return outcomes

    def tidy(self) -> bool:
        """The file's end is cut off as pages in it become free; the log, which held them last, is emptied then."""
        connection = self._open
        try:
            unused = connection.execute("PRAGMA freelist_count").fetchone()[0]
            if unused > _SPARE_PAGES + _STEP_PAGES and self._shrinks():
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(f"PRAGMA incremental_vacuum({_STEP_PAGES})").fetchall()
                self._given_back = True
                return True
            if self._given_back:
                self._given_back = False
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            self._given_back = False  # a full disk, say: what was not given back now is given back later
        return False

    def _attempt(self, connection: sqlite3.Connection, item: Item) -> Outcome:
        # A statement takes effect or none by itself; only several need a savepoint around them.
        several = not isinstance(item, Change)
        if several:
            connection.execute("SAVEPOINT work")
        try:
            if isinstance(item, Change):
                return item.then(connection, connection.execute(item.sql, item.values)), None
            result = item.run(connection)
        except Exception as error:
            if not connection.in_transaction:
                # SQLite has rolled everything back by itself (a full disk does that): the whole batch fails.
                raise
            if several:
                connection.execute("ROLLBACK TO work")
                connection.execute("RELEASE work")
            known = isinstance(error, sqlite3.Error | OSError)
            return None, _translate(error, self._path) if known else error
        connection.execute("RELEASE work")
        return result, None

    def _shrinks(self) -> bool:
        return bool(self._open.execute("PRAGMA auto_vacuum").fetchone()[0] == _INCREMENTAL)

    def _rewrite(self) -> None:
        if self._shrinks() or self._path.stat().st_size > _REWRITE_BYTES:
            return
        with contextlib.suppress(sqlite3.OperationalError):  # no room for a copy: the file stays as it is
            self._open.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
            self._open.execute("VACUUM")


class Copier:
    """A thread that copies what is in the log to the file itself, so that no change waits for that: it takes two syncs
    of the disk and, by SQLite's own habit, the time of whoever's change filled the log's first four megabytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wanted = threading.Event()
        self._changes = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="roost-store-copier", daemon=True)
        self._thread.start()

    def changed(self, count: int) -> None:
        """By the writer: so many changes were committed."""
        self._changes += count
        if self._changes >= _COPY_AFTER:
            self._changes = 0
            self._wanted.set()

    def close(self) -> None:
        """May be called in any state."""
        self._closed = True
        self._wanted.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _serve(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            while self._wanted.wait() and not self._closed:
                self._wanted.clear()
                with contextlib.suppress(sqlite3.Error):  # a full disk, say: the next time, or the writer himself
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _translate(error: Exception, path: Path) -> RoostError:
    if isinstance(error, RoostError):
        return error
    if isinstance(error, OSError):
        return of_file(error, path)
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return no_room(path)
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Unavailable(f"Another program holds {path} locked.")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return Unavailable(f"{path} is damaged or not a Roost store: {error}.")
    return Unavailable(f"The store {path} failed: {error}.")
