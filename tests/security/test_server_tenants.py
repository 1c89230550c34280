"""Two accounts on one server: every route with the other's ids answers as if there were nothing, whatever the role."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from roost.config import Config
from roost.model.role import ROLES
from roost.sdk import cli
from roost.server.life import Server as Wired
from roost.tenants.roles import TABLE
from tests.support.server import NOTHING, Remains, Server, running, share_bundle, zip_base64
from tests.support.tenants import Who

FC = "/2023-03-30"
#: Routes that are no route of the control plane's application.
DATA_PLANE = {"/{function}", f"{FC}/functions/{{name}}/invocations"}
ECHO = "def handler(event, context):\n    return event\n"
#: What differs from one reply to the next: ids of requests, moments.
_FLEETING = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|1-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{12}")


@dataclass(frozen=True)
class World:
    server: Server
    operator: Who
    roles: dict[str, Who]  # of account "ours"
    theirs: Who
    ids: dict[str, str]  # of what "theirs" has, by the names that routes use

    @property
    def ours(self) -> Who:
        return self.roles["admin"]

    def path(self, pattern: str, ids: dict[str, str]) -> str:
        """A route with ids in it."""
        kinds = (("/sandboxes/{id}", "sandbox"), ("/volumes/{id}", "volume"), ("/volumecontent/{id}", "volume"))
        for prefix, kind in kinds:
            pattern = pattern.replace(prefix, prefix.replace("{id}", ids[kind]))
        if pattern.startswith(f"{FC}/layers/"):
            pattern = pattern.replace("{name}", ids["layer"])
        pattern = pattern.replace("/roost/keys/{id}", f"/roost/keys/{ids['key']}")
        return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: ids[found[1]], pattern)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config='[keys]\nroot = "the-secret-of-the-operator"\n') as server, server.client() as http:
        operator = Who(http, "root", "the-secret-of-the-operator")
        roles = {role: operator.key("ours", role) for role in ROLES}
        theirs = operator.key("theirs", "admin")
        yield World(server, operator, roles, theirs, _furnish(theirs))
    assert Remains.of(data_dir) == NOTHING


def _furnish(who: Who) -> dict[str, str]:
    """One of everything. The ids, by the names that routes use."""
    code = {"zipFile": zip_base64({"index.py": ECHO})}
    made = {"functionName": "hidden-fn", "runtime": "python3.12", "handler": "index.handler", "code": code}
    made["instanceIsolationMode"] = "SHARE"
    who.ask("POST", f"{FC}/functions", made)
    one = f"{FC}/functions/hidden-fn"
    who.ask("POST", f"{one}/versions", {})
    who.ask("POST", f"{one}/aliases", {"aliasName": "hidden-alias", "versionId": "1"})
    trigger = {"triggerName": "hidden-trigger", "triggerType": "timer"}
    trigger["triggerConfig"] = '{"cronExpression": "@every 60m", "enable": false}'
    who.ask("POST", f"{one}/triggers", trigger)
    who.ask("PUT", f"{one}/concurrency", {"reservedConcurrency": 3})
    who.ask("PUT", f"{one}/async-invoke-config", {"asyncTask": True})
    later = {"x_fc_invocation_type": "Async", "x_fc_async_task_id": "hidden-task"}
    assert who.send("POST", f"{one}/invocations", b"{}", **later).status_code == 202
    layer = {"code": code, "compatibleRuntime": ["python3.12"]}
    arn = who.ask("POST", f"{FC}/layers/hidden-layer/versions", layer)["layerVersionArn"]
    taint = {"mode": "block", "start": ["private"]}
    box = who.ask(
        "POST", "/sandboxes", {"templateID": "base", "metadata": {"hidden-meta": "x"}, "network": {"taint": taint}}
    )
    snapshot = who.ask("POST", f"/sandboxes/{box['sandboxID']}/snapshots", {})
    volume = who.ask("POST", "/volumes", {"name": "hidden-volume"})
    secret = who.ask("POST", "/secrets", {"name": "hidden-secret", "value": "x"})
    return {
        "name": "hidden-fn", "function": "hidden-fn", "version": "1", "alias": "hidden-alias",
        "trigger": "hidden-trigger",
        "task": "hidden-task", "session": "hidden-session",
        "snapshot": "hidden-snapshot", "checkpoint": "hidden-checkpoint",
        "layer": "hidden-layer", "arn": arn,
        "sandbox": box["sandboxID"], "holder": f"sandbox/{box['sandboxID']}",
        "template": snapshot["snapshotID"].partition(":")[0], "volume": volume["volumeID"],
        "secret": secret.get("secretID") or secret.get("id") or "hidden-secret", "key": who.id, "team": "theirs",
        "account": "theirs", "build": "4bd8b1a6-8ec8-4b1f-9a54-7f2d4b1f6e01", "tag": "default", "hash": "0" * 64,
        "digest": "0" * 64, "bucket": "hidden", "rest": "no/such/thing", "key:path": "x",
    }  # fmt: skip


def _missing(ids: dict[str, str]) -> dict[str, str]:
    """The same forms, of nothing that exists."""
    kept = {"version", "hash", "digest", "rest", "tag", "build", "bucket"}
    turn = str.maketrans("0123456789abcdefghijklmnopqrstuvwxyz", "abcdefghij0123456789klmnopqrstuvwx"[:34] + "zy")
    changed = {name: id if name in kept else id.replace("hidden", "absent") for name, id in ids.items()}
    for name in ("sandbox", "template", "volume", "secret", "key"):
        id = ids[name]
        changed[name] = id[:4] + id[4:].translate(turn) if "hidden" not in id else changed[name]
    changed["holder"] = f"sandbox/{changed['sandbox']}"
    return {**changed, "account": "nobody", "team": "nobody", "arn": changed["arn"].replace("theirs", "nobody")}


def _told(reply: httpx.Response, ids: dict[str, str]) -> tuple[int, str]:
    text = _FLEETING.sub("<id>", reply.text)
    for id in sorted(set(ids.values()), key=len, reverse=True):
        if len(id) > 3:
            text = text.replace(id, "<id>")
    return reply.status_code, text


def _addressed() -> list[tuple[str, str]]:
    """Routes that name something, whose caller shows a key. Those that remove come last."""
    named = [(m, p) for (m, p), role in TABLE.items() if role is not None and "{" in p and "{rest" not in p]
    return sorted(named, key=lambda route: (route[0] == "DELETE", route))


def test_every_route_has_a_role_and_every_role_a_route(tmp_path: Path) -> None:
    share_bundle(tmp_path)
    routes = Wired(Config(data_dir=tmp_path)).api.routes
    found = {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]
    assert found - TABLE.keys() == set()
    assert {route for route in TABLE.keys() - found if route[1] not in DATA_PLANE} == set()
    assert len(found) > 150


def test_no_route_with_the_others_ids_tells_that_they_exist(world: World) -> None:
    absent = _missing(world.ids)
    differ = {}
    for method, pattern in _addressed():
        foreign, missing = world.path(pattern, world.ids), world.path(pattern, absent)
        body = None if method == "GET" else {}
        told = _told(world.ours.send(method, foreign, body), world.ids)
        expected = _told(world.ours.send(method, missing, body), absent)
        assert told[0] >= 400 or told[1] == '{"layers":[]}' or method == "OPTIONS", (pattern, told)
        if told != expected:
            differ[f"{method} {pattern}"] = (told, expected)
    assert differ == {}


def test_they_themselves_are_told(world: World) -> None:
    """The control: what is asked for above is there, and is there still."""
    unknown = (
        "{session}",
        "{snapshot}",
        "{checkpoint}",
        "{build}",
        "{hash}",
        "{bucket}",
        "{arn",
        "{alias}/",
        "/metrics",
    )
    for method, pattern in _addressed():
        if method == "GET" and pattern not in DATA_PLANE and not any(part in pattern for part in unknown):
            reply = world.theirs.send(method, world.path(pattern, world.ids))
            assert reply.status_code == 200 or "mcp" in pattern or "-config" in pattern, (pattern, reply.text)


def test_lists_show_nobody_elses(world: World) -> None:
    seen = 0
    for (method, path), role in TABLE.items():
        if method != "GET" or role is None or "{" in path:
            continue
        reply = world.ours.send("GET", path)
        assert "hidden" not in reply.text and world.ids["sandbox"] not in reply.text, path
        seen += "hidden" in world.theirs.send("GET", path).text
    assert seen >= 4  # the control: their own lists do


def test_the_data_plane_knows_each_account_apart(world: World) -> None:
    ours, theirs = world.ours, world.theirs
    assert theirs.send("POST", "/~theirs/hidden-fn/x", b"").status_code == 200
    for caller in (ours, world.operator):
        for path in ("hidden-fn", "hidden-fn:1", "hidden-fn:hidden-alias", "hidden-fn:never"):
            told = caller.send("GET", f"/~theirs/{path}/")
            expected = caller.send("GET", f"/~theirs/{path.replace('hidden-fn', 'absent-fn')}/")
            assert told.status_code == 404
            assert _told(told, {"f": "hidden-fn"}) == _told(expected, {"f": "absent-fn"})
    for path in ("/~theirs/{}/", "/~nobody/{}/", "/{}/"):
        replies = [world.operator.http.get(path.format(name)) for name in ("hidden-fn", "absent-fn")]
        assert [reply.status_code for reply in replies] == [403, 403]
        assert _told(replies[0], {"f": "hidden-fn"}) == _told(replies[1], {"f": "absent-fn"})
    assert theirs.send("GET", "/hidden-fn/").status_code == 404  # short addresses are the operator's
    assert ours.send("POST", f"{FC}/functions/hidden-fn/invocations", b"").json()["Code"] == "FunctionNotFound"
    assert theirs.send("POST", f"{FC}/functions/hidden-fn/invocations", b"1").status_code == 200


def test_a_role_opens_its_routes_and_no_higher_ones(world: World) -> None:
    absent = _missing(world.ids)
    lower = {"invoker": "viewer", "developer": "invoker", "admin": "developer"}
    for (method, pattern), role in TABLE.items():
        if (
            role is None
            or pattern == "/{function}"
            or "{rest" in pattern
            or (method, pattern) == ("POST", "/roost/keys")
        ):
            continue
        path, name = world.path(pattern, absent), role.name.lower()
        if name in lower:
            reply = world.roles[lower[name]].send(method, path, {})
            assert reply.status_code == 403 and "role" in reply.text, (method, pattern, reply.text)
        assert "role is" not in world.roles[name].send(method, path).text, (method, pattern)


def test_a_viewer_calls_no_function(world: World) -> None:
    viewer, invoker = world.operator.key("theirs", "viewer"), world.operator.key("theirs", "invoker")
    for path in ("/~theirs/hidden-fn/", f"{FC}/functions/hidden-fn/invocations"):
        assert invoker.send("POST", path, b"1").status_code == 200
        assert viewer.send("POST", path, b"1").status_code == 403


def test_a_revoked_key_opens_nothing_from_then_on(world: World) -> None:
    key = world.operator.key("theirs", "developer")
    used = (f"{FC}/functions", "/roost/info", "/sandboxes", "/~theirs/hidden-fn/")
    assert [key.send("GET", path).status_code for path in used] == [200] * 4
    listed = world.theirs.ask("GET", "/roost/keys")["keys"]
    mine = next(one for one in listed if one["id"] == key.id)
    assert mine["lastUsed"] and not mine["revoked"] and key.secret not in str(listed)
    assert world.theirs.send("DELETE", f"/roost/keys/{key.id}").status_code == 204
    assert [key.send("GET", path).status_code for path in used] == [403, 403, 401, 403]
    assert world.theirs.send("DELETE", f"/roost/keys/{key.id}").status_code == 404
    secrets = [key.secret.encode(), world.theirs.secret.encode()]
    files = [file.read_bytes() for file in world.server.data_dir.glob("roost.db*")]
    assert not any(secret in data for secret in secrets for data in files)
    assert world.operator.send("DELETE", "/roost/keys/root").status_code == 404  # the configuration's


def test_over_quota_is_429_in_every_shape(world: World) -> None:
    operator, who = world.operator, world.operator.key("small", "admin")
    operator.ask("PUT", "/roost/quotas/small", {"sandboxes": 1, "queued_tasks": 1, "instances": 1})
    assert who.ask("GET", "/roost/quota")["sandboxes"] == 1
    box = who.ask("POST", "/sandboxes", {"templateID": "base"})
    over = who.send("POST", "/sandboxes", {"templateID": "base"})
    assert (over.status_code, over.json()["code"]) == (429, 429) and int(over.headers["retry-after"]) >= 1
    code = {"zipFile": zip_base64({"index.py": ECHO})}
    who.ask(
        "POST",
        f"{FC}/functions",
        {"functionName": "f", "runtime": "python3.12", "handler": "index.handler", "code": code},
    )
    refused = who.send("POST", f"{FC}/functions/f/invocations", b"1")
    assert (refused.status_code, refused.json()["Code"]) == (429, "QuotaExceeded") and refused.headers["retry-after"]
    for number, status in ((1, 202), (2, 429)):
        later = {"x_fc_invocation_type": "Async", "x_fc_async_task_id": f"t{number}", "x_fc_async_delay": "3600"}
        assert who.send("POST", f"{FC}/functions/f/invocations", b"1", **later).status_code == status
    assert who.send("DELETE", f"/sandboxes/{box['sandboxID']}").status_code == 204
    assert who.send("POST", f"{FC}/functions/f/invocations", b"1").status_code == 200
    operator.ask("PUT", "/roost/quotas/small", {"requests_per_s": 1})
    for path in (f"{FC}/functions", "/roost/info", "/sandboxes", "/~small/f/"):
        replies = [who.send("GET", path) for _ in range(4)]
        assert 429 in [reply.status_code for reply in replies], path
        assert all(reply.headers["retry-after"] for reply in replies if reply.status_code == 429)
    assert operator.send("DELETE", "/roost/quotas/small").status_code == 204
    assert all(who.send("GET", "/roost/info").status_code == 200 for _ in range(4))
    assert operator.send("PUT", "/roost/quotas/small", {"rooms": 1}).status_code == 400


def test_keys_by_the_command_line(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(who: Who, *arguments: str) -> str:
        for name, value in (("URL", world.server.url), ("ACCESS_KEY_ID", who.id), ("ACCESS_KEY_SECRET", who.secret)):
            monkeypatch.setenv(f"ROOST_{name}", value)
        with pytest.raises(SystemExit) as ended:
            cli.main(["keys", *arguments])
        out = capsys.readouterr()
        return out.out if ended.value.code == 0 else f"{ended.value.code} {out.err}"

    made = json.loads(said(world.operator, "create", "by hand", "--role", "viewer", "--account", "ours", "--json"))
    viewer = Who(world.operator.http, made["id"], made["secret"])
    assert viewer.ask("GET", "/roost/info")["role"] == "viewer"
    assert "1 Error: This key's role is viewer" in said(viewer, "ls")
    assert made["id"] in said(world.ours, "ls", "--json") and made["secret"] not in said(world.ours, "ls", "--json")
    assert "ROOST_ACCESS_KEY_SECRET=e2b_" in said(world.ours, "create", "another")
    assert "1 Error: There is no account theirs" in said(world.ours, "ls", "--account", "theirs")
    assert "opens nothing" in said(world.ours, "revoke", made["id"])
    assert viewer.send("GET", "/roost/info").status_code == 403


def test_who_shows_too_many_wrong_keys_is_refused_unheard(world: World) -> None:
    """Last: this machine is the source, and has to wait."""
    wrong = Who(world.operator.http, "root", "wrong")
    replies = [wrong.send("GET", "/roost/info") for _ in range(60)]
    assert [reply.status_code for reply in (replies[0], replies[-1])] == [403, 429]
    assert int(replies[-1].headers["retry-after"]) >= 1
    assert world.operator.send("GET", "/roost/info").status_code == 429
    assert world.ours.send("GET", "/roost/info").status_code == 200  # a key that the server made is not guessed
    assert "login denied" in world.server.log() and world.ours.secret not in world.server.log()
