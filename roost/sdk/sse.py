"""Server-sent events out of a stream of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: One event at most; an agent that sends more in one is faulty or hostile.
MAX_EVENT = 8 << 20


class EventTooLarge(ValueError):
    """An event went over MAX_EVENT."""


def data_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The `data` of each event; comments and other fields are skipped. Raises EventTooLarge."""
    buffer = b""
    lines: list[str] = []
    held = 0
    for chunk in chunks:
        buffer += chunk
        *whole, buffer = buffer.split(b"\n")
        for raw in whole:
            line = raw.rstrip(b"\r").decode(errors="replace")
            if line.startswith("data:"):
                lines.append(line[5:].removeprefix(" "))
                held += len(raw)
            elif not line and lines:
                yield "\n".join(lines)
                lines, held = [], 0
        if held + len(buffer) > MAX_EVENT:
            raise EventTooLarge(f"an event of more than {MAX_EVENT} bytes")
    if lines:
        yield "\n".join(lines)
