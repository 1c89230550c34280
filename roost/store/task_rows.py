"""Between a task's record and its row of the table `tasks`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as _quote
from operator import attrgetter
from typing import Any

from roost.model.errors import NotFound
from roost.model.task import Task, TaskEvent, TaskKey, TaskState

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
# Every request of a task writes a row or two: what is plain is got at once.
_PLAIN = attrgetter(*_NAMES[:6], *_NAMES[7:24])
_PLAIN_CHANGES = attrgetter(*_CHANGING[1:-1])
COLUMNS = ", ".join(_NAMES)
KEY = " WHERE account=? AND function=? AND id=?"
PENDING = "state IN ('Enqueued', 'Retrying')"
HELD = "state IN ('Running', 'Stopping')"
SELECT = f"SELECT {COLUMNS} FROM tasks"  # noqa: S608
#: Does nothing when there is such a task, or no such function (whose account and name follow the row).
INSERT = (
    f"INSERT INTO tasks ({COLUMNS}, payload) SELECT {'?, ' * len(_NAMES)}?"  # noqa: S608
    " WHERE EXISTS (SELECT 1 FROM functions WHERE account=? AND name=?) ON CONFLICT DO NOTHING"
)
_SET = ", ".join(f"{name}=?" for name in _CHANGING)
UPDATE = f"UPDATE tasks SET {_SET}{KEY}"  # noqa: S608
#: Of a record that is as its author knows it: equal epoch and state mean that nobody else has moved it.
UPDATE_KNOWN = f"UPDATE tasks SET {_SET}, result=?{KEY} AND epoch=? AND state=?"  # noqa: S608
CLAIM = f"UPDATE tasks SET {_SET}{KEY} AND epoch=? AND state=? RETURNING payload"  # noqa: S608


def to_row(task: Task) -> tuple[Any, ...]:
    """For INSERT, without the payload."""
    plain = _PLAIN(task)
    return (*plain[:6], task.state._value_, *plain[6:], _fields(task.fields), _events(task))


def to_changes(task: Task) -> tuple[Any, ...]:
    """The new values of UPDATE; the key follows."""
    return (task.state._value_, *_PLAIN_CHANGES(task), _events(task))


# JSON of known shapes; an encoder for any takes three times as long, and each row has two of them.


def _fields(fields: Mapping[str, str]) -> str:
    members = ", ".join([f"{_quote(name)}: {_quote(value)}" for name, value in fields.items()])
    return f"{{{members}}}"


def _events(task: Task) -> str:
    events = ", ".join([f'["{e.state._value_}", {e.at!r}, {_quote(e.detail)}]' for e in task.events])
    return f"[{events}]"


def to_task(row: tuple[Any, ...]) -> Task:
    """From a row that begins with COLUMNS."""
    values = dict(zip(_NAMES, row, strict=False))
    values["state"] = TaskState(values["state"])
    values["fields"] = json.loads(values["fields"])
    values["events"] = tuple(
        TaskEvent(state=TaskState(state), at=at, detail=detail) for state, at, detail in json.loads(values["events"])
    )
    return Task(**values)


def no_task(key: TaskKey) -> NotFound:
    return NotFound(f"Function {key[1]} has no task {key[2][:140]!r}.", code="AsyncTaskNotFound")
