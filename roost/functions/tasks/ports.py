"""What tasks need of the rest of Roost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from roost.functions.tasks.policy import Run
from roost.functions.tasks.tapes import Tape
from roost.model.function import FunctionSpec
from roost.model.task import Task


@dataclass(kw_only=True, eq=False)
class Order:
    """One try of a task.

    `begin` must be awaited when an instance is at hand, before anything is sent to it: it makes the start durable,
    brings `task` to its new epoch and returns the payload. What it raises ends the try; broken off, it still finds out
    whether the start took place.
    """

    task: Task
    spec: FunctionSpec
    begin: Callable[[str], Awaitable[bytes]]
    begun: bool = False
    lost: bool = False  # `begin` found that the task has gone on without us
    stopped: bool = False  # somebody wants it to be broken off
    on_stop: Callable[[], None] | None = None  # set by the runner while it can be
    record: Callable[[], Tape]  # makes the tape for what the run puts out; after `begin`
    tape: Tape | None = None  # set by the runner when it needs one; what is on it then is durable before the end is

    def stop(self) -> None:
        """Break it off; it ends soon after, by itself or as STOPPED."""
        self.stopped = True
        if self.on_stop is not None:
            self.on_stop()


class Runner(Protocol):
    """Runs tasks on instances, as any invocation."""

    async def run(self, order: Order) -> Run:
        """Lease, begin, exchange, release. Raises nothing but CancelledError, which breaks it off without grace."""
        ...


class Specs(Protocol):
    """Names of functions, from memory."""

    def resolve(self, account: str, name: str, qualifier: str | None) -> FunctionSpec:
        """Raises NotFound, AccessDenied while invocations are switched off."""
        ...


class Publisher(Protocol):
    """Sends events about ended tasks somewhere else: to a webhook, to a queue."""

    async def publish(self, destination: str, event_id: str, body: bytes) -> None:
        """Returns when the destination has it for good; what has been published before may come again, with the same
        id. Raises RoostError with a message for the task's record: InvalidArgument and NotFound where another try
        makes no sense. Bounded in time."""
        ...
