"""How a request names its session, by the function's own configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from roost.sdk.errors import UsageError
from roost.sdk.manifest import SESSION_HEADER

COOKIE = "x-fc-cookie-session-id"
MCP_HEADER = "mcp-session-id"
RESTORED = "the session has a new instance: its files are in place, its processes are gone"


def header_name(function: Mapping[str, Any]) -> str:
    """The header that carries the session id, lower case; "" when the function's sessions have none."""
    affinity = function.get("sessionAffinity") or "NONE"
    if affinity == "HEADER_FIELD":
        try:
            config = json.loads(function.get("sessionAffinityConfig") or "{}")
        except ValueError:
            config = {}
        return str(config.get("affinityHeaderFieldName") or SESSION_HEADER).lower()
    return MCP_HEADER if affinity == "MCP_STREAMABLE_HTTP" else ""


def request_headers(function: Mapping[str, Any], session: str) -> dict[str, str]:
    """The headers that put a request into `session`. Raises UsageError when the function takes none from its caller."""
    affinity = function.get("sessionAffinity") or "NONE"
    if affinity == "GENERATED_COOKIE":
        return {"cookie": f"{COOKIE}={session}"}
    name = header_name(function)
    if not name:
        raise UsageError(
            f"--session: {function.get('functionName', 'the function')} takes no session from its caller "
            f"(session affinity {affinity}); set `affinity` in [session] of its roost.toml."
        )
    return {name: session}


def was_restored(headers: Mapping[str, str]) -> bool:
    """Whether the reply says that the session's earlier instance has died."""
    return "x-roost-session-restored" in headers


def reply_session(function: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """The session id that the reply names, or ""."""
    name = header_name(function)
    return headers.get(name, "") if name else ""
