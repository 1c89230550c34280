"""Which lines of a log a request is for: from a moment on, or back from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from roost.api.e2b.call import Call
from roost.model.errors import InvalidArgument
from roost.sandboxes.build_log import LEVELS


class Line(Protocol):
    @property
    def at(self) -> float: ...


L = TypeVar("L", bound=Line)


def level_of(call: Call) -> str:
    """The least level that is shown. Raises InvalidArgument."""
    level = call.query.get("level", LEVELS[0])
    if level not in LEVELS:
        raise InvalidArgument(f"level: one of {', '.join(LEVELS)} is expected.")
    return level


def excerpt(call: Call, lines: Sequence[L], *, most: int) -> Sequence[L]:
    """Of `lines`, the oldest first, what `direction`, `cursor` (milliseconds) and `limit` say. Raises
    InvalidArgument."""
    direction = call.query.get("direction", "forward")
    if direction not in ("forward", "backward"):
        raise InvalidArgument(f"direction: 'forward' or 'backward' is expected, not {direction[:40]!r}.")
    forward = direction == "forward"
    if not forward:
        lines = lines[::-1]
    if "cursor" in call.query:
        cursor = call.number("cursor", 0, most=1 << 50) / 1000
        lines = [line for line in lines if (line.at >= cursor if forward else line.at <= cursor)]
    return lines[: call.number("limit", most, most=most)]
