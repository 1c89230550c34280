"""What a build tells while it runs: bounded, and read from any place on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_LINES = 10_000
MOST_CHARACTERS = 2 << 20
LINE_CHARACTERS = 4096
PAGE = 100
#: The worst comes last.
LEVELS = ("debug", "info", "warn", "error")
#: Controls but the tabulator; colours of terminals stay, clients show or remove them.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class BuildLine:
    """`at` is Unix seconds; `level` one of LEVELS; `step` names where in the build."""

    at: float
    level: str
    text: str
    step: str = ""


class BuildLog:
    """Lines keep their place: when it is full, what comes is dropped and counted, and the build's own end is told."""

    def __init__(self) -> None:
        self._lines: list[BuildLine] = []
        self._size = 0
        self._dropped = 0

    def add(self, at: float, level: str, text: str, step: str = "") -> None:
        """`text` is one line, hostile."""
        text = _CONTROLS.sub("", text[:LINE_CHARACTERS])
        if len(self._lines) >= MOST_LINES or self._size + len(text) > MOST_CHARACTERS:
            self._dropped += 1
            return
        self._size += len(text)
        self._lines.append(BuildLine(at, level, text, step))

    def end(self, at: float, level: str, text: str) -> None:
        """The last line; it is never dropped."""
        if self._dropped:
            self._lines.append(BuildLine(at, "warn", f"{self._dropped} lines of output were dropped"))
        self._lines.append(BuildLine(at, level, _CONTROLS.sub("", text[:LINE_CHARACTERS])))

    def page(self, offset: int = 0, limit: int = PAGE, *, level: str = LEVELS[0]) -> Sequence[BuildLine]:
        """At most `limit` lines from `offset` on, of those that are of this level or a worse one."""
        start = max(offset, 0)
        return self.lines(level=level)[start : start + max(0, min(limit, PAGE))]

    def lines(self, *, level: str = LEVELS[0]) -> Sequence[BuildLine]:
        """All of this level or a worse one, the oldest first."""
        least = LEVELS.index(level)
        return self._lines if least == 0 else [line for line in self._lines if LEVELS.index(line.level) >= least]
