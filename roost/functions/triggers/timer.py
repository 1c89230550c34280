"""The settings of timers: Function Compute's, with a time zone and what becomes of fires that were missed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from roost.functions.triggers.schedule import Schedule, parse_schedule
from roost.functions.triggers.settings import SourceSettings, wrong
from roost.store.triggers import TriggerRecord


class CatchUp(StrEnum):
    """Which of the fires happen that were missed: the server was down, or the trigger paused."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class TimerSettings(SourceSettings):
    cron_expression: Annotated[str, Field(min_length=1, max_length=256)]
    payload: Annotated[str, Field(max_length=65536)] = ""
    time_zone: Annotated[str, Field(max_length=64)] | None = None
    catch_up: Annotated[CatchUp, Field(strict=False)] = CatchUp.LAST

    @model_validator(mode="after")
    def _check_schedule(self) -> TimerSettings:
        try:
            parse_schedule(self.cron_expression, self.time_zone, 0.0)
        except ValueError as error:
            raise wrong(f"cronExpression: {error}") from error
        return self

    def schedule(self, record: TriggerRecord) -> Schedule:
        return parse_schedule(self.cron_expression, self.time_zone, record.created)
