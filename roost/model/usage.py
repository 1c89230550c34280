"""What is measured: one record per invocation, one per transition of an instance. Metering is made of these alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from roost.model.instance import State


class Outcome(StrEnum):
    """How an invocation ended."""

    OK = "ok"
    FUNCTION_ERROR = "function_error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"  # the client went away
    THROTTLED = "throttled"
    SYSTEM_ERROR = "system_error"


@dataclass(slots=True, kw_only=True)
class InvocationRecord:
    """One invocation, written when its lease ends. Times: Unix seconds; durations: seconds.

    Nobody writes to it; it is not frozen, as every request makes one and freezing doubles what that costs.
    """

    request_id: str
    account: str
    function: str
    version: str
    qualifier: str
    instance_id: str  # "" when it never reached one
    session_id: str  # "" without a session
    outcome: Outcome
    status: int
    started: float
    wait_s: float  # until an instance took it (a cold start, or queueing)
    duration_s: float  # from the lease to its end
    memory_mb: int
    cold: bool
    trace_parent: str = ""  # W3C traceparent of the request, if it came with one


@dataclass(frozen=True, kw_only=True)
class TransitionRecord:
    """One transition. `held_s` is how long the instance was in `before`, `leased_s` how much of that with a lease."""

    instance_id: str
    account: str
    function: str
    version: str
    session_id: str
    generation: int
    before: State
    after: State
    at: float
    held_s: float
    leased_s: float
    cpu_us: int  # CPU used in `before`
    memory_mb: int  # the limit it is metered by
    reason: str = ""
