"""The Model Context Protocol over HTTP, as far as a server of tools needs it. Pure.

Two kinds of clients: those that begin with `initialize` (to 2025-11-25), and those that say everything in each request
(2026-07-28), in `params._meta` and once more in headers, which must agree. Either way each request stands alone.

The official SDK's server would do the same, and cost every start of Roost 390 ms and 24 MB.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS_VERSIONS = ("2026-07-28",)
VERSION_HEADER = "mcp-protocol-version"
METHOD_HEADER = "mcp-method"
NAME_HEADER = "mcp-name"

_META = "io.modelcontextprotocol/"
_META_VERSION = f"{_META}protocolVersion"
_META_CAPABILITIES = f"{_META}clientCapabilities"
_META_SERVER = f"{_META}serverInfo"
_MOST_ID = 256

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
CANCELLED = -32000
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022

_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    METHOD_NOT_FOUND: 404,
    HEADER_MISMATCH: 400,
    UNSUPPORTED_VERSION: 400,
}
#: A client of the handshake's kind gets the errors of its methods with status 200: the request as such was in order.
_OF_THE_REQUEST = (PARSE_ERROR, INVALID_REQUEST, UNSUPPORTED_VERSION, HEADER_MISMATCH)

Id = str | int | float | None


class Refused(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request that is owed an answer. `id` is None for a notification, which is owed none."""

    id: Id
    method: str
    params: Mapping[str, Any]
    stateless: bool

    @property
    def notification(self) -> bool:
        return self.id is None


def parse(body: bytes, headers: Mapping[str, str]) -> Call:
    """What a POST asks for. Raises Refused; its id is that of `id_of`."""
    message = _message(body)
    method, params = message.get("method"), message.get("params", {})
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str):
        raise Refused(INVALID_REQUEST, "The body is no JSON-RPC 2.0 request.")
    if not isinstance(params, dict):
        raise Refused(INVALID_PARAMS, "params: an object is expected.")
    if "id" in message and not _is_id(message["id"]):
        raise Refused(INVALID_REQUEST, "id: a string or a number is expected.")
    version = headers.get(VERSION_HEADER)
    meta = params.get("_meta")
    declared = isinstance(meta, dict) and _META_VERSION in meta
    stateless = declared or version in STATELESS_VERSIONS
    if not stateless and version is not None and version not in HANDSHAKE_VERSIONS:
        raise unsupported(version)
    if stateless and "id" in message:
        _check_envelope(method, params, headers)
    return Call(id=message.get("id"), method=method, params=params, stateless=stateless)


def id_of(body: bytes) -> Id:
    """The id that the answer to a refused request gets, if it can be told."""
    try:
        found = _message(body).get("id")
    except Refused:
        return None
    return found if _is_id(found) else None


def _message(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(PARSE_ERROR, f"The body is not valid JSON: {str(error)[:200]}.") from None
    if not isinstance(message, dict):
        raise Refused(INVALID_REQUEST, "The body is one JSON-RPC message; batches are not taken.")
    return message


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _MOST_ID
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_envelope(method: str, params: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    meta = params.get("_meta")
    missing = [key for key in (_META_VERSION, _META_CAPABILITIES) if not isinstance(meta, dict) or key not in meta]
    if not isinstance(meta, dict) or missing:
        raise Refused(INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}.")
    version = meta[_META_VERSION]
    if headers.get(VERSION_HEADER) != version:
        raise Refused(HEADER_MISMATCH, f"The header {VERSION_HEADER} is not what params._meta says.")
    if headers.get(METHOD_HEADER) != method:
        raise Refused(HEADER_MISMATCH, f"The header {METHOD_HEADER} is not the method of the body.")
    if method == "tools/call" and decoded(headers.get(NAME_HEADER)) != params.get("name"):
        raise Refused(HEADER_MISMATCH, f"The header {NAME_HEADER} is not the name of the tool in the body.")
    if version not in STATELESS_VERSIONS:
        raise unsupported(version)


def unsupported(version: str) -> Refused:
    data = {"supported": [*STATELESS_VERSIONS, *HANDSHAKE_VERSIONS], "requested": version[:100]}
    return Refused(UNSUPPORTED_VERSION, f"Protocol version {version[:100]!r} is not spoken here.", data)


def decoded(value: str | None) -> str | None:
    """A header's value; what no header can hold comes as `=?base64?...?=`. None for one that is broken."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[len("=?base64?") : -2], validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def status_of(error: Refused, *, stateless: bool) -> int:
    """Of the HTTP response that carries it."""
    if not stateless and error.code not in _OF_THE_REQUEST:
        return 200
    return _STATUS.get(error.code, 200)


def failure(id: Id, error: Refused) -> dict[str, Any]:
    told: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        told["data"] = error.data
    return {"jsonrpc": "2.0", "id": id, "error": told}


def success(call: Call, result: dict[str, Any], server: Mapping[str, str]) -> dict[str, Any]:
    if call.stateless:
        result = {"resultType": "complete", **result, "_meta": {_META_SERVER: server}}
    return {"jsonrpc": "2.0", "id": call.id, "result": result}


def initialized(params: Mapping[str, Any], server: Mapping[str, str], instructions: str) -> dict[str, Any]:
    """The answer to `initialize`: the client's version, or the newest there is."""
    asked = params.get("protocolVersion")
    if not isinstance(asked, str):
        raise Refused(INVALID_PARAMS, "protocolVersion: a string is expected.")
    version = asked if asked in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]
    return {
        "protocolVersion": version,
        "capabilities": {"tools": {}},
        "serverInfo": server,
        "instructions": instructions,
    }


def discovered(instructions: str) -> dict[str, Any]:
    """The answer to `server/discover`."""
    return cached(
        {
            "supportedVersions": [*STATELESS_VERSIONS],
            "capabilities": {"tools": {}},
            "instructions": instructions,
        }
    )


def cached(result: dict[str, Any]) -> dict[str, Any]:
    """A result that stays the same: fields of 2026-07-28, which others pass over."""
    return {**result, "ttlMs": 300_000, "cacheScope": "private"}


def accepts(header: str) -> tuple[bool, bool]:
    """Whether the client takes JSON, and whether it takes a stream of events."""
    kinds = {part.partition(";")[0].strip().lower() for part in header.split(",")}
    every = "*/*" in kinds
    return (
        every or not kinds.isdisjoint(("application/json", "application/*")),
        every or not kinds.isdisjoint(("text/event-stream", "text/*")),
    )
