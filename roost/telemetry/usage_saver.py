"""Keeps the meter's totals across restarts: saves them now and then, and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from roost.telemetry.metering import Meter

_log = logging.getLogger(__name__)

#: What a killed server loses of its usage at most.
SAVE_EVERY_S = 30.0


class UsageSaver:
    """Calls `save` with a snapshot of the meter every `every_s` seconds in which it changed, and on `close`."""

    def __init__(
        self, meter: Meter, save: Callable[[dict[str, Any]], Awaitable[None]], *, every_s: float = SAVE_EVERY_S
    ) -> None:
        self._meter = meter
        self._save = save
        self._every_s = every_s
        self._saved = meter.revision
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._save_periodically(), name="roost-usage")

    async def close(self) -> None:
        """Save what is new, once more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._save_if_new()

    async def _save_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._save_if_new()

    async def _save_if_new(self) -> None:
        revision = self._meter.revision
        if revision == self._saved:
            return
        try:
            await self._save(self._meter.snapshot())
        except Exception as error:
            _log.warning("Usage can't be saved: %s", error)
        else:
            self._saved = revision
