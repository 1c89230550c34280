"""The one lifecycle of an instance: its states, and the only transitions there are."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an instance is in its life. "Busy" is a count of leases, not a state."""

    STARTING = "starting"  # the room is being made; user code may run its initializer
    READY = "ready"  # takes leases
    FROZEN = "frozen"  # idle, no CPU (cgroup freezer), memory kept; a lease thaws it
    PAUSED = "paused"  # files on disk, memory and processes gone; a lease resumes it
    RESUMING = "resuming"  # a new room over the kept files
    SNAPSHOTTING = "snapshotting"
    DRAINING = "draining"  # takes no new leases; stops after the last one
    STOPPING = "stopping"  # pre-stop hook, then the room is taken down
    STOPPED = "stopped"  # nothing of it is left but its record


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.STOPPING}),
    State.READY: frozenset({State.FROZEN, State.PAUSED, State.SNAPSHOTTING, State.DRAINING, State.STOPPING}),
    State.FROZEN: frozenset({State.READY, State.PAUSED, State.DRAINING, State.STOPPING}),
    State.PAUSED: frozenset({State.RESUMING, State.STOPPING}),
    State.RESUMING: frozenset({State.READY, State.STOPPING}),
    State.SNAPSHOTTING: frozenset({State.READY, State.STOPPING}),
    State.DRAINING: frozenset({State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}

#: States in which the instance may hold or be given a lease.
LEASABLE = frozenset({State.READY, State.FROZEN})
#: States in which a room exists on this machine.
ALIVE = frozenset(State) - {State.PAUSED, State.STOPPED}


class IllegalTransition(AssertionError):
    """A bug in Roost: the table has no such transition."""


def check_transition(current: State, target: State) -> None:
    """Raise IllegalTransition unless the table allows `current -> target`."""
    if target not in TRANSITIONS[current]:
        raise IllegalTransition(f"{current} -> {target}")


class StopReason(StrEnum):
    """Why an instance ended; machine-readable, shown to users."""

    IDLE = "idle"
    SCALE_IN = "scale_in"
    UPDATED = "updated"  # the function's code or configuration changed
    DELETED = "deleted"
    SESSION_ENDED = "session_ended"
    REQUEST_ENDED = "request_ended"  # it was made for one request (REQUEST_EXCLUSIVE)
    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"
    ROLLED_BACK = "rolled_back"  # another room took its place
    TIMEOUT = "timeout"
    INITIALIZER_FAILED = "initializer_failed"
    START_FAILED = "start_failed"
    SHUTDOWN = "shutdown"
    LOST = "lost"  # found dead after a restart of the server; or what held its memory ended
    KILLED = "killed"  # a sandbox, by request
    PAUSED = "paused"  # a sandbox whose files alone are kept
