"""Timers: a task is enqueued for every time that the schedule names, never two for one."""

from __future__ import annotations

import json
import math
from collections import deque
from datetime import UTC, datetime

from roost.functions.triggers.schedule import Schedule
from roost.functions.triggers.settings import settings_of
from roost.functions.triggers.timer import CatchUp, TimerSettings
from roost.store.triggers import TriggerRecord
from roost.triggers.alarms import Alarms
from roost.triggers.delivery import enqueue_patiently
from roost.triggers.ports import Cursors, Delivery, Event, Report, task_id

#: A fire that comes no later than this is on time.
ON_TIME_S = 10.0
#: How many missed fires happen at most, the latest.
MAX_CAUGHT_UP = 100
#: A clock that was set back by more had been wrong before: what has fired at those times may fire again.
SET_BACK_S = 3 * 3600.0
_LOOK_BACK_S = 60.0


class Timer:
    """Implements `Source`. Its cursor is the last time dealt with, and of which schedule."""

    def __init__(self, record: TriggerRecord, *, alarms: Alarms, cursors: Cursors) -> None:
        self._record = record
        self._alarms = alarms
        self._cursors = cursors
        self._settings = settings_of(TimerSettings, record)
        self._schedule = self._settings.schedule(record)

    async def run(self, delivery: Delivery, report: Report) -> None:
        cursor = await self._resume()
        report.connected()
        while True:
            now = self._alarms.now()
            if cursor > now + SET_BACK_S:
                cursor = now
            fires, cursor = due(self._schedule, cursor, now, self._settings.catch_up)
            for at in fires:
                await enqueue_patiently(delivery, self._event(at), report)
                await self._put(at)
            if (next_at := self._schedule.after(cursor)) > now:
                await self._alarms.until(next_at)

    async def _resume(self) -> float:
        kept = await self._cursors.cursor(self._record.id)
        known = json.loads(kept) if kept else {}
        if known.get("schedule") == self._identity:
            return float(known["at"])
        # A new schedule has missed nothing of the time before it was made.
        at = self._record.modified if known else self._record.created
        await self._put(at)
        return at

    async def _put(self, at: float) -> None:
        value = json.dumps({"at": at, "schedule": self._identity})
        await self._cursors.put_cursor(self._record.id, value)

    @property
    def _identity(self) -> str:
        return f"{self._settings.cron_expression} {self._settings.time_zone or ''}".strip()

    def _event(self, at: float) -> Event:
        time = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {"triggerTime": time, "triggerName": self._record.name, "payload": self._settings.payload}
        return Event(id=time, body=json.dumps(body).encode(), task_id=task_id(self._record, time))


def due(schedule: Schedule, cursor: float, now: float, catch_up: CatchUp) -> tuple[list[float], float]:
    """The times to fire for now, in order, and the new cursor: every time up to it has been dealt with."""
    times = _latest(schedule, cursor, now)
    if not times:
        return [], cursor
    on_time = [at for at in times if at >= now - ON_TIME_S]
    if catch_up is CatchUp.ALL:
        return times, times[-1]
    if catch_up is CatchUp.LAST:
        return on_time or times[-1:], times[-1]
    return on_time, times[-1]


def _latest(schedule: Schedule, cursor: float, now: float) -> list[float]:
    """The last times behind `cursor` and up to `now`, MAX_CAUGHT_UP of them at most."""
    back = _LOOK_BACK_S
    while True:  # not all from `cursor` on: that may be a year ago, and the schedule name every second
        start = max(cursor, now - back)
        times: deque[float] = deque(maxlen=MAX_CAUGHT_UP)
        at = schedule.after(start)
        while at <= now and at != math.inf:
            times.append(at)
            at = schedule.after(at)
        if len(times) == MAX_CAUGHT_UP or start <= cursor:
            return list(times)
        back *= 4
