"""When timers fire: expressions, time zones, clocks that are set for summer."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.functions.triggers.schedule import parse_schedule

BERLIN = ZoneInfo("Europe/Berlin")


def fires(expression: str, start: datetime, count: int, zone: str | None = None) -> list[datetime]:
    schedule = parse_schedule(expression, zone, 0.0)
    found, time = [], start.timestamp()
    for _ in range(count):
        time = schedule.after(time)
        found.append(datetime.fromtimestamp(time, start.tzinfo))
    return found


def clock(expression: str, start: datetime, count: int) -> list[str]:
    return [one.strftime("%d %H:%M:%S %Z") for one in fires(expression, start, count, "Europe/Berlin")]


@pytest.mark.parametrize(
    ("expression", "zone", "first", "second"),
    [
        ("0 0 4 * * *", None, (1, 4, 0, 0), (2, 4, 0, 0)),
        ("0 4 * * *", None, (1, 4, 0, 0), (2, 4, 0, 0)),
        ("15,45 * * * * *", None, (1, 0, 0, 15), (1, 0, 0, 45)),
        ("0 */20 * * * ?", None, (1, 0, 20, 0), (1, 0, 40, 0)),
        ("CRON_TZ=Asia/Shanghai 0 0 4 * * *", None, (1, 20, 0, 0), (2, 20, 0, 0)),
        ("TZ=Asia/Shanghai 0 0 4 * * *", None, (1, 20, 0, 0), (2, 20, 0, 0)),
        ("0 0 4 * * *", "Asia/Shanghai", (1, 20, 0, 0), (2, 20, 0, 0)),
        ("CRON_TZ=Asia/Shanghai 0 0 4 * * *", "Asia/Shanghai", (1, 20, 0, 0), (2, 20, 0, 0)),
        ("0 0 12 ? * MON", None, (5, 12, 0, 0), (12, 12, 0, 0)),
        ("30 23 L * *", None, (31, 23, 30, 0), None),
        ("@every 90s", None, (1, 0, 1, 30), (1, 0, 3, 0)),
        ("@every 1h30m", None, (1, 1, 30, 0), (1, 3, 0, 0)),
    ],
)
def test_expressions(expression: str, zone: str | None, first: tuple[int, ...], second: tuple[int, ...] | None) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    found = fires(expression, start, 2, zone)
    assert found[0] == datetime(2026, 1, *first, tzinfo=UTC)
    if second is not None:
        assert found[1] == datetime(2026, 1, *second, tzinfo=UTC)


def test_every_counts_from_the_creation_without_drift() -> None:
    schedule = parse_schedule("@every 7m", None, 1_000_000_003.9)
    assert schedule.after(1_000_000_003.9) == 1_000_000_003 + 420
    assert schedule.after(1_000_000_003 + 420) == 1_000_000_003 + 840
    assert schedule.after(1_000_000_003 + 420 * 1000 + 0.5) == 1_000_000_003 + 420 * 1001


def test_what_falls_into_the_gap_of_spring_happens_right_behind_it_once() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    for expression in ("30 2 * * *", "0 30 2 * * *"):
        assert clock(expression, before, 3) == ["29 03:00:00 CEST", "30 02:30:00 CEST", "31 02:30:00 CEST"]
    assert clock("20 30 2 * * *", before, 2) == ["29 03:00:20 CEST", "30 02:30:20 CEST"]


def test_an_hour_that_comes_twice_fires_once_what_has_an_hour_of_its_own() -> None:
    before = datetime(2026, 10, 24, 12, tzinfo=BERLIN)
    for expression in ("30 2 * * *", "0 30 2 * * *"):
        assert clock(expression, before, 2) == ["25 02:30:00 CEST", "26 02:30:00 CET"]
    # Nor does it fire again for who looks in the second of the two hours.
    second = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=BERLIN)
    assert clock("30 2 * * *", second, 1) == ["26 02:30:00 CET"]


def test_what_happens_in_every_hour_goes_on_through_both_changes() -> None:
    autumn = datetime(2026, 10, 25, 1, 30, tzinfo=BERLIN)
    assert clock("15 0 * * * *", autumn, 3) == ["25 02:00:15 CEST", "25 02:00:15 CET", "25 03:00:15 CET"]
    spring = datetime(2026, 3, 29, 0, 30, tzinfo=BERLIN)
    assert clock("0 * * * *", spring, 3) == ["29 01:00:00 CET", "29 03:00:00 CEST", "29 04:00:00 CEST"]
    assert clock("*/30 * * * *", datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN), 5) == [
        "25 02:30:00 CEST", "25 02:00:00 CET", "25 02:30:00 CET", "25 03:00:00 CET", "25 03:30:00 CET",
    ]  # fmt: skip


def test_several_seconds_of_a_minute_follow_the_clock_literally() -> None:
    assert clock("*/30 30 2 * * *", datetime(2026, 3, 28, 12, tzinfo=BERLIN), 1) == ["30 02:30:00 CEST"]
    assert clock("*/30 30 2 * * *", datetime(2026, 10, 24, 12, tzinfo=BERLIN), 4) == [
        "25 02:30:00 CEST", "25 02:30:30 CEST", "25 02:30:00 CET", "25 02:30:30 CET",
    ]  # fmt: skip


EXPRESSIONS = (
    "30 2 * * *",
    "0 30 2 * * *",
    "*/30 30 2 * * *",
    "0 * * * *",
    "17 */7 1-15 * 3",
    "@every 37s",
    "5 59 23 L * *",
)


@given(
    expression=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"]),
    start=st.floats(0, 2_500_000_000),
)
def test_the_next_time_is_always_later_and_the_same_from_wherever_one_looks(
    expression: str, zone: str, start: float
) -> None:
    schedule = parse_schedule(expression, zone, 0.0)
    first = schedule.after(start)
    assert first > start
    assert first == int(first)
    assert schedule.after((start + first) / 2) == first, "half the way is as good a start"
    assert schedule.after(first - 1) == first
    assert schedule.after(first) > first


def test_an_end_of_time() -> None:
    assert parse_schedule("0 0 1 1 *", None, 0.0).after(1e15) == math.inf


@pytest.mark.parametrize(
    ("expression", "zone", "said"),
    [
        ("", None, "fields"),
        ("* * * *", None, "fields"),
        ("* * * * * * *", None, "fields"),
        ("0 60 * * * *", None, "minute"),
        ("61 * * * * *", None, "second"),
        ("0 0 31 2 *", None, "day-of-month"),
        ("0 0 4 * * MUN", None, "day-of-week"),
        ("@hourly", None, "@every"),
        ("@every soon", None, "duration"),
        ("@every 10ms", None, "duration"),
        ("@every 0s", None, "1s"),
        ("@every 1.5s", None, "whole number"),
        ("@every 9000h", None, "whole number"),
        ("@every -5m", None, "duration"),
        ("CRON_TZ=Mars/Olympus 0 0 4 * * *", None, "Mars/Olympus"),
        ("0 0 4 * * *", "../../etc/passwd", "time zone"),
        ("CRON_TZ=Asia/Shanghai 0 0 4 * * *", "UTC", "timeZone says"),
    ],
)
def test_what_is_wrong_is_said(expression: str, zone: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_schedule(expression, zone, 0.0)


@settings(max_examples=200)
@given(
    text=st.lists(st.text("0123459*,-/LW#?MONSU", min_size=1, max_size=6), min_size=4, max_size=7).map(" ".join)
    | st.text("@every 0123456789hms.-", max_size=12).map("@every ".__add__)
    | st.text(max_size=20)
)
def test_nothing_that_somebody_writes_raises_anything_else(text: str) -> None:
    try:
        schedule = parse_schedule(text, None, 0.0)
    except ValueError:
        return
    assert schedule.after(1_800_000_000.0) > 1_800_000_000.0
