"""What happens to a task, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from roost.functions.tasks.watching import Moment
from roost.model.task import Task
from roost.store.task_outputs import Entry, Kind

#: The id of the last event: there is nothing to come back for.
OVER = "end"
_QUIET = b": nothing new\n\n"


async def stream(
    first: Moment | None,
    moments: AsyncGenerator[Moment | None, None],
    ended: Callable[[Task, bytes | None], Mapping[str, Any]],
) -> AsyncIterator[bytes]:
    """`ended` shows a task with its result."""
    text = Utf8()
    yield _moment(first, text, ended)
    async with aclosing(moments):
        async for moment in moments:
            yield _moment(moment, text, ended)


def _moment(moment: Moment | None, text: Utf8, ended: Callable[[Task, bytes | None], Mapping[str, Any]]) -> bytes:
    if moment is None:
        return _QUIET
    if moment.task is not None:
        return _sse("end", OVER, ended(moment.task, moment.result))
    if moment.event is not None:
        event = moment.event
        said = {"status": event.state.value, "timestamp": _ms(event.at), "detail": event.detail}
        return _sse("state", str(moment.place), said)
    assert moment.entry is not None
    return _entry(str(moment.place), moment.entry, text)


def _entry(place: str, entry: Entry, text: Utf8) -> bytes:
    about: dict[str, Any] = {"attempt": entry.attempt, "timestamp": _ms(entry.at)}
    if entry.kind is Kind.PROGRESS:
        return _sse("progress", place, {**about, "progress": json.loads(entry.data)})
    if entry.kind is Kind.CUT:
        return _sse("cut", place, about)
    return _sse("output", place, {**about, "data": text.decode(entry)})


class Utf8:
    """Output as text. A character may lie across two pieces; what is no UTF-8 is replaced."""

    def __init__(self) -> None:
        self._attempt = 0
        self._kept = b""

    def decode(self, entry: Entry) -> str:
        if entry.attempt != self._attempt:
            self._attempt, self._kept = entry.attempt, b""
        data = self._kept + entry.data
        cut = len(data) - _unfinished(data)
        self._kept = data[cut:]
        return data[:cut].decode("utf-8", "replace")


def _unfinished(data: bytes) -> int:
    """Bytes at the end that are the beginning of a character."""
    for count in range(1, min(3, len(data)) + 1):
        byte = data[-count]
        if byte & 0xC0 == 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return count if count < length else 0
        if byte & 0xC0 != 0x80:
            return 0
    return 0


def _sse(name: str, id: str, data: Mapping[str, Any]) -> bytes:
    return f"id: {id}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
