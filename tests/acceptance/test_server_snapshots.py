"""Snapshots of sessions through the official SDK, against a whole server with real rooms."""

from __future__ import annotations

import json
from typing import Any

from alibabacloud_fc20230330 import models as fc

from tests.support.sdk import Sdk, refused
from tests.support.server import Server

COUNTER = """
count = 0
def handler(event, context):
    global count
    count += len(event)
    return f"{count}"
"""
EXCLUSIVE: dict[str, Any] = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
    "roost": {"live": True},
}


def count(roost: Server, session: str, event: str = "") -> str:
    return roost.invoke("counter", event, x_chat_id=session).text


def test_a_snapshots_whole_life(roost: Server, sdk: Sdk) -> None:
    roost.deploy("counter", {"index.py": COUNTER}, **EXCLUSIVE)
    client = sdk.client
    assert count(roost, "a", "12345") == "5"
    body = fc.CreateSnapshotInput(session_id="a", description="five")
    made = client.create_snapshot("counter", fc.CreateSnapshotRequest(body=body)).body
    assert (made.source_session_id, made.status, made.description) == ("a", "Available", "five")
    assert made.artifact_mem_used_size_in_b > 0
    assert made.artifact_disk_used_size_in_b > 0
    assert (made.memory_mb, made.function_name, made.qualifier) == (512, "counter", "LATEST")
    assert made.expired_time > made.created_time
    assert count(roost, "a", "1") == "6"

    begin = fc.CreateSessionRequest(body=fc.CreateSessionInput(session_id="b", snapshot_id=made.snapshot_id))
    reply = client.create_session("counter", begin)
    assert reply.headers["x-roost-restored"] == "memory"
    assert (reply.body.session_id, reply.body.session_status) == ("b", "Active")
    assert reply.body.container_id
    assert count(roost, "b", "1") == "6"
    assert count(roost, "b", "1") == "7"
    assert count(roost, "a") == "6"
    assert refused(lambda: client.create_session("counter", begin)).code == "SessionAlreadyExists"

    shown = client.get_snapshot("counter", made.snapshot_id, fc.GetSnapshotRequest()).body
    assert shown.to_map() == made.to_map()
    listed = client.list_snapshots(fc.ListSnapshotsRequest(function_name="counter", session_id="a")).body.snapshots
    assert [one.snapshot_id for one in listed] == [made.snapshot_id]
    assert client.list_snapshots(fc.ListSnapshotsRequest(function_name="other")).body.snapshots == []
    assert refused(lambda: client.list_snapshots(fc.ListSnapshotsRequest(session_id="a"))).status_code == 400
    client.delete_snapshot("counter", made.snapshot_id, fc.DeleteSnapshotRequest())
    assert refused(lambda: client.create_session("counter", begin)).code in ("SnapshotNotFound", "SessionAlreadyExists")
    gone = refused(lambda: client.get_snapshot("counter", made.snapshot_id, fc.GetSnapshotRequest()))
    assert (gone.status_code, gone.code) == (404, "SnapshotNotFound")
    assert count(roost, "b") == "7"
    client.delete_function("counter")
