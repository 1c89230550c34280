"""When a timer fires: Function Compute's `cronExpression`. Pure; times are Unix seconds, all of them whole.

`@every 90s` counts from the trigger's creation. A cron expression is read on the clock of its time zone. Where that
clock is set forward, what falls into the gap fires right behind it; where it is set back, what has an hour of its own
fires once, and what fires every hour, or every few minutes, goes on doing so, as Debian's cron does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_EVERY = re.compile(r"@every\s+(.+)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|m|s)")
_ZONED = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_LONGEST_S = 366 * 86400
_LATEST = 253_370_764_800.0  # the year 9999


class Schedule(Protocol):
    def after(self, time: float) -> float:
        """The first time to fire behind `time`; infinity when there is none."""
        ...


@dataclass(frozen=True)
class Every:
    """`seconds` after `since`, and on and on."""

    seconds: int
    since: int

    def after(self, time: float) -> float:
        return self.since + (math.floor((time - self.since) / self.seconds) + 1) * self.seconds


class Cron:
    """Five fields, or six with the seconds in front."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        """Raises ValueError, with a sentence's end."""
        fields = expression.replace("?", "*").split()
        self._second = 0
        if len(fields) == 6 and fields[0].isascii() and fields[0].isdigit() and int(fields[0]) < 60:
            # One second of the minute: with five fields cronsim minds the changes of the clock.
            self._second = int(fields.pop(0))
        self._expression = " ".join(fields)
        self._zone = UTC if str(zone) == "UTC" else zone
        self._steps(0.0)

    def after(self, time: float) -> float:
        if not 0 <= time < _LATEST:
            return math.inf
        for step in self._steps(math.floor(time) - self._second):
            # In an hour that comes twice the first step may lie in the first of them, though `time` is in the second.
            if (at := step.timestamp() + self._second) > time:
                return at
        return math.inf

    def _steps(self, time: float) -> Iterator[datetime]:
        try:
            return CronSim(self._expression, datetime.fromtimestamp(time, self._zone))
        except CronSimError as error:
            raise ValueError(f"{error} in {self._expression[:80]!r}") from error


def parse_schedule(expression: str, zone: str | None, since: float) -> Schedule:
    """The schedule of an expression; `zone` is for those that name none, `since` is where `@every` counts from.

    Raises ValueError, with a sentence's end.
    """
    text = expression.strip()
    if zoned := _ZONED.fullmatch(text):
        if zone is not None and zone != zoned[1]:
            raise ValueError(f"it says {zoned[1][:80]!r} and timeZone says {zone[:80]!r}")
        zone, text = zoned[1], zoned[2]
    if every := _EVERY.fullmatch(text):
        return Every(_duration(every[1].strip()), math.floor(since))
    if text.startswith("@"):
        raise ValueError(f"{text[:80]!r} is not '@every' and a duration like 90s, 5m or 1h30m")
    if len(text.split()) not in (5, 6):
        raise ValueError(f"{text[:80]!r} has to have 5 fields, or 6 with the seconds in front")
    schedule = Cron(text, find_zone(zone or "UTC"))
    if schedule.after(since) == math.inf:
        raise ValueError(f"{text[:80]!r} never fires")
    return schedule


def find_zone(name: str) -> tzinfo:
    """Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name[:80]!r}") from error


def _duration(text: str) -> int:
    """Go's notation, in whole seconds."""
    parts = _DURATION.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(f"{text[:80]!r} is not a duration like 90s, 5m or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 1 <= seconds <= _LONGEST_S or seconds != int(seconds):
        raise ValueError(f"{text[:80]!r} is not a whole number of seconds, from 1s to {_LONGEST_S // 3600}h")
    return int(seconds)
