"""All drivers of a server as one: which of them makes a room follows from the isolation that it is to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.isolation.driver import Driver, Room, RoomSpec, Template
from roost.model.errors import InvalidArgument, Unavailable
from roost.model.function import ISOLATIONS


class Drivers:
    """`usual` makes every room that none of `others`, by isolation, is for. `lacking`: what no driver here makes, by
    isolation, with what mends it."""

    name = "drivers"

    def __init__(
        self, usual: Driver, others: Mapping[str, Driver], *, lacking: Mapping[str, str] | None = None
    ) -> None:
        self._usual = usual
        self._others = others
        self._lacking = lacking or {}
        self._all = (usual, *others.values())
        self.capabilities = frozenset.intersection(*(driver.capabilities for driver in self._all))

    def present(self) -> Mapping[str, str]:
        """Which driver's rooms have which isolation, of those that can be had here."""
        found = {isolation: self._of(isolation) for isolation in ISOLATIONS if isolation not in self._lacking}
        return {isolation: driver.name for isolation, driver in found.items() if not driver.lack()}

    def admit(self, isolation: str) -> None:
        """Raises InvalidArgument if no room can have it here."""
        if isolation not in ISOLATIONS:
            known = f"{', '.join(ISOLATIONS[:-1])} and {ISOLATIONS[-1]}"
            raise InvalidArgument(f"This server has no isolation '{isolation[:64]}', only {known}.")
        if lack := self._lacking.get(isolation) or self._of(isolation).lack():
            raise InvalidArgument(f"This server can't give the isolation '{isolation}': {lack}")

    def lack(self) -> str:
        return self._usual.lack()

    async def start(self) -> None:
        for driver in self._all:
            await driver.start()

    async def close(self) -> None:
        for driver in reversed(self._all):
            await driver.close()

    async def warm(self, template: Template) -> None:
        await self._usual.warm(template)

    async def create(self, spec: RoomSpec) -> Room:
        if lack := self._lacking.get(spec.isolation):
            raise Unavailable(f"This server can't give the isolation '{spec.isolation}': {lack}")
        return await self._of(spec.isolation).create(spec)

    async def recover(self, handle: Mapping[str, Any]) -> Room | None:
        """By the driver that the handle names; None if there is no such driver."""
        for driver in self._all:
            if handle.get("driver") == driver.name:
                return await driver.recover(handle)
        return None

    async def sweep(self, keep: frozenset[str]) -> int:
        return sum([await driver.sweep(keep) for driver in self._all])

    def _of(self, isolation: str) -> Driver:
        return self._others.get(isolation, self._usual)
