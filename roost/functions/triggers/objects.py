"""The settings of triggers on a bucket: Function Compute's."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from roost.functions.definition import Shape
from roost.functions.triggers.settings import SourceSettings, wrong
from roost.model.errors import InvalidArgument
from roost.model.objects import BUCKET, MAX_KEY_BYTES
from roost.store.triggers import TriggerRecord

CREATED, REMOVED = "ObjectCreated", "ObjectRemoved"
#: What happens to whole objects. A store does not say how an object came: all that create are one.
_NAMES = {
    CREATED: ("*", "PutObject", "PostObject", "CopyObject", "AppendObject", "CompleteMultipartUpload"),
    REMOVED: ("*", "DeleteObject", "DeleteObjects"),
}
_EVENTS = {f"oss:{kind}:{name}": kind for kind, names in _NAMES.items() for name in names}
_ARN = re.compile(r"acs:oss:[^:]*:(?P<account>[^:]*):(?P<bucket>[^:/]+)")

Part = Annotated[str, Field(max_length=MAX_KEY_BYTES)]


class KeyFilter(Shape):
    prefix: Part = ""
    suffix: Part = ""


class ObjectFilter(Shape):
    key: KeyFilter = KeyFilter()


class ObjectSettings(SourceSettings):
    """The bucket is that of the trigger's `sourceArn` unless it is named here."""

    events: Annotated[list[str], Field(min_length=1, max_length=16)]
    filter: ObjectFilter = ObjectFilter()
    bucket_name: str | None = None
    poll_seconds: Annotated[float, Field(ge=1, le=3600, strict=False)] = 10.0

    @field_validator("events")
    @classmethod
    def _check_events(cls, events: list[str]) -> list[str]:
        for event in events:
            if event not in _EVENTS:
                raise wrong(f"{event[:60]!r} is not an event that happens here; there are {', '.join(_EVENTS)}")
        return events

    @model_validator(mode="after")
    def _check_bucket(self) -> Self:
        if self.bucket_name is not None and not BUCKET.fullmatch(self.bucket_name):
            raise wrong(f"bucketName: {self.bucket_name[:80]!r} is not the name of a bucket")
        return self

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(_EVENTS[event] for event in self.events)

    def bucket(self, record: TriggerRecord) -> str:
        """Raises InvalidArgument where none is named."""
        if self.bucket_name is not None:
            return self.bucket_name
        found = _ARN.fullmatch(record.source_arn)
        if found is None or not BUCKET.fullmatch(found["bucket"]):
            raise InvalidArgument(
                "sourceArn: an oss trigger takes acs:oss:<region>:<account>:<bucket>, or a bucketName in its "
                f"triggerConfig; this is {record.source_arn[:80]!r}."
            )
        return found["bucket"]

    def check_record(self, record: TriggerRecord) -> None:
        self.bucket(record)
