"""A session: one conversation's identity, pinned to an instance, with files that outlive it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from roost.model.errors import Conflict, InvalidArgument
from roost.model.function import LATEST, Affinity

#: facts: Function Compute accepts 1-64 of these, not starting with a dash.
SESSION_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


class SessionState(StrEnum):
    """Function Compute's `sessionStatus`."""

    ACTIVE = "Active"
    EXPIRED = "Expired"
    PAUSING = "Pausing"
    PAUSED = "Paused"
    RESUMING = "Resuming"


SESSION_TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.ACTIVE: frozenset({SessionState.PAUSING, SessionState.EXPIRED}),
    SessionState.PAUSING: frozenset({SessionState.PAUSED, SessionState.ACTIVE, SessionState.EXPIRED}),
    SessionState.PAUSED: frozenset({SessionState.RESUMING, SessionState.EXPIRED}),
    SessionState.RESUMING: frozenset({SessionState.ACTIVE, SessionState.PAUSED, SessionState.EXPIRED}),
    SessionState.EXPIRED: frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session of a function. Times are Unix seconds."""

    account: str
    function: str
    qualifier: str = LATEST
    id: str
    affinity: Affinity
    state: SessionState = SessionState.ACTIVE
    created: float
    modified: float
    last_used: float
    ttl_s: int
    idle_timeout_s: int
    disable_id_reuse: bool = False
    instance_id: str = ""
    user: str = "default"
    auto_pause: bool = False
    auto_resume: bool = False
    #: The API's own configuration fields (nasConfig, ossMountConfig, network...), kept as they came.
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.account, self.function, self.id)

    def expires_at(self) -> float:
        """The moment it ends. TTL runs on while paused; the idle timeout does not."""
        end = self.created + self.ttl_s
        if self.idle_timeout_s and self.state is SessionState.ACTIVE:
            end = min(end, self.last_used + self.idle_timeout_s)
        return end


def check_session_id(value: str) -> str:
    """Return `value` if it is a legal session id, else raise InvalidArgument."""
    if not SESSION_ID.fullmatch(value):
        raise InvalidArgument("A session ID has 1 to 64 letters, digits, '_' or '-' and does not start with '-'.")
    return value


def check_session_transition(session: Session, target: SessionState) -> None:
    """Raise Conflict unless the session may go to `target` now."""
    if target not in SESSION_TRANSITIONS[session.state]:
        raise Conflict(
            f"Session {session.id} is {session.state.value}; it can't become {target.value}.",
            code="SessionStatusConflict",
        )
