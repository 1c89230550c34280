"""One line of a function's output: its shape, its JSON form, and what makes hostile text harmless."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

#: Longest text of one record, in characters; what is over is cut and counted.
MAX_TEXT = 64 * 1024
#: The stream of lines that Roost itself writes among a function's (drops, gaps).
ROOST_STREAM = "roost"

# C0 but tab, DEL, C1, line separators, bidirectional overrides, lone surrogates: what could move a terminal's cursor,
# end a line, reorder it, or not be encoded at all.
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with every control character in its escaped form (`\\x1b`), so that no reader can be fooled by it."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    point = ord(match[0])
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"


def clip(text: str) -> str:
    """`text`, at most MAX_TEXT characters of it, with a note of what was cut."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} [{len(text) - MAX_TEXT} characters cut]"


@dataclass(frozen=True, kw_only=True)
class LogRecord:
    """One line. `time` is Unix seconds; ids are "" where unknown; `level` is "" unless the line states one."""

    time: float
    instance: str
    version: str
    request_id: str
    session_id: str
    stream: str
    text: str
    level: str

    def to_json(self) -> dict[str, str]:
        """The fields as the log files and the HTTP API carry them; `time` as RFC 3339 in UTC, to the millisecond."""
        return {
            "time": _format_time(self.time),
            "instance": self.instance,
            "version": self.version,
            "requestId": self.request_id,
            "sessionId": self.session_id,
            "stream": self.stream,
            "level": self.level,
            "text": self.text,
        }


def encode(record: LogRecord) -> bytes:
    """The record as one line of ASCII JSON, newline included."""
    return json.dumps(record.to_json(), separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> LogRecord | None:
    """The record of a line, or None if it is not one (torn by a crash)."""
    try:
        fields: Any = json.loads(line)
        return LogRecord(
            time=datetime.fromisoformat(fields["time"]).timestamp(),
            instance=fields["instance"],
            version=fields["version"],
            request_id=fields["requestId"],
            session_id=fields["sessionId"],
            stream=fields["stream"],
            text=fields["text"],
            level=fields["level"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def notice(text: str) -> LogRecord:
    """A line of Roost's own among a function's lines."""
    return LogRecord(
        time=time.time(),
        instance="",
        version="",
        request_id="",
        session_id="",
        stream=ROOST_STREAM,
        text=text,
        level="WARNING",
    )


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
