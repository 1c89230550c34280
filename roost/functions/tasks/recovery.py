"""What a server does about the tasks that ran when the one before it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from roost.functions.tasks import policy
from roost.functions.tasks.endings import Endings
from roost.functions.tasks.policy import Kind, Run, TaskSettings
from roost.model.task import Task


async def recover(
    held: Iterable[Task],
    endings: Endings,
    *,
    over: Callable[[str], Awaitable[None]],
    settings: Callable[[Task], TaskSettings],
    clock: Callable[[], float],
    chance: Callable[[], float],
    notify: Callable[[], None],
) -> None:
    """Decide on each by its function's settings, once nothing of it runs any more: `over(instance id)` returns then. A
    task that waits again has been counted then."""

    async def decide(tasks: list[Task]) -> None:
        await over(tasks[0].instance_id)
        for task in tasks:
            mine = settings(task)
            verdict = policy.interrupted(task, mine, now=clock(), chance=chance(), orderly=False)
            run = Run(kind=Kind.FAULT, error_type=verdict.error_type, error=verdict.error)
            await endings.conclude((task.account, task.function, task.session), task, run, verdict, mine)
            notify()

    by_instance: dict[str, list[Task]] = {}
    for task in held:
        by_instance.setdefault(task.instance_id, []).append(task)
    await asyncio.gather(*(decide(tasks) for tasks in by_instance.values()))
