"""`roost tasks`: asynchronous invocations, listed, shown, stopped and tried again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from roost.sdk import tables
from roost.sdk.client import Client, function_path
from roost.sdk.commands_functions import Qualifier, connect
from roost.sdk.commands_watch import AsJson, console
from roost.sdk.errors import UsageError
from roost.sdk.task_watch import Screen, watch
from roost.sdk.terminal import clean, clock

STATES = ("Enqueued", "Running", "Retrying", "Succeeded", "Failed", "Stopping", "Stopped", "Expired")
_ONE = ("show", "watch", "attach")
_VERBS = (*_ONE, "stop", "retry")
_PAGE = 100
_USAGE = (
    "`roost tasks NAME` lists; `show`, `watch` and `attach` NAME ID take one task; `stop` and `retry` one or more ids."
)


def tasks(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[show|watch|attach|stop|retry] NAME [ID...]", help="What to do with whose tasks."),
    ],
    *,
    status: Annotated[
        str | None, typer.Option("--status", help="Only tasks with this status; `retry` without ids: all of them.")
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Only tasks whose id begins so.")] = "",
    session: Annotated[str, typer.Option("--session", help="Only tasks of this session.")] = "",
    qualifier: Qualifier = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="How many of the latest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List a function's asynchronous tasks, show one, watch what it does (attach: only what it puts out), stop them or
    try them again."""
    wanted = {"status": _status(status), "prefix": prefix, "sessionId": session, "qualifier": qualifier or ""}
    wanted = {name: value for name, value in wanted.items() if value}
    with connect() as client:
        if len(words) == 1:
            _list(client, words[0], wanted, limit, as_json)
            return
        verb, name, *ids = words
        if verb not in _VERBS or (verb in _ONE and len(ids) != 1):
            raise UsageError(_USAGE)
        if verb == "show":
            _show(client, name, ids[0], as_json)
            return
        if verb in ("watch", "attach"):
            watch(client, _path(name, ids[0], "/events"), Screen(output_only=verb == "attach", as_json=as_json))
            return
        if not ids and verb == "retry" and status:
            ids = [str(row["taskId"]) for row in _rows(client, name, wanted, 10_000)]
        elif not ids:
            raise UsageError(_USAGE)
        for id in ids:
            client.send("PUT", _path(name, id, f"/{verb}"))
            typer.echo(f"{'Stopping' if verb == 'stop' else 'Queued again'}: {clean(id)}")


def _status(status: str | None) -> str:
    """As the API spells it. Raises UsageError."""
    if status is None:
        return ""
    found = status.capitalize()
    if found not in STATES:
        raise UsageError(f"--status: one of {', '.join(STATES)} is expected, not {status!r}.")
    return found


def _path(name: str, id: str, rest: str = "") -> str:
    return function_path(name, f"/async-tasks/{quote(id, safe='')}{rest}")


def _rows(client: Client, name: str, wanted: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
    """The latest tasks, newest first."""
    rows: list[dict[str, Any]] = []
    query = dict(wanted)
    while len(rows) < limit:
        query["limit"] = str(min(_PAGE, limit - len(rows)))
        page = client.get_json(function_path(name, "/async-tasks"), query)
        rows += page.get("tasks") or []
        token = page.get("nextToken")
        if not token or token == query.get("nextToken"):
            break
        query["nextToken"] = token
    return rows


def _list(client: Client, name: str, wanted: Mapping[str, str], limit: int, as_json: bool) -> None:
    rows = _rows(client, name, wanted, limit)
    if as_json:
        typer.echo(json.dumps({"tasks": rows}, indent=2))
    elif not rows:
        typer.echo(f"{name} has no {'such ' if wanted else ''}tasks.", err=True)
    else:
        console().print(tables.tasks(rows, time.time()))


def _show(client: Client, name: str, id: str, as_json: bool) -> None:
    task = client.get_json(_path(name, id))
    if as_json:
        typer.echo(json.dumps(task, indent=2))
        return
    more = task.get("roost") or {}
    lines: Sequence[tuple[str, object]] = (
        ("task", task.get("taskId")),
        ("status", task.get("status")),
        ("request", task.get("requestId")),
        ("qualifier", task.get("qualifier")),
        ("session", more.get("sessionId")),
        ("instance", task.get("instanceId")),
        ("attempts", more.get("attempts")),
        ("error", " ".join(str(text) for text in (more.get("errorType"), task.get("taskErrorMessage")) if text)),
        ("destination", task.get("destinationStatus")),
        ("payload", task.get("taskPayload")),
        ("progress", json.dumps(more["progress"]) if "progress" in more else None),
        ("result", task.get("returnPayload")),
    )
    for label, value in lines:
        if value not in (None, ""):
            typer.echo(f"{label + ':':<13}{clean(str(value))}")
    for event in task.get("events") or ():
        at = clock(float(event.get("timestamp") or 0) / 1000)
        typer.echo(
            f"  {at}  {clean(str(event.get('status'))):<10} {clean(str(event.get('eventDetail') or ''))}".rstrip()
        )
