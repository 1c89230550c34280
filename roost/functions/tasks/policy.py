"""What becomes of a task, given what has happened. Pure: time and chance are arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from roost.model.task import Busy, Delivery, Task, TaskState, Verdict

MAX_RETRIES = 3
MAX_AGE_S = 86400.0
#: Function Compute: failures that are not the function's are tried again for five hours.
TROUBLE_S = 5 * 3600.0
_RETRY_S = 1.0
_TROUBLE_RETRY_S = 0.5
_LONGEST_S = 300.0
_ERROR_CHARS = 4096


class Kind(Enum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAULT = "fault"  # the function's own: it raised, timed out, exited
    TROUBLE = "trouble"  # the system's: no instance to be had, or it was lost for unknown reasons
    REFUSED = "refused"  # nothing can run it: its qualifier is gone, its session's id can't be
    STOPPED = "stopped"  # broken off


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one try. `begun`: the task had been claimed, so its handler may have had effects."""

    kind: Kind
    begun: bool = True
    error_type: str = ""
    error: str = ""
    result: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A qualifier's settings. Destinations are as they were given, "" for none."""

    max_retries: int = MAX_RETRIES
    max_age_s: float = MAX_AGE_S
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    on_success: str = ""
    on_failure: str = ""
    busy: Busy = Busy.ENQUEUE

    @property
    def once(self) -> bool:
        return self.delivery is Delivery.AT_MOST_ONCE

    def destination(self, state: TaskState) -> str:
        """Where a task goes that ended so."""
        if state is TaskState.SUCCEEDED:
            return self.on_success
        return self.on_failure if state in (TaskState.FAILED, TaskState.EXPIRED) else ""


def settings_of(config: Mapping[str, Any]) -> TaskSettings:
    """From an async invoke config as it is kept."""
    destinations = config.get("destinationConfig") or {}
    ours = config.get("roost") or {}
    once = ours.get("delivery") == Delivery.AT_MOST_ONCE.value
    retries = config.get("maxAsyncRetryAttempts")
    return TaskSettings(
        max_retries=0 if once else MAX_RETRIES if retries is None else retries,
        max_age_s=float(config.get("maxAsyncEventAgeInSeconds") or MAX_AGE_S),
        delivery=Delivery.AT_MOST_ONCE if once else Delivery.AT_LEAST_ONCE,
        on_success=(destinations.get("onSuccess") or {}).get("destination") or "",
        on_failure=(destinations.get("onFailure") or {}).get("destination") or "",
        busy=Busy(ours.get("busy") or Busy.ENQUEUE),
    )


def expired(task: Task, settings: TaskSettings, *, now: float) -> Verdict | None:
    """The end of a task that has waited for too long, None for one that has not."""
    if now <= task.ready + settings.max_age_s:
        return None
    said = f"The task expired {settings.max_age_s:g} seconds after it was due."
    return _verdict(task, TaskState.EXPIRED, error_type="Expired", error=_with_last(said, task.error))


def after(
    task: Task, run: Run, settings: TaskSettings, *, now: float, chance: float, stopping: bool = False
) -> Verdict:
    """What becomes of `task` after `run`. `chance` is from 0 to 1. `stopping`: somebody has asked to stop it."""
    if run.kind is Kind.SUCCEEDED:
        return _verdict(task, TaskState.SUCCEEDED, detail="done")
    if run.kind is Kind.STOPPED or (stopping and run.begun):
        return _verdict(task, TaskState.STOPPED, detail="stopped", error_type=run.error_type, error=run.error)
    if run.kind is Kind.REFUSED:
        return _failed(task, run)
    if run.kind is Kind.TROUBLE:
        return _after_trouble(task, run, settings, now=now, chance=chance)
    if settings.once or task.used > settings.max_retries:
        return _failed(task, run)
    due = now + retry_delay(task.used, chance)
    return _again(task, run, settings, due=due, now=now)


def interrupted(task: Task, settings: TaskSettings, *, now: float, chance: float, orderly: bool) -> Verdict:
    """What becomes of a task whose server ended while it ran. `orderly`: not by a crash, so the attempt is spared."""
    how = "stopped" if orderly else "ended"
    if task.state is TaskState.STOPPING:
        return _verdict(task, TaskState.STOPPED, detail=f"the server {how} while the task was being stopped")
    said = f"The server {how} while the task ran."
    run = Run(kind=Kind.FAULT, error_type="Interrupted", error=said)
    if settings.once:
        why = "It may have had effects, and with delivery atMostOnce it is not started again."
        return _failed(task, replace(run, error=f"{said} {why}"))
    if orderly:
        spared = replace(task, spared=task.spared + 1)
        return _again(spared, run, settings, due=now, now=now)
    if task.used > settings.max_retries:
        return _failed(task, run)
    return _again(task, run, settings, due=now + retry_delay(task.used, chance), now=now)


def retry_delay(attempts: int, chance: float) -> float:
    """Seconds until the next try after that many failures of the function."""
    steps: float = 2.0 ** min(attempts - 1, 20)
    return min(_LONGEST_S, _RETRY_S * steps) * (0.5 + chance / 2)


def trouble_delay(troubles: int, chance: float) -> float:
    """Seconds until the next try after that many failures of the system in a row."""
    steps: float = 2.0 ** min(troubles, 20)
    return min(_LONGEST_S, _TROUBLE_RETRY_S * steps) * (0.5 + chance / 2)


def _after_trouble(task: Task, run: Run, settings: TaskSettings, *, now: float, chance: float) -> Verdict:
    since = task.troubled or now
    if run.begun and settings.once:
        return _failed(task, replace(run, error=f"{run.error} With delivery atMostOnce it is not started again."))
    if now - since > TROUBLE_S:
        return _failed(task, run)
    due = now + trouble_delay(task.troubles, chance)
    spared = task.spared + run.begun
    verdict = _again(replace(task, spared=spared), run, settings, due=due, now=now)
    return replace(verdict, troubles=task.troubles + 1, troubled=since)


def _again(task: Task, run: Run, settings: TaskSettings, *, due: float, now: float) -> Verdict:
    if due > task.ready + settings.max_age_s:
        said = f"No time is left for another try within {settings.max_age_s:g} seconds."
        return _verdict(task, TaskState.EXPIRED, error_type="Expired", error=_with_last(said, run.error))
    state = TaskState.RETRYING if run.begun else task.state
    detail = f"{run.error_type}: {run.error}"[:_ERROR_CHARS] if run.error_type else run.error[:_ERROR_CHARS]
    verdict = _verdict(task, state, detail=detail, error_type=run.error_type, error=run.error)
    return replace(verdict, due=due)


def _failed(task: Task, run: Run) -> Verdict:
    return _verdict(task, TaskState.FAILED, error_type=run.error_type, error=run.error)


def _verdict(task: Task, state: TaskState, *, detail: str = "", error_type: str = "", error: str = "") -> Verdict:
    return Verdict(
        state=state, detail=detail, spared=task.spared, error_type=error_type[:128], error=error[:_ERROR_CHARS]
    )


def _with_last(said: str, last: str) -> str:
    return f"{said} Its last try: {last}" if last else said
