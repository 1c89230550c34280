"""The settings of timers: Function Compute's, with a time zone and what becomes of fires that were missed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from roost.functions.triggers.schedule import Schedule, parse_schedule
from roost.functions.triggers.settings import SourceSettings, wrong
from roost.store.triggers import TriggerRecord


class CatchUp(StrEnum):
    """Which of the fires happen that were missed: the server was down, or the trigger paused."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class TimerSettings(SourceSettings):
    time_zone: Annotated[str, Field(max_length=64)] | None = None
    cron_expression: Annotated[str, Field(min_length=1, max_length=256)]
    payload: Annotated[str, Field(max_length=65536)] = ""
    catch_up: Annotated[CatchUp, Field(strict=False)] = CatchUp.LAST

    @field_validator("cron_expression")
    @classmethod
    def _check_schedule(cls, value: str, info: ValidationInfo) -> str:
        try:
            parse_schedule(value, info.data.get("time_zone"), 0.0)
        except ValueError as error:
            raise wrong(str(error)) from error
        return value

    def schedule(self, record: TriggerRecord) -> Schedule:
        """Raises ValueError: a time zone may have gone since it was checked."""
        return parse_schedule(self.cron_expression, self.time_zone, record.created)
