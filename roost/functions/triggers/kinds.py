"""Which types of triggers there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.functions.triggers.http import HTTP, http_config
from roost.functions.triggers.objects import ObjectSettings
from roost.functions.triggers.postgresql import TableSettings
from roost.functions.triggers.queues import QUEUES
from roost.functions.triggers.settings import SourceSettings, checked, settings_of, shown
from roost.functions.triggers.timer import TimerSettings
from roost.functions.triggers.webhook import WebhookSettings
from roost.model.errors import InvalidArgument
from roost.store.triggers import TriggerRecord

TIMER, WEBHOOK, OBJECTS = "timer", "webhook", "oss"
#: All but http, which is no source of events but a rule of the data plane.
SOURCES: Mapping[str, type[SourceSettings]] = {
    TIMER: TimerSettings,
    WEBHOOK: WebhookSettings,
    OBJECTS: ObjectSettings,
    "postgresql": TableSettings,
    **QUEUES,
}


def check_config(type: str, text: str, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A `triggerConfig` as it is to be kept; `kept` is what the trigger has now. Raises InvalidArgument."""
    if type == HTTP:
        return http_config(text)
    shape = SOURCES.get(type)
    if shape is None:
        known = ", ".join(map(repr, (HTTP, *SOURCES)))
        raise InvalidArgument(f"triggerType: {type[:40]!r} is not supported; there are {known}.")
    return checked(shape, text, kept)


def check_record(record: TriggerRecord) -> None:
    """Whether the parts of a trigger fit each other. Raises InvalidArgument."""
    shape = SOURCES.get(record.type)
    if shape is not None:
        settings_of(shape, record).check_record(record)


def visible_config(record: TriggerRecord) -> dict[str, Any]:
    """A trigger's settings without their secrets."""
    shape = SOURCES.get(record.type)
    return dict(record.config) if shape is None else shown(shape, record.config)


def is_enabled(record: TriggerRecord) -> bool:
    return bool(record.config.get("enable", True))
