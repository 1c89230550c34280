"""What is known of each trigger: counts since the server's start, the last error, whether its source is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from roost.functions.triggers.kinds import SOURCES, is_enabled
from roost.functions.triggers.settings import masked_url
from roost.store.triggers import TriggerRecord
from roost.telemetry.trigger_metrics import TriggerCounts

_ERROR_CHARS = 1000


@dataclass(eq=False)
class TriggerStatus:
    """Of one trigger; a `Report`. Times are Unix seconds, 0 for never."""

    clock: Callable[[], float] = field(default=time.time, repr=False)
    delivered_count: int = 0
    enqueued_count: int = 0
    failed_count: int = 0
    dead_lettered_count: int = 0
    last_success: float = 0.0
    last_error: str = ""
    last_error_at: float = 0.0
    up: bool = False

    def delivered(self, count: int) -> None:
        self.delivered_count += count
        self._succeeded()

    def enqueued(self, count: int) -> None:
        self.enqueued_count += count
        self._succeeded()

    def failed(self, count: int, error: str) -> None:
        self.failed_count += count
        self._erred(error)

    def dead_lettered(self, count: int) -> None:
        self.dead_lettered_count += count

    def connected(self) -> None:
        self.up = True

    def trouble(self, error: str) -> None:
        self.up = False
        self._erred(error)

    def stopped(self) -> None:
        """Its source ended as it was told to."""
        self.up = False

    def _succeeded(self) -> None:
        self.last_success = self.clock()

    def _erred(self, error: str) -> None:
        self.last_error = masked_url(error)[:_ERROR_CHARS]
        self.last_error_at = self.clock()


class Statuses:
    """The statuses of all triggers, by their ids."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, tuple[TriggerRecord, TriggerStatus]] = {}

    def of(self, record: TriggerRecord) -> TriggerStatus:
        """Made when it is asked for first."""
        known = self._known.get(record.id)
        status = TriggerStatus(self._clock) if known is None else known[1]
        self._known[record.id] = (record, status)
        return status

    def find(self, record: TriggerRecord) -> TriggerStatus:
        """As it is, without making one."""
        known = self._known.get(record.id)
        return TriggerStatus() if known is None else known[1]

    def forget(self, trigger_id: str) -> None:
        self._known.pop(trigger_id, None)

    def counts(self) -> Iterator[TriggerCounts]:
        """For metrics."""
        for record, status in self._known.values():
            yield TriggerCounts(
                account=record.account,
                function=record.function,
                trigger=record.name,
                type=record.type,
                up=status.up,
                delivered=status.delivered_count,
                enqueued=status.enqueued_count,
                failed=status.failed_count,
                dead_lettered=status.dead_lettered_count,
                last_success=status.last_success,
            )


def state_of(record: TriggerRecord, status: TriggerStatus) -> str:
    """One word: `running`, `paused`, or `failing` while its source is not up. An http trigger just is."""
    if not is_enabled(record):
        return "paused"
    return "running" if record.type not in SOURCES or status.up else "failing" if status.last_error else "starting"
