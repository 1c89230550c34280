"""Answers that take their time: ended by their client, told when they are ready, kept alive until then."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from roost.api.mcp.protocol import CANCELLED, Id, Refused, failure

#: Who has not got an answer by then gets a stream, which is kept alive from then on.
PATIENCE_S = 15.0

Answer = tuple[int, dict[str, Any]]


class Flights:
    """Requests under way, by session and id. Those of clients that were given no session can't be found."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, Id], asyncio.Task[Answer]] = {}

    def flight(self, session: str, id: Id) -> Flight:
        return Flight(self._tasks if session else {}, (session, id))

    def cancel(self, session: str, id: object) -> None:
        """Of the request with that id, if it is under way."""
        task = self._tasks.get((session, id)) if isinstance(id, str | int | float) else None
        if task is not None:
            task.cancel()


class Flight:
    """One request, to be found while it is under way."""

    def __init__(self, tasks: dict[tuple[str, Id], asyncio.Task[Answer]], key: tuple[str, Id]) -> None:
        self._tasks = tasks
        self._key = key

    @contextlib.contextmanager
    def of(self, task: asyncio.Task[Answer]) -> Iterator[None]:
        self._tasks[self._key] = task
        try:
            yield
        finally:
            if self._tasks.get(self._key) is task:
                del self._tasks[self._key]


class Reply(Response):
    """Runs what it answers. A client that goes away ends it; one that cancels it is told so."""

    def __init__(
        self, work: Coroutine[Any, Any, Answer], flight: Flight, *, id: Id, events: bool, headers: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._work = work
        self._flight = flight
        self._id = id
        self._events = events
        self._extra = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.create_task(self._work)
        with self._flight.of(task):
            async with _watched(receive, task):
                done, _ = await asyncio.wait({task}, timeout=PATIENCE_S if self._events else None)
                if done:
                    status, message = self._answer_of(task)
                    await answer(message, status, self._extra)(scope, receive, send)
                else:
                    await self._stream(task, send)

    def _answer_of(self, task: asyncio.Task[Answer]) -> Answer:
        if task.cancelled():
            return 200, failure(self._id, Refused(CANCELLED, "The request was cancelled."))
        return task.result()

    async def _stream(self, task: asyncio.Task[Answer], send: Send) -> None:
        head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache, no-transform")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        while not task.done():
            await send(_part(b": still at it\n\n", more=True))
            await asyncio.wait({task}, timeout=PATIENCE_S)
        message = json.dumps(self._answer_of(task)[1])
        await send(_part(f"event: message\ndata: {message}\n\n".encode(), more=False))


def answer(message: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A message as a whole. In ASCII: there is nothing in a string that this can't carry."""
    return Response(
        json.dumps(message).encode(), status_code=status, headers=dict(headers or {}), media_type="application/json"
    )


def _part(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


@contextlib.asynccontextmanager
async def _watched(receive: Receive, task: asyncio.Task[Answer]) -> AsyncIterator[None]:
    """The task is cancelled when the client goes away; it is over at the end, whatever happens."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        for each in (watcher, task):
            each.cancel()
        await asyncio.gather(watcher, task, return_exceptions=True)
