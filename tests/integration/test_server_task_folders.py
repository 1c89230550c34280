"""A folder for each task in a volume: made by the host, told to the guest, safe from what rooms plant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, zip_base64
from tests.support.tasks import configure, finished, submit

CODE = '''
import os, shutil
def handler(event, context):
    """note TEXT: append to a file of the task's folder; ls PATH; plant NAME TARGET: a link beside it; fail"""
    verb, *rest = event.decode().split(" ", 2)
    place = context.task_dir
    if verb == "plant":
        os.symlink(rest[1], os.path.join(os.path.dirname(place), rest[0]))
    if verb in ("note", "fail"):
        with open(place + "/notes", "a") as f:
            f.write(rest[0] + ";")
        os.makedirs(place + "/sub", exist_ok=True)
    if verb == "fail" and len(open(place + "/notes").read()) < 2 * len(rest[0]) + 2:
        raise RuntimeError("again")
    if verb == "fill":
        with open(place + "/big", "wb") as f:
            for _ in range(64): f.write(bytes(1 << 20))
    if verb == "ls":
        return " ".join(sorted(os.listdir(rest[0])))
    return f"{place} {context.task_id} {open(place + '/notes').read() if os.path.exists(place + '/notes') else '-'}"
'''
SESSIONS = {
    "sessionAffinity": "HEADER_FIELD",
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
}


def volume(path: str, name: str = "work") -> dict[str, Any]:
    return {"nasConfig": {"mountPoints": [{"serverAddr": f"{name}:{path}", "mountDir": "/mnt/work"}]}}


def test_a_session_s_tasks_have_folders_of_their_own(server: Server) -> None:
    server.deploy("bysession", {"index.py": CODE}, **SESSIONS, **volume("/{user}/{session}/{task}"))
    assert submit(server, "bysession", "note a", id="t1", x_chat_id="one").status_code == 202
    done = finished(server.data_dir, "bysession", ["t1"])["t1"]
    assert done.result == b"/mnt/work/t1 t1 a;"
    root = server.data_dir / "volumes/default/work/default/one"
    assert (root / "t1/notes").read_text() == "a;"
    reply = server.invoke("bysession", "note b", x_chat_id="one")
    request = reply.headers["x-fc-request-id"]
    assert reply.text == f"/mnt/work/{request}  b;"
    assert sorted(path.name for path in root.iterdir()) == sorted(["t1", request])
    assert server.invoke("bysession", "ls /mnt/work", x_chat_id="other").text != "t1"


def test_each_request_with_an_instance_of_its_own_sees_its_folder_alone(server: Server) -> None:
    server.deploy(
        "byrequest", {"index.py": CODE}, instanceIsolationMode="REQUEST_EXCLUSIVE", **volume("/{task}", "requests")
    )
    for id in ("t1", "t2"):
        assert submit(server, "byrequest", f"note {id}", id=id).status_code == 202
    done = finished(server.data_dir, "byrequest", ["t1", "t2"])
    assert [done[id].result for id in ("t1", "t2")] == [b"/mnt/work t1 t1;", b"/mnt/work t2 t2;"]
    root = server.data_dir / "volumes/default/requests"
    assert (root / "t1/notes").read_text() == "t1;"
    assert (root / "t2/notes").read_text() == "t2;"
    reply = server.invoke("byrequest", "ls /mnt/work")
    assert reply.text == ""
    assert (root / reply.headers["x-fc-request-id"]).is_dir()
    assert list((server.data_dir / "volumes/.pending").iterdir()) == []


@pytest.mark.parametrize("mode", ["SESSION_EXCLUSIVE", "REQUEST_EXCLUSIVE"])
def test_another_try_finds_what_the_first_has_left(server: Server, mode: str) -> None:
    name = f"again-{mode.partition('_')[0].lower()}"
    fields = SESSIONS if mode == "SESSION_EXCLUSIVE" else {"instanceIsolationMode": mode}
    server.deploy(name, {"index.py": CODE}, **fields, **volume("/{user}/{session}/{task}", name))
    assert configure(server, name, maxAsyncRetryAttempts=2).status_code == 200
    assert submit(server, name, "fail x", id="t").status_code == 202
    done = finished(server.data_dir, name, ["t"])["t"]
    assert (done.state, done.attempts) == ("Succeeded", 2)
    assert done.result is not None
    assert done.result.endswith(b" t x;x;")


@pytest.mark.parametrize("target", ["/etc", "..", "/proc/self/root"])
def test_a_link_in_the_place_of_a_folder_is_not_followed(server: Server, target: str) -> None:
    name = "planter-" + "".join(filter(str.isalpha, target)) + "x"
    server.deploy(name, {"index.py": CODE}, **SESSIONS, **volume("/{user}/{session}/{task}", name))
    assert server.invoke(name, f"plant evil {target}", x_chat_id="s").status_code == 200
    assert configure(server, name, maxAsyncRetryAttempts=0).status_code == 200
    submit(server, name, "note owned", id="evil", x_chat_id="s")
    found = finished(server.data_dir, name, ["evil"])["evil"]
    assert (found.state, found.attempts) == ("Failed", 0)
    assert "not a folder inside the volume" in found.error
    assert server.invoke(name, "note fine", x_chat_id="s").text.endswith("fine;")


def test_with_a_quota_the_folders_of_a_session_share_it(server: Server) -> None:
    server.deploy(
        "small", {"index.py": CODE}, **SESSIONS, **volume("/{user}/{session}/{task}", "small"),
        roost={"volumeQuotaMB": 16}, timeout=30,
    )  # fmt: skip
    submit(server, "small", "note a", id="t1", x_chat_id="s")
    assert finished(server.data_dir, "small", ["t1"])["t1"].result == b"/mnt/work/t1 t1 a;"
    full = server.invoke("small", "fill", x_chat_id="s")
    assert "No space left on device" in full.text
    assert server.invoke("small", "ls /mnt/work", x_chat_id="s").status_code in (200, 507)


def test_where_it_can_not_be_honoured_it_is_refused(server: Server) -> None:
    exclusive = {"instanceIsolationMode": "REQUEST_EXCLUSIVE"}
    cases: list[tuple[dict[str, Any], str]] = [
        (volume("/{task}"), "instances are not shared"),
        ({**exclusive, **volume("/{task}/more")}, "last step"),
        ({**exclusive, **volume("/a-{task}")}, "last step"),
        ({**exclusive, **volume("/{task}/{task}")}, "last step"),
        ({**exclusive, **volume("/{task}"), "roost": {"volumeQuotaMB": 16}}, "quota"),
        (
            {**exclusive, "ossMountConfig": {"mountPoints": [
                {"bucketName": "b", "bucketPath": "/{task}", "mountDir": "/mnt/b", "readOnly": True}]}},
            "read-only",
        ),
    ]  # fmt: skip
    body = {"functionName": "refused", "runtime": "python3", "handler": "index.handler",
            "code": {"zipFile": zip_base64({"index.py": CODE})}}  # fmt: skip
    with server.client() as client:
        for fields, why in cases:
            reply = client.post("/2023-03-30/functions", json={**body, **fields})
            assert (reply.status_code, why in reply.json()["Message"]) == (400, True), reply.text
        server.deploy("insession", {"index.py": CODE}, **SESSIONS)
        reply = client.post("/2023-03-30/functions/insession/sessions", json=volume("/{task}"))
        assert (reply.status_code, "task" in reply.json()["Message"]) == (400, True)


def test_folders_of_instances_that_never_got_a_task_are_removed(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    fields = {"instanceIsolationMode": "REQUEST_EXCLUSIVE", **volume("/{task}")}
    server = Server(data_dir).start()
    server.deploy("ready", {"index.py": CODE}, **fields)
    with server.client() as client:
        assert client.put("/2023-03-30/functions/ready/provision-config", json={"defaultTarget": 1}).status_code == 200
    pending = data_dir / "volumes/.pending"
    server.until(lambda: len(list(pending.iterdir())) == 1)
    assert server.stop() == 0
    again = Server(data_dir).start()
    again.until(lambda: bool(again.instances()))
    time.sleep(0.2)
    assert len(list(pending.iterdir())) == 1, "the new instance's own"
    assert again.stop() == 0
