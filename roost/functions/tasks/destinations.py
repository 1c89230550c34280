"""Where an event about a task goes when that has ended: to another function of this server, as a task of its own, or
out of the server, to a webhook or a queue."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from roost.functions.tasks.policy import Run
from roost.functions.triggers.endpoints import SCHEMES
from roost.functions.triggers.queues import queue_destination
from roost.model.errors import InvalidArgument
from roost.model.function import LATEST
from roost.model.task import Task, TaskEvent, TaskState, Verdict
from roost.store.task_outbox import Letter

_ARN = re.compile(
    r"acs:fc:[^:]*:[^:]*:functions/(?P<name>[A-Za-z_][\w-]{0,63})(?:/(?P<qualifier>\w[\w-]{0,127}))?", re.A
)
_NAME = re.compile(r"(?P<name>[A-Za-z_][\w-]{0,63})(?::(?P<qualifier>\w[\w-]{0,127}))?", re.A)
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://[\x21-\x7e]+")
#: Stands for a password where a destination is shown.
MASK = "***"

#: Bytes of a destination's event.
MAX_EVENT = 256 * 1024


def scheme_of(destination: str) -> str:
    """Of a destination outside of this server: `https`, `redis`, ...; "" for a function."""
    found = _URL.fullmatch(destination)
    return found[1] if found is not None else ""


def masked(destination: str) -> str:
    """Without a password."""
    password = _password(destination)
    return destination.replace(f":{password}@", f":{MASK}@", 1) if password else destination


def unmasked(destination: str, kept: str) -> str:
    """With the password that `kept` has, if it is the same destination as it was shown."""
    return kept if destination == masked(kept) else destination


def _password(destination: str) -> str:
    if not scheme_of(destination):
        return ""
    user, at, _ = destination.partition("://")[2].partition("/")[0].rpartition("@")
    return user.partition(":")[2] if at else ""


def check_url(field: str, destination: str) -> None:
    """Raises InvalidArgument for what can be no address."""
    if scheme_of(destination) in SCHEMES:
        try:
            queue_destination(destination)
        except ValueError as error:
            raise InvalidArgument(f"{field}: {error}.") from error
        return
    try:
        parts = urlsplit(destination)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise InvalidArgument(f"{field}: {masked(destination)[:200]!r} is not an address.")


def function_of(field: str, destination: str) -> tuple[str, str]:
    """(function, qualifier) of a destination. Raises InvalidArgument, naming what is supported."""
    found = _ARN.fullmatch(destination) or _NAME.fullmatch(destination)
    if found is None:
        raise InvalidArgument(
            f"{field}: {masked(destination)[:200]!r} is no destination of this server; supported is another function, "
            "as acs:fc:<region>:<account>:functions/<name>[/<qualifier>] or <name>[:<qualifier>], and a URL."
        )
    return found["name"], found["qualifier"] or LATEST


@dataclass(frozen=True, kw_only=True)
class End:
    """A task's, with what there is to tell of it. `arn` names its function."""

    task: Task
    payload: bytes
    run: Run
    verdict: Verdict
    arn: str
    now: float

    @property
    def id(self) -> str:
        """The same if this end is written down a second time."""
        return f"{self.task.request_id}-{self.task.epoch}"

    def event(self) -> bytes:
        """In Function Compute's shape."""
        task, failed = self.task, self.verdict.state is not TaskState.SUCCEEDED
        result = (self.run.result or b"").decode("utf-8", "replace")
        return _bounded(
            {
                "timestamp": int(self.now * 1000),
                "requestContext": {
                    "requestId": task.request_id,
                    "functionArn": self.arn,
                    "taskId": task.id,
                    "condition": self.verdict.error_type if failed else "",
                    "approximateInvokeCount": task.attempts,
                    "hops": task.hops,
                },
                "requestPayload": self.payload.decode("utf-8", "replace"),
                "responseContext": {"statusCode": 200, "functionError": self.verdict.error_type if failed else ""},
                "responsePayload": self.verdict.error if failed else result,
            }
        )


def follow_up(end: End, *, to: str, most_hops: int) -> tuple[Task, bytes] | None:
    """The task for a destination and its event; None where too many invocations led to this end."""
    task = end.task
    if task.hops >= most_hops:
        return None
    function, qualifier = function_of("destination", to)
    made = Task(
        account=task.account,
        function=function,
        id=end.id,
        qualifier=qualifier,
        request_id=end.id,
        enqueued=end.now,
        ready=end.now,
        due=end.now,
        hops=task.hops + 1,
        fields={"content-type": "application/json"},
        events=(TaskEvent(state=TaskState.ENQUEUED, at=end.now, detail=f"destination of {task.function}/{task.id}"),),
    )
    return made, end.event()


def letter_of(end: End, *, to: str) -> Letter:
    """The event for a destination outside of this server."""
    task = end.task
    return Letter(
        id=end.id,
        account=task.account,
        function=task.function,
        task=task.id,
        destination=to,
        created=end.now,
        due=end.now,
        body=end.event(),
    )


def _bounded(event: dict[str, Any]) -> bytes:
    """As JSON, without the longer payload, or both, where it would be too long: each hop quotes the one before it."""
    for left_out in sorted(("requestPayload", "responsePayload"), key=lambda name: -len(event[name])):
        data = json.dumps(event, ensure_ascii=False).encode()
        if len(data) <= MAX_EVENT:
            return data
        event = {**event, left_out: "", "payloadLeftOut": True}
    return json.dumps(event, ensure_ascii=False).encode()
