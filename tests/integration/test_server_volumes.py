"""Named volumes end to end: they outlive functions and instances, are shared by name, and can have a quota."""

from __future__ import annotations

import json
from typing import Any

from tests.support.server import Server

CODE = '''
import os
def handler(event, context):
    """write PATH TEXT, read PATH, fill PATH, link PATH TARGET"""
    verb, path, *rest = event.decode().split(" ", 2)
    try:
        if verb == "write":
            with open(path, "a") as f: f.write(rest[0])
        if verb == "read":
            return open(path).read() + f" {os.stat(path).st_uid}"
        if verb == "fill":
            with open(path, "wb") as f:
                for _ in range(200): f.write(bytes(1 << 20))
        if verb == "link":
            os.rmdir(path); os.symlink(rest[0], path)
        return "done"
    except OSError as e:
        return f"{e.errno} {e.strerror}"
'''


def nas(*mounts: tuple[str, str]) -> dict[str, Any]:
    return {"mountPoints": [{"serverAddr": source, "mountDir": target} for source, target in mounts]}


def test_a_volume_outlives_its_functions_and_is_shared_by_name(server: Server) -> None:
    server.deploy("writer", {"index.py": CODE}, nasConfig=nas(("shared:/team", "/mnt/data")))
    server.deploy("reader", {"index.py": CODE}, nasConfig=nas(("shared:/", "/mnt/all")))
    assert server.invoke("writer", "write /mnt/data/file hello").text == "done"
    # Another room, with other ids on the host, sees the same owner: root of the room.
    assert server.invoke("reader", "read /mnt/all/team/file").text == "hello 0"
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/writer").status_code == 204
    server.deploy("again", {"index.py": CODE}, nasConfig=nas(("shared:/team", "/mnt/data")))
    assert server.invoke("again", "read /mnt/data/file").text == "hello 0"


def test_a_quota_is_a_hard_limit_and_kept_over_instances(server: Server) -> None:
    config = {"nasConfig": nas(("small:/", "/mnt/small")), "roost": {"volumeQuotaMB": 16}, "timeout": 60}
    server.deploy("quota", {"index.py": CODE}, **config)
    assert server.invoke("quota", "write /mnt/small/kept one").text == "done"
    assert server.invoke("quota", "fill /mnt/small/big").text == "28 No space left on device"
    server.deploy("quota2", {"index.py": CODE}, **config)
    assert server.invoke("quota2", "read /mnt/small/kept").text == "one 0"
    assert server.invoke("quota2", "write /root/elsewhere x").text == "done"


def test_a_folder_per_session_by_its_name(server: Server) -> None:
    server.deploy(
        "persession", {"index.py": CODE}, nasConfig=nas(("home:/{user}/{session}", "/mnt/home")),
        sessionAffinity="HEADER_FIELD", instanceIsolationMode="SESSION_EXCLUSIVE",
        sessionAffinityConfig=json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
    )  # fmt: skip
    server.invoke("persession", "write /mnt/home/f a", x_chat_id="one")
    assert server.invoke("persession", "read /mnt/home/f", x_chat_id="one").text == "a 0"
    assert "No such file" in server.invoke("persession", "read /mnt/home/f", x_chat_id="two").text
    assert (server.data_dir / "volumes/default/home/default/one/f").read_text() == "a"


def test_a_planted_link_leads_nowhere(server: Server) -> None:
    server.deploy("planter", {"index.py": CODE}, nasConfig=nas(("trap:/", "/mnt/trap")))
    (server.data_dir / "volumes/default/trap/victim").mkdir(parents=True)
    assert server.invoke("planter", "link /mnt/trap/victim /etc").text == "done"
    server.deploy("victim", {"index.py": CODE}, nasConfig=nas(("trap:/victim", "/mnt/etc")))
    reply = server.invoke("victim", "read /mnt/etc/hostname")
    assert reply.status_code == 400
    assert "victim" in reply.json()["Message"]


def test_names_that_lead_out_are_refused_at_deployment(server: Server) -> None:
    from tests.support.server import zip_base64

    for source in ("../x:/", "ok:/../..", "/abs:/"):
        body = {
            "functionName": "bad", "runtime": "python3", "handler": "index.handler",
            "code": {"zipFile": zip_base64({"index.py": CODE})}, "nasConfig": nas((source, "/mnt/x")),
        }  # fmt: skip
        with server.client() as client:
            assert client.post("/2023-03-30/functions", json=body).status_code == 400, source
