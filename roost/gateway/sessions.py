"""How a request names its session, for each kind of affinity, and how the reply tells the client. Pure.

`SessionRef(generated=True)` with an id means: the server (or the function's MCP server) chose it, so an unknown one is
not made new but is NotFound.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qs, unquote

from roost.gateway.fields import COOKIE, line
from roost.gateway.head import RequestHead, ResponseHead
from roost.instances.lease import SessionRef
from roost.model.function import Affinity, SessionPolicy
from roost.model.session import SESSION_ID, check_session_id

MCP_FIELD = b"mcp-session-id"
#: Query keys by which MCP's SDKs name the session in the endpoint of their SSE transport.
_MCP_QUERY = ("sessionId", "session_id", "sessionid")
_COOKIE_AGE_S = 3600
_NO_AFFINITY = Affinity.NONE  # Python 3.11 takes longer to find a member of an enum than to call a function
_EVENT_MAX = 8192
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Mint(Enum):
    """Where the reply brings an id that the function's own server chose."""

    NOWHERE = 0
    FIELD = 1  # Mcp-Session-Id
    FIRST_EVENT = 2  # the `endpoint` event of an SSE stream


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """What a request and its function's policy mean together."""

    ref: SessionRef | None = None
    field: str = ""  # the reply carries a generated id in this field
    cookie: bool = False  # the reply plants the session's cookie when the id is new
    replace_unknown: bool = False  # an id that is over is replaced by a new one, instead of NotFound
    mint: Mint = Mint.NOWHERE
    ends: bool = False  # a good reply ends the session


#: The plan of a request that names no session.
NO_SESSION = SessionPlan()


def plan(policy: SessionPolicy, head: RequestHead, *, target: bytes | None) -> SessionPlan:
    """`target` is the path and query behind the function's prefix, None for an event (events know no MCP).

    Raises InvalidArgument for an id that a client chose and may not have."""
    affinity = policy.affinity
    if affinity is _NO_AFFINITY:
        return NO_SESSION
    if affinity is Affinity.HEADER_FIELD:
        return _by_field(policy.header, head)
    if affinity is Affinity.GENERATED_COOKIE:
        return _by_cookie(head)
    if target is None:
        return NO_SESSION
    if affinity is Affinity.MCP_STREAMABLE_HTTP:
        return _by_mcp_field(head)
    return _by_mcp_query(policy, head, target)


def _by_field(name: str, head: RequestHead) -> SessionPlan:
    value = head.values.get(name.encode("latin-1"))
    if value is None:
        return SessionPlan(ref=SessionRef(id="", generated=True), field=name)
    return SessionPlan(ref=SessionRef(id=check_session_id(value.decode("latin-1"))))


def _by_cookie(head: RequestHead) -> SessionPlan:
    found = ""
    # Field by field: a comma inside one belongs to a cookie's value, which another function may have set.
    for pair in b";".join(value for lower, _, value in head.fields if lower == b"cookie").split(b";"):
        name, _, value = pair.strip().partition(b"=")
        if name == COOKIE:
            found = value.strip(b'" ').decode("latin-1")
            break
    if not SESSION_ID.fullmatch(found):
        found = ""  # not one of ours: as if there were none
    return SessionPlan(ref=SessionRef(id=found, generated=True), cookie=True, replace_unknown=True)


def _by_mcp_field(head: RequestHead) -> SessionPlan:
    value = head.values.get(MCP_FIELD)
    if value is None:
        return SessionPlan(mint=Mint.FIELD)
    ref = SessionRef(id=value.decode("latin-1"), generated=True)
    return SessionPlan(ref=ref, ends=head.method == "DELETE")


def _by_mcp_query(policy: SessionPolicy, head: RequestHead, target: bytes) -> SessionPlan:
    path, _, query = target.decode("latin-1").partition("?")
    if head.method == "GET" and unquote(path) == policy.sse_path:
        return SessionPlan(mint=Mint.FIRST_EVENT)
    session_id = _query_id(query)
    return SessionPlan(ref=SessionRef(id=session_id, generated=True)) if session_id else NO_SESSION


def _query_id(query: str) -> str:
    values = parse_qs(query)
    return next((values[key][0] for key in _MCP_QUERY if key in values), "")


def reply_lines(plan: SessionPlan, session_id: str, *, path: str) -> bytes:
    """Field lines that tell the client its session's id, if that is new to it. `path` is where the cookie holds."""
    if not session_id or plan.ref is None or plan.ref.id == session_id:
        return b""
    if plan.field:
        return line(plan.field, session_id)
    if plan.cookie:
        cookie = f"{COOKIE.decode()}={session_id}; Max-Age={_COOKIE_AGE_S}; Path={path}; HttpOnly; SameSite=Lax"
        return line("set-cookie", cookie)
    return b""


def minted_id(head: ResponseHead) -> str:
    """The id in a good reply of an MCP server over Streamable HTTP, or ""."""
    return head.values.get(MCP_FIELD, b"").decode("latin-1") if head.status < 300 else ""


def is_event_stream(head: ResponseHead) -> bool:
    kind = head.values.get(b"content-type", b"").split(b";")[0].strip().lower()
    return head.status == 200 and kind == b"text/event-stream" and b"content-encoding" not in head.values


class EndpointEvent:
    """Watches the start of an MCP SSE stream for its `endpoint` event.

    The event's URL is made by a server that knows nothing of the prefix it is reached under, so the prefix is put in
    front of an absolute path. `on_id` is called with the session's id before the event goes on. Holds back at most
    8 KiB.
    """

    def __init__(self, prefix: str, *, on_id: Callable[[str], None]) -> None:
        self._prefix = prefix.encode("latin-1")
        self._on_id = on_id
        self._held = b""
        self._over = False

    def feed(self, data: bytes) -> bytes:
        """What may go on to the client."""
        if self._over:
            return data
        self._held += data
        out = b""
        while not self._over and (match := _BLANK_LINE.search(self._held)):
            block, self._held = self._held[: match.end()], self._held[match.end() :]
            out += self._block(block)
        if self._over or len(self._held) > _EVENT_MAX:
            self._over = True
            out += self.finish()
        return out

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _block(self, block: bytes) -> bytes:
        lines = _LINE_END.split(block)
        if not any(each.replace(b" ", b"") == b"event:endpoint" for each in lines):
            return block
        self._over = True
        for each in lines:
            name, _, value = each.partition(b":")
            if name == b"data":
                url = value.strip()
                self._on_id(_query_id(url.decode("latin-1").partition("?")[2]))
                return block.replace(each, b"data: " + self._prefixed(url), 1)
        return block

    def _prefixed(self, url: bytes) -> bytes:
        absolute = url.startswith(b"/") and not url.startswith(b"//")
        return self._prefix + url if absolute and not url.startswith(self._prefix + b"/") else url
