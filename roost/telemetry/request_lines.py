"""The line that each invocation leaves in its function's log, whether it printed anything or not.

Its text is logfmt: `outcome=ok status=200 cold=false memory_mb=512 wait_ms=0.211 duration_ms=3.104`. It has the fields
of any line of a log, so that one reader serves for both.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as _quote

from roost.model.usage import InvocationRecord, Outcome
from roost.telemetry.log_record import ROOST_STREAM, LogRecord

#: Beginnings of lines that are remembered.
_REMEMBERED = 4096
_LEVELS = {
    Outcome.OK: "INFO",
    Outcome.CANCELLED: "WARNING",
    Outcome.THROTTLED: "WARNING",
    Outcome.FUNCTION_ERROR: "ERROR",
    Outcome.TIMEOUT: "ERROR",
    Outcome.SYSTEM_ERROR: "ERROR",
}


class RequestLines:
    """Makes the lines. Every request pays for one: what is the same in thousands of them is made once."""

    def __init__(self) -> None:
        self._beginnings: dict[tuple[str, str, str, int, bool, str, int], str] = {}

    def encode(self, time_text: str, record: InvocationRecord) -> str:
        """As one line of ASCII JSON, newline included. `time_text` is what `Clock.text` gives."""
        key = (
            record.instance_id,
            record.session_id,
            record.version,
            record.status,
            record.cold,
            record.outcome._value_,  # what `value` is, without the descriptor
            record.memory_mb,
        )
        beginning = self._beginnings.get(key)
        if beginning is None:
            if len(self._beginnings) >= _REMEMBERED:
                self._beginnings.clear()
            beginning = self._beginnings[key] = _beginning(record)
        return (
            f'{{"time":"{time_text}",{beginning}{record.wait_s * 1000:.3f} duration_ms={record.duration_s * 1000:.3f}",'
            f'"requestId":{_quote(record.request_id)}}}\n'
        )


def to_record(at: float, record: InvocationRecord) -> LogRecord:
    """The same line for who follows the log."""
    return LogRecord(
        time=at,
        instance=record.instance_id,
        version=record.version,
        request_id=record.request_id,
        session_id=record.session_id,
        stream=ROOST_STREAM,
        text=f"{_constant(record)}{record.wait_s * 1000:.3f} duration_ms={record.duration_s * 1000:.3f}",
        level=_LEVELS[record.outcome],
    )


def _beginning(record: InvocationRecord) -> str:
    return (
        f'"instance":{_quote(record.instance_id)},"version":{_quote(record.version)},'
        f'"sessionId":{_quote(record.session_id)},"stream":"{ROOST_STREAM}","level":"{_LEVELS[record.outcome]}",'
        f'"text":"{_constant(record)}'
    )


def _constant(record: InvocationRecord) -> str:
    """The text up to its two measured values."""
    return (
        f"outcome={record.outcome.value} status={record.status} cold={str(record.cold).lower()}"
        f" memory_mb={record.memory_mb} wait_ms="
    )
