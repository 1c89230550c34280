"""What is known of one invocation while it runs, and the record that remains of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from roost.gateway.connection import Request
from roost.gateway.faults import Style
from roost.gateway.proxy import Exchange
from roost.gateway.reply import FunctionReply
from roost.gateway.routes import Event, Http
from roost.gateway.sessions import NO_SESSION, SessionPlan
from roost.instances.lease import Lease
from roost.model.errors import FunctionFault, FunctionTimeout, RoostError, Throttled
from roost.model.function import FunctionSpec
from roost.model.usage import InvocationRecord, Outcome


@dataclass(kw_only=True, slots=True, eq=False)
class Call:
    """One invocation. `began` and `leased_at` are times of `perf_counter`, `started` is Unix seconds."""

    request: Request
    route: Event | Http
    id: str
    began: float
    started: float
    spec: FunctionSpec | None = None
    keyed: bool = False  # Authorization carried a key of this server's
    deferred: bool = False  # an event to be run later
    session: SessionPlan = NO_SESSION
    lease: Lease | None = None
    leased_at: float = 0.0
    outcome: Outcome = Outcome.OK
    status: int = 0
    session_id: str = ""
    task_id: str = ""  # of an asynchronous task
    hops: int = 0  # invocations that led to it
    extra: bytes = b""  # whole field lines that the function gets beside the others

    def header(self, name: bytes) -> str:
        """A field of the request, "" without it."""
        value = self.request.head.values.get(name)
        return value.decode("latin-1") if value is not None else ""

    @property
    def style(self) -> Style:
        return Style.EVENT if isinstance(self.route, Event) else Style.HTTP

    def record(self, now: float) -> InvocationRecord | None:
        """What is reported of it; None when it was no invocation at all: no such function, or taken for later."""
        spec, lease = self.spec, self.lease
        if spec is None or (lease is None and self.outcome is Outcome.OK):
            return None
        leased_at = self.leased_at or now
        return InvocationRecord(
            request_id=self.id,
            account=spec.account,
            function=spec.name,
            version=spec.version,
            qualifier=self.route.qualifier,
            instance_id=lease.instance_id if lease is not None else "",
            session_id=self.session_id,
            outcome=self.outcome,
            status=self.status,
            started=self.started,
            wait_s=leased_at - self.began,
            duration_s=now - leased_at,
            memory_mb=spec.limits.memory_mb,
            cold=lease.cold if lease is not None else False,
            trace_parent=self.header(b"traceparent"),
        )


@dataclass(kw_only=True, slots=True, eq=False)
class Flight:
    """A call that an instance has taken."""

    call: Call
    spec: FunctionSpec
    lease: Lease
    reply: FunctionReply
    exchange: Exchange

    def learn(self) -> None:
        """Take over what the reply told. After `reply.close`."""
        self.call.session_id = self.reply.session_id
        if self.exchange.response is not None:
            self.call.status = self.exchange.response.status


def outcome_of(error: RoostError) -> Outcome:
    """How an invocation that failed with `error` ended."""
    if isinstance(error, FunctionTimeout):
        return Outcome.TIMEOUT
    if isinstance(error, FunctionFault):
        return Outcome.FUNCTION_ERROR
    if isinstance(error, Throttled):
        return Outcome.THROTTLED
    # A request that was itself wrong has been cancelled if it had got to an instance.
    return Outcome.SYSTEM_ERROR if error.status >= 500 else Outcome.CANCELLED
