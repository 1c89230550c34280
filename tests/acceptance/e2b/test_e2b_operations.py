"""Operations that the SDKs' own verbs do not use, asked for with the client that is generated into the official SDK."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from e2b import ConnectionConfig, Sandbox, Template
from e2b.api.client.api.sandboxes import get_v2_sandboxes
from e2b.api.client.api.tags import get_templates_template_id_tags_groups as tag_groups
from e2b.api.client.api.tags import get_templates_template_id_tags_tag_assignments as tag_assignments
from e2b.api.client.api.templates import get_default_templates
from e2b.api.client.api.templates import get_templates_template_id_builds_build_id_logs as build_logs
from e2b.api.client.api.templates import patch_v_2_templates_template_id as patch_template
from e2b.api.client.models import LogLevel, LogsDirection, TemplateUpdateRequest
from e2b.api.client_sync import get_api_client
from e2b.template.types import BuildInfo

from tests.support.server import Server


@pytest.fixture
def api(environment: None) -> Any:
    return get_api_client(ConnectionConfig())


@pytest.fixture
def built(environment: None) -> Iterator[BuildInfo]:
    name = f"built-{uuid4().hex[:8]}"
    yield Template.build(Template().from_template("base").run_cmd("echo one; echo two >&2"), name)
    httpx.delete(f"{ConnectionConfig().api_url}/templates/{name}", headers={"x-api-key": "any"})


def test_the_log_of_a_build_in_both_directions(api: Any, built: BuildInfo) -> None:
    def read(**query: Any) -> list[Any]:
        return list(build_logs.sync(built.template_id, built.build_id, client=api, **query).logs)

    lines = read()
    assert [line.message[-3:] for line in lines if line.message.endswith(("one", "two"))] == ["one", "two"], lines
    assert read(direction=LogsDirection.BACKWARD) == lines[::-1]
    assert read(limit=1) == lines[:1]
    assert read(cursor=int(time.time() * 1000) + 60_000) == []
    assert read(level=LogLevel.ERROR) == []
    unknown = build_logs.sync(built.template_id, str(uuid4()), client=api)
    assert (unknown.code, "not found" in unknown.message) == (404, True)


def test_tags_in_pages_with_what_they_mean(api: Any, built: BuildInfo) -> None:
    Template.assign_tags(built.name, ["v1", "v2"])
    page = tag_groups.sync(built.template_id, client=api, tags_limit=2)
    rest = tag_groups.sync(built.template_id, client=api, tags_limit=2, tags_cursor=page.next_cursor)
    assert rest.next_cursor is None
    groups = [*page.tags, *rest.tags]
    assert sorted(group.tag for group in groups) == ["default", "v1", "v2"]
    assert {str(group.assignments[0].build_id) for group in groups} == {built.build_id}
    assert [group.tag for group in tag_groups.sync(built.template_id, client=api, search="v1").tags] == ["v1"]
    [assigned] = tag_assignments.sync(built.template_id, "v2", client=api).data
    assert assigned == next(group for group in groups if group.tag == "v2").assignments[0]
    assert tag_assignments.sync(built.template_id, "v3", client=api).code == 404


def test_a_template_is_its_account_s_own(api: Any, built: BuildInfo) -> None:
    def share(template: str, public: bool) -> Any:
        return patch_template.sync(template, client=api, body=TemplateUpdateRequest(public=public))

    assert share(built.template_id, False).names == [built.name]
    assert "shared with none" in share(built.template_id, True).message
    builtin = patch_template.sync_detailed("base", client=api, body=TemplateUpdateRequest(public=False))
    assert builtin.status_code == 403
    assert "base" in {template.template_id for template in get_default_templates.sync(client=api)}
    assert built.template_id not in {template.template_id for template in get_default_templates.sync(client=api)}


def test_an_account_is_a_team_and_its_sandboxes_are_counted(api: Any, roost: Server, sandbox: Sandbox) -> None:
    with roost.client() as client:

        def get(path: str, **query: Any) -> httpx.Response:
            return client.get(path, params=query, headers={"x-api-key": "mine"})

        [team] = get("/teams").json()
        assert (team["apiKey"], team["isDefault"]) == ("mine", True)
        metrics = f"/teams/{team['teamID']}/metrics"
        roost.until(lambda: any(count["concurrentSandboxes"] for count in get(metrics).json()))
        assert get(f"{metrics}/max", metric="concurrent_sandboxes").json()["value"] >= 1
        assert get(f"{metrics}/max", metric="sandbox_start_rate").json()["value"] > 0
        assert get(metrics, start=int(time.time()) + 60).json() == []
        assert get(f"{metrics}/max", metric="height").status_code == 400
        assert get("/teams/other/metrics").status_code == 403
    listed = get_v2_sandboxes.sync_detailed(client=api)
    assert listed.headers["x-total-running"] == "1"


def test_what_is_kept_without_effect_is_told(roost: Server) -> None:
    network = {
        "allowOut": ["example.com"],
        "denyOut": ["0.0.0.0/0"],
        "egressProxy": {"address": "proxy.example.com:1080"},
    }
    with roost.client() as client:
        made = client.post("/v2/sandboxes", json={"templateID": "base", "network": network})
        path = f"/sandboxes/{made.json()['sandboxID']}"
        assert made.headers["x-roost-without-effect"] == "network.egressProxy"
        assert made.json()["withoutEffect"] == ["network.egressProxy"]
        changed = client.put(f"{path}/network", json={"dnsServers": ["a"], "denyOut": []})
        assert (changed.status_code, changed.headers["x-roost-without-effect"]) == (204, "network.dnsServers")
        lines = [line["line"] for line in client.get(f"{path}/logs").json()["logs"]]
        assert [line.split()[1] for line in lines] == ["network.egressProxy", "network.dnsServers"]
        client.delete(path)
        plain = client.post("/v2/sandboxes", json={"templateID": "base", "network": {"denyOut": ["0.0.0.0/0"]}})
        assert "x-roost-without-effect" not in plain.headers
        client.delete(f"/sandboxes/{plain.json()['sandboxID']}")
