"""What the server reports, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from roost.sdk.terminal import age, clean, clock, duration, seconds, size

Row = Mapping[str, Any]
_SHORT = {
    "STATE",
    "STATUS",
    "LEASES",
    "MEMORY",
    "CPU",
    "AGE",
    "CHANGED",
    "TRIES",
    "TOOK",
    "TTL",
    "IDLE TIMEOUT",
    "ENDS IN",
}
_TASK_STYLES = {"Succeeded": "green", "Failed": "red", "Expired": "red", "Running": "cyan", "Retrying": "yellow"}
_STATE_STYLES = {
    "ready": "green",
    "frozen": "cyan",
    "starting": "yellow",
    "resuming": "yellow",
    "paused": "blue",
    "running": "green",
    "failing": "red",
}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Names and ids are folded where the line is too short, never cut: people copy them.
        right = column in {"LEASES", "MEMORY", "CPU", "TRIES", "ENQUEUED", "DELIVERED", "FAILED"}
        table.add_column(column, overflow="fold", no_wrap=column in _SHORT, justify="right" if right else "left")
    return table


def _text(value: object) -> Text:
    return Text(clean(str(value)))


#: The driver whose rooms lack nothing.
_USUAL = "namespaces"


def instances(rows: Iterable[Row], functions: Iterable[str], now: float) -> Table:
    """Live instances, and the functions that have none at the moment. `now` is Unix seconds. Whose rooms they are is
    shown where some are not the usual ones."""
    rows = sorted(rows, key=lambda one: (str(one.get("function")), str(one.get("id"))))
    drivers = {str(row.get("driver") or _USUAL) for row in rows} != {_USUAL} and bool(rows)
    more = ("DRIVER",) if drivers else ()
    table = _table("FUNCTION", "INSTANCE", "STATE", "LEASES", "SESSIONS", "MEMORY", "CPU", "AGE", *more)
    seen = set()
    for row in rows:
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
            *([_text(row.get("driver") or "")] if drivers else []),
        )
    for name in sorted(set(functions) - seen):
        table.add_row(_text(name), Text("none running", style="dim"), *[""] * (6 + len(more)))
    return table


def sessions(rows: Iterable[Row], now: float) -> Table:
    """Sessions of one function. `now` is Unix seconds."""
    table = _table("SESSION", "STATUS", "BUSY", "INSTANCE", "AGE", "CHANGED", "TTL", "IDLE TIMEOUT")
    for row in rows:
        table.add_row(
            _text(row.get("sessionId", "")),
            _text(row.get("sessionStatus", "")),
            _busy(row.get("roost") or {}),
            _text(row.get("containerId") or ""),
            age(row.get("createdTime"), now),
            age(row.get("lastModifiedTime"), now),
            duration(float(row.get("sessionTTLInSeconds") or 0)),
            duration(float(row.get("sessionIdleTimeoutInSeconds") or 0)),
        )
    return table


def _busy(more: Row) -> str:
    """What a session works on."""
    counts = ((int(more.get(name) or 0), name) for name in ("tasks", "requests"))
    return ", ".join(f"{count} {name if count > 1 else name[:-1]}" for count, name in counts if count) or "no"


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


def keys(rows: Iterable[Row]) -> Table:
    """Keys of an account."""
    table = _table("ID", "NAME", "ROLE", "FOR", "CREATED", "LAST USED", "REVOKED")
    for row in rows:
        before, after = ("id", "name", "role"), ("created", "lastUsed", "revoked")
        table.add_row(
            *[_text(row.get(key) or "") for key in before],
            _text(" ".join(row.get("grants") or [])),
            *[_text(row.get(key) or "") for key in after],
        )
    return table


def secrets(rows: Iterable[Row]) -> Table:
    """Secrets of an account."""
    table = _table("NAME", "VERSION", "HOSTS", "UPDATED")
    for row in rows:
        hosts = (row.get("metadata") or {}).get("hosts", "")
        table.add_row(
            *[_text(value) for value in (row.get("name", ""), row.get("currentVersion", ""), hosts)],
            _text(row.get("updatedAt", "")),
        )
    return table


def triggers(rows: Iterable[Row]) -> Table:
    """Triggers, of whichever functions."""
    table = _table(
        "FUNCTION", "TRIGGER", "TYPE", "STATUS", "QUALIFIER", "ENQUEUED", "DELIVERED", "FAILED", "LAST ERROR"
    )
    for row in rows:
        more = row.get("roost") or {}
        state = clean(str(row.get("status", "")))
        table.add_row(
            *[_text(row.get(key, "")) for key in ("functionName", "triggerName", "triggerType")],
            Text(state, style=_STATE_STYLES.get(state, "")),
            _text(row.get("qualifier", "")),
            *[_text(more.get(key, "")) for key in ("enqueued", "delivered", "failed")],
            _text(str(more.get("lastError") or "")[:200]),
        )
    return table


def objects(rows: Iterable[Row]) -> Table:
    table = _table("KEY", "SIZE", "MODIFIED")
    for row in rows:
        table.add_row(_text(row.get("key", "")), size(int(row.get("size") or 0)), _text(row.get("modified", "")))
    return table


def sandboxes(rows: Iterable[Row], now: float) -> Table:
    """Sandboxes, running and paused. `now` is Unix seconds."""
    table = _table("SANDBOX", "TEMPLATE", "STATE", "AGE", "ENDS IN", "METADATA")
    for row in rows:
        state = clean(str(row.get("state", "")))
        table.add_row(
            _text(row.get("sandboxID", "")),
            _text(row.get("templateID", "")),
            Text(state, style=_STATE_STYLES.get(state, "")),
            age(row.get("startedAt"), now),
            _left(row.get("endAt"), now) if state == "running" else "",
            _labels(row.get("metadata")),
        )
    return table


def sandbox(row: Row, now: float) -> Table:
    """One sandbox. Its tokens are not shown."""
    running = row.get("state") == "running"
    lifecycle = row.get("lifecycle") or {}
    at_end = "paused" if lifecycle.get("onTimeout") == "pause" else "killed"
    shown = {
        "id": _text(row.get("sandboxID", "")),
        "template": _text(row.get("templateID", "")),
        "state": _text(row.get("state", "")),
        "paused because": _text(row.get("pauseReason") or ""),
        "kept": _text(row.get("pauseMode") or ""),
        "started": Text(clock(row.get("startedAt"))),
        "ends in": Text(f"{_left(row.get('endAt'), now)}, and is {at_end} then" if running else ""),
        "wakes by traffic": Text("yes" if lifecycle.get("autoResume") else ""),
        "cpus": _text(row.get("cpuCount", "")),
        "memory": Text(size(float(row.get("memoryMB") or 0) * (1 << 20))),
        "disk": Text(size(float(row.get("diskSizeMB") or 0) * (1 << 20))),
        "metadata": _labels(row.get("metadata")),
        "labels": _text(", ".join(str(label) for label in (row.get("taint") or {}).get("labels") or ())),
        "volumes": _text(", ".join(f"{v.get('name')} at {v.get('path')}" for v in row.get("volumeMounts") or ())),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in shown.items():
        if value.plain:
            table.add_row(name, value)
    return table


def labels(rows: Iterable[Row]) -> Table:
    """What has labels."""
    table = _table("HOLDER", "LABELS")
    for row in rows:
        table.add_row(_text(row.get("holder", "")), _text(", ".join(str(label) for label in row.get("labels") or ())))
    return table


def snapshots(rows: Iterable[Row]) -> Table:
    """Snapshots of sandboxes."""
    table = _table("SNAPSHOT", "NAMES")
    for row in rows:
        table.add_row(_text(row.get("snapshotID", "")), _text(", ".join(str(name) for name in row.get("names") or ())))
    return table


def _left(at: object, now: float) -> str:
    moment = seconds(at)
    return "" if moment is None else duration(moment - now)


def _labels(value: object) -> Text:
    return _text(", ".join(f"{key}={label}" for key, label in value.items()) if isinstance(value, dict) else "")
