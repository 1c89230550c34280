"""Programs in a sandbox, and what is told of one that runs. That is a stream of the Connect protocol, and hostile.

A stream is a row of envelopes: a flag byte, a length of four bytes, a JSON message; flag 2 marks the last one, which
has the error if there is one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.sdk.errors import Failed, Unreachable

MAX_MESSAGE = 16 << 20
_HEADER = 5
_END = 2

#: Of programs that a signal ended, by the daemon's words.
_SIGNALS = {
    "hangup": 1, "interrupt": 2, "quit": 3, "illegal instruction": 4, "trace/breakpoint trap": 5, "aborted": 6,
    "bus error": 7, "floating point exception": 8, "killed": 9, "segmentation fault": 11, "broken pipe": 13,
    "alarm clock": 14, "terminated": 15,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a terminal, in characters."""

    columns: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is to run, in a terminal of this size or with pipes."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    terminal: Size | None = None
    stdin: bool = True


@dataclass(frozen=True, kw_only=True)
class Started:
    pid: int


@dataclass(frozen=True, kw_only=True)
class Output:
    stream: str  # "stdout", "stderr" or "pty"
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int  # as a shell tells it: 128 and the signal's number for what a signal ended
    signal: str  # the signal in words, else ""


Event = Started | Output | Ended


def envelope(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def messages(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The messages of a stream. Raises Failed for its error, Unreachable when it ends before its end."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _HEADER:
            length = int.from_bytes(buffer[1:_HEADER], "big")
            if length > MAX_MESSAGE:
                raise _strange(f"a message of {length} bytes")
            if len(buffer) < _HEADER + length:
                break
            last, message = buffer[0] & _END, parsed(bytes(buffer[_HEADER : _HEADER + length]))
            del buffer[: _HEADER + length]
            if last:
                error = message.get("error")
                if isinstance(error, dict):
                    text = str(error.get("message") or error.get("code"))
                    raise Failed(f"{text.rstrip('.')}.", code=str(error.get("code") or ""))
                return
            yield message
    raise Unreachable("The connection to the sandbox broke.")


def events(found: Iterator[dict[str, Any]]) -> Iterator[Event]:
    """What the messages say of a program. Raises Failed for one that makes no sense."""
    for message in found:
        event: Any = message.get("event")
        match event:
            case {"start": {"pid": int(pid)}}:
                yield Started(pid=pid)
            case {"data": {**streams}}:
                for stream in ("stdout", "stderr", "pty"):
                    if isinstance(text := streams.get(stream), str):
                        yield Output(stream=stream, data=_bytes(text))
            case {"end": dict(end)}:
                yield _ended(end)
            case {"keepalive": _}:
                pass
            case _:
                raise _strange("an event of no known kind")


def _ended(end: Mapping[str, Any]) -> Ended:
    code = end.get("exitCode", 0)  # a zero need not be written
    status = str(end.get("status") or "")
    if end.get("exited", True) and isinstance(code, int):
        return Ended(code=code & 0xFF, signal="")
    words = status.removeprefix("signal: ").partition(" (")[0]
    digits = words.removeprefix("signal ")
    number = int(digits) if digits.isascii() and digits.isdigit() else _SIGNALS.get(words, 0)
    return Ended(code=128 + min(number, 127) if number else 1, signal=words or "a signal")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _strange("output that is not base64") from error


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises Failed."""
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise _strange("a message that is not JSON") from error
    if not isinstance(value, dict):
        raise _strange("a message that is no object")
    return value


def _strange(what: str) -> Failed:
    return Failed(f"The sandbox answered with {what}.")
