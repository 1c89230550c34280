"""A fault of the user's code as its caller sees it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from types import FrameType, TracebackType

MAX_FRAMES = 60
MAX_MESSAGE = 64 << 10
_GUEST = str(Path(__file__).parent) + "/"


class Cancelled(BaseException):
    """The caller has gone or the time is up. Raised inside the handler, so that its `finally` blocks run.

    No Exception: `except Exception` in the handler must not swallow it.
    """


class StartFailed(Exception):
    """The worker cannot serve: `kind` and `stack` become the error of the `failed` event."""

    def __init__(self, kind: str, message: str, stack: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.stack = stack or []


def describe(error: BaseException) -> dict[str, object]:
    """`{"errorMessage", "errorType", "stackTrace"}`; also when the error's own `__str__` is broken."""
    try:
        message = str(error)
    except Exception as broken:
        message = f"(no message: {type(broken).__name__} in __str__)"
    return {
        "errorMessage": message[:MAX_MESSAGE],
        "errorType": type(error).__name__,
        "stackTrace": stack_of(error),
    }


def to_json(error: BaseException) -> bytes:
    return json.dumps(describe(error)).encode()


def stack_of(error: BaseException) -> list[str]:
    """One string a frame, outermost first: the user's frames, without the guest's and the import machinery's."""
    frames = [(frame, line) for frame, line in _walk(error.__traceback__) if not _is_ours(frame)]
    # Repeated calls are one entry here; two functions that call each other are not.
    lines = [text.strip() for text in traceback.format_list(traceback.StackSummary.extract(iter(frames)))]
    if len(lines) > MAX_FRAMES:
        half = MAX_FRAMES // 2
        lines = [*lines[:half], f"[{len(lines) - MAX_FRAMES} more]", *lines[-half:]]
    if isinstance(error, SyntaxError):
        lines.append("".join(traceback.format_exception_only(error)).strip())
    return lines


def print_fault(error: BaseException) -> str:
    """What goes to the log: the traceback without the guest's frames."""
    head = "Traceback (most recent call last):"
    tail = "".join(traceback.format_exception_only(type(error), error)).rstrip()
    return "\n".join([head, *(f"  {entry}" for entry in stack_of(error)), tail]) + "\n"


def _walk(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(trace))


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith((_GUEST, "<frozen importlib")) or name.endswith("/importlib/__init__.py")
