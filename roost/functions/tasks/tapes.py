"""What running tasks put out, on its way to the store: gathered in memory, written a few times a second for them all.

A tape is made when a task's run first puts something out; one that only returns a result costs nothing here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from roost.functions.tasks.feed import TaskFeed
from roost.model.errors import RoostError
from roost.model.task import Task
from roost.store.task_outputs import Entry, Kind, TaskOutputs, Used

log = logging.getLogger(__name__)

FLUSH_S = 0.1
#: Bytes that wait to be written, of one task, above which its function waits.
HIGH_WATER = 256 * 1024
#: Of one report of progress; a longer one is left out.
MAX_PROGRESS = 64 * 1024
#: Reports that wait to be written: of more, the latest replaces the one before it.
_MAX_REPORTS = 256


class Tape:
    """One run's. `on_room(False)` is called when too much waits, `on_room(True)` when there is room again."""

    def __init__(self, tapes: Tapes, task: Task) -> None:
        self.on_room: Callable[[bool], None] | None = None
        self._tapes = tapes
        self._task = task
        self._entries: list[Entry] = []
        self._pieces: list[bytes] = []  # of output, since the last entry
        self._since = 0.0
        self._waiting = 0
        self._reports = 0
        self._full = False
        self._used: Used | None = None
        self._over = False  # nothing of it is kept any more
        self._flushing = asyncio.Lock()

    def write(self, data: bytes) -> None:
        """Output, as it came."""
        if self._over or not data or (self._used is not None and self._used.cut):
            return
        if not self._pieces:
            self._since = self._tapes.clock()
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting > HIGH_WATER and not self._full:
            self._full = True
            if self.on_room is not None:
                self.on_room(False)
        self._tapes.soon(self)

    def progress(self, data: bytes) -> None:
        """A report: JSON."""
        if self._over or len(data) > MAX_PROGRESS:
            return
        self._cut()
        entry = self._entry(Kind.PROGRESS, data, self._tapes.clock())
        if self._reports >= _MAX_REPORTS and self._entries[-1].kind is Kind.PROGRESS:
            self._entries[-1] = entry
        else:
            self._reports += 1
            self._entries.append(entry)
        self._tapes.soon(self)

    async def flush(self) -> None:
        """Hand over what waits. A store that can't take it (a full disk) loses it: the task itself goes on."""
        async with self._flushing:
            self._cut()
            entries, self._entries, self._waiting, self._reports = self._entries, [], 0, 0
            if not entries or self._over:
                return
            try:
                self._used = await self._tapes.append(self._task, entries, self._used)
                self._over = self._used is None
            except RoostError as error:
                log.warning("output of task %s/%s is lost: %s", self._task.function, self._task.id, error.message)
            finally:
                if self._full:
                    self._full = False
                    if self.on_room is not None:
                        self.on_room(True)

    def _cut(self) -> None:
        """End the piece of output that is being gathered."""
        if self._pieces:
            self._entries.append(self._entry(Kind.OUTPUT, b"".join(self._pieces), self._since))
            self._pieces = []

    def _entry(self, kind: Kind, data: bytes, at: float) -> Entry:
        return Entry(kind=kind, attempt=self._task.attempts, at=at, data=data)


class Tapes:
    """All of them. `limit`: bytes of output that are kept of a task."""

    def __init__(self, store: TaskOutputs, feed: TaskFeed, *, limit: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._store = store
        self._feed = feed
        self._limit = limit
        self._soon: set[Tape] = set()
        self._timer: asyncio.Task[None] | None = None

    def of(self, task: Task) -> Tape:
        """For the run that `task` is in; to be flushed at its end."""
        return Tape(self, task)

    def soon(self, tape: Tape) -> None:
        """It has something to hand over."""
        self._soon.add(tape)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().create_task(self._flush())

    async def append(self, task: Task, entries: list[Entry], used: Used | None) -> Used | None:
        """For tapes."""
        after = await self._store.append(task.key, task.epoch, entries, used, limit=self._limit)
        self._feed.changed(task.key)
        return after

    async def close(self) -> None:
        """When no task runs any more."""
        if self._timer is not None:
            await asyncio.wait({self._timer})

    async def _flush(self) -> None:
        try:
            while self._soon:
                await asyncio.sleep(FLUSH_S)
                tapes, self._soon = self._soon, set()
                await asyncio.gather(*(tape.flush() for tape in tapes))
        finally:
            self._timer = None
