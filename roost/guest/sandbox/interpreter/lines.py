"""What a client reads of an execution: one JSON object a line. Pure."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

END = b'{"type": "end_of_execution"}\n'
KEEPALIVE = b'{"type": "keepalive"}\n'


def output(stream: str, text: str, now: datetime) -> bytes:
    """`stream` is stdout or stderr."""
    return _line({"type": stream, "text": text, "timestamp": now.isoformat()})


def error(name: str, value: str, traceback: str = "") -> bytes:
    return _line({"type": "error", "name": name, "value": value, "traceback": traceback})


def number(count: int) -> bytes:
    return _line({"type": "number_of_executions", "execution_count": count})


def passed_on(payload: bytes) -> bytes:
    """A result or an error as a context's process wrote it. A line break in it would forge another line."""
    return payload.replace(b"\n", b" ") + b"\n"


def _line(item: dict[str, Any]) -> bytes:
    return json.dumps(item).encode() + b"\n"
