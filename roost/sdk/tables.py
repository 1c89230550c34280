"""What the server reports, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from roost.sdk.terminal import age, clean, duration, size

Row = Mapping[str, Any]
_SHORT = {"STATE", "STATUS", "LEASES", "MEMORY", "CPU", "AGE", "CHANGED", "TRIES", "TOOK", "TTL", "IDLE TIMEOUT"}
_TASK_STYLES = {"Succeeded": "green", "Failed": "red", "Expired": "red", "Running": "cyan", "Retrying": "yellow"}
_STATE_STYLES = {"ready": "green", "frozen": "cyan", "starting": "yellow", "resuming": "yellow", "paused": "blue"}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Names and ids are folded where the line is too short, never cut: people copy them.
        right = column in {"LEASES", "MEMORY", "CPU", "TRIES"}
        table.add_column(column, overflow="fold", no_wrap=column in _SHORT, justify="right" if right else "left")
    return table


def _text(value: object) -> Text:
    return Text(clean(str(value)))


def instances(rows: Iterable[Row], functions: Iterable[str], now: float) -> Table:
    """Live instances, and the functions that have none at the moment. `now` is Unix seconds."""
    table = _table("FUNCTION", "INSTANCE", "STATE", "LEASES", "SESSIONS", "MEMORY", "CPU", "AGE")
    seen = set()
    for row in sorted(rows, key=lambda one: (str(one.get("function")), str(one.get("id")))):
        seen.add(row.get("function"))
        state = clean(str(row.get("state", "")))
        sessions = [clean(str(one)) for one in row.get("sessions") or ()]
        table.add_row(
            _text(row.get("function", "")),
            _text(row.get("id", "")),
            Text(state, style=_STATE_STYLES.get(state, "")),
            _text(row.get("leases", 0)),
            Text(", ".join(sessions[:3]) + (f" +{len(sessions) - 3}" if len(sessions) > 3 else "")),
            size(float(row.get("memoryBytes") or 0)),
            f"{float(row.get('cpuMs') or 0) / 1000:.2f}s",
            age(row.get("created"), now),
        )
    for name in sorted(set(functions) - seen):
        table.add_row(_text(name), Text("none running", style="dim"), *[""] * 6)
    return table


def sessions(rows: Iterable[Row], now: float) -> Table:
    """Sessions of one function. `now` is Unix seconds."""
    table = _table("SESSION", "STATUS", "INSTANCE", "AGE", "CHANGED", "TRIES", "TOOK", "TTL", "IDLE TIMEOUT")
    for row in rows:
        table.add_row(
            _text(row.get("sessionId", "")),
            _text(row.get("sessionStatus", "")),
            _text(row.get("containerId") or ""),
            age(row.get("createdTime"), now),
            age(row.get("lastModifiedTime"), now),
            duration(float(row.get("sessionTTLInSeconds") or 0)),
            duration(float(row.get("sessionIdleTimeoutInSeconds") or 0)),
        )
    return table


def tasks(rows: Iterable[Row], now: float) -> Table:
    """Tasks of one function. `now` is Unix seconds."""
    table = _table("TASK", "STATUS", "TRIES", "AGE", "TOOK", "SESSION", "ERROR")
    for row in rows:
        more = row.get("roost") or {}
        state = clean(str(row.get("status", "")))
        table.add_row(
            _text(row.get("taskId", "")),
            Text(state, style=_TASK_STYLES.get(state, "")),
            _text(more.get("attempts", 0)),
            age(float(more.get("enqueuedTime") or 0) / 1000, now),
            duration(float(row.get("durationMs") or 0) / 1000) if row.get("startedTime") else "",
            _text(more.get("sessionId") or ""),
            _text(str(row.get("taskErrorMessage") or "")[:200]),
        )
    return table
