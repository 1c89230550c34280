"""What is shown on a terminal: text of others made harmless, numbers made readable."""

from __future__ import annotations

import re
import time
from datetime import datetime

#: Control characters but newline and tab. An agent's text must not move the cursor, set titles or write the clipboard.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """`text` without control characters; for anything that a function, a log or a server said."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def size(count: float) -> str:
    """Bytes for people: 512 B, 7.9 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """A time span for people: 12s, 4m, 3h, 2d."""
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) / divisor:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def seconds(at: object) -> float | None:
    """A time that the server told, Unix seconds or ISO 8601, as Unix seconds; None when it is neither."""
    if isinstance(at, int | float):
        return float(at)
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return None


def clock(at: object) -> str:
    """A time that the server told, as local time; what is none stays as it is."""
    moment = seconds(at)
    if moment is None:
        return clean(str(at or ""))
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def age(at: object, now: float) -> str:
    """How long ago a time was that the server told; "" for what is none."""
    moment = seconds(at)
    return "" if moment is None else duration(now - moment)
