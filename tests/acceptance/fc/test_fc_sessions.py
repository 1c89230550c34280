"""The Session API and the list of instances through the official SDK, in front of fakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc
from darabonba.exceptions import DaraException

Zip = Callable[..., str]
HEADER = json.dumps({"affinityHeaderFieldName": "X-Session", "sessionTTLInSeconds": 7200})


@pytest.fixture
def client(server: Any, zip64: Zip) -> Any:
    """With `chat` (header affinity), `web` (cookie), `mcp` (MCP SSE) and `plain` (none)."""
    found = server.client()
    kinds = {"chat": ("HEADER_FIELD", HEADER), "web": ("GENERATED_COOKIE", None), "mcp": ("MCP_SSE", None)}
    for name in ("chat", "web", "mcp", "plain"):
        affinity, config = kinds.get(name, (None, None))
        body = fc.CreateFunctionInput(
            function_name=name,
            runtime="custom",
            handler="x",
            code=fc.InputCodeLocation(zip_file=zip64()),
            session_affinity=affinity,
            session_affinity_config=config,
        )
        found.create_function(fc.CreateFunctionRequest(body=body))
    return found


def create(client: Any, function: str = "chat", qualifier: str | None = None, **fields: Any) -> Any:
    request = fc.CreateSessionRequest(body=fc.CreateSessionInput(**fields), qualifier=qualifier)
    return client.create_session(function, request).body


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(DaraException) as caught:
        call()
    return caught.value.status_code, caught.value.code


def test_a_session_is_created_with_the_functions_defaults(client: Any) -> None:
    made = create(client, session_id="s-1")
    assert (made.session_id, made.function_name, made.qualifier) == ("s-1", "chat", "LATEST")
    assert (made.session_ttlin_seconds, made.session_idle_timeout_in_seconds) == (7200, 1800)
    assert (made.session_status, made.session_affinity_type) == ("Active", "HEADER_FIELD")
    assert made.created_time == "2023-11-14T22:13:20Z"
    shown = client.get_session("chat", "s-1", fc.GetSessionRequest()).body
    assert shown.to_map() == made.to_map()


def test_what_is_given_reaches_the_session_manager(server: Any, client: Any) -> None:
    made = create(
        client,
        session_id="s-1",
        session_ttlin_seconds=86400,
        session_idle_timeout_in_seconds=0,
        disable_session_id_reuse=True,
        enable_auto_pause=True,
        enable_auto_resume=True,
        nas_config=fc.NASConfig(
            user_id=1, group_id=2, mount_points=[fc.NASMountConfig(server_addr="home:/alice", mount_dir="/mnt/home")]
        ),
        oss_mount_config=fc.OSSMountConfig(
            mount_points=[fc.OSSMountPoint(bucket_name="data", mount_dir="/mnt/data", read_only=True)]
        ),
    )
    kept = server.sessions.sessions["acct1", "chat", "s-1"]
    assert (kept.ttl_s, kept.idle_timeout_s, kept.disable_id_reuse) == (86400, 0, True)
    assert (kept.auto_pause, kept.auto_resume, kept.user) == (True, True, "default")
    assert kept.config["mounts"] == [
        {"volume": "home", "path": "/alice", "target": "/mnt/home", "read_only": False, "quota_mb": None},
        {"volume": "data", "path": "/", "target": "/mnt/data", "read_only": True, "quota_mb": None},
    ]
    assert made.nas_config.mount_points[0].server_addr == "home:/alice"
    assert made.oss_mount_config.mount_points[0].bucket_name == "data"


def test_the_server_chooses_the_id_of_a_cookie_session(client: Any) -> None:
    assert create(client, "web").session_id == "generated-0"
    assert refused(lambda: create(client, "web", session_id="mine")) == (400, "InvalidArgument")


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        ("plain", {}),
        ("mcp", {}),
        ("chat", {"session_id": "-x"}),
        ("chat", {"session_id": "x" * 65}),
        ("chat", {"session_ttlin_seconds": 0}),
        ("chat", {"session_ttlin_seconds": 86401}),
        ("chat", {"session_ttlin_seconds": 10, "session_idle_timeout_in_seconds": 11}),
        ("chat", {"snapshot_id": "snap"}),
        ("chat", {"allow_internet_access": True}),
        ("chat", {"network": fc.CreateSessionNetworkConfig(allow_out=["a.example"])}),
        ("chat", {"nas_config": fc.NASConfig(mount_points=[fc.NASMountConfig(server_addr="a/b", mount_dir="/mnt")])}),
        ("chat", {"nas_config": fc.NASConfig(mount_points=[fc.NASMountConfig(server_addr="a:/b", mount_dir="/etc")])}),
    ],
)
def test_a_session_that_can_not_be_is_refused(server: Any, client: Any, function: str, fields: dict[str, Any]) -> None:
    assert refused(lambda: create(client, function, **fields)) == (400, "InvalidArgument")
    assert server.sessions.sessions == {}


def test_a_mount_of_a_session_does_not_hide_one_of_its_function(server: Any, client: Any) -> None:
    def nas(target: str) -> Any:
        return fc.NASConfig(mount_points=[fc.NASMountConfig(server_addr="v:/", mount_dir=target)])

    client.update_function("chat", fc.UpdateFunctionRequest(body=fc.UpdateFunctionInput(nas_config=nas("/mnt/a"))))
    assert refused(lambda: create(client, nas_config=nas("/mnt/a/b"))) == (400, "InvalidArgument")
    assert create(client, nas_config=nas("/mnt/b")).session_status == "Active"


def test_sessions_are_listed_by_page_and_filter(client: Any) -> None:
    for index in range(3):
        create(client, session_id=f"s-{index}")
    client.pause_session("chat", "s-1", fc.PauseSessionRequest())

    def ids(**query: Any) -> tuple[list[str], str | None]:
        body = client.list_sessions("chat", fc.ListSessionsRequest(**query)).body
        return [session.session_id for session in body.sessions], body.next_token

    assert ids() == (["s-0", "s-1", "s-2"], None)
    assert ids(limit=2) == (["s-0", "s-1"], "s-2")
    assert ids(limit=2, next_token="s-2") == (["s-2"], None)
    assert ids(session_status="Paused") == (["s-1"], None)
    assert ids(session_id="s-2") == (["s-2"], None)
    assert refused(lambda: ids(session_status="Asleep")) == (400, "InvalidArgument")
    missing = fc.ListSessionsRequest()
    assert refused(lambda: client.list_sessions("none", missing)) == (404, "FunctionNotFound")


def test_a_session_is_updated_paused_resumed_and_deleted(client: Any) -> None:
    create(client, session_id="s-1")
    body = fc.UpdateSessionInput(session_ttlin_seconds=3600, session_idle_timeout_in_seconds=60)
    changed = client.update_session("chat", "s-1", fc.UpdateSessionRequest(body=body)).body
    assert (changed.session_ttlin_seconds, changed.session_idle_timeout_in_seconds) == (3600, 60)
    wrong = fc.UpdateSessionRequest(body=fc.UpdateSessionInput(session_idle_timeout_in_seconds=3601))
    assert refused(lambda: client.update_session("chat", "s-1", wrong)) == (400, "InvalidArgument")

    paused = client.pause_session("chat", "s-1", fc.PauseSessionRequest())
    assert (paused.body.session_status, paused.headers["x-roost-paused"]) == ("Paused", "memory")
    again = fc.PauseSessionRequest()
    assert refused(lambda: client.pause_session("chat", "s-1", again)) == (409, "SessionStatusConflict")
    assert client.resume_session("chat", "s-1", fc.ResumeSessionRequest()).body.session_status == "Active"
    files = client.pause_session("chat", "s-1", fc.PauseSessionRequest(file_system_only="true"))
    assert files.headers["x-roost-paused"] == "files"

    assert client.delete_session("chat", "s-1", fc.DeleteSessionRequest()).status_code == 204
    get = fc.GetSessionRequest()
    assert refused(lambda: client.get_session("chat", "s-1", get)) == (404, "SessionNotFound")


def test_the_user_of_a_session_is_an_extension(open_server: Any, zip64: Zip) -> None:
    url = open_server.url + "/2023-03-30/functions"
    body = {"functionName": "chat", "runtime": "custom", "code": {"zipFile": zip64()}}
    affinity = {"sessionAffinity": "HEADER_FIELD", "sessionAffinityConfig": HEADER}
    httpx.post(url, json=body | affinity).raise_for_status()
    made = httpx.post(url + "/chat/sessions", json={"sessionId": "s", "roost": {"user": "alice"}})
    assert made.json()["roost"] == {"user": "alice"}
    assert open_server.sessions.sessions["default", "chat", "s"].user == "alice"
    for user in ("../x", "", "a/b", "."):
        answer = httpx.post(url + "/chat/sessions", json={"roost": {"user": user}})
        assert answer.status_code == (400 if user else 200)


@dataclass(frozen=True, kw_only=True)
class View:
    instance_id: str
    state: str = "ready"
    version: str = "LATEST"
    qualifier: str = "LATEST"
    created: float = 1000.0
    destroyed: float | None = None


def test_instances_are_listed_and_filtered(server: Any, client: Any) -> None:
    client.publish_function_version("chat", fc.PublishFunctionVersionRequest(body=fc.PublishVersionInput()))
    server.instances.views = [
        View(instance_id="c", state="frozen"),
        View(instance_id="a"),
        View(instance_id="b", version="1", qualifier="prod", state="stopped", destroyed=2000.0),
    ]

    def ids(**query: Any) -> list[str]:
        body = client.list_instances("chat", fc.ListInstancesRequest(**query)).body
        return [found.instance_id for found in body.instances]

    assert ids() == ["a", "b", "c"]
    assert ids(with_all_active=True) == ["a", "c"]
    assert ids(instance_status=["frozen", "stopped"]) == ["b", "c"]
    assert ids(instance_ids=["a", "zz"]) == ["a"]
    assert ids(qualifier="1") == ["b"]
    assert ids(limit="2") == ["a", "b"]
    assert ids(start_key="b") == ["b", "c"]
    assert ids(start_time_ms=1_500_000) == ["b"]
    assert ids(end_time_ms=500_000) == []
    first = client.list_instances("chat", fc.ListInstancesRequest()).body
    assert first.request_id
    assert first.instances[0].to_map() == {
        "instanceId": "a", "status": "ready", "versionId": "0", "qualifier": "LATEST", "createdTimeMs": 1_000_000,
    }  # fmt: skip
    assert first.instances[1].destroyed_time_ms == 2_000_000
