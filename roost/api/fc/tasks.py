"""Asynchronous tasks: get, list, stop; and `retry`, which Function Compute does not have."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, with_token
from roost.api.fc.task_events import OVER, stream
from roost.functions.catalog import FunctionCatalog
from roost.functions.names import function_arn
from roost.functions.tasks.service import TaskService
from roost.functions.tasks.watching import place_of
from roost.model.errors import InvalidArgument, NotFound
from roost.model.task import HELD, Task, TaskEvent, TaskState
from roost.store.tasks import TaskFilter

#: States of Function Compute in which no task of Roost ever is.
_NEVER = ("Dequeued", "Invalid")
_ORDERS = {"": True, "desc": True, "asc": False}


class AsyncTasks:
    def __init__(self, catalog: FunctionCatalog, tasks: TaskService, *, clock: Callable[[], float] = time.time) -> None:
        self._catalog = catalog
        self._tasks = tasks
        self._clock = clock

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/async-tasks"
        return [
            endpoints.route("GET", path, self._list),
            endpoints.route("GET", path + "/{task}", self._get),
            endpoints.route("GET", path + "/{task}/events", self._events),
            endpoints.route("PUT", path + "/{task}/stop", self._stop),
            endpoints.route("PUT", path + "/{task}/retry", self._retry),
        ]

    async def _list(self, call: Call) -> Answer:
        name = call.params["name"]
        self._catalog.get(call.account, name)
        status = call.query.get("status", "")
        wanted = TaskFilter(
            state=None if status in ("", *_NEVER) else _state(status),
            prefix=call.query.get("prefix", ""),
            qualifier=call.qualifier,
            session=call.query.get("sessionId") or None,
            started_from=_moment(call, "startedTimeBegin"),
            started_to=_moment(call, "startedTimeEnd"),
            descending=_descending(call.query.get("sortOrderByTime", "")),
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
            with_payload=bool(call.query_bool("includePayload")),
        )
        if status in _NEVER:
            return {"tasks": []}
        found, token = await self._tasks.page(call.account, name, wanted)
        tasks = [self._json(task, payload if wanted.with_payload else None) for task, payload in found]
        return with_token({"tasks": tasks}, token)

    async def _get(self, call: Call) -> Answer:
        task, payload, result = await self._find(call)
        body = self._ended_json(task, payload, result)
        progress = await self._tasks.progress(*task.key)
        if progress is not None:
            body["roost"]["progress"] = json.loads(progress.data)
        return body

    async def _events(self, call: Call) -> Answer:
        """Everything that happens to a task, from its beginning or from where the client left, to its end."""
        task, _, _ = await self._find(call)
        given = call.request.headers.get("last-event-id") or call.query.get("lastEventId", "")
        if given == OVER:  # a browser's EventSource comes back until it is told so
            return Response(status_code=204)
        moments = self._tasks.watch(*task.key, place_of(given))
        first = await anext(moments, None)  # what it raises is an answer of its own
        body = stream(first, moments, lambda task, result: self._ended_json(task, None, result))
        return StreamingResponse(body, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def _stop(self, call: Call) -> Answer:
        await self._find(call)
        await self._tasks.stop(call.account, call.params["name"], call.params["task"])
        return Response(status_code=200)

    async def _retry(self, call: Call) -> Answer:
        await self._find(call)
        return self._json(await self._tasks.retry(call.account, call.params["name"], call.params["task"]), None)

    async def _find(self, call: Call) -> tuple[Task, bytes, bytes | None]:
        """The task of the path, unless it is another qualifier's than the caller says. Raises NotFound."""
        name, task_id = call.params["name"], call.params["task"]
        self._catalog.get(call.account, name)
        found = await self._tasks.get(call.account, name, task_id)
        if call.qualifier not in (None, found[0].qualifier):
            said = f"Function {name} has no task {task_id[:140]!r} with qualifier {call.qualifier}."
            raise NotFound(said, code="AsyncTaskNotFound")
        return found

    def _ended_json(self, task: Task, payload: bytes | None, result: bytes | None) -> dict[str, Any]:
        body = self._json(task, payload)
        if result is not None:
            body["returnPayload"] = result.decode("utf-8", "replace")
        return body

    def _json(self, task: Task, payload: bytes | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "taskId": task.id,
            "requestId": task.request_id,
            "functionArn": function_arn(self._catalog.region, task.account, task.function, task.qualifier),
            "qualifier": task.qualifier,
            "status": task.state.value,
            "startedTime": _ms(task.started),
            "endTime": _ms(task.ended),
            "durationMs": _ms(self._duration(task)),
            "alreadyRetriedTimes": max(0, task.attempts - 1),
            "instanceId": task.instance_id,
            "taskErrorMessage": task.error,
            "destinationStatus": task.destination,
            "events": [_event_json(number, event) for number, event in enumerate(task.events, 1)],
            "roost": {
                "enqueuedTime": _ms(task.enqueued),
                "dueTime": _ms(task.due),
                "sessionId": task.session,
                "errorType": task.error_type,
                "attempts": task.attempts,
                "sparedAttempts": task.spared,
            },
        }
        if ":target" in task.fields:
            body["roost"]["request"] = f"{task.fields[':method']} {task.fields[':target']}"
        if payload is not None:
            body["taskPayload"] = payload.decode("utf-8", "replace")
        return body

    def _duration(self, task: Task) -> float:
        """From the first start to the end, or to now."""
        if not task.started:
            return 0.0
        end = task.ended or (self._clock() if task.state in HELD else task.started)
        return max(0.0, end - task.started)


def _event_json(number: int, event: TaskEvent) -> dict[str, Any]:
    return {
        "eventId": number,
        "status": event.state.value,
        "timestamp": _ms(event.at),
        "eventDetail": event.detail,
    }


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _state(text: str) -> TaskState:
    try:
        return TaskState(text)
    except ValueError:
        known = ", ".join(state.value for state in TaskState)
        raise InvalidArgument(f"status: one of {known} is expected, not {text[:40]!r}.") from None


def _moment(call: Call, name: str) -> float | None:
    text = call.query.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidArgument(f"{name}: a time in milliseconds is expected, not {text[:40]!r}.")
    return int(text) / 1000


def _descending(text: str) -> bool:
    if text not in _ORDERS:
        raise InvalidArgument(f"sortOrderByTime: 'asc' or 'desc' is expected, not {text[:40]!r}.")
    return _ORDERS[text]
