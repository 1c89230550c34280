"""What the data plane asks of the rest of Roost. All but `Fleet` answer from memory, at once.

`Fleet` and `Lease` are in `roost.instances.lease`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from roost.model.errors import RoostError
from roost.model.function import FunctionSpec
from roost.model.usage import InvocationRecord


class Catalog(Protocol):
    """Names of functions."""

    def resolve(self, account: str, name: str, qualifier: str, *, begun: str = "") -> FunctionSpec:
        """The version that `qualifier` means now. An alias with weights draws one, but stays with `begun`, the version
        that the request's session runs on, if it may draw that. Raises NotFound."""
        ...


class Access(Protocol):
    """Who may call. Both checks raise Unauthenticated, AccessDenied or Throttled; `source` is the client's address."""

    def check_http(
        self, account: str, spec: FunctionSpec, qualifier: str, authorization: str, method: str, *, source: bytes
    ) -> bool:
        """May this HTTP request reach this function? True: its Authorization is a key of this server's, and the
        function must not see it; False: Authorization is the function's own business."""
        ...

    def unresolved(self, account: str, name: str, authorization: str, error: RoostError, source: bytes) -> RoostError:
        """What to tell the caller of an HTTP request whose function does not resolve, for `error`."""
        ...

    def check_signed(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body_sha256: str,
        *,
        source: bytes,
        function: str,
    ) -> str:
        """The account whose ACS3 signature this is, by a key that may invoke this function. `path` and `query` are as
        sent, percent-encoded; names of `headers` are lower case.

        `body_sha256` is what the caller claims in `x-acs-content-sha256`, "" without it: the gateway itself compares
        it with the body as that goes by, and never delivers a body that differs.
        """
        ...


class Observer(Protocol):
    """Learns what happened."""

    def invocation(self, record: InvocationRecord) -> None: ...


class Logs(Protocol):
    """The output of running invocations."""

    async def tail_for_ended_request(self, account: str, function: str, request_id: str) -> bytes:
        """The last 4 KiB that this request printed, after a short, bounded wait for its end: replies and output travel
        on different sockets."""
        ...


class SessionDirectory(Protocol):
    """Sessions whose ids the function's own server chose (MCP)."""

    def bind(self, spec: FunctionSpec, session_id: str, instance_id: str) -> None:
        """From now on `SessionRef(id=session_id, generated=True)` leads to this instance."""
        ...

    def end(self, spec: FunctionSpec, session_id: str) -> None:
        """The session is over. Unknown ids are ignored."""
        ...


class Accepted(Protocol):
    """The task that an event became."""

    @property
    def task_id(self) -> str: ...

    @property
    def request_id(self) -> str: ...

    @property
    def session_id(self) -> str: ...


class AsyncSink(Protocol):
    """Takes events to be run later."""

    async def submit(
        self,
        spec: FunctionSpec,
        *,
        qualifier: str,
        request_id: str,
        session_id: str,
        payload: bytes,
        headers: Mapping[str, str],
        http: Mapping[str, str] | None = None,
        hops: int = 0,
    ) -> Accepted:
        """Keep the event durably. `headers` are the request's, names in lower case; `session_id` is the one that they
        name, "" for none; `http` is what the function sees of a request to its own address; `hops` invocations led to
        it. An event that was kept before, under the id that `x-fc-async-task-id` gives, is not kept twice: the answer
        is the first's. Raises RoostError."""
        ...
