"""Sessions end to end: an instance and files for each conversation."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx

from tests.support.server import Server

NOTES = '''
import os
memory = []
def handler(event, context):
    """add TEXT: remember and write it; read: what is remembered and what is on the disk"""
    verb, _, text = event.decode().partition(" ")
    os.makedirs("/root/notes", exist_ok=True)
    if verb == "add":
        memory.append(text)
        with open("/root/notes/file", "a") as f: f.write(text + ";")
        with open("/mnt/session/file", "a") as f: f.write(text + ";")
    if verb == "pid":
        return str(os.getpid())
    read = lambda p: open(p).read() if os.path.exists(p) else ""
    return ",".join(memory) + "|" + read("/root/notes/file") + "|" + read("/mnt/session/file")
'''
EXCLUSIVE: dict[str, Any] = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id", "sessionTTLInSeconds": 3600}),
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
}


def say(server: Server, session: str, text: str) -> httpx.Response:
    return server.invoke("notes", text, x_chat_id=session)


def test_every_session_has_its_own_instance_memory_and_files(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    say(server, "alice", "add a1")
    say(server, "bob", "add b1")
    assert say(server, "alice", "add a2").text == "a1,a2|a1;a2;|a1;a2;"
    assert say(server, "bob", "read").text == "b1|b1;|b1;"
    mine = [i for i in server.instances() if i["function"] == "notes"]
    assert sorted(s for i in mine for s in i["sessions"]) == ["alice", "bob"]


def test_a_session_stays_with_its_version_while_an_alias_splits_the_traffic(server: Server) -> None:
    with server.client() as client:
        for version in ("1", "2"):
            code = f"n = 0\ndef handler(event, context):\n    global n\n    n += 1\n    return '{version}:' + str(n)\n"
            server.deploy("split", {"index.py": code}, **EXCLUSIVE)
            assert client.post("/2023-03-30/functions/split/versions", json={}).status_code == 200
        alias = {"aliasName": "both", "versionId": "1", "additionalVersionWeight": {"2": 0.5}}
        assert client.post("/2023-03-30/functions/split/aliases", json=alias).status_code == 200

        def say(session: str) -> tuple[str, str]:
            path = "/2023-03-30/functions/split/invocations?qualifier=both"
            version, _, count = client.post(path, headers={"x-chat-id": session}).text.partition(":")
            return version, count

        begun = {f"s{n}": say(f"s{n}")[0] for n in range(6)}
        for session, version in begun.items():
            assert [say(session) for _ in range(8)] == [(version, str(n)) for n in range(2, 10)]
        # Taken out of the alias, a version keeps nobody.
        alias = {"versionId": "2", "additionalVersionWeight": {}}
        assert client.put("/2023-03-30/functions/split/aliases/both", json=alias).status_code == 200
        assert {say(session)[0] for session in begun} == {"2"}


def test_idle_sleeps_and_wakes_with_everything(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    say(server, "sleeper", "add s1")
    server.until(lambda: _state(server, "sleeper") == "frozen")
    reply = say(server, "sleeper", "read")
    assert reply.text == "s1|s1;|s1;"
    assert "x-roost-session-restored" not in reply.headers


def test_a_session_outlives_its_instance(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    say(server, "phoenix", "add p1")
    [instance] = [i for i in server.instances() if "phoenix" in i["sessions"]]
    os.kill(instance["pid"], 9)
    server.until(lambda: not [i for i in server.instances() if i["id"] == instance["id"]])
    reply = say(server, "phoenix", "read")
    assert reply.text == "|p1;|p1;"
    assert reply.headers["x-roost-session-restored"] == "files"


def test_pause_and_resume_keep_memory_the_files_and_the_id(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    say(server, "napper", "add n1")
    with server.client() as client:
        base = "/2023-03-30/functions/notes/sessions/napper"
        paused = client.put(f"{base}/pause")
        assert paused.status_code == 200, paused.text
        assert client.get(base).json()["sessionStatus"] == "Paused"
        assert say(server, "napper", "read").status_code == 409
        assert client.put(f"{base}/pause").status_code == 409
        assert client.put(f"{base}/resume").status_code == 200
        assert client.get(base).json()["sessionId"] == "napper"
    assert say(server, "napper", "read").text == "n1|n1;|n1;"


def test_a_deleted_session_starts_again_from_nothing(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    say(server, "gone", "add g1")
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/notes/sessions/gone").status_code in (200, 204)
        assert client.get("/2023-03-30/functions/notes/sessions/gone").status_code == 404
    assert say(server, "gone", "read").text == "||"
    server.until(lambda: not list((server.data_dir / "volumes/.trash").iterdir()))


def test_a_new_version_of_the_code_keeps_the_sessions_files(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    say(server, "keeper", "add k1")
    server.deploy("notes", {"index.py": NOTES + "\n# changed\n"}, **EXCLUSIVE)
    assert say(server, "keeper", "read").text == "|k1;|k1;"


def test_a_missing_id_is_made_and_returned(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    reply = server.invoke("notes", "add x")
    made = reply.headers["x-chat-id"]
    assert say(server, made, "read").text == "x|x;|x;"


def test_a_bad_id_is_refused(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    assert say(server, "-no", "read").status_code == 400
    assert say(server, "x" * 65, "read").status_code == 400


def test_cookie_sessions(server: Server) -> None:
    server.deploy("cookies", {"index.py": NOTES}, sessionAffinity="GENERATED_COOKIE",
                  sessionAffinityConfig="{}", instanceIsolationMode="SESSION_EXCLUSIVE")  # fmt: skip
    with server.client() as client:
        path = "/2023-03-30/functions/cookies/invocations"
        first = client.post(path, content=b"add c1")
        assert "x-fc-cookie-session-id" in first.cookies
        assert client.post(path, content=b"add c2").text == "c1,c2|c1;c2;|c1;c2;"
    with server.client() as other:
        assert other.post(path, content=b"read").text == "||"


def test_shared_sessions_share_an_instance_but_not_their_folder(server: Server) -> None:
    code = (
        "import json, os\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'http': return\n"
        "    h = dict(scope['headers'])\n"
        "    folder = h[b'x-roost-session-dir'].decode()\n"
        "    open(folder + '/mark', 'a').write('m')\n"
        "    body = json.dumps([os.getpid(), folder, open(folder + '/mark').read()]).encode()\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': body})\n"
    )
    server.deploy("shared", {"index.py": code}, handler="index.app", instanceConcurrency=20,
                  sessionAffinity="HEADER_FIELD",
                  sessionAffinityConfig=json.dumps({"affinityHeaderFieldName": "x-chat-id"}))  # fmt: skip
    with server.client() as client:
        replies = [client.get("/shared/", headers={"x-chat-id": name}) for name in ("one", "two", "one")]
    assert [reply.status_code for reply in replies] == [200] * 3, [reply.text for reply in replies]
    one, two, again = (reply.json() for reply in replies)
    assert one[0] == two[0] == again[0]
    assert one[1] != two[1]
    assert (one[2], two[2], again[2]) == ("m", "m", "mm")
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/shared/sessions/one").status_code in (200, 204)
        fresh = client.get("/shared/", headers={"x-chat-id": "one"}).json()
        assert (fresh[2], client.get("/shared/", headers={"x-chat-id": "two"}).json()[2]) == ("m", "mm")


def test_a_sessions_folder_can_not_fill_the_hosts_disk(server: Server) -> None:
    code = (
        "def handler(event, context):\n"
        "    try:\n"
        "        with open('/mnt/session/big', 'wb') as f:\n"
        "            for _ in range(2000): f.write(bytes(1 << 20))\n"
        "    except OSError as e:\n"
        "        return f'{e.errno} {e.strerror}'\n"
    )
    server.deploy("filler", {"index.py": code}, **{**EXCLUSIVE, "timeout": 60})
    assert server.invoke("filler", x_chat_id="one").text == "28 No space left on device"


def test_sessions_are_listed_and_created_ahead(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    with server.client() as client:
        base = "/2023-03-30/functions/notes/sessions"
        made = client.post(base, json={"sessionId": "ahead", "sessionTTLInSeconds": 600})
        assert made.status_code == 200, made.text
        assert made.json()["sessionStatus"] == "Active"
        assert client.post(base, json={"sessionId": "ahead"}).status_code == 409
        names = [s["sessionId"] for s in client.get(base).json()["sessions"]]
        assert "ahead" in names
    assert say(server, "ahead", "add z").text == "z|z;|z;"


def _state(server: Server, session: str) -> str:
    return next((i["state"] for i in server.instances() if session in i["sessions"]), "")
