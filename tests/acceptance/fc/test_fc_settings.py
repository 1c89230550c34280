"""Concurrency, provisioned instances, scaling, async invocation, triggers and tags through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from alibabacloud_fc20230330 import models as fc
from darabonba.exceptions import DaraException

Zip = Callable[..., str]


@pytest.fixture
def client(server: Any, zip64: Zip) -> Any:
    """With the functions `hello` (version 1, alias prod) and `other`."""
    found = server.client()
    for name in ("hello", "other"):
        code = fc.InputCodeLocation(zip_file=zip64())
        body = fc.CreateFunctionInput(function_name=name, runtime="python3", handler="index.handler", code=code)
        found.create_function(fc.CreateFunctionRequest(body=body))
    found.publish_function_version("hello", fc.PublishFunctionVersionRequest(body=fc.PublishVersionInput()))
    alias = fc.CreateAliasInput(alias_name="prod", version_id="1")
    found.create_alias("hello", fc.CreateAliasRequest(body=alias))
    return found


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(DaraException) as caught:
        call()
    return caught.value.status_code, caught.value.code


def scaling_of(server: Any, qualifier: str | None = None) -> tuple[int, int, bool]:
    scaling = server.catalog.resolve("acct1", "hello", qualifier).scaling
    return scaling.min_instances, scaling.max_instances, scaling.on_demand


def test_reserved_concurrency_is_the_most_instances_there_are(server: Any, client: Any) -> None:
    revision = server.catalog.resolve("acct1", "hello", None).revision
    put = fc.PutConcurrencyConfigRequest(body=fc.PutConcurrencyInput(reserved_concurrency=7))
    shown = client.put_concurrency_config("hello", put).body
    assert shown.to_map() == {"functionArn": "acs:fc:local:acct1:functions/hello", "reservedConcurrency": 7}
    assert scaling_of(server) == (0, 7, True)
    assert server.catalog.resolve("acct1", "hello", None).revision == revision, "no instance has to be replaced"
    assert client.get_concurrency_config("hello").body.reserved_concurrency == 7
    client.put_concurrency_config("other", put)
    listed = client.list_concurrency_configs(fc.ListConcurrencyConfigsRequest(limit=1)).body
    assert [found.function_arn[-5:] for found in listed.configs] == ["hello"]
    more = client.list_concurrency_configs(fc.ListConcurrencyConfigsRequest(next_token=listed.next_token)).body
    assert [found.function_arn[-5:] for found in more.configs] == ["other"]
    client.delete_concurrency_config("hello")
    assert refused(lambda: client.get_concurrency_config("hello")) == (404, "ConcurrencyConfigNotFound")
    assert scaling_of(server) == (0, 100, True)


def test_provisioned_instances_are_of_the_version_the_qualifier_means(server: Any, client: Any) -> None:
    put = fc.PutProvisionConfigRequest(
        qualifier="prod", body=fc.PutProvisionConfigInput(default_target=3, always_allocate_cpu=True)
    )
    shown = client.put_provision_config("hello", put).body
    assert (shown.default_target, shown.target, shown.current, shown.always_allocate_cpu) == (3, 3, 0, True)
    assert shown.function_arn == "acs:fc:local:acct1:functions/hello/prod"
    assert scaling_of(server, "1") == (3, 100, True)
    assert scaling_of(server) == (0, 100, True)
    get = fc.GetProvisionConfigRequest(qualifier="prod")
    assert client.get_provision_config("hello", get).body.to_map() == shown.to_map()
    older = fc.PutProvisionConfigRequest(body=fc.PutProvisionConfigInput(target=2))
    assert client.put_provision_config("other", older).body.default_target == 2
    listed = client.list_provision_configs(fc.ListProvisionConfigsRequest(function_name="hello")).body
    assert [found.target for found in listed.provision_configs] == [3]
    client.delete_provision_config("hello", fc.DeleteProvisionConfigRequest(qualifier="prod"))
    assert scaling_of(server, "1") == (0, 100, True)
    assert refused(lambda: client.get_provision_config("hello", get)) == (404, "ProvisionConfigNotFound")


def test_a_provision_config_that_can_not_be_honoured_is_refused(client: Any) -> None:
    scheduled = fc.PutProvisionConfigInput(
        default_target=1, scheduled_actions=[fc.ScheduledAction(name="a", schedule_expression="cron()", target=2)]
    )
    put = fc.PutProvisionConfigRequest(body=scheduled)
    assert refused(lambda: client.put_provision_config("hello", put)) == (400, "InvalidArgument")
    put = fc.PutProvisionConfigRequest(qualifier="9", body=fc.PutProvisionConfigInput(default_target=1))
    assert refused(lambda: client.put_provision_config("hello", put)) == (404, "VersionNotFound")
    reserve = fc.PutConcurrencyConfigRequest(body=fc.PutConcurrencyInput(reserved_concurrency=2))
    client.put_concurrency_config("hello", reserve)
    put = fc.PutProvisionConfigRequest(body=fc.PutProvisionConfigInput(default_target=3))
    assert refused(lambda: client.put_provision_config("hello", put)) == (400, "InvalidArgument")


def test_scaling_sets_the_least_instances_and_on_demand(server: Any, client: Any) -> None:
    body = fc.PutScalingConfigInput(min_instances=2, enable_on_demand_scaling=False)
    shown = client.put_scaling_config("hello", fc.PutScalingConfigRequest(qualifier="LATEST", body=body))
    assert shown.status_code == 200
    assert scaling_of(server) == (2, 100, False)
    kept = client.get_scaling_config("hello", fc.GetScalingConfigRequest()).body
    assert (kept.min_instances, kept.enable_on_demand_scaling, kept.target_instances) == (2, False, 2)
    listed = client.list_scaling_configs(fc.ListScalingConfigsRequest()).body
    assert [found.min_instances for found in listed.scaling_configs] == [2]
    client.delete_scaling_config("hello", fc.DeleteScalingConfigRequest())
    assert scaling_of(server) == (0, 100, True)


def test_current_instances_are_counted(server: Any, client: Any) -> None:
    from dataclasses import dataclass

    @dataclass
    class View:
        instance_id: str
        version: str
        destroyed: float | None = None
        state: str = "ready"
        qualifier: str = "LATEST"
        created: float = 1.0

    server.instances.views = [View("a", "1"), View("b", "1"), View("c", "LATEST"), View("d", "1", destroyed=2.0)]
    put = fc.PutProvisionConfigRequest(qualifier="1", body=fc.PutProvisionConfigInput(default_target=2))
    assert client.put_provision_config("hello", put).body.current == 2


def test_async_settings_are_kept_and_shown(client: Any) -> None:
    body = fc.PutAsyncInvokeConfigInput(
        async_task=True,
        max_async_retry_attempts=2,
        max_async_event_age_in_seconds=3600,
        destination_config=fc.DestinationConfig(on_failure=fc.Destination(destination="acs:fc:::functions/other")),
    )
    client.put_async_invoke_config("hello", fc.PutAsyncInvokeConfigRequest(body=body))
    shown = client.get_async_invoke_config("hello", fc.GetAsyncInvokeConfigRequest()).body
    assert (shown.async_task, shown.max_async_retry_attempts) == (True, 2)
    assert shown.destination_config.on_failure.destination == "acs:fc:::functions/other"
    listed = client.list_async_invoke_configs(fc.ListAsyncInvokeConfigsRequest()).body.configs
    assert [found.max_async_event_age_in_seconds for found in listed] == [3600]
    client.delete_async_invoke_config("hello", fc.DeleteAsyncInvokeConfigRequest())
    get = fc.GetAsyncInvokeConfigRequest()
    assert refused(lambda: client.get_async_invoke_config("hello", get)) == (404, "AsyncConfigNotFound")
    wrong = fc.PutAsyncInvokeConfigRequest(body=fc.PutAsyncInvokeConfigInput(max_async_retry_attempts=9))
    assert refused(lambda: client.put_async_invoke_config("hello", wrong)) == (400, "InvalidArgument")


def trigger(client: Any, name: str, config: dict[str, Any], **fields: Any) -> Any:
    body = fc.CreateTriggerInput(trigger_name=name, trigger_type="http", trigger_config=json.dumps(config), **fields)
    return client.create_trigger("hello", fc.CreateTriggerRequest(body=body)).body


def test_an_http_trigger_decides_who_may_call(server: Any, client: Any) -> None:
    default = server.catalog.http_access("acct1", "hello", None)
    assert default.admits("a-secret-of-the-test")
    assert not default.admits("")
    assert not default.admits("another-secret-here"), "the secret of another account"

    made = trigger(client, "open", {"authType": "anonymous", "methods": ["GET"]}, qualifier="prod")
    assert made.http_trigger.url_internet == f"{server.url}/hello:prod/"
    access = server.catalog.http_access("acct1", "hello", "prod")
    assert access.admits("")
    assert access.methods == {"GET"}
    with pytest.raises(Exception, match="no http trigger"):
        server.catalog.http_access("acct1", "hello", None)

    secret = "a-key-for-one-client"
    keyed = trigger(
        client, "keyed", {"authType": "bearer", "methods": ["POST"], "authConfig": json.dumps({"keys": [secret]})}
    )
    assert secret not in json.dumps(keyed.to_map())
    access = server.catalog.http_access("acct1", "hello", "LATEST")
    assert access.admits(secret)
    assert not access.admits("a-secret-of-the-test")
    # What is shown can be sent back.
    body = fc.UpdateTriggerInput(trigger_config=keyed.trigger_config, description="same")
    again = client.update_trigger("hello", "keyed", fc.UpdateTriggerRequest(body=body)).body
    assert (again.trigger_config, again.description) == (keyed.trigger_config, "same")
    assert server.catalog.http_access("acct1", "hello", None).admits(secret)


def test_triggers_are_listed_updated_and_removed(server: Any, client: Any) -> None:
    trigger(client, "one", {"methods": ["GET"]})
    trigger(client, "two", {"methods": ["GET"]}, qualifier="1")
    listed = client.list_triggers("hello", fc.ListTriggersRequest(limit=1)).body
    assert ([found.trigger_name for found in listed.triggers], listed.next_token) == (["one"], "two")
    body = fc.UpdateTriggerInput(trigger_config=json.dumps({"methods": ["PUT"]}))
    client.update_trigger("hello", "one", fc.UpdateTriggerRequest(body=body))
    assert json.loads(client.get_trigger("hello", "one").body.trigger_config)["methods"] == ["PUT"]
    client.delete_trigger("hello", "one")
    assert refused(lambda: client.get_trigger("hello", "one")) == (404, "TriggerNotFound")


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"methods": []}, {}),
        ({"methods": ["BREW"]}, {}),
        ({"methods": ["GET"], "authType": "jwt"}, {}),
        ({"methods": ["GET"], "authType": "bearer", "authConfig": {"keys": ["short"]}}, {}),
        ({"methods": ["GET"], "authType": "anonymous", "authConfig": {"keys": ["a-long-enough-key"]}}, {}),
        ({"methods": ["GET"], "extra": 1}, {}),
        ({"methods": ["GET"]}, {"trigger_type": "timer"}),
        ({"methods": ["GET"]}, {"trigger_name": "-a"}),
    ],
)
def test_a_trigger_that_can_not_be_is_refused(client: Any, config: dict[str, Any], fields: dict[str, str]) -> None:
    values = {"trigger_name": "t", "trigger_type": "http", "trigger_config": json.dumps(config)} | fields
    request = fc.CreateTriggerRequest(body=fc.CreateTriggerInput(**values))
    assert refused(lambda: client.create_trigger("hello", request)) == (400, "InvalidArgument")


def test_one_http_trigger_for_each_qualifier(client: Any) -> None:
    trigger(client, "one", {"methods": ["GET"]})
    assert refused(lambda: trigger(client, "two", {"methods": ["GET"]})) == (409, "TriggerAlreadyExists")
    assert refused(lambda: trigger(client, "one", {"methods": ["GET"]}, qualifier="1")) == (409, "TriggerAlreadyExists")
    missing = refused(lambda: trigger(client, "three", {"methods": ["GET"]}, qualifier="none"))
    assert missing == (404, "AliasNotFound")


def test_tags_are_put_found_and_removed(client: Any) -> None:
    arns = [f"acs:fc:local:acct1:functions/{name}" for name in ("hello", "other")]
    tags = [fc.Tag(key="team", value="birds"), fc.Tag(key="env", value="prod")]
    body = fc.TagResourcesInput(resource_id=arns, resource_type="ALIYUN::FC::FUNCTION", tag=tags)
    client.tag_resources(fc.TagResourcesRequest(body=body))

    def rows(**query: Any) -> list[tuple[str, str, str]]:
        body = client.list_tag_resources(fc.ListTagResourcesRequest(resource_type="function", **query)).body
        return [(row.resource_id[-5:], row.tag_key, row.tag_value) for row in body.tag_resources or []]

    assert rows() == [
        ("hello", "env", "prod"), ("hello", "team", "birds"), ("other", "env", "prod"), ("other", "team", "birds"),
    ]  # fmt: skip
    assert rows(resource_id=arns[:1], limit=1) == [("hello", "env", "prod"), ("hello", "team", "birds")]
    client.untag_resources(
        fc.UntagResourcesRequest(resource_id=arns[:1], resource_type="function", tag_key=["env", "none"])
    )
    assert rows(tag=[fc.ListTagResourcesRequestTag(key="env", value="prod")]) == [
        ("other", "env", "prod"),
        ("other", "team", "birds"),
    ]
    shown = client.get_function("hello", fc.GetFunctionRequest()).body.tags
    assert [(tag.key, tag.value) for tag in shown] == [("team", "birds")]
    found = client.list_functions(fc.ListFunctionsRequest(tags=[fc.Tag(key="env", value="prod")])).body.functions
    assert [function.function_name for function in found] == ["other"]
    client.untag_resources(fc.UntagResourcesRequest(resource_id=arns, resource_type="function", all=True))
    assert rows() == []


def test_tags_are_refused_where_they_have_no_place(client: Any) -> None:
    def tag(arn: str, kind: str = "function", count: int = 1) -> tuple[int, str]:
        tags = [fc.Tag(key=f"k{index}", value="v") for index in range(count)]
        body = fc.TagResourcesInput(resource_id=[arn], resource_type=kind, tag=tags)
        return refused(lambda: client.tag_resources(fc.TagResourcesRequest(body=body)))

    mine = "acs:fc:local:acct1:functions/hello"
    assert tag("acs:fc:local:acct1:functions/none") == (404, "FunctionNotFound")
    assert tag("acs:fc:local:acct2:functions/hello") == (404, "FunctionNotFound")
    assert tag("hello") == (400, "InvalidArgument")
    assert tag(mine, kind="bucket") == (400, "InvalidArgument")
    assert tag(mine, count=21) == (400, "InvalidArgument")
