"""Triggers of a whole server: the official SDKs of Function Compute and of CloudEvents are the clients."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from darabonba.exceptions import DaraException

from tests.support.sdk import Sdk
from tests.support.server import Server

ECHO = {"index.py": "def handler(event, context):\n    return event\n"}


def create(sdk: Sdk, function: str, name: str, type: str, config: dict[str, Any], **fields: Any) -> Any:
    body = fc.CreateTriggerInput(trigger_name=name, trigger_type=type, trigger_config=json.dumps(config), **fields)
    return sdk.client.create_trigger(function, fc.CreateTriggerRequest(body=body)).body


def update(sdk: Sdk, function: str, name: str, **fields: Any) -> Any:
    body = fc.UpdateTriggerInput(**fields)
    return sdk.client.update_trigger(function, name, fc.UpdateTriggerRequest(body=body)).body


def refused(call: Callable[[], Any]) -> tuple[int, str, str]:
    with pytest.raises(DaraException) as caught:
        call()
    return caught.value.status_code, caught.value.code, str(caught.value.message)


def tasks(roost: Server, function: str) -> list[dict[str, Any]]:
    """The newest first, each with its payload as an object."""
    with roost.client() as client:
        query = {"limit": 100, "includePayload": "true"}
        found = client.get(f"/2023-03-30/functions/{function}/async-tasks", params=query).json()["tasks"]
    return [{**task, "event": json.loads(task["taskPayload"])} for task in found]


def shown(roost: Server, function: str, trigger: str) -> dict[str, Any]:
    """With what the SDK has no fields for."""
    with roost.client() as client:
        return dict(client.get(f"/2023-03-30/functions/{function}/triggers/{trigger}").json())


def metric(roost: Server, name: str, function: str, trigger: str) -> float:
    """-1 for a series that is not there."""
    page = httpx.get(f"{roost.url}/metrics").text
    found = re.search(
        rf'^roost_trigger_{name}{{[^}}]*function="{function}",trigger="{trigger}"[^}}]*}} (.+)$', page, re.MULTILINE
    )
    return float(found[1]) if found else -1.0


# --- what all types have ---------------------------------------------------------------------------------------


def test_triggers_of_every_type_live_in_function_computes_api(sdk: Sdk, roost: Server) -> None:
    sdk.create("many", ECHO)
    sdk.client.publish_function_version("many", fc.PublishFunctionVersionRequest(body=fc.PublishVersionInput()))
    made = create(
        sdk, "many", "nightly", "timer", {"cronExpression": "0 0 4 * * *", "payload": "p", "enable": True},
        qualifier="1", description="at night", source_arn="acs:x", invocation_role="acs:ram::1:role/r",
    )  # fmt: skip
    assert (made.trigger_type, made.qualifier, made.description) == ("timer", "1", "at night")
    assert (made.source_arn, made.invocation_role) == ("acs:x", "acs:ram::1:role/r")
    assert made.target_arn.endswith("functions/many")
    assert made.http_trigger is None
    public = {"authType": "anonymous", "methods": ["GET"]}
    web = create(sdk, "many", "open", "http", public, qualifier="1")
    assert httpx.get(web.http_trigger.url_internet).status_code == 200
    assert update(sdk, "many", "open", trigger_config=json.dumps({**public, "enable": False})).status == "paused"
    assert httpx.get(web.http_trigger.url_internet).status_code == 403
    hook = create(sdk, "many", "hook", "webhook", {"authType": "bearer", "token": "a-token-of-the-test"})
    assert hook.http_trigger.url_internet == f"{roost.url}/webhooks/default/many/hook"
    assert "a-token" not in hook.trigger_config

    listed = sdk.client.list_triggers("many", fc.ListTriggersRequest(limit=2)).body
    assert [one.trigger_name for one in listed.triggers] == ["hook", "nightly"]
    more = sdk.client.list_triggers("many", fc.ListTriggersRequest(next_token=listed.next_token)).body
    assert [one.trigger_name for one in more.triggers] == ["open"]

    config = json.loads(made.trigger_config)
    changed = update(
        sdk, "many", "nightly", trigger_config=json.dumps({**config, "enable": False}), description="never",
        qualifier="LATEST", invocation_role="another",
    )  # fmt: skip
    assert (changed.status, changed.description, changed.invocation_role) == ("paused", "never", "another")
    assert json.loads(sdk.client.get_trigger("many", "nightly").body.trigger_config) == {**config, "enable": False}
    # An update of nothing changes nothing.
    assert update(sdk, "many", "nightly").to_map() == changed.to_map()
    for name in ("nightly", "hook", "open"):
        sdk.client.delete_trigger("many", name)
        assert refused(lambda name=name: sdk.client.get_trigger("many", name))[:2] == (404, "TriggerNotFound")


def test_what_is_wrong_is_refused_with_the_name_of_the_field(sdk: Sdk, roost: Server) -> None:
    sdk.create("strict", ECHO)
    every = {"cronExpression": "@every 1h"}
    for type, config, fields, said in (
        ("cdn_events", {}, {}, "triggerType: 'cdn_events' is not supported; there are 'http', 'timer'"),
        ("timer", {}, {}, "triggerConfig.cronExpression: this field is required."),
        ("timer", {"cronExpression": "0 61 * * * *"}, {}, "triggerConfig.cronExpression: Bad minute"),
        ("timer", every, {"trigger_name": "-"}, "triggerName: "),
        ("timer", every, {"description": "x" * 300}, "description: "),
    ):
        name = fields.pop("trigger_name", "one")
        status, code, message = refused(
            lambda name=name, type=type, config=config, fields=fields: create(
                sdk, "strict", name, type, config, **fields
            )
        )
        assert (status, code) == (400, "InvalidArgument")
        assert said in message
    assert refused(lambda: create(sdk, "strict", "one", "timer", every, qualifier="9"))[:2] == (404, "VersionNotFound")
    assert refused(lambda: create(sdk, "nobody", "one", "timer", every))[:2] == (404, "FunctionNotFound")
    create(sdk, "strict", "one", "timer", every)
    roost.until(lambda: shown(roost, "strict", "one")["status"] == "running")
    assert refused(lambda: create(sdk, "strict", "one", "timer", every))[:2] == (409, "TriggerAlreadyExists")
    assert refused(lambda: update(sdk, "strict", "one", trigger_config="{}"))[0] == 400
    assert shown(roost, "strict", "one")["status"] == "running", "what was refused changed nothing"


# --- timers ------------------------------------------------------------------------------------------------------


def test_a_timer_starts_its_function_until_it_is_paused_and_again_when_it_is_resumed(sdk: Sdk, roost: Server) -> None:
    sdk.create("timed", ECHO)
    config = {"cronExpression": "@every 1s", "payload": "hi", "catchUp": "none"}
    create(sdk, "timed", "tick", "timer", config)
    roost.until(lambda: [task["status"] for task in tasks(roost, "timed")].count("Succeeded") >= 2)
    seen = tasks(roost, "timed")
    assert {(task["event"]["triggerName"], task["event"]["payload"]) for task in seen} == {("tick", "hi")}
    times = [datetime.fromisoformat(task["event"]["triggerTime"]).timestamp() for task in seen]
    assert times == [max(times) - number for number in range(len(times))], "every second once"
    status = shown(roost, "timed", "tick")
    assert status["status"] == "running"
    assert status["roost"]["enqueued"] >= 2
    assert 0 < datetime.fromisoformat(status["roost"]["nextTime"]).timestamp() - max(times) < 60
    assert datetime.fromisoformat(status["roost"]["lastSuccessTime"]) <= datetime.now(UTC)
    assert metric(roost, "enqueued_total", "timed", "tick") >= 2
    assert metric(roost, "up", "timed", "tick") == 1
    assert metric(roost, "last_success_timestamp_seconds", "timed", "tick") > 1e9

    update(sdk, "timed", "tick", trigger_config=json.dumps({**config, "enable": False}))
    count = len(tasks(roost, "timed"))
    roost.until(lambda: metric(roost, "up", "timed", "tick") == 0)
    time.sleep(2.2)  # what does not happen can only be waited for
    assert len(tasks(roost, "timed")) == count
    update(sdk, "timed", "tick", trigger_config=json.dumps({**config, "enable": True}))
    roost.until(lambda: len(tasks(roost, "timed")) > count)

    sdk.client.delete_function("timed")
    roost.until(lambda: metric(roost, "up", "timed", "tick") == -1)


def test_a_timer_of_a_version_that_goes_says_so_and_mends_itself(sdk: Sdk, roost: Server) -> None:
    sdk.create("moving", ECHO)
    client = sdk.client
    client.publish_function_version("moving", fc.PublishFunctionVersionRequest(body=fc.PublishVersionInput()))
    alias = fc.CreateAliasInput(alias_name="prod", version_id="1")
    client.create_alias("moving", fc.CreateAliasRequest(body=alias))
    create(sdk, "moving", "tick", "timer", {"cronExpression": "@every 1s"}, qualifier="prod")
    roost.until(lambda: len(tasks(roost, "moving")) > 0)
    assert {task["qualifier"] for task in tasks(roost, "moving")} == {"prod"}
    client.delete_alias("moving", "prod")
    roost.until(lambda: shown(roost, "moving", "tick")["status"] == "failing")
    assert "no alias 'prod'" in shown(roost, "moving", "tick")["roost"]["lastError"]
    client.create_alias("moving", fc.CreateAliasRequest(body=alias))
    count = len(tasks(roost, "moving"))
    roost.until(lambda: len(tasks(roost, "moving")) > count)
    client.delete_function("moving")


# --- webhooks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks(sdk: Sdk, roost: Server) -> Callable[..., str]:
    """Makes a webhook of the function of that name, and returns its address."""

    def make(function: str, **config: Any) -> str:
        sdk.create(function, ECHO)
        made = create(sdk, function, "hook", "webhook", {"authType": "none", **config})
        return str(made.http_trigger.url_internet)

    return make


def event(id: str, data: Any = None, **attributes: Any) -> CloudEvent:
    given = {"id": id, "source": "/tests", "type": "com.example.test", "datacontenttype": "application/json"}
    return CloudEvent({**given, **attributes}, {"n": 1} if data is None else data)


def send(url: str, message: http.HTTPMessage) -> httpx.Response:
    return httpx.post(url, headers=message.headers, content=message.body)


def test_cloudevents_in_every_mode_become_tasks_once(hooks: Callable[..., str], roost: Server) -> None:
    url = hooks("cloud")
    form = JSONFormat()
    reply = send(url, http.to_binary(event("1"), form))
    assert (reply.status_code, reply.json()) == (202, {"accepted": 1, "filtered": 0})
    assert send(url, http.to_structured(event("2", subject="s"), form)).status_code == 202
    batch = b"[" + b",".join(form.write(event(id)) for id in ("1", "2", "3", "4")) + b"]"
    headers = {"content-type": "application/cloudevents-batch+json"}
    reply = httpx.post(url, headers=headers, content=batch)
    assert (reply.status_code, reply.json()) == (202, {"accepted": 4, "filtered": 0})
    # The same id of another source is another event.
    assert send(url, http.to_binary(event("1", source="/others"), form)).status_code == 202
    seen = tasks(roost, "cloud")
    assert sorted((task["event"]["source"], task["event"]["id"]) for task in seen) == [
        ("/others", "1"), ("/tests", "1"), ("/tests", "2"), ("/tests", "3"), ("/tests", "4"),
    ]  # fmt: skip
    for task in seen:
        assert task["event"]["specversion"] == "1.0"
        assert task["event"]["data"] == {"n": 1}
    roost.until(lambda: {task["status"] for task in tasks(roost, "cloud")} == {"Succeeded"})
    assert send(url, http.to_structured(event("1"), form)).status_code == 202
    assert len(tasks(roost, "cloud")) == 5, "a task that is over is still the event's"
    assert metric(roost, "enqueued_total", "cloud", "hook") == 5


def test_a_function_gets_a_cloudevent_that_the_sdk_reads(hooks: Callable[..., str], sdk: Sdk, roost: Server) -> None:
    url = hooks("reader")
    sent = event("ü 1", {"a": ["ü"]}, subject="s", ext="x")
    assert send(url, http.to_binary(sent, JSONFormat())).status_code == 202
    read = JSONFormat().read(CloudEvent, tasks(roost, "reader")[0]["taskPayload"])
    assert read.get_attributes() == sent.get_attributes()
    assert read.get_data() == sent.get_data()


def test_what_is_no_cloudevent_is_refused_whole(hooks: Callable[..., str], roost: Server) -> None:
    url = hooks("refusing")
    message = http.to_binary(event("1"), JSONFormat())
    without = {name: value for name, value in message.headers.items() if name != "ce-source"}
    reply = httpx.post(url, headers=without, content=message.body)
    assert (reply.status_code, reply.json()["Message"]) == (400, "source: a CloudEvent needs this attribute.")
    good, bad = json.loads(JSONFormat().write(event("1"))), {"id": "2"}
    headers = {"content-type": "application/cloudevents-batch+json"}
    reply = httpx.post(url, headers=headers, content=json.dumps([good, bad]))
    assert reply.status_code == 400
    assert reply.json()["Message"].startswith("[1].specversion: ")
    assert tasks(roost, "refusing") == []
    assert httpx.post(url, content=b"x" * ((1 << 20) + 1)).status_code == 413


def test_filters_choose_among_events(hooks: Callable[..., str], roost: Server) -> None:
    url = hooks("choosy", filters=[{"prefix": {"type": "com.example."}}, {"exact": {"subject": "a"}}])
    form = JSONFormat()
    assert send(url, http.to_binary(event("1", subject="a"), form)).json() == {"accepted": 1, "filtered": 0}
    assert send(url, http.to_binary(event("2", subject="b"), form)).json() == {"accepted": 0, "filtered": 1}
    assert send(url, http.to_binary(event("3", subject="a", type="org.x"), form)).json()["filtered"] == 1
    assert [task["event"]["id"] for task in tasks(roost, "choosy")] == ["1"]
    assert httpx.post(url, json={}).status_code == 400


def test_a_signed_webhook_as_github_sends_it(hooks: Callable[..., str], roost: Server) -> None:
    url = hooks("github", authType="hmac", secret="a-secret-of-the-test", idHeader="X-GitHub-Delivery")
    body = b'{"zen": "Keep it logically awesome."}'
    signature = "sha256=" + hmac.new(b"a-secret-of-the-test", body, hashlib.sha256).hexdigest()
    headers = {
        "content-type": "application/json", "x-github-event": "ping", "x-github-delivery": "7f3",
        "x-hub-signature-256": signature, "cookie": "a=b", "x-fc-fake": "1",
    }  # fmt: skip
    for _ in range(2):
        assert httpx.post(url + "?a=1", headers=headers, content=body).status_code == 202
    (task,) = tasks(roost, "github")
    got = task["event"]
    assert (got["version"], got["body"], got["isBase64Encoded"]) == ("v1", body.decode(), False)
    assert got["rawPath"] == "/webhooks/default/github/hook"
    assert got["queryParameters"] == {"a": "1"}
    assert got["headers"]["X-Github-Event"] == "ping"
    assert not {"Cookie", "Authorization", "X-Fc-Fake"} & set(got["headers"])
    assert got["requestContext"]["triggerName"] == "hook"
    assert got["requestContext"]["http"]["sourceIp"] == "127.0.0.1"
    for wrong in ({**headers, "x-hub-signature-256": signature[:-1] + "0"}, {"x-github-event": "ping"}):
        reply = httpx.post(url, headers=wrong, content=body + b" ")
        assert reply.status_code == 401
        assert set(reply.json()) == {"Code", "Message", "RequestId"}
    headers["x-github-delivery"] = "7f4"
    assert httpx.post(url, headers=headers, content=body).status_code == 202
    assert len(tasks(roost, "github")) == 2


def test_a_webhook_with_a_token_and_one_that_is_paused(hooks: Callable[..., str], sdk: Sdk, roost: Server) -> None:
    url = hooks("tokened", authType="bearer", token="a-token-of-the-test")
    right = {"authorization": "Bearer a-token-of-the-test"}
    assert httpx.post(url, headers=right, content=b"\xff\x00").status_code == 202
    assert httpx.post(url, content=b"x").status_code == 401
    (task,) = tasks(roost, "tokened")
    assert (task["event"]["body"], task["event"]["isBase64Encoded"]) == ("/wA=", True)
    assert "a-token" not in json.dumps(task)
    # The mask comes back with a pause, and the token is what it was.
    config = json.loads(sdk.client.get_trigger("tokened", "hook").body.trigger_config)
    assert config["token"] == "***"
    update(sdk, "tokened", "hook", trigger_config=json.dumps({**config, "enable": False}))
    reply = httpx.post(url, headers=right)
    assert (reply.status_code, reply.json()["Code"], reply.headers["retry-after"]) == (503, "TriggerPaused", "60")
    update(sdk, "tokened", "hook", trigger_config=json.dumps({**config, "enable": True}))
    assert httpx.post(url, headers=right).status_code == 202


def test_addresses_that_are_none(hooks: Callable[..., str], sdk: Sdk, roost: Server) -> None:
    url = hooks("addressed")
    create(sdk, "addressed", "tick", "timer", {"cronExpression": "@every 1h"})
    for path in (
        "/webhooks", "/webhooks/default/addressed", "/webhooks/default/addressed/tick",
        "/webhooks/default/addressed/none", "/webhooks/default/none/hook", "/webhooks/other/addressed/hook",
    ):  # fmt: skip
        reply = httpx.post(roost.url + path, json={})
        assert (reply.status_code, set(reply.json())) == (404, {"Code", "Message", "RequestId"}), path
    assert httpx.get(url).status_code == 404
    greeting = httpx.options(url, headers={"webhook-request-origin": "eventemitter.example.com"})
    assert greeting.headers["webhook-allowed-origin"] == "eventemitter.example.com"
    assert greeting.headers["webhook-allowed-rate"] == "*"
    # A web page must not be a way in to a server without keys.
    assert httpx.post(url, headers={"origin": "https://evil.example"}, json={}).status_code == 403
    assert refused(lambda: sdk.create("webhooks", ECHO))[:2] == (400, "InvalidArgument")
    sdk.client.delete_function("addressed")
    assert httpx.post(url, json={}).status_code == 404
