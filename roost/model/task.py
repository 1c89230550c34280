"""An asynchronous task: its record, its states, and the only moves there are. Pure.

Every move of a task names the epoch that its author knows. A start makes a new epoch, so whoever worked on an older one
(a server that was thought dead, a worker whose claim was taken back) can't write any more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from roost.model.errors import Conflict, InvalidArgument

#: What a caller may choose; ids that the server makes are those of requests.
TASK_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
#: Events that a record keeps; of more, the oldest but the first are left out.
MAX_EVENTS = 64
MAX_DELAY_S = 3600
#: Unless the server's settings say otherwise: an invocation that more than this many led to is refused.
MAX_HOPS = 16


class TaskState(StrEnum):
    """Function Compute's `status` of an asynchronous task."""

    ENQUEUED = "Enqueued"
    RUNNING = "Running"
    RETRYING = "Retrying"  # waits for its next start
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    EXPIRED = "Expired"


_S = TaskState
TASK_TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    _S.ENQUEUED: frozenset({_S.RUNNING, _S.FAILED, _S.STOPPED, _S.EXPIRED}),
    _S.RETRYING: frozenset({_S.RUNNING, _S.FAILED, _S.STOPPED, _S.EXPIRED}),
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.RETRYING, _S.EXPIRED, _S.STOPPING}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.SUCCEEDED, _S.FAILED}),
    # By hand: `roost tasks retry`.
    _S.FAILED: frozenset({_S.ENQUEUED}),
    _S.STOPPED: frozenset({_S.ENQUEUED}),
    _S.EXPIRED: frozenset({_S.ENQUEUED}),
    _S.SUCCEEDED: frozenset(),
}
#: Waits for a worker.
PENDING = frozenset({_S.ENQUEUED, _S.RETRYING})
#: A worker has it.
HELD = frozenset({_S.RUNNING, _S.STOPPING})
#: Nothing happens to it any more by itself.
FINISHED = frozenset({_S.SUCCEEDED, _S.FAILED, _S.STOPPED, _S.EXPIRED})


class Delivery(StrEnum):
    """What becomes of a task that may have had effects when its run was cut off."""

    AT_LEAST_ONCE = "atLeastOnce"  # it runs again, which counts as an attempt
    AT_MOST_ONCE = "atMostOnce"  # it is never started a second time


class Busy(StrEnum):
    """What becomes of a new task when its session has work."""

    REJECT = "reject"
    ENQUEUE = "enqueue"  # it waits for its turn
    INTERRUPT = "interrupt"  # the session's other tasks are stopped


class SessionBusy(Conflict):
    """The session has work, and the new task was to be refused then."""

    code = "SessionBusy"


class Fenced(Conflict):
    """The task has gone on without the one who wants to move it: another epoch, or another state."""

    code = "AsyncTaskStatusConflict"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEvent:
    """One line of a task's history."""

    state: TaskState
    at: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task. Times are Unix seconds, 0 for what has not happened. The payload and the result are kept apart."""

    account: str
    function: str
    id: str
    qualifier: str
    request_id: str
    session: str = ""  # whose instance it runs on
    state: TaskState = TaskState.ENQUEUED
    epoch: int = 0
    attempts: int = 0  # starts so far
    spared: int = 0  # of them, those that are not held against the task: it was the system that failed
    enqueued: float
    ready: float  # no start before this: the caller's delay
    due: float  # no start before this
    started: float = 0.0  # the first start
    ended: float = 0.0
    heartbeat: float = 0.0  # of the worker
    troubles: int = 0  # failures of the system in a row
    troubled: float = 0.0  # since when
    hops: int = 0  # invocations that led to it
    instance_id: str = ""
    error_type: str = ""
    error: str = ""
    destination: str = ""  # what became of the destination: "Pending", "Succeeded", "Failed"; "" when there was none
    digest: str = ""  # of all that the caller gave
    #: Of the request, for the function; of one to its own address also `:method`, `:prefix` and `:target`.
    fields: Mapping[str, str] = field(default_factory=dict)
    events: tuple[TaskEvent, ...] = ()

    @property
    def key(self) -> TaskKey:
        return (self.account, self.function, self.id)

    @property
    def used(self) -> int:
        """Attempts that count."""
        return self.attempts - self.spared


#: (account, function, id)
TaskKey = tuple[str, str, str]


def check_task_id(value: str) -> str:
    """Return `value` if a caller may choose it as a task's id, else raise InvalidArgument."""
    if not TASK_ID.fullmatch(value):
        raise InvalidArgument(
            "x-fc-async-task-id: a task id has 1 to 128 letters, digits, '_' or '-' and begins with a letter or '_'."
        )
    return value


def check_busy(value: str) -> Busy | None:
    """`x-roost-task-busy`; None without one. Raises InvalidArgument."""
    if not value:
        return None
    try:
        return Busy(value.lower())
    except ValueError:
        raise InvalidArgument("x-roost-task-busy: 'reject', 'enqueue' or 'interrupt' is expected.") from None


def check_delay(value: str) -> int:
    """`x-fc-async-delay` in seconds; 0 without one. Raises InvalidArgument."""
    if not value:
        return 0
    if not (value.isascii() and value.isdigit() and len(value) < 6 and int(value) <= MAX_DELAY_S):
        raise InvalidArgument(f"x-fc-async-delay: a whole number of seconds from 0 to {MAX_DELAY_S} is expected.")
    return int(value)


def check_task_transition(task: Task, target: TaskState) -> None:
    """Raise Fenced unless the task may go to `target` now."""
    if target not in TASK_TRANSITIONS[task.state]:
        raise Fenced(f"Task {task.id} is {task.state.value}; it can't become {target.value}.")


def moved(
    task: Task, target: TaskState, *, epoch: int, now: float, detail: str = "", fence: bool = False, **changes: Any
) -> Task:
    """The task after a move, with its event. Raises Fenced for a stale epoch or a move that is not in the table.

    `fence`: in the next epoch, so that nobody who knows it from before can write any more.
    """
    if epoch != task.epoch:
        raise Fenced(f"Task {task.id} has been taken over (epoch {task.epoch}, not {epoch}).")
    check_task_transition(task, target)
    event = TaskEvent(state=target, at=now, detail=detail)
    events = _shortened((*task.events, event))
    ended = now if target in FINISHED else 0.0
    return replace(task, state=target, epoch=epoch + fence, events=events, ended=ended, **changes)


def _shortened(events: tuple[TaskEvent, ...]) -> tuple[TaskEvent, ...]:
    return events if len(events) <= MAX_EVENTS else (events[0], *events[-(MAX_EVENTS - 1) :])


def begun(task: Task, *, epoch: int, instance_id: str, now: float) -> Task:
    """After a start, in an epoch of its own."""
    return moved(
        task,
        TaskState.RUNNING,
        epoch=epoch,
        now=now,
        detail=f"attempt {task.attempts + 1} on {instance_id}",
        instance_id=instance_id,
        attempts=task.attempts + 1,
        started=task.started or now,
        heartbeat=now,
        error_type="",
        error="",
        fence=True,
    )


def with_destination(task: Task, taken: bool) -> Task:
    """With what became of its destination."""
    return replace(task, destination="Succeeded" if taken else "Failed")


def without_destination(task: Task, why: str, *, now: float) -> Task:
    """After an end that nobody is told of."""
    events = _shortened((*task.events, TaskEvent(state=task.state, at=now, detail=why)))
    return replace(with_destination(task, False), events=events)


def delivered(task: Task, *, epoch: int, now: float, taken: bool, detail: str) -> Task | None:
    """After its destination took the event of the end that `epoch` came from, or never will; None if it has gone on."""
    if epoch != task.epoch or task.destination != "Pending":
        return None
    events = _shortened((*task.events, TaskEvent(state=task.state, at=now, detail=detail)))
    return replace(with_destination(task, taken), events=events)


def stopped(task: Task, *, now: float, by: str = "") -> Task:
    """After a request to stop it, or `by` a task that interrupts it: over at once if no worker has it, else Stopping.

    Asking again changes nothing. Raises Fenced when it is over.
    """
    if task.state is TaskState.STOPPING:
        return task
    target = TaskState.STOPPING if task.state is TaskState.RUNNING else TaskState.STOPPED
    detail = f"interrupted by task {by}" if by else "stop was asked for"
    return moved(task, target, epoch=task.epoch, now=now, detail=detail)


def redriven(task: Task, *, now: float) -> Task:
    """After a retry by hand: as if it were new, with its history. Raises Fenced unless it ended without success."""
    return moved(
        task,
        TaskState.ENQUEUED,
        epoch=task.epoch,
        now=now,
        detail="retried by hand",
        enqueued=now,
        ready=now,
        due=now,
        attempts=0,
        spared=0,
        started=0.0,
        troubles=0,
        troubled=0.0,
        instance_id="",
        error_type="",
        error="",
        destination="",
        fence=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is to become of a task now. `due`, `spared`, `troubles` and `troubled` are those of the record."""

    state: TaskState
    detail: str = ""
    due: float = 0.0
    spared: int = 0
    troubles: int = 0
    troubled: float = 0.0
    error_type: str = ""
    error: str = ""


def concluded(task: Task, verdict: Verdict, *, epoch: int, now: float) -> Task:
    """After what was decided: an end, another try, or, for one that has not begun, only another time.

    The end of a run is the end of its epoch."""
    changes: dict[str, Any] = {
        "due": verdict.due or task.due,
        "spared": verdict.spared,
        "troubles": verdict.troubles,
        "troubled": verdict.troubled,
        "error_type": verdict.error_type,
        "error": verdict.error,
    }
    if task.state is verdict.state and task.state in PENDING:
        if epoch != task.epoch:
            raise Fenced(f"Task {task.id} has been taken over (epoch {task.epoch}, not {epoch}).")
        return replace(task, **changes)
    said = verdict.detail or verdict.error
    return moved(task, verdict.state, epoch=epoch, now=now, detail=said, fence=task.state in HELD, **changes)
