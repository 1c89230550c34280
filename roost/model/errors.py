"""The errors that Roost raises, as one tree.

RoostError
 +- InvalidArgument        the caller's request is wrong (400)
 +- Unauthenticated        no key, an unknown key or a wrong signature (401/403)
 +- AccessDenied           the key is known and may not do this (403)
 +- NotFound               the named thing does not exist (404)
 +- Conflict               exists already, or is not in a state that allows this (409)
 +- PayloadTooLarge        a body or package over its limit (413)
 +- Throttled              a queue or quota is full; try again later (429)
 +- StorageFull            no room left on the disk or in a quota (507)
 +- Unavailable            this server or machine cannot do it now (503)
 +- FunctionFault          the function's own fault: its type, message and stack go to the caller
     +- FunctionTimeout    ran past its time limit
     +- InstanceExited     its process ended in mid-request, with the reason (exit code, signal, memory)
     +- InitializerFailed  did not import, or its initializer raised or timed out

Every error carries a `code` in Function Compute's vocabulary and an HTTP status; an API translates the shape, never
the meaning. Foreign errors (sqlite3, OSError, httpx) are wrapped where they occur, the cause chained.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class RoostError(Exception):
    """Base of all errors with a meaning for the caller."""

    code = "InternalServerError"
    status = 500

    def __init__(self, message: str, *, code: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        #: Seconds after which a retry makes sense; becomes `Retry-After`.
        self.retry_after = retry_after


class InvalidArgument(RoostError):
    code = "InvalidArgument"
    status = 400


class Unauthenticated(RoostError):
    code = "SignatureNotMatch"
    status = 403


class AccessDenied(RoostError):
    code = "AccessDenied"
    status = 403


class NotFound(RoostError):
    code = "NotFound"
    status = 404


class Conflict(RoostError):
    code = "Conflict"
    status = 409


class LoopDetected(RoostError):
    """Functions start each other without end."""

    code = "LoopDetected"
    status = 400


class PayloadTooLarge(RoostError):
    code = "EntityTooLarge"
    status = 413


class Throttled(RoostError):
    code = "ResourceThrottled"
    status = 429


class StorageFull(RoostError):
    code = "InsufficientStorage"
    status = 507


class Unavailable(RoostError):
    code = "ServiceUnavailable"
    status = 503


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a function did wrong, as its caller sees it (`errorType`, `errorMessage`, `stackTrace`)."""

    type: str
    message: str
    stack: tuple[str, ...] = field(default=())


class FunctionFault(RoostError):
    """The function's own fault. `code` is FC's `X-Fc-Error-Type`."""

    code = "UnhandledInvocationError"
    status = 502

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class FunctionTimeout(FunctionFault):
    code = "FunctionTimeout"
    status = 504


class InstanceExited(FunctionFault):
    code = "InstanceExited"


class InitializerFailed(FunctionFault):
    code = "FunctionNotStarted"
