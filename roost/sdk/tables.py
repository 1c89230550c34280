"""What the server reports, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from roost.sdk.terminal import clean, clock, duration, size

Row = Mapping[str, Any]
_STATE_STYLES = {"ready": "green", "frozen": "cyan", "starting": "yellow", "resuming": "yellow", "paused": "blue"}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in {"LEASES", "MEMORY", "CPU"} else "left")
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
            _age(row.get("created"), now),
        )
    for name in sorted(set(functions) - seen):
        table.add_row(_text(name), Text("none running", style="dim"), *[""] * 6)
    return table


def _age(created: object, now: float) -> str:
    return duration(now - created) if isinstance(created, int | float) else ""


def sessions(rows: Iterable[Row]) -> Table:
    """Sessions of one function."""
    table = _table("SESSION", "STATUS", "INSTANCE", "CREATED", "CHANGED", "TTL", "IDLE TIMEOUT")
    for row in rows:
        table.add_row(
            _text(row.get("sessionId", "")),
            _text(row.get("sessionStatus", "")),
            _text(row.get("containerId") or ""),
            clock(row.get("createdTime")),
            clock(row.get("lastModifiedTime")),
            duration(float(row.get("sessionTTLInSeconds") or 0)),
            duration(float(row.get("sessionIdleTimeoutInSeconds") or 0)),
        )
    return table
