"""Where a task goes when it has ended: another function of this server gets an event about it, as a task of its own."""

from __future__ import annotations

import json
import re
from typing import Any

from roost.functions.tasks.policy import Run
from roost.model.errors import InvalidArgument
from roost.model.function import LATEST
from roost.model.task import MAX_HOPS, Task, TaskEvent, TaskState, Verdict

_ARN = re.compile(
    r"acs:fc:[^:]*:[^:]*:functions/(?P<name>[A-Za-z_][\w-]{0,63})(?:/(?P<qualifier>\w[\w-]{0,127}))?", re.A
)
_NAME = re.compile(r"(?P<name>[A-Za-z_][\w-]{0,63})(?::(?P<qualifier>\w[\w-]{0,127}))?", re.A)

#: Bytes of a destination's event.
MAX_EVENT = 256 * 1024


def function_of(field: str, destination: str) -> tuple[str, str]:
    """(function, qualifier) of a destination. Raises InvalidArgument, naming what is supported."""
    found = _ARN.fullmatch(destination) or _NAME.fullmatch(destination)
    if found is None:
        raise InvalidArgument(
            f"{field}: {destination[:200]!r} is no destination of this server; supported is another function, as "
            "acs:fc:<region>:<account>:functions/<name>[/<qualifier>] or <name>[:<qualifier>]."
        )
    return found["name"], found["qualifier"] or LATEST


def follow_up(
    task: Task, payload: bytes, run: Run, verdict: Verdict, *, to: str, arn: str, now: float
) -> tuple[Task, bytes] | None:
    """The task for a destination and its event, in Function Compute's shape; None after too many in a row."""
    if task.hops >= MAX_HOPS:
        return None
    function, qualifier = function_of("destination", to)
    own_id = f"{task.request_id}-{task.epoch}"  # the same if this end is written down a second time
    failed = verdict.state is not TaskState.SUCCEEDED
    event = {
        "timestamp": int(now * 1000),
        "requestContext": {
            "requestId": task.request_id,
            "functionArn": arn,
            "taskId": task.id,
            "condition": verdict.error_type if failed else "",
            "approximateInvokeCount": task.attempts,
        },
        "requestPayload": payload.decode("utf-8", "replace"),
        "responseContext": {"statusCode": 200, "functionError": verdict.error_type if failed else ""},
        "responsePayload": verdict.error if failed else (run.result or b"").decode("utf-8", "replace"),
    }
    made = Task(
        account=task.account,
        function=function,
        id=own_id,
        qualifier=qualifier,
        request_id=own_id,
        enqueued=now,
        ready=now,
        due=now,
        hops=task.hops + 1,
        fields={"content-type": "application/json"},
        events=(TaskEvent(state=TaskState.ENQUEUED, at=now, detail=f"destination of {task.function}/{task.id}"),),
    )
    return made, _bounded(event)


def _bounded(event: dict[str, Any]) -> bytes:
    """As JSON, without the longer payload, or both, where it would be too long: each hop quotes the one before it."""
    for left_out in sorted(("requestPayload", "responsePayload"), key=lambda name: -len(event[name])):
        data = json.dumps(event, ensure_ascii=False).encode()
        if len(data) <= MAX_EVENT:
            return data
        event = {**event, left_out: "", "payloadLeftOut": True}
    return json.dumps(event, ensure_ascii=False).encode()
