"""The sources of events, one module each."""

from __future__ import annotations

from collections.abc import Mapping

from roost.triggers.adapters import ADAPTERS, queue_source
from roost.triggers.alarms import Alarms
from roost.triggers.ports import Cursors, Factory
from roost.triggers.sources.timer import Timer
from roost.triggers.sources.webhook import Webhook


def factories(*, alarms: Alarms, cursors: Cursors) -> Mapping[str, Factory]:
    """What makes the source of a trigger, by the trigger's type."""
    return {
        "timer": lambda record: Timer(record, alarms=alarms, cursors=cursors),
        "webhook": lambda record: Webhook(),
        **dict.fromkeys(ADAPTERS, queue_source),
    }
