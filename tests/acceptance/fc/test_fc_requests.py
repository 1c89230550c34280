"""What every call has in common: signatures, limits, the shape of errors. Raw HTTP where the SDK can't be wrong."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc
from darabonba.exceptions import DaraException

from roost.sdk.acs3 import Keys, sign

BASE = {"functionName": "raw", "runtime": "python3.10", "handler": "index.handler"}


def send(
    server: Any,
    method: str,
    path: str,
    body: Any = None,
    *,
    query: dict[str, str] | None = None,
    secret: str = "a-secret-of-the-test",
    key: str = "LTAItest",
    at: float | None = None,
    tamper: bytes = b"",
    **changes: str,
) -> httpx.Response:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    moment = time.gmtime(time.time() if at is None else at)
    headers = sign(
        Keys(id=key, secret=secret),
        method=method,
        path=path,
        query=query or {},
        host=f"127.0.0.1:{server.port}",
        body=content,
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", moment),
        nonce="n",
    )
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    target = path + (f"?{urlencode(query)}" if query else "")
    return httpx.request(method, server.url + target, content=content + tamper, headers=headers, timeout=20)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"Code", "Message", "RequestId"}
    assert answer.headers["x-fc-request-id"] == body["RequestId"]
    return answer.status_code, body["Code"]


def test_the_sdk_with_a_wrong_secret_or_key_is_refused(server: Any) -> None:
    for key, secret, code in (("LTAItest", "wrong", "SignatureNotMatch"), ("nobody", "x", "InvalidAccessKeyID")):
        with pytest.raises(DaraException) as caught:
            server.client(key, secret).list_functions(fc.ListFunctionsRequest())
        assert (caught.value.status_code, caught.value.code) == (403, code)


def test_queries_with_special_characters_are_signed_alike(server: Any) -> None:
    client = server.client()
    answer = client.list_functions(fc.ListFunctionsRequest(prefix="a b+c/ü&=~*", tags=[fc.Tag(key="k", value="v w")]))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"authorization": ""}, "MissingAuthorization"),
        ({"authorization": "Bearer abc"}, "SignatureNotMatch"),
        ({"x_acs_content_sha256": "0" * 64}, "SignatureNotMatch"),
        ({"x_acs_date": "2020-01-01T00:00:00Z"}, "RequestTimeTooSkewed"),
        ({"x_acs_date": "now"}, "SignatureNotMatch"),
        ({"at": time.time() - 3600}, "RequestTimeTooSkewed"),
        ({"at": time.time() + 3600}, "RequestTimeTooSkewed"),
        ({"tamper": b" "}, "SignatureNotMatch"),
        ({"query": {"prefix": "x"}, "secret": "no"}, "SignatureNotMatch"),
    ],
)
def test_a_request_that_is_not_what_was_signed_is_refused(server: Any, changes: dict[str, Any], code: str) -> None:
    assert code_of(send(server, "GET", "/2023-03-30/functions", **changes)) == (403, code)


def test_a_signature_does_not_fit_another_path(server: Any) -> None:
    headers = sign(
        Keys(id="LTAItest", secret="a-secret-of-the-test"),
        method="GET",
        path="/2023-03-30/layers",
        query={},
        host=f"127.0.0.1:{server.port}",
        body=b"",
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        nonce="n",
    )
    assert code_of(httpx.get(server.url + "/2023-03-30/functions", headers=headers)) == (403, "SignatureNotMatch")
    assert httpx.get(server.url + "/2023-03-30/layers", headers=headers).status_code == 200


def test_without_keys_nobody_is_asked_and_the_default_account_owns_all(open_server: Any, zip64: Any) -> None:
    made = httpx.post(open_server.url + "/2023-03-30/functions", json=BASE | {"code": {"zipFile": zip64()}})
    assert made.status_code == 200
    assert open_server.catalog.resolve("default", "raw", None).name == "raw"
    assert open_server.client("any", "thing").get_function("raw", fc.GetFunctionRequest()).status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"memorySiz": 512}, "memorySiz"),
        ({"memorySize": "512"}, "memorySize"),
        ({"memorySize": 500}, "memorySize"),
        ({"memorySize": 64}, "memorySize"),
        ({"memorySize": True}, "memorySize"),
        ({"cpu": 0.07}, "cpu"),
        ({"cpu": 4, "memorySize": 512}, "cpu"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 86401}, "timeout"),
        ({"diskSize": 1024}, "diskSize"),
        ({"instanceConcurrency": 201}, "instanceConcurrency"),
        ({"environmentVariables": {"A": 1}}, "environmentVariables.A"),
        ({"environmentVariables": {"A": "x" * 4096}}, "environmentVariables"),
        ({"environmentVariables": {"1A": "x"}}, "environmentVariables"),
        ({"runtime": "nodejs20"}, "runtime"),
        ({"handler": "handler"}, "handler"),
        ({"functionName": "1st"}, "functionName"),
        ({"functionName": "x" * 65}, "functionName"),
        ({"functionName": "metrics"}, "functionName"),
        ({"functionName": None}, "functionName"),
        ({"gpuConfig": {"gpuType": "fc.gpu.ampere.1"}}, "gpuConfig"),
        ({"code": {"zipFile": "***"}}, "base64"),
        ({"code": {"ossBucketName": "b", "ossObjectName": "o"}}, "ossBucketName"),
        ({"code": {"zipfile": "x"}}, "code.zipfile"),
        ({"code": None}, "code"),
        ({"layers": ["not-an-arn"]}, "layers"),
        ({"sessionAffinity": "STICKY"}, "sessionAffinity"),
        ({"sessionAffinity": "HEADER_FIELD"}, "affinityHeaderFieldName"),
        ({"sessionAffinity": "GENERATED_COOKIE", "sessionAffinityConfig": "{"}, "sessionAffinityConfig"),
        ({"instanceIsolationMode": "SESSION_EXCLUSIVE"}, "instanceIsolationMode"),
        ({"nasConfig": {"mountPoints": [{"serverAddr": "v:/../x", "mountDir": "/mnt/a"}]}}, "serverAddr"),
        ({"nasConfig": {"mountPoints": [{"serverAddr": "v:/x", "mountDir": "/code/a"}]}}, "mountDir"),
        ({"roost": {"packages": ["cargo"]}}, "roost.packages"),
        ({"roost": {"template": "../x"}}, "roost.template"),
        ({"instanceLifecycleConfig": {"preStop": {"handler": "a.b", "command": ["x"]}}}, "preStop"),
        ({"runtime": "custom-container", "customContainerConfig": {"image": "reg.io/a:1"}}, "image"),
    ],
)
def test_a_definition_that_can_not_be_is_refused_by_the_name_of_its_field(
    open_server: Any, zip64: Any, change: dict[str, Any], field: str
) -> None:
    body = BASE | {"code": {"zipFile": zip64()}} | change
    answer = httpx.post(open_server.url + "/2023-03-30/functions", json=body)
    assert code_of(answer) == (400, "InvalidArgument")
    assert field in answer.json()["Message"]
    assert open_server.catalog.names() == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b'{"a":' * 100_000])
def test_a_body_that_is_no_json_object_is_refused(open_server: Any, body: bytes) -> None:
    assert code_of(httpx.post(open_server.url + "/2023-03-30/functions", content=body)) == (400, "InvalidArgument")


def test_a_body_over_its_limit_is_refused_however_it_is_sent(server: Any, open_server: Any) -> None:
    path = "/2023-03-30/functions"
    assert code_of(send(server, "POST", path, b" " * (3 << 20))) == (413, "EntityTooLarge")

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * (1 << 16)

    url = open_server.url + path + "/x/concurrency"
    assert code_of(httpx.put(url, content=chunks())) == (413, "EntityTooLarge")


def test_uploads_that_break_off_do_not_keep_others_out(open_server: Any, zip64: Callable[..., str]) -> None:
    head = b"POST /2023-03-30/functions HTTP/1.1\r\nhost: h\r\ncontent-length: 50000000\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", open_server.port)) as connection:
            connection.sendall(head + b"x" * 100_000)
    body = BASE | {"code": {"zipFile": zip64()}, "description": "d"}
    made = httpx.post(open_server.url + "/2023-03-30/functions", content=json.dumps(body).ljust(2 << 20), timeout=20)
    assert made.status_code == 200


def test_a_package_over_its_limit_is_refused(server: Any) -> None:
    with pytest.raises(DaraException) as caught:
        server.client().create_function(
            fc.CreateFunctionRequest(
                body=fc.CreateFunctionInput(
                    function_name="big",
                    runtime="python3",
                    handler="index.handler",
                    code=fc.InputCodeLocation(zip_file="A" * (1_500_000)),
                )
            )
        )
    assert (caught.value.status_code, caught.value.code) == (413, "EntityTooLarge")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("PATCH", "/functions"), ("POST", "/functions/a/b/c"), ("GET", "/")]
)
def test_an_unknown_operation_is_named(open_server: Any, method: str, path: str) -> None:
    answer = httpx.request(method, open_server.url + "/2023-03-30" + path)
    assert code_of(answer) == (404, "OperationNotFound")
    assert method in answer.json()["Message"]


def test_the_region_is_told(server: Any) -> None:
    regions = server.client().describe_regions(fc.DescribeRegionsRequest()).body.regions.region
    assert [region.region_id for region in regions] == ["local"]


def test_every_field_of_the_sdk_is_known(open_server: Any, zip64: Callable[..., str]) -> None:
    """All that CreateFunctionInput can carry is either honoured, kept and shown, or refused with a reason."""
    body = fc.CreateFunctionInput(
        function_name="full",
        runtime="custom.debian12",
        handler="index.handler",
        code=fc.InputCodeLocation(zip_file=zip64()),
        cpu=1,
        memory_size=2048,
        disk_size=10240,
        description="d",
        custom_dns=fc.CustomDNS(
            name_servers=["1.1.1.1"], searches=["a"], dns_options=[fc.DNSOption(name="ndots", value="1")]
        ),
        custom_runtime_config=fc.CustomRuntimeConfig(
            command=["python3"],
            args=["app.py"],
            port=8080,
            health_check_config=fc.CustomHealthCheckConfig(
                failure_threshold=3, http_get_url="/h", initial_delay_seconds=1, period_seconds=2, success_threshold=1,
                timeout_seconds=1,
            ),
        ),
        disable_inject_credentials="All",
        disable_ondemand=False,
        enable_long_living=False,
        environment_variables={"A": "b"},
        idle_timeout=100,
        instance_concurrency=20,
        instance_isolation_mode="SESSION_EXCLUSIVE",
        instance_lifecycle_config=fc.InstanceLifecycleConfig(
            initializer=fc.LifecycleHook(handler="index.init", timeout=10),
            pre_stop=fc.LifecycleHook(command=["sh", "-c", "true"], timeout=5),
        ),
        internet_access=True,
        layers=[],
        log_config=fc.LogConfig(
            project="p", logstore="l", enable_instance_metrics=True, enable_llm_metrics=False,
            enable_request_metrics=True, log_begin_rule="None",
        ),
        nas_config=fc.NASConfig(
            user_id=10003,
            group_id=10003,
            mount_points=[fc.NASMountConfig(server_addr="shared:/a", mount_dir="/mnt/a", enable_tls=False)],
        ),
        oss_mount_config=fc.OSSMountConfig(
            mount_points=[
                fc.OSSMountPoint(
                    bucket_name="data", bucket_path="/x", endpoint="http://oss", mount_dir="/mnt/b", read_only=True
                )
            ]
        ),
        resource_group_id="rg",
        role="acs:ram::1:role/x",
        session_affinity="HEADER_FIELD",
        session_affinity_config=json.dumps(
            {
                "affinityHeaderFieldName": "X-Session-Id",
                "sessionConcurrencyPerInstance": 20,
                "sessionTTLInSeconds": 3600,
                "sessionIdleTimeoutInSeconds": 600,
                "disableSessionIdReuse": True,
            }
        ),
        tags=[fc.Tag(key="k", value="v")],
        timeout=60,
        tracing_config=fc.TracingConfig(type="Jaeger", params={"endpoint": "http://t"}),
        vpc_config=fc.VPCConfig(role="r", security_group_id="s", v_switch_ids=["v"], vpc_id="vpc"),
    )  # fmt: skip
    client = open_server.client()
    made = client.create_function(fc.CreateFunctionRequest(body=body)).body.to_map()
    sent = body.to_map()
    refused = {"gpuConfig", "juiceFsConfig", "polarFsConfig", "microSandboxConfig", "customContainerConfig"}
    fields = set(fc.CreateFunctionInput().__dict__)
    assert len(sent) == len(fields) - len(refused)
    for field in set(sent) - {"code", "layers"}:
        assert made[field] == sent[field], field
    spec = open_server.catalog.resolve("default", "full", None)
    assert spec.command == ("python3", "app.py")
    assert (spec.port, spec.concurrency, spec.idle.stop_after_s) == (8080, 20, 100)
    assert (spec.sessions.header, spec.sessions.ttl_s, spec.sessions.idle_timeout_s) == ("x-session-id", 3600, 600)
    assert spec.sessions.disable_id_reuse is True
    assert spec.sessions.sessions_per_instance == 1
    assert [(m.volume, m.path, m.target, m.read_only) for m in spec.mounts] == [
        ("shared", "/a", "/mnt/a", False),
        ("data", "/x", "/mnt/b", True),
    ]
    assert spec.initializer is not None and spec.initializer.handler == "index.init"
    assert spec.pre_stop is not None and spec.pre_stop.command == ("sh", "-c", "true")
    # What GetFunction shows can be sent back as an update.
    shown = client.get_function("full", fc.GetFunctionRequest()).body.to_map()
    accepted = {name: shown[name] for name in shown if name in fc.UpdateFunctionInput().from_map(shown).to_map()}
    accepted["layers"] = []
    assert (
        client.update_function(
            "full", fc.UpdateFunctionRequest(body=fc.UpdateFunctionInput().from_map(accepted))
        ).status_code
        == 200
    )
