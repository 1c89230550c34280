"""Between a task's record and its row of the table `tasks`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from roost.model.task import Task, TaskEvent, TaskState

_NAMES = (
    "account", "function", "id", "qualifier", "request_id", "session", "state", "epoch", "attempts", "spared",
    "enqueued", "ready", "due", "started", "ended", "heartbeat", "troubles", "troubled", "hops", "instance_id",
    "error_type", "error", "destination", "digest", "fields", "events",
)  # fmt: skip
#: What a move may change.
_CHANGING = (
    "state", "epoch", "attempts", "spared", "enqueued", "ready", "due", "started", "ended", "heartbeat", "troubles",
    "troubled", "instance_id", "error_type", "error", "destination", "events",
)  # fmt: skip
_WRITTEN: dict[str, Callable[[Task], Any]] = {
    "state": lambda task: task.state.value,
    "fields": lambda task: json.dumps(dict(task.fields)),
    "events": lambda task: json.dumps([(event.state.value, event.at, event.detail) for event in task.events]),
}

COLUMNS = ", ".join(_NAMES)
KEY = " WHERE account=? AND function=? AND id=?"
PENDING = "state IN ('Enqueued', 'Retrying')"
HELD = "state IN ('Running', 'Stopping')"
SELECT = f"SELECT {COLUMNS} FROM tasks"  # noqa: S608
SELECT_PAYLOAD = f"SELECT {COLUMNS}, payload FROM tasks"  # noqa: S608
INSERT = f"INSERT INTO tasks ({COLUMNS}, payload) VALUES ({'?, ' * len(_NAMES)}?) ON CONFLICT DO NOTHING"  # noqa: S608
UPDATE = f"UPDATE tasks SET {', '.join(name + '=?' for name in _CHANGING)}{KEY}"  # noqa: S608


def to_row(task: Task) -> tuple[Any, ...]:
    """For INSERT, without the payload."""
    return tuple(_value(task, name) for name in _NAMES)


def to_changes(task: Task) -> tuple[Any, ...]:
    """For UPDATE."""
    return (*(_value(task, name) for name in _CHANGING), *task.key)


def to_task(row: tuple[Any, ...]) -> Task:
    """From a row that begins with COLUMNS."""
    values = dict(zip(_NAMES, row, strict=False))
    values["state"] = TaskState(values["state"])
    values["fields"] = json.loads(values["fields"])
    values["events"] = tuple(
        TaskEvent(state=TaskState(state), at=at, detail=detail) for state, at, detail in json.loads(values["events"])
    )
    return Task(**values)


def _value(task: Task, name: str) -> Any:
    special = _WRITTEN.get(name)
    return getattr(task, name) if special is None else special(task)
