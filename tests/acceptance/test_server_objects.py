"""The object store of a whole server, by its API and command line; and an oss trigger as a newcomer makes one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from alibabacloud_fc20230330 import models as fc

from tests.support.sdk import Sdk
from tests.support.server import Server

HANDLER = (
    "import json\ndef handler(event, context):\n    print(json.loads(event)['events'][0]['oss']['object']['key'])\n"
)


def command(roost: Server, *words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Runs `roost objects ...`: exit code, output, what it complained of."""
    done = subprocess.run(
        [Path(sys.executable).with_name("roost"), "objects", *words],
        input=stdin,
        capture_output=True,
        env={**os.environ, "ROOST_URL": roost.url},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_an_object_starts_a_function(roost: Server, sdk: Sdk, tmp_path: Path) -> None:
    """The words of docs/how-to/object-store.md."""
    sdk.create("shrink", {"index.py": HANDLER})
    settings = {"events": ["oss:ObjectCreated:*"], "filter": {"key": {"prefix": "in/", "suffix": ".txt"}}}
    body = fc.CreateTriggerInput(
        trigger_name="uploads",
        trigger_type="oss",
        source_arn="acs:oss:local:default:inbox",
        trigger_config=json.dumps(settings),
    )
    made = sdk.client.create_trigger("shrink", fc.CreateTriggerRequest(body=body)).body
    assert made.source_arn == "acs:oss:local:default:inbox" and made.trigger_type == "oss"
    (tmp_path / "a.txt").write_text("hello")
    assert command(roost, "put", str(tmp_path / "a.txt"), "inbox/in/") == (0, b"inbox/in/a.txt\n", "")

    def done() -> list[str]:
        listed = sdk.client.list_async_tasks("shrink", fc.ListAsyncTasksRequest(include_payload=True)).body.tasks
        return [task.task_payload for task in listed or [] if task.status == "Succeeded"]

    roost.until(lambda: len(done()) == 1)
    (event,) = json.loads(done()[0])["events"]
    assert event["eventName"] == "ObjectCreated:PutObject" and event["region"] == "local"
    assert event["oss"]["bucket"]["name"] == "inbox"
    assert event["oss"]["object"] == {**event["oss"]["object"], "key": "in/a.txt", "size": 5, "deltaSize": 5}


def test_objects_by_the_command_line(roost: Server, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    assert command(roost, "put", "-", "files/deep/er/ä b.bin", stdin=content)[0] == 0
    assert command(roost, "put", "-", "files/z", stdin=b"")[0] == 0
    assert command(roost, "get", "files/deep/er/ä b.bin", "-")[1] == content
    assert command(roost, "get", "files/z", str(tmp_path)) == (0, f"{tmp_path}/z\n".encode(), "")
    assert b"files" in command(roost, "buckets")[1].splitlines()
    listed = json.loads(command(roost, "ls", "files/d", "--json")[1])
    assert [(one["key"], one["size"]) for one in listed] == [("deep/er/ä b.bin", 3 << 20)]
    assert command(roost, "rm", "files/deep/er/ä b.bin", "files/gone")[0] == 0
    code, _, said = command(roost, "get", "files/deep/er/ä b.bin", "-")
    assert code == 1 and "no object" in said
    assert not (roost.data_dir / "objects/files/deep").exists()  # a folder is no object


def test_nothing_leads_out_of_a_bucket(roost: Server) -> None:
    objects = roost.data_dir / "objects"
    secret = roost.data_dir / "secret"
    secret.write_text("untouched")
    with roost.client() as client:
        assert client.put("/roost/objects/strict/a", content=b"x").status_code == 200
        (objects / "strict/out").symlink_to(roost.data_dir)
        (objects / "strict/file").symlink_to(secret)
        refused = {
            "/roost/objects/strict/%2e%2e/%2e%2e/secret": 400,
            "/roost/objects/strict/a%00b": 400,
            "/roost/objects/strict//etc/passwd": 400,
            "/roost/objects/strict/" + "x" * 256: 400,
            "/roost/objects/strict/" + "x/" * 512 + "y": 400,
            "/roost/objects/strict/": 400,
            "/roost/objects/.parts/a": 400,
            "/roost/objects/%2e%2e/a": 400,
            "/roost/objects/strict/out/secret": 409,
            "/roost/objects/strict/a/b": 409,
        }
        for target, status in refused.items():
            reply = client.build_request("PUT", "/")
            reply.url = reply.url.copy_with(raw_path=target.encode())
            reply = client.send(client.build_request("PUT", reply.url, content=b"changed"))
            assert reply.status_code == status, (target, reply.text)
        assert client.get("/roost/objects/strict/out/secret").status_code == 404
        assert client.get("/roost/objects/strict/file").status_code == 404
        assert client.put("/roost/objects/strict/file", content=b"mine").status_code == 200  # in the link's place
        assert client.get("/roost/objects/strict/file").content == b"mine"
        listed = client.get("/roost/objects/strict").json()["objects"]
        assert [one["key"] for one in listed] == ["a", "file"]
        assert client.get("/roost/objects/nowhere").json()["Code"] == "NoSuchBucket"
    assert secret.read_text() == "untouched"


def test_half_an_upload_is_none(roost: Server) -> None:
    with roost.client() as client:
        client.put("/roost/objects/whole/a", content=b"before")

        def broken() -> object:
            yield b"x" * 100_000
            raise ConnectionError

        with pytest.raises(ConnectionError):
            client.put("/roost/objects/whole/a", content=broken())
        roost.until(lambda: list((roost.data_dir / "objects/.parts").iterdir()) == [])
        assert client.get("/roost/objects/whole/a").content == b"before"
        after = [one["key"] for one in client.get("/roost/objects/whole", params={"limit": "1"}).json()["objects"]]
        assert after == ["a"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sourceArn": "acs:oss:local"}, "sourceArn: an oss trigger takes"),
        ({"triggerConfig": {"events": ["oss:ObjectCreated:Everything"]}}, "is not an event that happens here"),
        ({"triggerConfig": {"events": []}}, "events"),
        ({"triggerConfig": {"events": ["oss:ObjectCreated:*"], "bucketName": "../x"}}, "bucketName"),
        ({"triggerType": "postgresql", "triggerConfig": {"dsn": "mysql://x", "table": "t", "idColumn": "id"}}, "dsn"),
    ],
)
def test_wrong_settings_are_refused(roost: Server, fields: Mapping[str, object], said: str) -> None:
    roost.deploy("wrong", {"index.py": HANDLER})
    body = {
        "triggerName": "t",
        "triggerType": "oss",
        "sourceArn": "acs:oss:local:default:inbox",
        "triggerConfig": {"events": ["oss:ObjectCreated:*"]},
        **fields,
    }
    body["triggerConfig"] = json.dumps(body["triggerConfig"])
    with roost.client() as client:
        reply = client.post("/2023-03-30/functions/wrong/triggers", json=body)
        assert reply.status_code == 400 and said in reply.json()["Message"], reply.text
