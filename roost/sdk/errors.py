"""What may go wrong on a command line, each kind with an exit code of its own.

CliError
 +- UsageError        the command or a file it reads is wrong (2)
 +- Failed            the server refused it, or a step failed (1)
 +- Unreachable       no server answers at the address (3)
 +- FunctionFault     the function's own fault, with its type, message and stack (4)
"""

from __future__ import annotations

from collections.abc import Sequence


class CliError(Exception):
    """Base: `str(error)` is one sentence for people."""

    exit_code = 1


class UsageError(CliError):
    exit_code = 2


class Failed(CliError):
    """The server's refusal; `status` and `code` as it said them, 0 and "" when it was not the server."""

    def __init__(self, message: str, *, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unreachable(CliError):
    exit_code = 3


class FunctionFault(CliError):
    exit_code = 4

    def __init__(self, error_type: str, message: str, stack: Sequence[str] = ()) -> None:
        super().__init__(f"The function failed: {error_type}: {message}" if error_type else message)
        self.error_type = error_type
        self.message = message
        self.stack = tuple(stack)
