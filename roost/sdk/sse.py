"""Server-sent events out of a stream of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: One event at most; an agent that sends more in one is faulty or hostile.
MAX_EVENT = 8 << 20


class EventTooLarge(ValueError):
    """An event went over MAX_EVENT."""


@dataclass(frozen=True, slots=True)
class Event:
    """`id` is that of the last event which had one."""

    data: str
    name: str = "message"
    id: str = ""


def data_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The `data` of each event. Raises EventTooLarge."""
    return (event.data for event in events_of(chunks))


def events_of(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Each event with data; comments and other fields are skipped. Raises EventTooLarge."""
    buffer = b""
    lines: list[str] = []
    name, id, held = "", "", 0
    for chunk in chunks:
        buffer += chunk
        *whole, buffer = buffer.split(b"\n")
        for raw in whole:
            line = raw.rstrip(b"\r").decode(errors="replace")
            if line.startswith("data:"):
                lines.append(line[5:].removeprefix(" "))
                held += len(raw)
            elif line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("id:"):
                id = line[3:].strip()
            elif not line:
                if lines:
                    yield Event("\n".join(lines), name or "message", id)
                lines, name, held = [], "", 0
        if held + len(buffer) > MAX_EVENT:
            raise EventTooLarge(f"an event of more than {MAX_EVENT} bytes")
    if lines:
        yield Event("\n".join(lines), name or "message", id)
