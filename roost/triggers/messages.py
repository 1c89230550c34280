"""A message of a queue, and the event that a function gets of several. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Message:
    """One message that this server holds: received, and not settled yet."""

    id: str  # of the broker, or of its publisher
    body: bytes
    attributes: Mapping[str, str | bytes]
    origin: Mapping[str, str]  # where it came from, in the broker's own words: stream, queue, subject, topic
    timestamp: float  # of its publication where the broker knows that, else of its arrival
    redelivered: bool = False
    handle: Any = None  # what its broker needs to settle it

    @property
    def size(self) -> int:
        """Bytes that count for a batch."""
        return len(self.body) + sum(len(key) + len(value) for key, value in self.attributes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Why a message goes to the dead letters."""

    function: str
    trigger: str
    reason: str
    attempts: int
    at: float

    def attributes(self, message: Message) -> dict[str, str]:
        """What a dead letter says beside the message's own body and attributes. Short, and one line each."""
        return {
            "roost-id": message.id[:512],
            "roost-reason": " ".join(self.reason.split())[:1024],
            "roost-attempts": str(self.attempts),
            "roost-function": self.function,
            "roost-trigger": self.trigger,
            "roost-time": str(int(self.at * 1000)),
        }


def event_body(source: str, trigger: str, messages: Sequence[Message]) -> bytes:
    """The event of a batch, as docs/reference/triggers.md promises it."""
    event = {"source": source, "trigger": trigger, "batch": [_item(message) for message in messages]}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _item(message: Message) -> dict[str, Any]:
    body, encoded = _text(message.body)
    return {
        "id": message.id,
        "body": body,
        "isBase64Encoded": encoded,
        "attributes": {name: _attribute(value) for name, value in message.attributes.items()},
        **message.origin,
        "timestamp": int(message.timestamp * 1000),
        "redelivered": message.redelivered,
    }


def _attribute(value: str | bytes) -> Any:
    if isinstance(value, str):
        return value
    text, encoded = _text(value)
    return {"base64": text} if encoded else text


def _text(data: bytes) -> tuple[str, bool]:
    """As text, or as base64 where it is none."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), True
