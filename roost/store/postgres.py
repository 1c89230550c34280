"""The store in a PostgreSQL database. Needs the `postgres` extra; imported only when a database is configured.

- *One exchange for many.* The statements of a batch are sent without waiting for each other's results (libpq's pipeline
  mode). When one of them fails, PostgreSQL undoes all, and the batch is run again with a savepoint around each item.
- *Nothing in doubt.* When the connection breaks before COMMIT was sent, nothing of the batch took effect, and it is run
  again on a new connection. When it breaks afterwards, the server is asked what became of that transaction.
- *One server.* An advisory lock, held by the connection, keeps another Roost out; a mark in the database tells whether
  one was in while the connection was down, for what is in memory here would be wrong then.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from roost.model.errors import RoostError, StorageFull, Unavailable
from roost.store.database import Change, Item, Outcome
from roost.store.migrate import migrate_postgres

log = logging.getLogger(__name__)
logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of what it raises too

OLDEST = 13  # pg_current_xact_id
#: How long a batch waits for a lost connection to come back; and when it has to be known whether it took effect.
RECONNECT_S, IN_DOUBT_S = 5.0, 60.0
#: A server that was killed holds its lock until PostgreSQL has noticed.
LOCK_WAIT_S = 3.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: Times that one batch is run at most.
_TRIES = 6

#: A transaction that lost against another one; it may be run again.
_AGAIN = {"40001", "40P01"}
#: The server ends the connection with one of these.
_ENDS = {"57P01", "57P02", "57P03", "25P03", "57P05"}
_NO_ROOM = "53100"

_LOCK = int.from_bytes(b"roost\0db", "big")
_MARK = "database mark"  # the setting that says whose the database is
#: A partner that is gone without a word (a cut cable) is noticed within about half a minute, by either side.
_CONNECTING = {
    "application_name": "roost",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}
_SESSION = """
SET client_min_messages = warning;
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 4;
SET tcp_user_timeout = 30000
"""
_NUMBER = "SELECT pg_current_xact_id_if_assigned()::text"
#: What stays as it is (strings, quoted names, comments), and the place of a value.
_PLACES = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|\?")


class PostgresBackend:
    """`url` is libpq's: postgresql://user:password@host:port/database?option=value."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = ""
        self._connection: psycopg.Connection[Any] | None = None
        self._mark = secrets.token_hex(16)
        self._gone = ""  # why there will be no connection any more
        self._down_since = 0.0
        self._hurry = threading.Event()

    # -- life

    def open(self) -> None:
        try:
            self._name = _name(self._url)
            connection = self._connection = self._dial()
            self._take(connection)
            _demand(connection, self._name)
            migrate_postgres(_Connection(connection), name=self._name, url=self._url)
            connection.execute(
                "INSERT INTO settings (name, value) VALUES ($1, $2)"
                " ON CONFLICT (name) DO UPDATE SET value=excluded.value",
                (_MARK, json.dumps(self._mark)),
            )
        except psycopg.Error as error:
            raise self._translate(error) from error

    def close(self) -> None:
        self._drop()

    def renew(self, tables: Sequence[str]) -> None:
        try:
            with contextlib.closing(self._dial()) as connection:
                connection.execute(f"SET lock_timeout = {round(1000 * RECONNECT_S)}")
                connection.execute(f"VACUUM FULL {', '.join(tables)}")
        except psycopg.Error as error:
            raise self._translate(error) from error

    def hurry(self) -> None:
        self._hurry.set()

    def tidy(self) -> bool:
        """PostgreSQL's own autovacuum sees to that."""
        return False

    # -- transactions

    def commit(self, batch: Sequence[Item]) -> list[Outcome]:
        careful = False
        fault: psycopg.Error | None = None
        for _ in range(_TRIES):
            connection = self._connected(RECONNECT_S)
            transaction = _Transaction(connection, synced=any(item.synced for item in batch), translate=self._translate)
            try:
                return transaction.careful(batch) if careful else transaction.fast(batch)
            except psycopg.Error as error:
                fault = error
            if connection.closed or _ends(fault):
                self._lost(fault)
                if transaction.number is not None and self._took_effect(transaction.number):
                    return transaction.outcomes
                continue
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            if careful and fault.sqlstate not in _AGAIN:
                break
            careful = True
        assert fault is not None
        raise self._translate(fault) from fault

    def _took_effect(self, number: str) -> bool:
        """Whether a transaction was committed whose connection broke while it was asked for. Raises Unavailable."""
        for _ in range(_TRIES):
            try:
                connection = self._connected(IN_DOUBT_S)
                row = connection.execute("SELECT pg_xact_status($1::xid8)", (number,)).fetchone() or (None,)
            except psycopg.errors.InvalidParameterValue:
                return False  # a crash has set the server back to before it
            except psycopg.Error as error:
                self._lost(error)
                continue
            except Unavailable:
                break
            if row[0] not in {"committed", "aborted"}:
                break
            return bool(row[0] == "committed")
        raise Unavailable(f"The connection to {self._name} broke: whether what was written is kept is not known.")

    # -- the connection

    def _connected(self, patience_s: float) -> psycopg.Connection[Any]:
        """The connection, or a new one within that time since it was lost. Raises Unavailable."""
        if self._connection is not None:
            return self._connection
        pause = _PAUSE_S
        while True:
            if self._gone:
                raise Unavailable(self._gone)
            try:
                return self._reconnect()
            except (psycopg.Error, Unavailable) as error:
                self._drop()
                late = time.monotonic() + pause > self._down_since + patience_s
                if self._gone or late or self._hurry.wait(pause):
                    raise (error if isinstance(error, RoostError) else self._translate(error)) from error
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _reconnect(self) -> psycopg.Connection[Any]:
        connection = self._connection = self._dial()
        self._take(connection)
        row = connection.execute("SELECT value FROM settings WHERE name=$1", (_MARK,)).fetchone()
        if row is None or json.loads(row[0]) != self._mark:
            self._gone = f"Another Roost has used {self._name} while the connection was lost: restart this one."
            raise Unavailable(self._gone)
        log.warning("connected to %s again", self._name)
        return connection

    def _dial(self) -> psycopg.Connection[Any]:
        options: dict[str, Any] = {**_CONNECTING, **conninfo_to_dict(self._url), "client_encoding": "UTF8"}
        connection = psycopg.connect(**options, autocommit=True, cursor_factory=psycopg.RawCursor)
        try:
            connection.execute(_SESSION)
            if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
                connection.execute("SET synchronous_commit = on")
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self, connection: psycopg.Connection[Any]) -> None:
        """The advisory lock; it goes with the connection."""
        deadline = time.monotonic() + LOCK_WAIT_S
        while connection.execute("SELECT pg_try_advisory_lock($1)", (_LOCK,)).fetchone() != (True,):
            if time.monotonic() > deadline or self._hurry.wait(2 * _PAUSE_S):
                raise Unavailable(f"Another Roost uses {self._name}.")

    def _lost(self, error: psycopg.Error) -> None:
        log.warning("the connection to %s was lost: %s", self._name, _reason(error))
        self._drop()
        self._down_since = time.monotonic()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _translate(self, error: psycopg.Error) -> RoostError:
        if error.sqlstate == _NO_ROOM:
            return StorageFull(f"No room left on the disk of {self._name}.")
        if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
            return Unavailable(f"Can't open {self._name}: {_reason(error)}.", retry_after=1.0)
        return Unavailable(f"{_capital(self._name)} failed: {_reason(error)}.", retry_after=1.0)


class _Transaction:
    """One try to run a batch, from BEGIN to COMMIT. Both ways raise psycopg.Error, and it may be open then.

    `number` is None as long as it has changed nothing that COMMIT was sent for; what is left of it is nothing then.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        synced: bool,
        translate: Callable[[psycopg.Error], RoostError],
    ) -> None:
        self.number: str | None = None
        self.outcomes: list[Outcome] = []
        self._raw = connection
        self._connection = _Connection(connection)
        self._synced = synced
        self._translate = translate

    def fast(self, batch: Sequence[Item]) -> list[Outcome]:
        """All in one go; the first error of the database ends it."""
        with self._raw.pipeline() as pipeline:
            self._connection.pipeline = pipeline
            self._begin()
            found: dict[int, Outcome] = {}
            sent: list[tuple[int, Change, psycopg.Cursor[Any]]] = []
            for index, item in enumerate(batch):
                if not isinstance(item, Change):
                    self._receive(pipeline, sent, found)
                    found[index] = self._guarded(item)
                    continue
                try:
                    sent.append((index, item, self._connection.send(item.sql, item.values)))
                except UnicodeError as error:  # text that is none; nothing was sent
                    found[index] = None, error
            number = self._raw.execute(_NUMBER)
            self._receive(pipeline, sent, found)
            self.outcomes = [found[index] for index in range(len(batch))]
            self.number = (number.fetchone() or (None,))[0]
            done = self._raw.execute("COMMIT")
        return self._ended(done)

    def careful(self, batch: Sequence[Item]) -> list[Outcome]:
        """One after the other, each in a savepoint: what fails takes nothing else along."""
        self._begin()
        for item in batch:
            try:
                self.outcomes.append(self._guarded(item))
            except psycopg.Error as error:
                if self._raw.closed or _ends(error) or error.sqlstate in _AGAIN:
                    raise
                self._undo()
                self.outcomes.append((None, self._translate(error)))
        self.number = (self._raw.execute(_NUMBER).fetchone() or (None,))[0]
        return self._ended(self._raw.execute("COMMIT"))

    def _begin(self) -> None:
        self._raw.execute("BEGIN")
        if not self._synced:
            self._raw.execute("SET LOCAL synchronous_commit = off")

    def _receive(
        self, pipeline: psycopg.Pipeline, sent: list[tuple[int, Change, psycopg.Cursor[Any]]], found: dict[int, Outcome]
    ) -> None:
        """What became of the statements that were sent so far."""
        pipeline.sync()
        for index, change, cursor in sent:
            try:
                found[index] = change.then(self._connection, cursor), None
            except psycopg.Error:
                raise
            except Exception as error:
                found[index] = None, error
        sent.clear()

    def _guarded(self, item: Item) -> Outcome:
        """In a savepoint, which is still there when this raises psycopg.Error."""
        self._raw.execute("SAVEPOINT work")
        try:
            if isinstance(item, Change):
                result = item.then(self._connection, self._connection.send(item.sql, item.values))
            else:
                result = item.run(self._connection)
        except psycopg.Error:
            raise
        except Exception as error:
            if isinstance(item, Change):
                self._raw.execute("RELEASE work")
            else:
                self._undo()
            return None, error
        self._raw.execute("RELEASE work")
        return result, None

    def _undo(self) -> None:
        self._raw.execute("ROLLBACK TO work")
        self._raw.execute("RELEASE work")

    def _ended(self, done: psycopg.Cursor[Any]) -> list[Outcome]:
        if done.statusmessage != "COMMIT":  # an error that nobody has seen: PostgreSQL rolls back then, and says so
            self.number = None
            raise psycopg.errors.InFailedSqlTransaction(f"the transaction ended with {done.statusmessage}")
        return self.outcomes


class _Connection:
    """`database.Connection` over psycopg's."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw
        self.pipeline: psycopg.Pipeline | None = None

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> _Cursor:
        return _Cursor(self.send(sql, values), self)

    def send(self, sql: str, values: Sequence[Any]) -> psycopg.Cursor[Any]:
        """Its result is there at once, or in a pipeline when that was synchronised."""
        try:
            return self._raw.execute(numbered(sql), values or None)
        except psycopg.DataError:
            if not any(isinstance(value, str) and "\0" in value for value in values):
                raise
            # The one character that PostgreSQL's text can't hold; found before anything was sent.
            clean = [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
            return self._raw.execute(numbered(sql), clean)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> None:
        for row in rows:
            self.send(sql, row)


class _Cursor:
    """`database.Cursor` over psycopg's, which asks for the number of rows where psycopg would not know it yet."""

    def __init__(self, raw: psycopg.Cursor[Any], connection: _Connection) -> None:
        self._raw = raw
        self._connection = connection

    @property
    def rowcount(self) -> int:
        if self._raw.pgresult is None and self._connection.pipeline is not None:
            self._connection.pipeline.sync()
        return self._raw.rowcount

    def fetchone(self) -> Any:
        return self._raw.fetchone()

    def fetchall(self) -> list[Any]:
        return self._raw.fetchall()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._raw)


@lru_cache(maxsize=1024)
def numbered(sql: str) -> str:
    """With $1, $2 ... in the place of each `?`."""
    numbers = itertools.count(1)
    return _PLACES.sub(lambda found: f"${next(numbers)}" if found[0] == "?" else found[0], sql)


def _name(url: str) -> str:
    """For people; without the password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        raise Unavailable(
            "'database' is not a PostgreSQL URL, as in postgresql://user:password@host:5432/name."
        ) from None
    host, port = parts.get("host") or "the local socket", parts.get("port") or 5432
    return f"the PostgreSQL database '{parts.get('dbname') or parts.get('user') or ''}' at {host}:{port}"


def _demand(connection: psycopg.Connection[Any], name: str) -> None:
    """Raises Unavailable when the store can't work there."""
    version = connection.info.server_version // 10_000
    if version < OLDEST:
        raise Unavailable(f"{_capital(name)} is PostgreSQL {version}; Roost needs {OLDEST} or later.")
    row = connection.execute("SHOW server_encoding").fetchone()
    if row != ("UTF8",):
        raise Unavailable(f"{_capital(name)} must have the encoding UTF8.")


def _ends(error: psycopg.Error) -> bool:
    """Nothing more can be done with the connection, though it may be open: the server has ended it, or the client's
    side of it has lost its place, as after a break in the middle of a pipeline."""
    return error.sqlstate in _ENDS or (error.sqlstate is None and isinstance(error, psycopg.OperationalError))


def _reason(error: psycopg.Error) -> str:
    """The server's own words, on one line."""
    lines = (error.diag.message_primary or str(error)).strip().splitlines() or [type(error).__name__]
    return re.split(r"(?:FATAL|ERROR|failed):\s+", lines[0])[-1].rstrip(".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
