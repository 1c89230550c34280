"""What an instance is made with: the server's parts that all share, and what one start of a room needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from roost.isolation.driver import Driver, Room, RoomSpec
from roost.model.function import FunctionSpec
from roost.model.session import Session
from roost.model.usage import TransitionRecord


async def _as_it_is(room: Room) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What one start of a room needs, and how to give it back."""

    room: RoomSpec
    start: Mapping[str, Any]
    release: Callable[[], None]
    #: What is still to be done to the room once it is there, also to one of an earlier server: before it runs anybody's
    #: code, or is thawed. Raises RoostError.
    furnish: Callable[[Room], Awaitable[None]] = _as_it_is


class Preparer(Protocol):
    """Turns a function's configuration into a room's."""

    async def prepare(self, spec: FunctionSpec, instance_id: str, session: Session | None) -> Prepared: ...


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every instance of a server shares."""

    driver: Driver
    preparer: Preparer
    on_transition: Callable[[TransitionRecord], None]
    on_output: Callable[[FunctionSpec, str, str, str], None]  # spec, instance id, stream, whole lines
    clock: Callable[[], float]  # Unix seconds
    start_timeout: float
    stop_grace: float
