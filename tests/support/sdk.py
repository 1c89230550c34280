"""The official Function Compute SDK, pointed at a running Roost, with the calls that tests make most."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from alibabacloud_fc20230330 import models as fc
from alibabacloud_fc20230330.client import Client
from alibabacloud_tea_openapi.utils_models import Config
from darabonba.exceptions import DaraException
from darabonba.runtime import RuntimeOptions

from tests.support.server import zip_base64

#: One attempt only: a test wants to see every reply.
ONCE = RuntimeOptions(autoretry=False, read_timeout=90_000, connect_timeout=10_000)


class Sdk:
    """`client` is the SDK's own, unmodified; the methods only fill in its request objects."""

    def __init__(self, url: str, *, key_id: str = "any", secret: str = "any") -> None:
        endpoint = urlsplit(url).netloc
        self.client = Client(
            Config(
                access_key_id=key_id, access_key_secret=secret, endpoint=endpoint, protocol="http", region_id="local"
            )
        )

    def create(self, name: str, files: Mapping[str, str], **fields: Any) -> Any:
        body = {
            "function_name": name,
            "runtime": "python3.12",
            "handler": "index.handler",
            "code": fc.InputCodeLocation(zip_file=zip_base64(files)),
            **fields,
        }
        return self.client.create_function(fc.CreateFunctionRequest(body=fc.CreateFunctionInput(**body))).body

    def update(self, name: str, files: Mapping[str, str] | None = None, **fields: Any) -> Any:
        if files is not None:
            fields["code"] = fc.InputCodeLocation(zip_file=zip_base64(files))
        return self.client.update_function(name, fc.UpdateFunctionRequest(body=fc.UpdateFunctionInput(**fields))).body

    def invoke(
        self, name: str, event: bytes = b"", *, qualifier: str | None = None, tail: bool = False, **headers: str
    ) -> Any:
        """The SDK's response: `status_code`, `headers` and `body`, a readable stream."""
        request = fc.InvokeFunctionRequest(body=io.BytesIO(event), qualifier=qualifier)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = fc.InvokeFunctionHeaders(common_headers=sent, x_fc_log_type="Tail" if tail else None)
        return self.client.invoke_function_with_options(name, request, fields, ONCE)

    def reply(self, name: str, event: bytes = b"", **options: Any) -> bytes:
        """The body of a good reply."""
        response = self.invoke(name, event, **options)
        assert "x-fc-error-type" not in response.headers, response.body.read()
        return bytes(response.body.read())

    def publish(self, name: str, description: str = "") -> str:
        """The new version's number."""
        body = fc.PublishVersionInput(description=description)
        return str(
            self.client.publish_function_version(name, fc.PublishFunctionVersionRequest(body=body)).body.version_id
        )

    def instances(self, name: str, **query: Any) -> list[Any]:
        found = self.client.list_instances(name, fc.ListInstancesRequest(**query)).body.instances
        return list(found or [])

    def session(self, name: str, id: str | None = None, **fields: Any) -> Any:
        body = fc.CreateSessionInput(session_id=id, **fields)
        return self.client.create_session(name, fc.CreateSessionRequest(body=body)).body


def refused(call: Callable[[], Any]) -> DaraException:
    """What the SDK raises for an error reply: `status_code`, `code`, `message`."""
    with pytest.raises(DaraException) as caught:
        call()
    return caught.value
