"""What an instance does next, and how many instances a pool starts. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from roost.model.function import Idle
from roost.model.instance import State, StopReason


class Action(StrEnum):
    """The next step of an instance's task."""

    WAIT = "wait"
    FREEZE = "freeze"
    THAW = "thaw"
    PAUSE = "pause"
    DRAIN = "drain"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class View:
    """All that the decision depends on."""

    state: State
    leases: int
    idle_since: float
    idle: Idle
    kept: bool = False  # provisioned: never stopped for being idle
    exited: bool = False
    freezes: bool = True  # False: its room can't be, so it stays ready until it is stopped
    held: bool = False  # frozen until it is let go, whoever has a lease
    pause_wanted: bool = False
    keep_memory: bool = False  # of a pause: frozen until it is resumed
    stop_wanted: StopReason | None = None
    stop_deadline: float = float("inf")  # when a wanted stop no longer waits for leases


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`wake_at` is when to decide again if nothing happens before."""

    action: Action
    wake_at: float = float("inf")
    reason: StopReason | None = None


def decide(view: View, now: float) -> Decision:
    """The next step. Scale-in and idleness never end a lease; only exit and a passed stop deadline do, and being held
    keeps it from running."""
    if view.exited:
        return Decision(action=Action.STOP, reason=StopReason.EXITED)
    if view.stop_wanted is not None:
        if view.leases == 0 or now >= view.stop_deadline:
            return Decision(action=Action.STOP, reason=view.stop_wanted)
        if view.state is State.FROZEN:
            return Decision(action=Action.THAW)
        action = Action.WAIT if view.state is State.DRAINING else Action.DRAIN
        return Decision(action=action, wake_at=view.stop_deadline)
    if view.held:
        return Decision(action=Action.FREEZE if view.state is State.READY else Action.WAIT)
    if view.leases:
        if view.state is State.FROZEN:
            return Decision(action=Action.THAW)
        # Leases come and go without waking the instance's task; it looks again when it could have become idle.
        return Decision(action=Action.WAIT, wake_at=now + max(view.idle.freeze_after_s, 0.05))
    if view.pause_wanted:
        if view.state is State.READY and view.freezes:
            return Decision(action=Action.FREEZE)
        return Decision(action=Action.WAIT if view.keep_memory else Action.PAUSE)
    return _when_idle(view, now)


def _when_idle(view: View, now: float) -> Decision:
    """Nobody wants anything of it: frozen after a while, stopped after another."""
    stop_at = float("inf") if view.kept else view.idle_since + view.idle.stop_after_s
    if now >= stop_at:
        return Decision(action=Action.STOP, reason=StopReason.IDLE)
    freeze_at = view.idle_since + view.idle.freeze_after_s
    if view.state is State.READY:
        if not view.freezes:
            return Decision(action=Action.WAIT, wake_at=stop_at)
        if now >= freeze_at:
            return Decision(action=Action.FREEZE)
        return Decision(action=Action.WAIT, wake_at=min(freeze_at, stop_at))
    if now < freeze_at:  # it was frozen to be held or paused, and is so no longer
        return Decision(action=Action.THAW)
    return Decision(action=Action.WAIT, wake_at=stop_at)


def to_start(*, waiting: int, starting: int, alive: int, slots: int, minimum: int, maximum: int) -> int:
    """How many instances to start now.

    `waiting` requests have no slot, `starting` instances will soon offer `slots` each, `alive` counts every instance
    (starting ones too). Provisioned (`minimum`) ones are started even when nobody waits.
    """
    needed = -(-waiting // max(1, slots)) - starting
    wanted = max(needed, minimum - alive)
    return max(0, min(wanted, maximum - alive))
