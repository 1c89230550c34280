"""Versions, aliases and layers through the official SDK."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc
from darabonba.exceptions import DaraException

Zip = Callable[..., str]


@pytest.fixture
def client(server: Any, zip64: Zip) -> Any:
    """With a function `hello`."""
    found = server.client()
    code = fc.InputCodeLocation(zip_file=zip64())
    body = fc.CreateFunctionInput(
        function_name="hello", runtime="python3", handler="index.handler", code=code, timeout=1
    )
    found.create_function(fc.CreateFunctionRequest(body=body))
    return found


def publish(client: Any, description: str = "") -> str:
    body = fc.PublishVersionInput(description=description)
    return client.publish_function_version("hello", fc.PublishFunctionVersionRequest(body=body)).body.version_id


def set_timeout(client: Any, timeout: int) -> None:
    client.update_function("hello", fc.UpdateFunctionRequest(body=fc.UpdateFunctionInput(timeout=timeout)))


def alias(client: Any, name: str, version: str, **fields: Any) -> Any:
    body = fc.CreateAliasInput(alias_name=name, version_id=version, **fields)
    return client.create_alias("hello", fc.CreateAliasRequest(body=body)).body


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(DaraException) as caught:
        call()
    return caught.value.status_code, caught.value.code


def test_a_version_stays_as_it_was_published(server: Any, client: Any, zip64: Zip) -> None:
    assert publish(client, "first") == "1"
    client.update_function(
        "hello",
        fc.UpdateFunctionRequest(
            body=fc.UpdateFunctionInput(timeout=2, code=fc.InputCodeLocation(zip_file=zip64({"index.py": "new = 1"})))
        ),
    )
    assert publish(client, "second") == "2"
    one = client.get_function("hello", fc.GetFunctionRequest(qualifier="1")).body
    two = client.get_function("hello", fc.GetFunctionRequest(qualifier="2")).body
    assert (one.timeout, two.timeout) == (1, 2)
    assert one.code_checksum != two.code_checksum
    spec = server.catalog.resolve("acct1", "hello", "1")
    assert (spec.version, spec.timeout_s) == ("1", 1.0)
    code = client.get_function_code("hello", fc.GetFunctionCodeRequest(qualifier="1")).body
    assert code.checksum == one.code_checksum
    assert httpx.get(code.url).status_code == 200


def test_version_numbers_are_never_given_twice(client: Any) -> None:
    assert [publish(client) for _ in range(3)] == ["1", "2", "3"]
    client.delete_function_version("hello", "3")
    assert publish(client) == "4"
    missing = refused(lambda: client.get_function("hello", fc.GetFunctionRequest(qualifier="3")))
    assert missing == (404, "VersionNotFound")
    assert refused(lambda: client.delete_function_version("hello", "LATEST")) == (404, "VersionNotFound")


def test_versions_are_listed_in_both_directions_by_page(client: Any) -> None:
    for _ in range(3):
        publish(client)

    def ids(**query: Any) -> tuple[list[str], Any]:
        body = client.list_function_versions("hello", fc.ListFunctionVersionsRequest(**query)).body
        return [version.version_id for version in body.versions], body.next_token

    assert ids() == (["3", "2", "1"], None)
    assert ids(direction="FORWARD", limit=2) == (["1", "2"], "3")
    assert ids(direction="FORWARD", limit=2, next_token="3") == (["3"], None)
    assert ids(limit=2) == (["3", "2"], "1")
    assert ids(limit=2, next_token="1") == (["1"], None)


def test_an_alias_shares_out_the_traffic(server: Any, client: Any) -> None:
    publish(client), publish(client)
    made = alias(client, "prod", "1", additional_version_weight={"2": 0.25}, description="live")
    assert (made.alias_name, made.version_id, made.additional_version_weight) == ("prod", "1", {"2": 0.25})
    seen = Counter(server.catalog.resolve("acct1", "hello", "prod").version for _ in range(4000))
    assert set(seen) == {"1", "2"}
    assert 800 < seen["2"] < 1200
    shown = client.get_alias("hello", "prod").body
    assert shown.to_map() == made.to_map()
    assert client.get_function("hello", fc.GetFunctionRequest(qualifier="prod")).body.function_name == "hello"


def test_an_alias_is_moved_and_removed(server: Any, client: Any) -> None:
    publish(client), publish(client)
    alias(client, "prod", "1", additional_version_weight={"2": 0.5})
    body = fc.UpdateAliasInput(version_id="2", additional_version_weight={})
    assert client.update_alias("hello", "prod", fc.UpdateAliasRequest(body=body)).body.version_id == "2"
    assert {server.catalog.resolve("acct1", "hello", "prod").version for _ in range(50)} == {"2"}
    assert refused(lambda: client.delete_function_version("hello", "2")) == (409, "VersionInUse")
    client.delete_alias("hello", "prod")
    assert refused(lambda: client.get_alias("hello", "prod")) == (404, "AliasNotFound")
    client.delete_function_version("hello", "2")


def test_aliases_are_listed_by_page(client: Any) -> None:
    for name in ("blue", "green", "blau"):
        alias(client, name, "LATEST")
    body = client.list_aliases("hello", fc.ListAliasesRequest(prefix="bl", limit=1)).body
    assert [found.alias_name for found in body.aliases] == ["blau"]
    body = client.list_aliases("hello", fc.ListAliasesRequest(prefix="bl", limit=1, next_token=body.next_token)).body
    assert ([found.alias_name for found in body.aliases], body.next_token) == (["blue"], None)


@pytest.mark.parametrize(
    ("name", "version", "weights", "expected"),
    [
        ("a", "1", {"2": 1.5}, (400, "InvalidArgument")),
        ("a", "1", {"2": -0.1}, (400, "InvalidArgument")),
        ("a", "1", {"1": 0.5}, (400, "InvalidArgument")),
        ("a", "1", {"2": 0.6, "LATEST": 0.6}, (400, "InvalidArgument")),
        ("a", "9", {}, (404, "VersionNotFound")),
        ("a", "1", {"9": 0.1}, (404, "VersionNotFound")),
        ("LATEST", "1", {}, (400, "InvalidArgument")),
        ("1a", "1", {}, (400, "InvalidArgument")),
        ("taken", "1", {}, (409, "AliasAlreadyExists")),
    ],
)
def test_an_alias_that_can_not_be_is_refused(
    client: Any, name: str, version: str, weights: dict[str, float], expected: tuple[int, str]
) -> None:
    publish(client), publish(client)
    alias(client, "taken", "1")
    assert refused(lambda: alias(client, name, version, additional_version_weight=weights)) == expected


def layer(client: Any, zip64: Zip, name: str, files: dict[str, str]) -> Any:
    body = fc.CreateLayerVersionInput(
        code=fc.InputCodeLocation(zip_file=zip64(files)),
        compatible_runtime=["python3.10"],
        description="d",
        license="MIT",
    )
    return client.create_layer_version(name, fc.CreateLayerVersionRequest(body=body)).body


def test_layers_are_merged_and_the_lower_index_wins(server: Any, client: Any, zip64: Zip) -> None:
    one = layer(client, zip64, "one", {"python/a.py": "one", "only1": "x"})
    two = layer(client, zip64, "two", {"python/a.py": "two", "python/b.py": "two"})
    assert one.layer_version_arn == "acs:fc:local:acct1:layers/one/versions/1"
    body = fc.UpdateFunctionInput(layers=[one.layer_version_arn, two.layer_version_arn])
    shown = client.update_function("hello", fc.UpdateFunctionRequest(body=body)).body
    assert [(found.arn, found.size) for found in shown.layers] == [
        (one.layer_version_arn, one.code_size),
        (two.layer_version_arn, two.code_size),
    ]
    merged = server.catalog.packages.path(server.catalog.resolve("acct1", "hello", None).layers)
    assert (merged / "python/a.py").read_text() == "one"
    assert (merged / "python/b.py").read_text() == "two"
    assert (merged / "only1").read_text() == "x"
    # A layer version can be deleted; functions that have it keep it.
    client.delete_layer_version("one", "1")
    client.update_function("hello", fc.UpdateFunctionRequest(body=fc.UpdateFunctionInput(timeout=9)))
    assert server.catalog.resolve("acct1", "hello", None).layers == merged.name


def test_layer_versions_are_kept_listed_and_deleted(server: Any, client: Any, zip64: Zip) -> None:
    for text in "abc":
        layer(client, zip64, "lib", {"f": text})
    shown = client.get_layer_version("lib", "2").body
    assert (shown.version, shown.license, shown.compatible_runtime, shown.acl) == (2, "MIT", ["python3.10"], "0")
    assert httpx.get(shown.code.location).content == base64.b64decode(zip64({"f": "b"}))
    by_arn = client.get_layer_version_by_arn(shown.layer_version_arn).body
    assert by_arn.code_checksum == shown.code_checksum
    listed = client.list_layer_versions("lib", fc.ListLayerVersionsRequest(limit=2)).body
    assert ([found.version for found in listed.layers], listed.next_version) == ([1, 2], 3)
    listed = client.list_layer_versions("lib", fc.ListLayerVersionsRequest(start_version="3")).body
    assert ([found.version for found in listed.layers], listed.next_version) == ([3], None)
    client.delete_layer_version("lib", "3")
    assert refused(lambda: client.get_layer_version("lib", "3")) == (404, "LayerVersionNotFound")
    assert layer(client, zip64, "lib", {"f": "d"}).version == 4


def test_a_layer_is_private_until_it_is_made_public(server: Any, client: Any, zip64: Zip) -> None:
    made = layer(client, zip64, "lib", {"f": "x"})
    layer(client, zip64, "own", {"f": "y"})
    other = server.client("LTAIother", "another-secret-here")
    assert refused(lambda: other.get_layer_version_by_arn(made.layer_version_arn)) == (404, "LayerVersionNotFound")
    client.put_layer_acl("lib", fc.PutLayerACLRequest(acl="1"))
    assert other.get_layer_version_by_arn(made.layer_version_arn).body.acl == "1"

    def names(who: Any, **query: Any) -> list[str]:
        return [found.layer_name for found in who.list_layers(fc.ListLayersRequest(**query)).body.layers or []]

    assert names(client) == ["lib", "own"]
    assert names(client, prefix="o") == ["own"]
    assert names(other, public="true") == ["lib"]
    assert names(other) == []
    client.put_layer_acl("lib", fc.PutLayerACLRequest(acl="0"))
    assert names(other, public="true") == []


def test_a_layer_that_does_not_exist_can_not_be_used(client: Any) -> None:
    body = fc.UpdateFunctionInput(layers=["acs:fc:local:acct1:layers/none/versions/1"])
    update = fc.UpdateFunctionRequest(body=body)
    assert refused(lambda: client.update_function("hello", update)) == (404, "LayerVersionNotFound")
