"""The last lines that a sandbox's daemon and start command printed: bounded, in memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

KEPT_LINES = 1000
KEPT_CHARACTERS = 64 << 10
LINE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class LogLine:
    """`at` is Unix seconds."""

    at: float
    stream: str  # "stdout" or "stderr"
    text: str


class Lines:
    """A ring of lines, bounded by their number and by their size together."""

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque()
        self._size = 0

    def add(self, at: float, stream: str, text: str) -> None:
        """`text` is whole lines, hostile."""
        for line in text.removesuffix("\n").split("\n"):
            kept = line[:LINE_CHARACTERS]
            self._lines.append(LogLine(at, stream, kept))
            self._size += len(kept)
            while len(self._lines) > KEPT_LINES or self._size > KEPT_CHARACTERS:
                self._size -= len(self._lines.popleft().text)

    def all(self) -> list[LogLine]:
        """Oldest first."""
        return list(self._lines)
