"""How many invocations led to one: functions that start each other, and themselves, come to an end.

A request that leaves a room through its proxy and comes back to this server is known by the address that it was dialled
from, whatever it says of itself, also where it is encrypted. It follows from a request that its room was working on:
the one that fewest led to, as nobody knows which it was, so that nobody is refused for what another has done. A room
that works on none is given those of its last request for a while. What comes by other ways may say itself how many
led to it (the field `HOPS`); who leaves that out is taken for a beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from roost.model.audit import Audit, AuditEvent
from roost.model.errors import InvalidArgument, LoopDetected
from roost.model.role import ANONYMOUS

#: Of a request: how many invocations led to the one that sends it. A function is told its own by it.
HOPS = "x-roost-hops"
#: For so long what a room does counts as done by its last request.
LINGER_S = 60.0
_REMEMBERED = 1024


@dataclass(slots=True, eq=False)
class _Room:
    """The hops of the requests that it works on and others led to, and of the one that ended last."""

    now: list[int] = field(default_factory=list)
    last: int = 0
    ended: float = 0.0


class Chains:
    """Of one server. `most` invocations may lead to another; `audit` is told of those that are refused. Clocks are
    monotonic."""

    def __init__(
        self, most: int, clock: Callable[[], float] = time.monotonic, audit: Audit = lambda event: None
    ) -> None:
        self._most = most
        self._clock = clock
        self._audit = audit
        self._rooms: dict[str, _Room] = {}
        self._beginnings: dict[str, int] = {}  # on how many requests that nothing led to each instance works
        self._dialled: dict[tuple[str, int], str] = {}

    def dialled(self, address: tuple[str, int], instance: str) -> None:
        """A connection from this address is an instance's."""
        self._dialled[address] = instance

    def hung_up(self, address: tuple[str, int]) -> None:
        self._dialled.pop(address, None)

    def enter(self, instance: str, hops: int) -> None:
        """It has begun to work on a request that so many led to."""
        if not hops:  # nearly always
            self._beginnings[instance] = self._beginnings.get(instance, 0) + 1
            return
        room = self._rooms.get(instance)
        if room is None:
            if len(self._rooms) >= _REMEMBERED:
                self._forget()
            room = self._rooms[instance] = _Room()
        room.now.append(hops)

    def leave(self, instance: str, hops: int) -> None:
        """That request is over."""
        if hops:
            room = self._rooms[instance]
            room.now.remove(hops)
            room.last, room.ended = hops, self._clock()
            return
        left = self._beginnings.pop(instance) - 1
        if left:
            self._beginnings[instance] = left
        if self._rooms and (known := self._rooms.get(instance)) is not None:
            known.last = 0

    def of(self, instance: str) -> int:
        """How many led to what a room does now."""
        room = self._rooms.get(instance)
        if room is None or instance in self._beginnings:
            return 0
        if room.now:
            return min(room.now)
        return room.last if self._clock() - room.ended < LINGER_S else 0

    def admit(self, source: tuple[str, int] | None, said: bytes | None, account: str, function: str) -> int:
        """How many led to a request that comes from there, says so much, and is for this function. Raises LoopDetected
        when it is too many, InvalidArgument for what is no number."""
        hops, actor = 0, ANONYMOUS
        if said is not None:
            if not said.isdigit() or len(said) > 9:
                raise InvalidArgument(f"{HOPS}: a number is expected.")
            hops = int(said) + 1
        if self._dialled and source is not None and (instance := self._dialled.get(source)) is not None:
            hops, actor = max(hops, self.of(instance) + 1), f"instance/{instance}"
        if hops > self._most:
            self._audit(
                AuditEvent(
                    action="invocation.refuse",
                    account=account,
                    actor=actor,
                    target=f"function/{function}",
                    outcome="denied",
                    detail={"hops": hops},
                )
            )
            raise LoopDetected(
                f"{self._most} invocations have led to this one, each started by the one before: the function goes "
                "round in circles, or the server's max_hops is too low."
            )
        return hops

    def _forget(self) -> None:
        """Rooms that nothing is to be said of any more."""
        now = self._clock()
        for instance, room in list(self._rooms.items()):
            if not room.now and now - room.ended >= LINGER_S:
                del self._rooms[instance]
