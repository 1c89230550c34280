"""What the gateway adds to a function's reply, and what it learns from it."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Coroutine

from roost.gateway import sessions
from roost.gateway.head import ResponseHead
from roost.gateway.ports import Logs, SessionDirectory
from roost.instances.lease import Lease
from roost.model.errors import RoostError
from roost.model.function import Affinity, FunctionSpec
from roost.model.usage import Outcome

_log = logging.getLogger(__name__)
_TAIL_BYTES = 4096
_OK = Outcome.OK  # for every request: Python 3.11 is slow to find a member of an enum


class FunctionReply:
    """The `Reply` of an invocation: request id, session, log tail; binds and ends the sessions of MCP servers."""

    __slots__ = (
        "_began",
        "_directory",
        "_endpoint",
        "_lease",
        "_logs",
        "_plan",
        "_prefix",
        "_request_id",
        "_spec",
        "_tail",
        "outcome",
        "session_id",
    )

    strip_ours = True

    def __init__(
        self,
        *,
        request_id: str,
        plan: sessions.SessionPlan,
        spec: FunctionSpec,
        lease: Lease,
        prefix: str,
        directory: SessionDirectory | None,
        logs: Logs | None,
        began: float,
    ) -> None:
        self._request_id = request_id
        self._plan = plan
        self._spec = spec
        self._lease = lease
        self._prefix = prefix  # "" for an event
        self._directory = directory
        self._logs = logs
        self._began = began
        self._endpoint: sessions.EndpointEvent | None = None
        self._tail = b""
        self.session_id = lease.session.id if lease.session is not None else ""
        self.outcome = _OK

    @property
    def prepare(self) -> Callable[[], Coroutine[None, None, None]] | None:
        return self._fetch_tail if self._logs is not None else None

    def lines(self, head: ResponseHead) -> bytes:
        fault = head.values.get(b"x-fc-error-type")
        if fault is not None:
            self.outcome = Outcome.TIMEOUT if fault == b"FunctionTimeout" else Outcome.FUNCTION_ERROR
        out = b"x-fc-request-id: %b\r\n" % self._request_id.encode("ascii")
        if not self._prefix:
            elapsed = (time.perf_counter() - self._began) * 1000
            out += b"x-fc-invocation-duration: %d\r\n" % elapsed
        if self.session_id:
            out += sessions.reply_lines(self._plan, self.session_id, path=self._prefix or "/")
        if self._lease.restored:
            out += b"x-roost-session-restored: files\r\n"
        if self._logs is not None:
            out += b"x-fc-log-result: %b\r\n" % base64.b64encode(self._tail[-_TAIL_BYTES:])
        if self._plan is not sessions.NO_SESSION:
            self._mcp(head)
        return out

    async def _fetch_tail(self) -> None:
        if self._logs is not None:
            spec = self._spec
            self._tail = await self._logs.tail_for_ended_request(spec.account, spec.name, self._request_id)

    def _mcp(self, head: ResponseHead) -> None:
        plan = self._plan
        if plan.mint is sessions.Mint.FIELD:
            self._bind(sessions.minted_id(head))
        elif plan.ends and head.status < 300:
            self._end()
        elif plan.ref is not None and head.status == 404 and self._streams():
            # The protocol's way to say that the session is over: the server has forgotten it, as after a crash.
            self._end()

    def _streams(self) -> bool:
        return self._spec.sessions.affinity is Affinity.MCP_STREAMABLE_HTTP

    def rewriter(self, head: ResponseHead) -> sessions.EndpointEvent | None:
        if self._plan.mint is sessions.Mint.FIRST_EVENT and sessions.is_event_stream(head):
            self._endpoint = sessions.EndpointEvent(self._prefix, on_id=self._bind)
        return self._endpoint

    def _bind(self, session_id: str) -> None:
        if not session_id or self._directory is None:
            return
        try:
            self._directory.bind(self._spec, session_id, self._lease.instance_id)
        except RoostError as error:  # the id is the function's own making: it may be unusable, or taken
            _log.warning("request %s: its session can't be kept: %s", self._request_id, error.message)
        else:
            self.session_id = session_id

    def _end(self) -> None:
        if self.session_id and self._directory is not None:
            self._directory.end(self._spec, self.session_id)

    def close(self) -> None:
        """The reply is over, and with it the session of an SSE transport."""
        if self._endpoint is not None:
            self._end()
