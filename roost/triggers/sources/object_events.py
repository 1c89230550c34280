"""What happened to objects: found by comparison, told in Function Compute's words. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from roost.functions.triggers.objects import CREATED, REMOVED
from roost.model.objects import ObjectInfo
from roost.store.trigger_objects import SeenObject

_NAMES = {CREATED: "ObjectCreated:PutObject", REMOVED: "ObjectRemoved:DeleteObject"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From what was known of an object to what it is; None: there was none, or is none."""

    before: SeenObject | None
    after: ObjectInfo | None

    @property
    def key(self) -> str:
        found = self.after or self.before
        assert found is not None
        return found.key

    @property
    def kind(self) -> str:
        return REMOVED if self.after is None else CREATED

    @property
    def occurrence(self) -> str:
        """The same for the same change, however often it is found: until it has been noted, what was known stays."""
        if self.after is None:
            assert self.before is not None
            return "\0".join((self.key, self.before.stamp, self.before.birth, REMOVED))
        return "\0".join((self.key, self.after.stamp, self.after.birth, CREATED))

    def seen(self) -> SeenObject | None:
        """What is known when it has been dealt with."""
        if self.after is None:
            return None
        now = self.after
        return SeenObject(key=now.key, stamp=now.stamp, birth=now.birth, size=now.size, etag=now.etag)


def changes(before: Iterable[SeenObject], after: Iterable[ObjectInfo]) -> Iterator[Change]:
    """What differs. Neither has two with the same key."""
    present = {info.key: info for info in after}
    for seen in before:
        info = present.pop(seen.key, None)
        if info is None or info.stamp != seen.stamp:
            yield Change(before=seen, after=info)
    for info in present.values():
        yield Change(before=None, after=info)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the events of a trigger come from."""

    bucket: str
    region: str
    account: str
    rule: str  # the trigger's id


def event_body(change: Change, origin: Origin, *, now: float, request_id: str) -> bytes:
    """The event that the function gets."""
    gone = change.after is None
    size = 0 if change.after is None else change.after.size
    etag = change.before.etag if change.before and gone else change.after.etag if change.after else ""
    said: dict[str, Any] = {
        "eventName": _NAMES[change.kind],
        "eventSource": "acs:oss",
        "eventTime": _iso(now if change.after is None else change.after.modified),
        "eventVersion": "1.0",
        "oss": {
            "bucket": {
                "arn": f"acs:oss:{origin.region}:{origin.account}:{origin.bucket}",
                "name": origin.bucket,
                "ownerIdentity": origin.account,
                "virtualBucket": "",
            },
            "object": {
                "key": change.key,
                "size": size,
                "deltaSize": size - (change.before.size if change.before else 0),
                "eTag": etag,
            },
            "ossSchemaVersion": "1.0",
            "ruleId": origin.rule,
        },
        "region": origin.region,
        "requestParameters": {"sourceIPAddress": ""},
        "responseElements": {"requestId": request_id},
        "userIdentity": {"principalId": origin.account},
    }
    return json.dumps({"events": [said]}, ensure_ascii=False).encode()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
