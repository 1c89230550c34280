"""What functions and triggers are given, when their server is gone: in no file of its folder, nor of its database."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from roost.store.store import Store
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.stores import Place

FC = "/2023-03-30/functions"
VALUE, TOKEN, PASSWORD, PLACE = (
    "value-of-a-variable",
    "token-of-a-webhook",
    "password-of-a-broker",
    "password-of-a-hook",
)
PUBLISHED = "value-of-a-version"
HIDDEN = (VALUE, TOKEN, PASSWORD, PLACE, PUBLISHED)
#: Not hidden: a control.
SHOWN = "somewhere-in-the-store"
#: What a function says itself is kept as it says it, as the result of a task.
CODE = "import os\ndef handler(event, context):\n    return os.environ['KEY'][::-1]\n"
TRIGGERS: dict[str, dict[str, Any]] = {
    "webhook": {"authType": "bearer", "token": TOKEN},
    "redis": {"endpoint": f"redis://me:{PASSWORD}@127.0.0.1:1/0", "stream": "s"},
}


def fill(server: Server) -> None:
    server.deploy("f", {"index.py": CODE}, environmentVariables={"KEY": PUBLISHED})
    with server.client() as client:

        def send(method: str, path: str, **body: Any) -> None:
            reply = client.request(method, f"{FC}/f/{path}", json=body)
            assert reply.is_success, reply.text

        send("POST", "versions", description=SHOWN)
        server.deploy("f", {"index.py": CODE}, environmentVariables={"KEY": VALUE})
        for kind, config in TRIGGERS.items():
            send("POST", "triggers", triggerName=kind, triggerType=kind, triggerConfig=json.dumps(config))
        there = {"destination": f"https://me:{PLACE}@127.0.0.1:1/"}
        send("PUT", "async-invoke-config", destinationConfig={"onSuccess": there})
        check(server)  # its task has an event for the hook, which waits in the store: there is nobody
        server.until(lambda: client.get(f"{FC}/f/triggers/redis").json()["status"] == "failing")
        server.until(lambda: "Pending" in client.get(f"{FC}/f/async-tasks").text, timeout=30)


def check(server: Server) -> None:
    """It has all of it."""
    with server.client() as client:
        for version, value in (("LATEST", VALUE), ("1", PUBLISHED)):
            assert client.post(f"{FC}/f/invocations", params={"qualifier": version}).text == value[::-1]
        assert client.get(f"{FC}/f").json()["environmentVariables"] == {"KEY": VALUE}
        for token, status in ((TOKEN, 202), ("another-token", 401)):
            sent = {"Authorization": f"Bearer {token}"}
            assert client.post("/webhooks/default/f/webhook", json={}, headers=sent).status_code == status


async def decoded(store: Store) -> str:
    await store.open()
    try:
        tables = (store.functions, store.versions, store.triggers, store.provision)
        return str([await table.list_all() for table in tables])
    finally:
        await store.close()


def on_the_disk(place: Place, data_dir: Path) -> bytes:
    files = [file for file in data_dir.rglob("*") if file.is_file() and not file.is_symlink()]
    assert place.postgres or data_dir / "roost.db" in files
    log = data_dir.with_name(f"{data_dir.name}.log")
    found = b"".join(file.read_bytes() for file in (*files, log))
    return found + (place.raw() if place.postgres else b"")


def test_it_is_in_no_file_and_whoever_has_the_key_file_reads_it(place: Place, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir, env={"ROOST_DATABASE": place.url}).start()
    try:
        fill(server)
        server.kill()  # the log of the database is left as it is
        killed = on_the_disk(place, data_dir)
        server.start()
        check(server)
    finally:
        assert server.stop() == 0
    for found in (killed, on_the_disk(place, data_dir)):
        assert [hidden for hidden in HIDDEN if hidden.encode() in found] == []
        assert SHOWN.encode() in found
    told = asyncio.run(decoded(Store(data_dir / "roost.db", place.url)))
    assert [hidden for hidden in HIDDEN if hidden not in told] == []
    with running(data_dir, env={"ROOST_DATABASE": place.url}) as again:
        check(again)
    assert Remains.of(data_dir) == NOTHING


def test_a_server_with_another_key_file_says_so_and_changes_nothing(place: Place, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir, env={"ROOST_DATABASE": place.url}) as server:
        server.deploy("f", {"index.py": CODE}, environmentVariables={"KEY": VALUE})
    file = data_dir / "keys.sealing"
    kept = file.read_bytes()
    for broken, said in ((bytes(32), "Function default/f can't be opened with the key file"), (None, "is missing")):
        if broken is None:
            file.unlink()
        else:
            file.write_bytes(broken)
        refused = Server(data_dir, env={"ROOST_DATABASE": place.url})
        with pytest.raises(AssertionError, match="did not start"):
            refused.start()
        refused.kill()
        assert said in refused.log().strip().splitlines()[-1]
        assert "Traceback" not in refused.log()
    file.write_bytes(kept)
    with running(data_dir, env={"ROOST_DATABASE": place.url}) as server, server.client() as client:
        assert client.get(f"{FC}/f").json()["environmentVariables"] == {"KEY": VALUE}
    assert Remains.of(data_dir) == NOTHING
