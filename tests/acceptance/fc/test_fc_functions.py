"""Functions through the official SDK."""

from __future__ import annotations

import base64
import contextlib
import io
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc
from darabonba.exceptions import DaraException

Zip = Callable[..., str]


def create(client: Any, zip64: Zip, name: str = "hello", **fields: Any) -> Any:
    body = {"function_name": name, "runtime": "python3.10", "handler": "index.handler"} | fields
    body.setdefault("code", fc.InputCodeLocation(zip_file=zip64()))
    return client.create_function(fc.CreateFunctionRequest(body=fc.CreateFunctionInput(**body)))


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(DaraException) as caught:
        call()
    return caught.value


def test_a_function_is_created_and_resolved(server: Any, zip64: Zip) -> None:
    made = create(
        server.client(),
        zip64,
        description="says hello",
        memory_size=1024,
        cpu=0.5,
        timeout=60,
        instance_concurrency=5,
        environment_variables={"A": "1"},
        tags=[fc.Tag(key="team", value="birds")],
        log_config=fc.LogConfig(project="p", logstore="l"),
    )
    assert made.status_code == 200
    assert made.headers["x-fc-request-id"]
    body = server.client().get_function("hello", fc.GetFunctionRequest()).body
    assert body.to_map() == made.body.to_map()
    assert (body.function_name, body.runtime, body.memory_size, body.cpu, body.timeout) == (
        "hello", "python3.10", 1024, 0.5, 60,
    )  # fmt: skip
    assert body.function_arn == "acs:fc:local:acct1:functions/hello"
    assert body.log_config.project == "p"
    assert [(tag.key, tag.value) for tag in body.tags] == [("team", "birds")]
    assert (body.state, body.last_update_status) == ("Active", "Successful")

    spec = server.catalog.resolve("acct1", "hello", None)
    assert (spec.limits.memory_mb, spec.limits.cpu, spec.timeout_s, spec.concurrency) == (1024, 0.5, 60.0, 5)
    assert dict(spec.environment) == {"A": "1"}
    files = server.catalog.packages.path(spec.code)
    assert (files / "index.py").read_text().startswith("def handler")


def test_the_code_comes_back_byte_for_byte(server: Any, zip64: Zip) -> None:
    package = base64.b64decode(zip64({"index.py": "x = 1\n", "lib/a.txt": "a"}))
    create(server.client(), zip64, code=fc.InputCodeLocation(zip_file=base64.b64encode(package).decode()))
    answer = server.client().get_function_code("hello", fc.GetFunctionCodeRequest()).body
    fetched = httpx.get(answer.url)
    assert fetched.content == package
    function = server.client().get_function("hello", fc.GetFunctionRequest()).body
    assert function.code_checksum == answer.checksum
    assert function.code_size == len(package)
    with zipfile.ZipFile(io.BytesIO(fetched.content)) as archive:
        assert sorted(archive.namelist()) == ["index.py", "lib/a.txt"]
    assert httpx.get(answer.url[:-1] + ("0" if answer.url[-1] != "0" else "1")).status_code == 403


def test_a_wrong_checksum_is_refused(server: Any, zip64: Zip) -> None:
    code = fc.InputCodeLocation(zip_file=zip64(), checksum="12345")
    error = refused(lambda: create(server.client(), zip64, code=code))
    assert error.code == "InvalidArgument"
    assert "checksum" in error.message


def test_update_changes_what_is_given_and_keeps_the_rest(server: Any, zip64: Zip) -> None:
    client = server.client()
    create(client, zip64, timeout=10, description="first")
    before = server.catalog.resolve("acct1", "hello", None)
    changed = client.update_function(
        "hello",
        fc.UpdateFunctionRequest(
            body=fc.UpdateFunctionInput(
                memory_size=2048, code=fc.InputCodeLocation(zip_file=zip64({"index.py": "other = 1\n"}))
            )
        ),
    ).body
    assert (changed.memory_size, changed.timeout, changed.description) == (2048, 10, "first")
    after = server.catalog.resolve("acct1", "hello", None)
    assert after.code != before.code
    assert after.revision != before.revision
    client.update_function("hello", fc.UpdateFunctionRequest(body=fc.UpdateFunctionInput(description="second")))
    assert server.catalog.resolve("acct1", "hello", None).revision == after.revision


def test_delete_removes_it_with_all_that_belongs_to_it(server: Any, zip64: Zip) -> None:
    client = server.client()
    create(client, zip64, tags=[fc.Tag(key="a", value="b")])
    client.publish_function_version("hello", fc.PublishFunctionVersionRequest(body=fc.PublishVersionInput()))
    assert client.delete_function("hello").status_code == 204
    assert refused(lambda: client.get_function("hello", fc.GetFunctionRequest())).code == "FunctionNotFound"
    assert refused(lambda: client.delete_function("hello")).status_code == 404
    create(client, zip64)
    assert not client.get_function("hello", fc.GetFunctionRequest()).body.tags
    assert not client.list_function_versions("hello", fc.ListFunctionVersionsRequest()).body.versions


def test_a_second_one_of_the_same_name_is_refused(server: Any, zip64: Zip) -> None:
    create(server.client(), zip64)
    error = refused(lambda: create(server.client(), zip64))
    assert (error.status_code, error.code) == (409, "FunctionAlreadyExists")


def test_accounts_do_not_see_each_other(server: Any, zip64: Zip) -> None:
    create(server.client(), zip64)
    other = server.client("LTAIother", "another-secret-here")
    assert refused(lambda: other.get_function("hello", fc.GetFunctionRequest())).code == "FunctionNotFound"
    assert other.list_functions(fc.ListFunctionsRequest()).body.functions in (None, [])
    create(other, zip64)
    other.delete_function("hello")
    assert server.client().get_function("hello", fc.GetFunctionRequest()).status_code == 200


def test_listing_goes_page_by_page(server: Any, zip64: Zip) -> None:
    client = server.client()
    for name in ("b-1", "a-2", "b-3", "b-2"):
        create(client, zip64, name)
    seen, token = [], None
    for _ in range(5):
        answer = client.list_functions(fc.ListFunctionsRequest(prefix="b-", limit=2, next_token=token)).body
        seen.append([function.function_name for function in answer.functions])
        token = answer.next_token
        if not token:
            break
    assert seen == [["b-1", "b-2"], ["b-3"]]
    for query, count in (({"fc_version": "v2"}, 0), ({"runtime": "python3.10"}, 4), ({"function_name": "a-2"}, 1)):
        found = client.list_functions(fc.ListFunctionsRequest(**query)).body.functions or []
        assert len(found) == count, query
    for wrong in (0, 101):
        assert refused(lambda w=wrong: client.list_functions(fc.ListFunctionsRequest(limit=w))).status_code == 400


def test_invocation_can_be_turned_off_and_on(server: Any, zip64: Zip) -> None:
    client = server.client()
    create(client, zip64)
    answer = client.disable_function_invocation("hello", fc.DisableFunctionInvocationRequest(reason="it misbehaves"))
    assert answer.body.success is True
    shown = client.get_function("hello", fc.GetFunctionRequest()).body.invocation_restriction
    assert (shown.disable, shown.reason) == (True, "it misbehaves")
    with pytest.raises(Exception, match="it misbehaves"):
        server.catalog.resolve("acct1", "hello", None)
    client.enable_function_invocation("hello")
    assert server.catalog.resolve("acct1", "hello", None).name == "hello"


def test_everything_is_there_after_a_restart(
    restartable: Callable[[], contextlib.AbstractContextManager[Any]], zip64: Zip
) -> None:
    with restartable() as server:
        create(server.client(), zip64, memory_size=256)
        before = server.client().get_function("hello", fc.GetFunctionRequest()).body.to_map()
        spec = server.catalog.resolve("acct1", "hello", None)
    with restartable() as server:
        assert server.client().get_function("hello", fc.GetFunctionRequest()).body.to_map() == before
        assert server.catalog.resolve("acct1", "hello", None) == spec
