"""Names of objects, what differs between two looks at a bucket, where a store is, and how rows are put together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.config import ConfigError
from roost.functions.triggers.objects import CREATED, REMOVED
from roost.model.objects import ObjectInfo, is_key
from roost.objects.local_files import walk
from roost.objects.stores import parse_address
from roost.store.trigger_objects import SeenObject
from roost.triggers.sources.object_events import Change, Origin, changes, event_body

PARTS = st.text(st.sampled_from("ab-./0é!~"), min_size=1, max_size=4)
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(is_key)


def info(key: str, stamp: str = "1", *, size: int = 1) -> ObjectInfo:
    return ObjectInfo(
        key=key, size=size, etag=stamp, modified=0.25, appeared=0.0, stamp=stamp, birth="b", writing=False
    )


def seen(key: str, stamp: str = "1", *, size: int = 1) -> SeenObject:
    return SeenObject(key=key, stamp=stamp, birth="b", size=size, etag=stamp)


@settings(max_examples=60, deadline=None)
@given(keys=st.sets(KEYS, max_size=12), prefix=st.one_of(st.just(""), KEYS), after=st.one_of(st.just(""), KEYS))
def test_files_are_listed_in_the_order_of_their_keys(keys: set[str], prefix: str, after: str) -> None:
    with TemporaryDirectory() as folder:
        made = set()
        for key in sorted(keys):
            path = Path(folder, key)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue  # a key is the folder of another
            if path.is_file():
                made.add(key)
        found = [one.key for one in walk(lambda: os.open(folder, os.O_RDONLY), prefix, after)]
    wanted = [key for key in made if key.startswith(prefix) and key.encode() > after.encode()]
    assert found == sorted(wanted, key=str.encode)


def test_what_differs() -> None:
    found = {
        change.key: change.kind
        for change in changes(
            [seen("same"), seen("changed"), seen("gone")], [info("same"), info("changed", "2"), info("new")]
        )
    }
    assert found == {"changed": CREATED, "gone": REMOVED, "new": CREATED}


def test_the_same_change_has_the_same_name_and_another_has_another() -> None:
    names = [
        Change(before=None, after=info("a")).occurrence,
        Change(before=seen("a"), after=info("a", "2")).occurrence,
        Change(before=seen("a", "2"), after=None).occurrence,
        Change(before=seen("a"), after=None).occurrence,
        Change(before=None, after=info("b")).occurrence,
    ]
    assert len(set(names)) == len(names)
    assert Change(before=seen("a", "0"), after=info("a")).occurrence == names[0]  # however it came to be


def test_an_event_has_the_shape_of_function_compute() -> None:
    origin = Origin(bucket="inbox", region="local", account="default", rule="rule")
    body = event_body(Change(before=seen("k", "0", size=5), after=info("k", size=3)), origin, now=9.0, request_id="r")
    (event,) = json.loads(body)["events"]
    assert event == {
        "eventName": "ObjectCreated:PutObject",
        "eventSource": "acs:oss",
        "eventTime": "1970-01-01T00:00:00.250Z",
        "eventVersion": "1.0",
        "oss": {
            "bucket": {
                "arn": "acs:oss:local:default:inbox", "name": "inbox", "ownerIdentity": "default", "virtualBucket": ""
            },
            "object": {"key": "k", "size": 3, "deltaSize": -2, "eTag": "1"},
            "ossSchemaVersion": "1.0",
            "ruleId": "rule",
        },
        "region": "local",
        "requestParameters": {"sourceIPAddress": ""},
        "responseElements": {"requestId": "r"},
        "userIdentity": {"principalId": "default"},
    }  # fmt: skip
    body = event_body(Change(before=seen("k", size=5), after=None), origin, now=9.0, request_id="r")
    (event,) = json.loads(body)["events"]
    assert event["eventName"] == "ObjectRemoved:DeleteObject" and event["eventTime"] == "1970-01-01T00:00:09.000Z"
    assert event["oss"]["object"] == {"key": "k", "size": 0, "deltaSize": -5, "eTag": "1"}


def test_where_a_store_is() -> None:
    assert parse_address("s3://?endpoint=http://h:9000/&region=eu") == ("http://h:9000", "eu")
    assert parse_address("s3://") == ("", "us-east-1")
    for wrong in ("http://h", "s3://bucket?region=x", "s3://?region=x&user=y", "s3://?endpoint=h:9000", "s3://k:s@"):
        with pytest.raises(ConfigError, match="object_store"):
            parse_address(wrong)
