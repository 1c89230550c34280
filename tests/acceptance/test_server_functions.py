"""Functions, versions, aliases, layers and triggers: the official SDK against a whole server with real rooms."""

from __future__ import annotations

import base64
import collections
import json
from typing import Any

import httpx
from alibabacloud_fc20230330 import models as fc

from tests.support.sdk import Sdk, refused
from tests.support.server import Server, zip_base64

ECHO = "def handler(event, context):\n    return b'echo ' + event\n"


def says(text: str) -> dict[str, str]:
    return {"index.py": f"def handler(event, context):\n    return {text!r}\n"}


def test_a_functions_whole_life(sdk: Sdk) -> None:
    made = sdk.create("life", {"index.py": ECHO}, memory_size=256, timeout=7, description="echoes")
    assert (made.function_name, made.memory_size, made.timeout, made.state) == ("life", 256, 7, "Active")
    assert sdk.reply("life", b"\x00\xff bytes") == b"echo \x00\xff bytes"
    changed = sdk.update("life", says("new"), memory_size=128)
    assert (changed.memory_size, changed.timeout) == (128, 7)
    assert sdk.reply("life") == b"new"
    shown = sdk.client.get_function("life", fc.GetFunctionRequest()).body
    assert (shown.memory_size, shown.description) == (128, "echoes")
    assert "life" in [f.function_name for f in sdk.client.list_functions(fc.ListFunctionsRequest()).body.functions]
    sdk.client.delete_function("life")
    assert refused(lambda: sdk.client.get_function("life", fc.GetFunctionRequest())).status_code == 404
    gone = refused(lambda: sdk.invoke("life"))
    assert (gone.status_code, gone.code) == (404, "FunctionNotFound")


def test_invoke_carries_a_request_id_and_the_handler_sees_it(sdk: Sdk) -> None:
    code = "import json\ndef handler(event, context):\n    f = context.function\n"
    code += "    return json.dumps([context.request_id, f.name, f.memory, f.timeout, f.handler, f.qualifier])\n"
    sdk.create("context", {"index.py": code}, memory_size=192, timeout=9)
    response = sdk.invoke("context")
    assert response.status_code == 200
    assert json.loads(response.body.read()) == [
        response.headers["x-fc-request-id"], "context", 192, 9, "index.handler", "LATEST",
    ]  # fmt: skip


def test_a_fault_of_the_function_is_a_good_reply_with_its_type_message_and_stack(sdk: Sdk) -> None:
    sdk.create("faulty", {"index.py": "def handler(event, context):\n    raise KeyError('missing')\n"})
    response = sdk.invoke("faulty")
    assert response.status_code == 200
    assert response.headers["x-fc-error-type"] == "UnhandledInvocationError"
    body = json.loads(response.body.read())
    assert (body["errorType"], "missing" in body["errorMessage"]) == ("KeyError", True)
    assert any("index.py" in line for line in body["stackTrace"])


def test_the_log_tail_comes_with_the_reply(sdk: Sdk) -> None:
    sdk.create(
        "talker", {"index.py": "def handler(event, context):\n    print('said', event.decode())\n    return b''\n"}
    )
    response = sdk.invoke("talker", b"this", tail=True)
    tail = base64.b64decode(response.headers["x-fc-log-result"]).decode()
    assert "said this" in tail
    request_id = response.headers["x-fc-request-id"]
    assert f"FC Invoke Start RequestId: {request_id}" in tail
    assert f"FC Invoke End RequestId: {request_id}" in tail
    assert "x-fc-log-result" not in sdk.invoke("talker", b"this").headers


def test_the_environment_reaches_the_code_and_changes_with_the_function(sdk: Sdk) -> None:
    code = "import os\ndef handler(event, context):\n    return os.environ.get(event.decode(), '-')\n"
    sdk.create("env", {"index.py": code}, environment_variables={"MOOD": "bright", "EMPTY": ""})
    assert sdk.reply("env", b"MOOD") == b"bright"
    assert sdk.reply("env", b"EMPTY") == b""
    sdk.update("env", environment_variables={"MOOD": "dark"})
    assert sdk.reply("env", b"MOOD") == b"dark"
    assert sdk.reply("env", b"EMPTY") == b"-"


# --- versions and aliases --------------------------------------------------------------------------------------


def alias(sdk: Sdk, function: str, name: str, version: str, weights: dict[str, float] | None = None) -> None:
    body = fc.CreateAliasInput(alias_name=name, version_id=version, additional_version_weight=weights)
    sdk.client.create_alias(function, fc.CreateAliasRequest(body=body))


def test_a_published_version_stays_what_it_was(sdk: Sdk) -> None:
    sdk.create("versioned", says("one"))
    assert sdk.publish("versioned", "first") == "1"
    sdk.update("versioned", says("two"))
    assert sdk.publish("versioned") == "2"
    sdk.update("versioned", says("three"))
    answers = [sdk.reply("versioned", qualifier=q) for q in ("1", "2", "LATEST", None)]
    assert answers == [b"one", b"two", b"three", b"three"]
    missing = refused(lambda: sdk.invoke("versioned", qualifier="9"))
    assert missing.status_code == 404
    listed = sdk.client.list_function_versions("versioned", fc.ListFunctionVersionsRequest()).body.versions
    assert {v.version_id for v in listed} >= {"1", "2"}


def test_an_aliases_weights_split_the_traffic(sdk: Sdk, roost: Server) -> None:
    sdk.create("split", says("one"))
    sdk.publish("split")
    sdk.update("split", says("two"))
    sdk.publish("split")
    for name, weight in (("none", 0.0), ("some", 0.3), ("all", 1.0)):
        alias(sdk, "split", name, "1", {"2": weight})
    counts = {
        q: collections.Counter(sdk.reply("split", qualifier=q) for _ in range(200)) for q in ("none", "all", "some")
    }
    assert counts["none"] == {b"one": 200}
    assert counts["all"] == {b"two": 200}
    # 200 draws at 0.3: outside of 25..100 once in more than a billion runs.
    assert 25 < counts["some"][b"two"] < 100
    assert counts["some"].total() == 200
    with roost.client() as client:
        assert client.get("/split:all/").text == "two"
    body = fc.UpdateAliasInput(version_id="2", additional_version_weight={"1": 0.0})
    sdk.client.update_alias("split", "none", fc.UpdateAliasRequest(body=body))
    assert sdk.reply("split", qualifier="none") == b"two"


# --- layers ----------------------------------------------------------------------------------------------------


def layer(sdk: Sdk, name: str, files: dict[str, str]) -> str:
    code = fc.InputCodeLocation(zip_file=zip_base64(files))
    body = fc.CreateLayerVersionInput(code=code, compatible_runtime=["python3.12"])
    made = sdk.client.create_layer_version(name, fc.CreateLayerVersionRequest(body=body)).body
    return str(made.layer_version_arn)


def test_modules_of_layers_are_importable_and_the_lower_index_wins(sdk: Sdk) -> None:
    first = layer(sdk, "first", {"python/shared.py": "NAME = 'first'\n", "python/only_first.py": "X = 1\n"})
    second = layer(
        sdk, "second", {"python/shared.py": "NAME = 'second'\n", "python/only_second.py": "X = 2\n", "data/x": "d"}
    )
    code = "import shared, only_first, only_second\ndef handler(event, context):\n"
    code += (
        "    return f\"{shared.NAME} {shared.__file__} {only_first.X}{only_second.X} {open('/opt/data/x').read()}\"\n"
    )
    sdk.create("layered", {"index.py": code}, layers=[first, second])
    assert sdk.reply("layered") == b"first /opt/python/shared.py 12 d"
    sdk.update("layered", layers=[second, first])
    assert sdk.reply("layered") == b"second /opt/python/shared.py 12 d"
    sdk.update("layered", layers=[])
    fault = json.loads(sdk.invoke("layered").body.read())
    assert "No module named 'shared'" in fault["errorMessage"]


# --- http triggers and tags ------------------------------------------------------------------------------------


def trigger(sdk: Sdk, function: str, config: dict[str, Any], name: str = "web") -> Any:
    body = fc.CreateTriggerInput(trigger_name=name, trigger_type="http", trigger_config=json.dumps(config))
    return sdk.client.create_trigger(function, fc.CreateTriggerRequest(body=body)).body


def test_an_http_trigger_says_who_may_call_and_how(sdk: Sdk, roost: Server) -> None:
    sdk.create("guarded", says("inside"))
    key = "a-bearer-key-of-the-test"
    made = trigger(
        sdk, "guarded", {"authType": "bearer", "authConfig": json.dumps({"keys": [key]}), "methods": ["GET", "POST"]}
    )
    url = made.http_trigger.url_internet
    right = {"authorization": f"Bearer {key}"}
    assert httpx.get(url, headers=right).text == "inside"
    for headers in ({}, {"authorization": "Bearer wrong-key-of-the-test"}, {"authorization": f"Basic {key}"}):
        reply = httpx.get(url, headers=headers)
        assert reply.status_code == 403, headers
        assert set(reply.json()) == {"Code", "Message", "RequestId"}
    assert httpx.put(url, headers=right).status_code == 403
    # A signed call of the API is not the trigger's business.
    assert sdk.reply("guarded") == b"inside"
    shown = sdk.client.get_trigger("guarded", "web").body
    assert key not in shown.trigger_config
    body = fc.UpdateTriggerInput(trigger_config=json.dumps({"authType": "anonymous", "methods": ["PUT"]}))
    sdk.client.update_trigger("guarded", "web", fc.UpdateTriggerRequest(body=body))
    assert httpx.put(url).text == "inside"
    assert httpx.get(url, headers=right).status_code == 403
    sdk.client.delete_trigger("guarded", "web")
    assert httpx.get(url).text == "inside"


def test_tags_are_kept_with_the_function(sdk: Sdk) -> None:
    made = sdk.create("tagged", says("x"), tags=[fc.Tag(key="team", value="birds")])
    added = fc.TagResourcesInput(
        resource_type="ALIYUN::FC::FUNCTION",
        resource_id=[made.function_arn],
        tag=[fc.Tag(key="stage", value="test")],
    )
    sdk.client.tag_resources(fc.TagResourcesRequest(body=added))
    shown = sdk.client.get_function("tagged", fc.GetFunctionRequest()).body
    assert {t.key: t.value for t in shown.tags} == {"team": "birds", "stage": "test"}
    assert sdk.reply("tagged") == b"x"
