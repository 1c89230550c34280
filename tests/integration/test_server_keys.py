"""A server with access keys: what a right signature opens, and what everything else is answered."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc

from roost.sdk.acs3 import Keys, sign
from tests.support.sdk import Sdk, refused
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.tasks import finished

KEY_ID, SECRET = "key-of-the-test", "a-secret-of-the-test"
RIGHT = Keys(id=KEY_ID, secret=SECRET)
#: Keeps every event it gets; an HTTP request is answered with the headers it came with.
KEEPER = """
import json
seen = []
def handler(event, context):
    if event.startswith(b"{"):
        return json.dumps(json.loads(event)["headers"])
    seen.append(event.decode())
    return json.dumps(seen)
"""
INVOKE = "/2023-03-30/functions/keeper/invocations"
CALLS = [("GET", "/2023-03-30/functions", b""), ("GET", "/2023-03-30/functions/keeper", b""), ("POST", INVOKE, b"x")]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=f'[keys]\n{KEY_ID} = "{SECRET}"\n') as server:
        right = Sdk(server.url, key_id=KEY_ID, secret=SECRET)
        right.create("keeper", {"index.py": KEEPER})
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def right(keyed: Server) -> Sdk:
    return Sdk(keyed.url, key_id=KEY_ID, secret=SECRET)


def send(
    server: Server, method: str, path: str, body: bytes, *, keys: Keys = RIGHT, sent: bytes | None = None,
    age_s: float = 0, **changed: str,
) -> httpx.Response:  # fmt: skip
    """Sign `body`, then send `sent` (or the same) with `changed` headers."""
    headers = sign(
        keys, method=method, path=path, query={}, host=server.url.removeprefix("http://"), body=body,
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - age_s)), nonce=uuid.uuid4().hex,
    )  # fmt: skip
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    with server.client() as client:
        return client.request(method, path, content=body if sent is None else sent, headers=headers)


def assert_refused(reply: httpx.Response, code: str) -> None:
    assert reply.status_code == 403, reply.text
    body = reply.json()
    assert set(body) == {"Code", "Message", "RequestId"}
    assert body["Code"] == code
    assert body["RequestId"]
    assert SECRET not in reply.text


def seen(right: Sdk) -> list[str]:
    return list(json.loads(right.reply("keeper", b"look")))


def test_the_server_says_that_it_asks_for_keys(keyed: Server) -> None:
    assert "signed requests only" in keyed.ready_line
    assert SECRET not in keyed.ready_line
    with keyed.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_right_signature_opens_control_and_invoke(keyed: Server, right: Sdk) -> None:
    shown = right.client.get_function("keeper", fc.GetFunctionRequest()).body
    assert shown.function_name == "keeper"
    assert "first" in json.loads(right.reply("keeper", b"first"))
    right.publish("keeper")
    assert json.loads(right.reply("keeper", b"with a query", qualifier="1")) == ["with a query"]
    for method, path, body in CALLS:
        assert send(keyed, method, path, body).status_code == 200


def test_the_sdk_with_a_wrong_secret_or_an_unknown_key(keyed: Server) -> None:
    for sdk, code in (
        (Sdk(keyed.url, key_id=KEY_ID, secret="another"), "SignatureNotMatch"),
        (Sdk(keyed.url, key_id="nobody", secret=SECRET), "InvalidAccessKeyID"),
    ):
        for call in (
            lambda sdk=sdk: sdk.client.get_function("keeper", fc.GetFunctionRequest()),
            lambda sdk=sdk: sdk.invoke("keeper", b"stranger"),
            lambda sdk=sdk: sdk.client.delete_function("keeper"),
        ):
            error = refused(call)
            assert (error.status_code, error.code) == (403, code)


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_what_is_not_signed_rightly_is_refused_in_the_apis_shape(
    keyed: Server, right: Sdk, method: str, path: str, body: bytes
) -> None:
    with keyed.client() as client:
        assert_refused(client.request(method, path, content=body), "MissingAuthorization")
        bearer = {"authorization": f"Bearer {SECRET}"}
        assert_refused(client.request(method, path, content=body, headers=bearer), "SignatureNotMatch")
    assert_refused(send(keyed, method, path, body, keys=Keys(id=KEY_ID, secret="no")), "SignatureNotMatch")
    assert_refused(send(keyed, method, path, body, age_s=16 * 60), "RequestTimeTooSkewed")
    assert_refused(send(keyed, method, path, body, age_s=-16 * 60), "RequestTimeTooSkewed")
    assert_refused(send(keyed, method, path, body, x_acs_date="yesterday"), "SignatureNotMatch")
    assert_refused(send(keyed, method, path, body, x_acs_signature_nonce="another"), "SignatureNotMatch")
    # A signature for one path does not open another.
    other = "/2023-03-30/functions/other"
    headers = dict(send(keyed, "GET", other, b"").request.headers)
    with keyed.client() as client:
        assert_refused(client.request(method, path, content=body, headers=_signature(headers)), "SignatureNotMatch")


def test_a_body_that_was_changed_on_the_way_never_reaches_the_function(keyed: Server, right: Sdk) -> None:
    big = b"g" * (1 << 20)
    for signed, sent in ((b"good", b"evil"), (b"good", b"good-and-more"), (b"good", b""), (big, big[:-1] + b"e")):
        assert_refused(send(keyed, "POST", INVOKE, signed, sent=sent), "SignatureNotMatch")
    assert not [text for text in seen(right) if text != "look" and text.startswith(("good", "evil", "g"))]
    # The digest of what is sent, under a signature for something else.
    import hashlib

    reply = send(keyed, "POST", INVOKE, b"good", sent=b"evil", x_acs_content_sha256=hashlib.sha256(b"evil").hexdigest())
    assert_refused(reply, "SignatureNotMatch")
    create = json.dumps({"functionName": "sneaked", "runtime": "python3", "handler": "index.handler"}).encode()
    assert_refused(send(keyed, "POST", "/2023-03-30/functions", b"{}", sent=create), "SignatureNotMatch")
    assert refused(lambda: right.client.get_function("sneaked", fc.GetFunctionRequest())).status_code == 404


def test_a_functions_address_takes_the_secret_as_a_bearer_key_and_keeps_it_from_the_room(keyed: Server) -> None:
    with keyed.client() as client:
        assert_refused(client.get("/keeper/"), "AuthenticationRequired")
        for wrong in (f"Bearer {SECRET}x", "Bearer", f"Basic {SECRET}", SECRET):
            assert_refused(client.get("/keeper/", headers={"authorization": wrong}), "AuthenticationRequired")
        reply = client.get("/keeper/", headers={"authorization": f"Bearer {SECRET}", "x-mine": "1"})
        assert reply.status_code == 200
        assert "x-mine" in reply.text.lower()
        assert SECRET not in reply.text


def test_a_trigger_opens_a_function_or_gives_it_keys_of_its_own(keyed: Server, right: Sdk) -> None:
    def trigger(function: str, **config: Any) -> None:
        right.create(function, {"index.py": KEEPER})
        text = json.dumps({"methods": ["GET"], **config})
        body = fc.CreateTriggerInput(trigger_name="web", trigger_type="http", trigger_config=text)
        right.client.create_trigger(function, fc.CreateTriggerRequest(body=body))

    trigger("opened", authType="anonymous")
    own = "a-key-of-the-function-itself"
    trigger("own", authType="bearer", authConfig=json.dumps({"keys": [own]}))
    with keyed.client() as client:
        opened = client.get("/opened/", headers={"authorization": "Bearer for-the-function"})
        # Nobody's key of ours: the function's own business.
        assert "for-the-function" in opened.text
        assert client.get("/own/", headers={"authorization": f"Bearer {own}"}).status_code == 200
        assert_refused(client.get("/own/", headers={"authorization": f"Bearer {SECRET}"}), "AuthenticationRequired")
        assert_refused(client.get("/own/"), "AuthenticationRequired")


@pytest.mark.parametrize("path", ["/roost/instances", "/roost/usage", "/roost/functions/keeper/logs", "/metrics"])
def test_the_console_asks_for_a_key_too(keyed: Server, path: str) -> None:
    with keyed.client() as client:
        assert client.get(path).status_code == 403
        assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 403
        assert client.get(path, headers={"authorization": f"Bearer {SECRET}"}).status_code == 200


def _signature(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("x-acs-") or name == "authorization"}


def test_a_request_for_later_shows_its_key_and_does_not_keep_it(keyed: Server, right: Sdk) -> None:
    later = {"x-fc-invocation-type": "Async", "x-fc-async-task-id": "later"}
    with keyed.client() as client:
        assert client.post("/keeper/x", headers=later).status_code == 403
        key = {"authorization": f"Bearer {SECRET}"}
        assert client.post("/keeper/x", headers={**later, **key}).status_code == 202
    done = finished(keyed.data_dir, "keeper", ["later"])["later"]
    assert done.state == "Succeeded"
    assert "authorization" not in {name.lower() for name in json.loads(done.result or b"")}
    assert all(SECRET.encode() not in file.read_bytes() for file in keyed.data_dir.glob("roost.db*"))
