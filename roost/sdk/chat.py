"""A conversation in the terminal: one POST /NAME/chat a turn, its events printed as they come."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from roost.sdk import sessions
from roost.sdk.client import Client
from roost.sdk.errors import Failed, FunctionFault
from roost.sdk.sse import EventTooLarge, data_of
from roost.sdk.terminal import clean

_BRIEF = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of an agent: `text`, `tool`, `done` or `error`; others are passed over."""

    type: str
    text: str


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events of a reply. Raises Failed for a stream that is none."""
    try:
        for data in data_of(chunks):
            yield parse(data)
    except EventTooLarge as error:
        raise Failed(f"The agent sent {error}.") from error


def parse(data: str) -> Event:
    """One event's JSON. Raises Failed when it is not that."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Failed(f"The agent sent an event that is not JSON: {clean(data)[:100]}") from error
    if not isinstance(value, dict):
        raise Failed(f"The agent sent an event that is not an object: {clean(data)[:100]}")
    kind = str(value.get("type", ""))
    if kind == "tool":
        return Event(type=kind, text=tool_line(value))
    return Event(type=kind, text=clean(str(value.get("text") or value.get("message") or "")))


def tool_line(value: Mapping[str, Any]) -> str:
    """One line about a tool call: its name, and the start of whatever else the event tells."""
    name = clean(str(value.get("name") or "tool"))
    rest = " ".join(
        part if isinstance(part, str) else json.dumps(part)
        for key, part in value.items()
        if key not in {"type", "name", "id"} and part not in (None, "", {})
    )
    return f"{name} {_BRIEF.sub(' ', clean(rest))[:160]}".strip()


class Conversation:
    """One session with one agent."""

    def __init__(self, client: Client, name: str, headers: Mapping[str, str], model: str | None) -> None:
        self._client = client
        self._path = f"/{quote(name, safe=':')}/chat"
        self._headers = dict(headers)
        self._model = model

    def turn(self, message: str, show: Callable[[Event], None]) -> None:
        """Say `message` and show what comes back. Ends with the reply; leaving early cancels it on the server."""
        body: dict[str, str] = {"message": message}
        if self._model:
            body["model"] = self._model
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        headers |= self._client.server.bearer | self._headers
        sent = json.dumps(body).encode()
        with self._client.stream("POST", self._path, body=sent, headers=headers, streaming=True) as reply:
            if "text/event-stream" not in reply.headers.get("content-type", ""):
                reply.read()
                raise Failed(f"{self._path} does not answer as a chat agent: no event stream.")
            if sessions.was_restored(reply.headers):
                show(Event(type="tool", text=sessions.RESTORED))
            for event in events(reply.iter_bytes()):
                if event.type == "error":
                    raise FunctionFault("", event.text or "The agent reported an error without a message.")
                show(event)
                if event.type == "done":
                    return
