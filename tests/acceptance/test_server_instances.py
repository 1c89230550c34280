"""How many instances there are, and sessions with instances of their own: the official SDK against a whole server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc
from darabonba.exceptions import DaraException

from tests.support.sdk import Sdk, refused
from tests.support.server import Server

T = TypeVar("T")

#: Says which instance it is; "wait" holds on until a file of the shared volume appears.
WHO = """
import os, time
def handler(event, context):
    while event == b"wait" and not os.path.exists("/mnt/gate/open"):
        time.sleep(0.01)
    return os.uname().nodename
"""
NOTES = """
import os
memory = []
def handler(event, context):
    memory.append(event.decode())
    with open("/root/notes", "a") as f:
        f.write(event.decode() + ";")
    return ",".join(memory) + "|" + open("/root/notes").read()
"""
HEADER = {"session_affinity_config": json.dumps({"affinityHeaderFieldName": "x-chat-id", "sessionTTLInSeconds": 3600})}
EXCLUSIVE: dict[str, Any] = {
    "session_affinity": "HEADER_FIELD",
    "instance_isolation_mode": "SESSION_EXCLUSIVE",
    **HEADER,
}


def gate(volume: str) -> fc.NASConfig:
    return fc.NASConfig(mount_points=[fc.NASMountConfig(server_addr=f"{volume}:/", mount_dir="/mnt/gate")])


def together(calls: list[Callable[[], T]]) -> list[T]:
    """What the calls return, all made at once."""
    results: list[T] = []
    threads = [threading.Thread(target=lambda call=call: results.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def alive(sdk: Sdk, name: str) -> list[Any]:
    return sdk.instances(name, with_all_active=True)


# --- concurrency and provision ---------------------------------------------------------------------------------


def test_reserved_concurrency_bounds_the_instances_and_what_is_over_waits_then_gets_429(
    sdk: Sdk, roost: Server
) -> None:
    sdk.create("bounded", {"index.py": WHO}, timeout=60, nas_config=gate("bounded"))
    body = fc.PutConcurrencyInput(reserved_concurrency=2)
    kept = sdk.client.put_concurrency_config("bounded", fc.PutConcurrencyConfigRequest(body=body)).body
    assert kept.reserved_concurrency == 2
    opened = roost.data_dir / "volumes" / "default" / "bounded" / "open"

    def call() -> str | DaraException:
        try:
            return sdk.reply("bounded", b"wait").decode()
        except DaraException as error:
            return error

    busy: list[str | DaraException] = []
    holders = threading.Thread(target=lambda: busy.extend(together([call, call])))
    holders.start()
    try:
        roost.until(lambda: sum(i["leases"] for i in roost.instances() if i["function"] == "bounded") == 2)
        # The queue's limit of time is this server's setting, 2 seconds.
        over = refused(lambda: sdk.invoke("bounded", b"late"))
        assert (over.status_code, over.code) == (429, "ResourceThrottled")
        with roost.client() as client:
            plain = client.post("/2023-03-30/functions/bounded/invocations")
        assert plain.status_code == 429
        assert int(plain.headers["retry-after"]) >= 1
        assert len(alive(sdk, "bounded")) == 2
    finally:
        opened.touch()
        holders.join()
    assert len(busy) == len(set(map(str, busy))) == 2
    # With the gate open, all that come at once are served by two instances, in turn.
    names = together([call for _ in range(12)])
    assert not [n for n in names if isinstance(n, Exception)]
    assert len({str(n) for n in names}) <= 2
    sdk.client.delete_concurrency_config("bounded")
    assert refused(lambda: sdk.client.get_concurrency_config("bounded")).status_code == 404


def test_provisioned_instances_exist_before_any_request_and_survive_idleness(sdk: Sdk, roost: Server) -> None:
    sdk.create("ready", {"index.py": WHO}, idle_timeout=0)
    body = fc.PutProvisionConfigInput(default_target=2)
    sdk.client.put_provision_config("ready", fc.PutProvisionConfigRequest(body=body, qualifier="LATEST"))
    roost.until(lambda: sorted(i.status for i in alive(sdk, "ready")) == ["frozen", "frozen"])
    shown = sdk.client.get_provision_config("ready", fc.GetProvisionConfigRequest(qualifier="LATEST")).body
    assert (shown.default_target, shown.target, shown.current) == (2, 2, 2)
    names = {i.instance_id for i in alive(sdk, "ready")}
    assert sdk.reply("ready").decode() in names
    # Its idle time is over at once, yet both stay; a burst's third instance goes again.
    assert set(together([lambda: sdk.reply("ready").decode() for _ in range(6)])) & names
    roost.until(lambda: {i.instance_id for i in alive(sdk, "ready")} == names)
    sdk.update("ready", {"index.py": WHO + "\n# changed\n"})
    roost.until(lambda: len(alive(sdk, "ready")) == 2 and not {i.instance_id for i in alive(sdk, "ready")} & names)
    sdk.client.delete_provision_config("ready", fc.DeleteProvisionConfigRequest(qualifier="LATEST"))
    roost.until(lambda: alive(sdk, "ready") == [])


def test_instances_are_listed_while_they_live_and_afterwards(sdk: Sdk, roost: Server) -> None:
    sdk.create("listed", {"index.py": WHO})
    name = sdk.reply("listed").decode()
    sdk.publish("listed")
    of_version = sdk.reply("listed", qualifier="1").decode()
    [latest] = sdk.instances("listed", qualifier="LATEST")
    assert (latest.instance_id, latest.version_id) == (name, "0")
    [one] = sdk.instances("listed", qualifier="1")
    assert (one.instance_id, one.version_id) == (of_version, "1")
    sdk.update("listed", {"index.py": WHO + "\n# changed\n"})
    roost.until(lambda: [i.instance_id for i in alive(sdk, "listed")] == [of_version])
    [ended] = sdk.instances("listed", instance_ids=[name])
    assert ended.destroyed_time_ms >= ended.created_time_ms


# --- sessions --------------------------------------------------------------------------------------------------


def test_a_sessions_whole_life(sdk: Sdk, roost: Server) -> None:
    sdk.create("chat", {"index.py": NOTES}, **EXCLUSIVE)
    made = sdk.session("chat", "ann", session_ttlin_seconds=600)
    assert (made.session_id, made.session_status, made.session_ttlin_seconds) == ("ann", "Active", 600)
    assert sdk.reply("chat", b"1", x_chat_id="ann") == b"1|1;"
    assert sdk.reply("chat", b"1", x_chat_id="bob") == b"1|1;"
    assert sdk.reply("chat", b"2", x_chat_id="ann") == b"1,2|1;2;"

    shown = sdk.client.get_session("chat", "ann", fc.GetSessionRequest()).body
    mine = {i["id"]: i["sessions"] for i in roost.instances() if i["function"] == "chat"}
    assert mine[shown.container_id] == ["ann"]
    listed = sdk.client.list_sessions("chat", fc.ListSessionsRequest()).body.sessions
    assert {s.session_id for s in listed} == {"ann", "bob"}
    body = fc.UpdateSessionInput(session_ttlin_seconds=1200, session_idle_timeout_in_seconds=60)
    changed = sdk.client.update_session("chat", "ann", fc.UpdateSessionRequest(body=body)).body
    assert (changed.session_ttlin_seconds, changed.session_idle_timeout_in_seconds) == (1200, 60)

    paused = sdk.client.pause_session("chat", "ann", fc.PauseSessionRequest()).body
    assert paused.session_status == "Paused"
    busy = refused(lambda: sdk.invoke("chat", b"3", x_chat_id="ann"))
    assert (busy.status_code, busy.code) == (409, "SessionStatusConflict")
    again = refused(lambda: sdk.client.pause_session("chat", "ann", fc.PauseSessionRequest()))
    assert again.status_code == 409
    late = refused(lambda: sdk.client.update_session("chat", "ann", fc.UpdateSessionRequest(body=body)))
    assert late.status_code == 409
    only = sdk.client.list_sessions("chat", fc.ListSessionsRequest(session_status="Paused")).body.sessions
    assert [s.session_id for s in only] == ["ann"]

    resumed = sdk.client.resume_session("chat", "ann", fc.ResumeSessionRequest()).body
    assert (resumed.session_id, resumed.session_status, resumed.container_id) == ("ann", "Active", shown.container_id)
    assert sdk.reply("chat", b"4", x_chat_id="ann") == b"1,2,4|1;2;4;"
    sdk.client.pause_session("chat", "ann", fc.PauseSessionRequest(file_system_only="true"))
    sdk.client.resume_session("chat", "ann", fc.ResumeSessionRequest())
    assert sdk.reply("chat", b"4", x_chat_id="ann") == b"4|1;2;4;4;"

    sdk.client.delete_session("chat", "ann", fc.DeleteSessionRequest())
    assert refused(lambda: sdk.client.get_session("chat", "ann", fc.GetSessionRequest())).code == "SessionNotFound"
    assert [i["sessions"] for i in roost.instances() if i["function"] == "chat"] == [["bob"]]
    assert sdk.reply("chat", b"5", x_chat_id="ann") == b"5|5;"


def test_a_session_with_auto_resume_wakes_by_its_next_request(sdk: Sdk) -> None:
    sdk.create("waker", {"index.py": NOTES}, **EXCLUSIVE)
    sdk.session("waker", "s", enable_auto_resume=True)
    sdk.reply("waker", b"1", x_chat_id="s")
    sdk.client.pause_session("waker", "s", fc.PauseSessionRequest())
    assert sdk.reply("waker", b"2", x_chat_id="s") == b"1,2|1;2;"
    assert sdk.client.get_session("waker", "s", fc.GetSessionRequest()).body.session_status == "Active"


def test_a_pause_waits_for_the_request_that_runs(sdk: Sdk, roost: Server) -> None:
    sdk.create("busy", {"index.py": WHO}, timeout=60, nas_config=gate("busy"), **EXCLUSIVE)
    sdk.session("busy", "s")
    replies: list[bytes] = []
    runner = threading.Thread(target=lambda: replies.append(sdk.reply("busy", b"wait", x_chat_id="s")))
    runner.start()
    roost.until(lambda: any(i["leases"] for i in roost.instances() if i["function"] == "busy"))
    states: list[str] = []
    pauser = threading.Thread(
        target=lambda: states.append(
            sdk.client.pause_session("busy", "s", fc.PauseSessionRequest()).body.session_status
        )
    )
    pauser.start()
    roost.until(lambda: sdk.client.get_session("busy", "s", fc.GetSessionRequest()).body.session_status == "Pausing")
    (roost.data_dir / "volumes" / "default" / "busy" / "open").touch()
    runner.join()
    pauser.join()
    assert len(replies) == 1
    assert states == ["Paused"]


def test_a_session_has_mounts_of_its_own(sdk: Sdk, roost: Server) -> None:
    code = "def handler(event, context):\n    open('/mnt/home/x', 'ab').write(event)\n"
    code += "    return open('/mnt/home/x').read()\n"
    sdk.create("homes", {"index.py": code}, **EXCLUSIVE)
    for user in ("ann", "bob"):
        home = fc.NASConfig(mount_points=[fc.NASMountConfig(server_addr=f"home:/{user}", mount_dir="/mnt/home")])
        sdk.session("homes", user, nas_config=home)
        assert sdk.reply("homes", user.encode(), x_chat_id=user) == user.encode()
    folder = roost.data_dir / "volumes" / "default" / "home"
    assert {p.parent.name: p.read_text() for p in folder.glob("*/x")} == {"ann": "ann", "bob": "bob"}


@pytest.mark.parametrize("field", ["sessionTTLInSeconds", "sessionIdleTimeoutInSeconds"])
def test_a_session_ends_in_time_and_its_instance_with_it(sdk: Sdk, roost: Server, field: str) -> None:
    name = "short-" + field[7:11].lower()
    config = {"affinityHeaderFieldName": "x-chat-id", "sessionIdleTimeoutInSeconds": 1 if "Idle" in field else 0}
    ttl = 60 if "Idle" in field else 1
    config["sessionTTLInSeconds"] = ttl
    sdk.create(
        name, {"index.py": NOTES}, session_affinity="HEADER_FIELD", instance_isolation_mode="SESSION_EXCLUSIVE",
        session_affinity_config=json.dumps(config),
    )  # fmt: skip
    assert sdk.reply(name, b"1", x_chat_id="s") == b"1|1;"
    get = fc.GetSessionRequest()
    roost.until(lambda: sdk.client.get_session(name, "s", get).body.session_status == "Expired")
    roost.until(lambda: not [i for i in roost.instances() if i["function"] == name])
    # The id may be used again, and begins with nothing.
    assert sdk.reply(name, b"2", x_chat_id="s") == b"2|2;"


def test_an_id_that_may_not_come_back_does_not(sdk: Sdk, roost: Server) -> None:
    config = {"affinityHeaderFieldName": "x-chat-id", "sessionTTLInSeconds": 1, "sessionIdleTimeoutInSeconds": 0}
    config["disableSessionIdReuse"] = True
    sdk.create(
        "once", {"index.py": NOTES}, session_affinity="HEADER_FIELD", instance_isolation_mode="SESSION_EXCLUSIVE",
        session_affinity_config=json.dumps(config),
    )  # fmt: skip
    sdk.reply("once", b"1", x_chat_id="s")
    get = fc.GetSessionRequest()
    roost.until(lambda: sdk.client.get_session("once", "s", get).body.session_status == "Expired")
    assert refused(lambda: sdk.invoke("once", b"2", x_chat_id="s")).status_code == 409


def test_request_exclusive_gives_every_request_an_instance_of_its_own(sdk: Sdk, roost: Server) -> None:
    code = "import os\nseen = []\ndef handler(event, context):\n    seen.append(1)\n"
    code += "    open('/tmp/left', 'a').write('x')\n"
    code += "    return f\"{os.uname().nodename} {len(seen)} {open('/tmp/left').read()}\"\n"
    sdk.create("each", {"index.py": code}, instance_isolation_mode="REQUEST_EXCLUSIVE")
    one_by_one = [sdk.reply("each").decode() for _ in range(4)]
    at_once = together([lambda: sdk.reply("each").decode() for _ in range(4)])
    with roost.client() as client:
        over_http = [client.get("/each/").text for _ in range(2)]
    every = [*one_by_one, *at_once, *over_http]
    assert {text.split(" ", 1)[1] for text in every} == {"1 x"}
    assert len({text.split()[0] for text in every}) == 10
    roost.until(lambda: alive(sdk, "each") == [])


def test_http_requests_name_their_session_by_the_same_header(sdk: Sdk, roost: Server) -> None:
    sdk.create("both", {"index.py": NOTES}, **EXCLUSIVE)
    sdk.reply("both", b"1", x_chat_id="s")
    reply = httpx.post(f"{roost.url}/both/", headers={"x-chat-id": "s"}, content=b"ignored")
    assert reply.status_code == 200
    assert len([i for i in roost.instances() if i["function"] == "both"]) == 1
