"""What a tool answers with: bounded, and honest about what was cut. Pure."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: Of one stream of a command; a model reads it all.
MOST_OUTPUT = 64 << 10
MOST_IMAGE = 4 << 20


class Output:
    """Bytes of a stream: its beginning and its end, at most `most` of them."""

    def __init__(self, most: int = MOST_OUTPUT) -> None:
        self._half = most // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._kept = 0  # of the tail
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        if rest := data[max(room, 0) :]:
            self._tail.append(rest)
            self._kept += len(rest)
            while self._kept - len(self._tail[0]) >= self._half:
                self._kept -= len(self._tail.popleft())

    def text(self) -> str:
        """With a line that says how much was cut, where it was."""
        tail = b"".join(self._tail)[-self._half :]
        cut = self.size - len(self._head) - len(tail)
        if not cut:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        before, after = self._head.decode("utf-8", "replace"), tail.decode("utf-8", "replace")
        return f"{before}\n[... {cut} of {self.size} bytes were cut here ...]\n{after}"


@dataclass(kw_only=True)
class Reply:
    """A tool's result. `error`: the tool could not do it, or did not finish it."""

    content: list[dict[str, Any]] = field(default_factory=list)
    error: bool = False

    @classmethod
    def of(cls, *parts: str, error: bool = False) -> Reply:
        """Texts, each on lines of its own."""
        text = "\n".join(part.rstrip("\n") for part in parts if part)
        text = text.encode("utf-8", "replace").decode()  # a room may send halves of surrogate pairs
        return cls(content=[{"type": "text", "text": text or "(no output)"}], error=error)

    def to_json(self) -> dict[str, Any]:
        return {"content": self.content, "isError": self.error}


def image(base64: str, kind: str) -> dict[str, Any]:
    return {"type": "image", "data": base64, "mimeType": kind}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
