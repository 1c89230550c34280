"""What a server does about the tasks that ran when the one before it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from roost.functions.tasks import policy
from roost.functions.tasks.endings import Endings
from roost.functions.tasks.policy import Kind, Run, TaskSettings
from roost.model.task import Task


async def recover(
    held: Iterable[Task],
    endings: Endings,
    *,
    settings: Callable[[Task], TaskSettings],
    clock: Callable[[], float],
    chance: Callable[[], float],
    notify: Callable[[], None],
) -> None:
    """Decide on each by its function's settings. A task that waits again has been counted then."""
    for task in held:
        mine = settings(task)
        verdict = policy.interrupted(task, mine, now=clock(), chance=chance(), orderly=False)
        run = Run(kind=Kind.FAULT, error_type=verdict.error_type, error=verdict.error)
        await endings.conclude((task.account, task.function, task.session), task, run, verdict, mine)
        notify()
