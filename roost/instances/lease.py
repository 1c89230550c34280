"""What the data plane sees of instances: it asks for a lease and gives it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from roost.model.function import FunctionSpec
from roost.model.session import Session


@dataclass(frozen=True, kw_only=True)
class SessionRef:
    """The session that a request names, or asks for."""

    id: str  # "" asks for a new one with a generated id
    #: True: the server chose or will choose the id (cookie, generated header); it is sent back to the client.
    generated: bool = False


class Lease(Protocol):
    """One slot on one live instance, held for one request."""

    spec: FunctionSpec
    instance_id: str
    app_socket: str  # path of the unix socket that takes its requests
    session: Session | None
    cold: bool  # this lease waited for the instance to start
    restored: bool  # the session's files are here; what its former instance, or its former worker, had in memory is not
    request_headers: Mapping[str, str]  # of the session and the task, for the guest

    def release(self) -> None:
        """Give the slot back. Idempotent; must be called in `finally`."""
        ...

    def abandon(self, reason: str) -> None:
        """Give it back when the guest did not let go of the request in the grace period (`timeout`, `cancelled`).

        The instance restarts its worker if no one else uses it, otherwise it drains. Idempotent, as `release`.
        """
        ...

    async def failure(self) -> Exception:
        """Why the instance broke this request's connection: InstanceExited with the reason (exit code, signal, out of
        memory), or Unavailable when nothing is known after a short, bounded wait."""
        ...


class Fleet(Protocol):
    """All instances of this server."""

    def try_lease(self, spec: FunctionSpec, session: SessionRef | None = None) -> Lease | None:
        """As `lease`, for the warm path: a slot that is free at once on an instance that runs. None when anything has
        to be started, thawed, stored or waited for; `lease` then raises what there is to raise."""
        ...

    def version_of(self, spec: FunctionSpec, session: SessionRef) -> str:
        """The version of the function that the session's instance runs; "" while it has none."""
        ...

    async def lease(
        self, spec: FunctionSpec, session: SessionRef | None = None, *, task: str = "", timeout_s: float = 60.0
    ) -> Lease:
        """A slot on an instance of `spec`, from zero if need be. `task` names the folder that the request gets where
        the function has one for each task.

        Raises Throttled when the wait queue is full or `timeout_s` has passed, InitializerFailed, InstanceExited,
        Unavailable, NotFound or Conflict for the session. Cancelling the wait leaves nothing behind.
        """
        ...
