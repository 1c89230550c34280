"""`sessionAffinity` and `sessionAffinityConfig` (JSON in a string) to a SessionPolicy."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from roost.functions.definition import Shape
from roost.functions.parse import parse_json_text
from roost.model.errors import InvalidArgument
from roost.model.function import Affinity, SessionPolicy

#: Longest life and idle time of a session, in seconds. Function Compute's structs say 21600, its paused sessions 24 h.
MAX_SESSION_S = 86400

Ttl = Annotated[int, Field(ge=1, le=MAX_SESSION_S)]
IdleTimeout = Annotated[int, Field(ge=0, le=MAX_SESSION_S)]
PerInstance = Annotated[int, Field(ge=1, le=200)]

_FIELD = "sessionAffinityConfig"
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9_-]{4,39}")
_KINDS = {kind.value: kind for kind in Affinity} | {"MCP_STREAMABLE": Affinity.MCP_STREAMABLE_HTTP}


class _Timed(Shape):
    session_concurrency_per_instance: PerInstance = 20
    session_ttl: Annotated[Ttl, Field(alias="sessionTTLInSeconds")] = 21600
    session_idle_timeout: Annotated[IdleTimeout | None, Field(alias="sessionIdleTimeoutInSeconds")] = None


class _Cookie(_Timed):
    disable_session_id_reuse: bool = False


class _Header(_Cookie):
    affinity_header_field_name: str


class _Sse(Shape):
    session_concurrency_per_instance: PerInstance = 20
    sse_endpoint_path: Annotated[str, Field(max_length=1024)] = "/sse"


def session_policy(affinity: str | None, config: str | None, *, timeout_s: int) -> SessionPolicy:
    """The policy. `timeout_s`: the function's, which is how long an MCP SSE session lives.

    Raises InvalidArgument naming the field.
    """
    kind = _KINDS.get(affinity or "NONE")
    text = config or "{}"
    if kind is None:
        raise InvalidArgument(f"sessionAffinity: {affinity!r} is not one of {', '.join(sorted(_KINDS))}.")
    if kind is Affinity.NONE:
        if config:
            raise InvalidArgument("sessionAffinityConfig: has a meaning only together with sessionAffinity.")
        return SessionPolicy()
    if kind is Affinity.MCP_SSE:
        sse = parse_json_text(_Sse, text, _FIELD)
        if not sse.sse_endpoint_path.startswith("/"):
            raise InvalidArgument("sessionAffinityConfig.sseEndpointPath: must start with '/'.")
        return SessionPolicy(
            affinity=kind,
            sse_path=sse.sse_endpoint_path,
            sessions_per_instance=sse.session_concurrency_per_instance,
            ttl_s=timeout_s,
            idle_timeout_s=0,
        )
    if kind is Affinity.HEADER_FIELD:
        header = parse_json_text(_Header, text, _FIELD)
        return _timed(
            kind, header, header=_header(header.affinity_header_field_name), once=header.disable_session_id_reuse
        )
    if kind is Affinity.GENERATED_COOKIE:
        cookie = parse_json_text(_Cookie, text, _FIELD)
        return _timed(kind, cookie, once=cookie.disable_session_id_reuse)
    return _timed(kind, parse_json_text(_Timed, text, _FIELD))


def _timed(kind: Affinity, config: _Timed, *, header: str = "", once: bool = False) -> SessionPolicy:
    idle = min(1800, config.session_ttl) if config.session_idle_timeout is None else config.session_idle_timeout
    if idle > config.session_ttl:
        raise InvalidArgument(
            "sessionAffinityConfig.sessionIdleTimeoutInSeconds: can't be longer than sessionTTLInSeconds."
        )
    return SessionPolicy(
        affinity=kind,
        header=header,
        sessions_per_instance=config.session_concurrency_per_instance,
        ttl_s=config.session_ttl,
        idle_timeout_s=idle,
        disable_id_reuse=once,
    )


def _header(name: str) -> str:
    if not _HEADER.fullmatch(name) or name.lower().startswith("x-fc-"):
        raise InvalidArgument(
            "sessionAffinityConfig.affinityHeaderFieldName: 5 to 40 letters, digits, '-' or '_', the first a letter,"
            " and not starting with 'x-fc-'."
        )
    return name.lower()
