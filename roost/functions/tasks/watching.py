"""A task as one stream: its changes of state, what it put out and reported, in the order in which they happened.

Everything is read from the store, where it is kept: whoever comes late sees what the first one saw, and whoever comes
back goes on at the place where it left. Whoever goes away changes nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from roost.functions.tasks.feed import TaskFeed
from roost.model.errors import InvalidArgument
from roost.model.task import FINISHED, MAX_EVENTS, Task, TaskEvent, TaskKey
from roost.store.task_outputs import Entry, TaskOutputs

#: Rows that are read at once.
_ROWS = 100
#: Silence after which a watcher is told that there is nothing to tell.
QUIET_S = 10.0
_PLACE = re.compile(r"([0-9]{1,9})-([0-9]{1,15})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """How much has been seen: changes of state, and the number of the last row of output."""

    events: int = 0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.events}-{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One thing that happened, and the place behind it. `task` is the record at its end, in the last moment."""

    place: Place
    event: TaskEvent | None = None
    entry: Entry | None = None
    task: Task | None = None
    result: bytes | None = None


def place_of(text: str) -> Place:
    """`Last-Event-ID`. Raises InvalidArgument."""
    if not text:
        return Place()
    found = _PLACE.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"Last-Event-ID: {text[:40]!r} is not from an earlier answer.")
    return Place(events=int(found[1]), number=int(found[2]))


def merged(task: Task, entries: list[Entry], place: Place, *, more: bool) -> list[Moment]:
    """What there is after `place`, in order. `more`: there are rows behind `entries`, so nothing later is told yet."""
    seen = place.events if len(task.events) < MAX_EVENTS else min(place.events, len(task.events) - 1)
    events = list(task.events[seen:])
    moments: list[Moment] = []
    while entries or (events and not more):
        if events and (not entries or events[0].at <= entries[0].at):
            seen += 1
            place = Place(events=seen, number=place.number)
            moments.append(Moment(place=place, event=events.pop(0)))
        else:
            entry = entries.pop(0)
            place = Place(events=seen, number=entry.number)
            moments.append(Moment(place=place, entry=entry))
    return moments


async def watch(
    outputs: TaskOutputs, feed: TaskFeed, key: TaskKey, place: Place
) -> AsyncGenerator[Moment | None, None]:
    """See `TaskService.watch`."""
    with feed.follow(key) as changed:
        while True:
            changed.clear()
            task, result, entries = await outputs.after(key, place.number, limit=_ROWS)
            more = len(entries) == _ROWS
            for moment in merged(task, entries, place, more=more):
                place = moment.place
                yield moment
            if more:
                continue
            if task.state in FINISHED:
                yield Moment(place=place, task=task, result=result)
                return
            try:
                async with asyncio.timeout(QUIET_S):
                    await changed.wait()
            except TimeoutError:
                yield None
