"""One line of a function's output: its shape, its JSON form, and what makes hostile text harmless."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from json.encoder import encode_basestring_ascii as _quote
from typing import Any

#: Longest text of one record, in characters; what is over is cut and counted.
MAX_TEXT = 64 * 1024
#: The stream of lines that Roost itself writes among a function's (drops, gaps).
ROOST_STREAM = "roost"

# C0 but tab and newline, DEL, C1, line separators, bidirectional overrides, lone surrogates: what could move a
# terminal's cursor, end a line, reorder it, or not be encoded at all.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with every control character but tab and newline in its escaped form (`\\x1b`), so that no reader can be
    fooled by it; `\\r\\n` becomes a newline."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


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
            "time": Clock().text(self.time),
            "instance": self.instance,
            "version": self.version,
            "sessionId": self.session_id,
            "stream": self.stream,
            "requestId": self.request_id,
            "level": self.level,
            "text": self.text,
        }


class Source:
    """Where lines come from. Its part of the JSON is made once, since it is the same in thousands of lines."""

    __slots__ = ("_parts", "account", "function", "instance", "session_id", "version")

    def __init__(self, *, account: str, function: str, instance: str, version: str = "", session_id: str = "") -> None:
        self.account = account
        self.function = function
        self.instance = instance
        self.version = version
        self.session_id = session_id
        self._parts: dict[str, str] = {}

    def encode(self, time_text: str, stream: str, text: str, request_id: str, level: str) -> str:
        """The line as one line of ASCII JSON, newline included. `time_text` is what `Clock.text` gives."""
        part = self._parts.get(stream)
        if part is None:
            part = self._parts[stream] = (
                f'"instance":{_quote(self.instance)},"version":{_quote(self.version)},'
                f'"sessionId":{_quote(self.session_id)},"stream":{_quote(stream)}'
            )
        return (
            f'{{"time":"{time_text}",{part},"requestId":{_quote(request_id)},'
            f'"level":{_quote(level)},"text":{_quote(text)}}}\n'
        )

    def record(self, at: float, stream: str, text: str, request_id: str, level: str) -> LogRecord:
        """The same line as a record."""
        return LogRecord(
            time=at,
            instance=self.instance,
            version=self.version,
            request_id=request_id,
            session_id=self.session_id,
            stream=stream,
            text=text,
            level=level,
        )


class Clock:
    """RFC 3339 times in UTC, to the millisecond; each millisecond's text is made once, its second's too."""

    def __init__(self) -> None:
        self._second = -1
        self._second_text = ""
        self._millisecond = -1
        self._text = ""

    def text(self, at: float) -> str:
        millisecond = int(at * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._text = f"{self._second_text}.{rest:03d}Z"
        return self._text


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
    return _ROOST.record(time.time(), ROOST_STREAM, text, "", "WARNING")


def encode_notice(text: str) -> str:
    """The same as a line of a log file."""
    return _ROOST.encode(Clock().text(time.time()), ROOST_STREAM, text, "", "WARNING")


_ROOST = Source(account="", function="", instance="")
