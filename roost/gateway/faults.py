"""Errors as the caller sees them: Function Compute's shapes, never a traceback of ours. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from roost.gateway.fields import line
from roost.model.errors import Fault, FunctionFault, FunctionTimeout, RoostError


class Style(Enum):
    """Who reads the error."""

    API = "api"  # {"Code","Message","RequestId"}
    HTTP = "http"  # the same, with the function's type, message and stack when the fault is its own
    EVENT = "event"  # a function's fault is a good reply with `x-fc-error-type`


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole small reply."""

    status: int
    fields: bytes  # whole lines
    body: bytes


class NotOffered(RoostError):
    """A feature of the protocol that this server does not have switched on."""

    code = "NotImplemented"
    status = 501


class BadRequest(RoostError):
    """A message that breaks HTTP; the status says how."""

    code = "BadRequest"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def timed_out(seconds: float) -> FunctionTimeout:
    message = f"Function timed out after {seconds:g} seconds"
    return FunctionTimeout(Fault(type="FunctionTimeout", message=message))


def wrap(error: BaseException) -> RoostError:
    """`error` if it has a meaning for the caller, else an internal error that tells nothing of our insides."""
    if isinstance(error, RoostError):
        return error
    return RoostError("An internal error has occurred. The server's log has it under this request ID.")


def render(error: RoostError, *, style: Style, request_id: str) -> Answer:
    """The reply for `error`."""
    if isinstance(error, FunctionFault):
        return _function_fault(error, style=style, request_id=request_id)
    fields = line("x-fc-request-id", request_id)
    if error.retry_after is not None:
        fields += line("retry-after", str(max(1, math.ceil(error.retry_after))))
    elif error.status in (429, 503):
        fields += line("retry-after", "1")
    return _json(error.status, fields, {"Code": error.code, "Message": error.message, "RequestId": request_id})


def _function_fault(error: FunctionFault, *, style: Style, request_id: str) -> Answer:
    fault = {
        "errorMessage": error.fault.message,
        "errorType": error.fault.type,
        "stackTrace": list(error.fault.stack),
    }
    fields = line("x-fc-request-id", request_id) + line("x-fc-error-type", error.code)
    if style is Style.EVENT:
        return _json(200, fields, fault)
    return _json(error.status, fields, {"Code": error.code, "Message": error.message, "RequestId": request_id} | fault)


def _json(status: int, fields: bytes, value: object) -> Answer:
    return Answer(
        status=status,
        fields=fields + b"content-type: application/json\r\n",
        body=json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"),
    )


def reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b"Unknown"
