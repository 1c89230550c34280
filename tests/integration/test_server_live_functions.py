"""Functions whose instances can be copied while they run: snapshots of sessions, with memory, through a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gvisor import need_runsc
from tests.support.server import NOTHING, Remains, Server, running

LIVE: dict[str, Any] = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id", "sessionTTLInSeconds": 3600}),
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
    "roost": {"live": True},
}
NOTES = """
import os, random, threading, time, subprocess
notes, kept, hooks = [], [], []
os.register_at_fork(before=lambda: hooks.append("before"), after_in_parent=lambda: hooks.append("parent"),
                    after_in_child=lambda: hooks.append("child"))
def handler(event, context):
    verb, _, text = event.decode().partition(" ")
    if verb == "add":
        notes.append(text)
        for folder in ("/root", context.session_dir):
            with open(folder + "/notes", "a") as file:
                file.write(text + ";")
    if verb == "eval":
        return str(eval(text))
    if verb == "exec":
        exec(text, globals())
    read = lambda p: open(p).read() if os.path.exists(p) else ""
    return ",".join(notes) + "|" + read("/root/notes") + "|" + read(context.session_dir + "/notes")
"""
ASGI = """
import asyncio, os
count, ticks, slow = 0, 0, asyncio.Event()
async def tick():
    global ticks
    while True:
        await asyncio.sleep(0.01)
        ticks += 1
async def app(scope, receive, send):
    global count, background
    if scope["type"] == "lifespan":
        await receive()
        background = asyncio.create_task(tick())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/add":
        count += 1
    before = ticks
    await asyncio.sleep(0.05)
    threaded = await asyncio.to_thread(lambda: "t")
    body = f"{count} {ticks > before} {threaded} {os.environ['FC_INSTANCE_ID']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One for each test; it must leave nothing behind."""
    with running(tmp_path / "data") as server:
        yield server
    assert Remains.of(tmp_path / "data") == NOTHING


def say(server: Server, session: str, text: str, function: str = "notes") -> str:
    reply = server.invoke(function, text, x_chat_id=session)
    assert reply.status_code == 200, reply.text
    return reply.text


def ask(server: Server, method: str, path: str, body: Any = None) -> httpx.Response:
    with server.client() as client:
        return client.request(method, f"/2023-03-30/{path}", json=body)


def snapshot(server: Server, session: str, function: str = "notes") -> Any:
    reply = ask(server, "POST", f"functions/{function}/snapshots", {"sessionId": session})
    assert reply.status_code == 200, reply.text
    return reply.json()


def begin(server: Server, session: str, of: str, function: str = "notes") -> httpx.Response:
    return ask(server, "POST", f"functions/{function}/sessions", {"sessionId": session, "snapshotId": of})


def test_a_session_begins_with_the_memory_and_the_files_of_a_snapshot(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    made = snapshot(server, "a")
    assert made["roost"] == {"memory": True, "lost": ["connections"]}, made
    assert say(server, "a", "add 2") == "1,2|1;2;|1;2;"
    for name in ("b", "c"):
        reply = begin(server, name, made["snapshotId"])
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-roost-restored"] == "memory", reply.text
    assert say(server, "b", "add b") == "1,b|1;b;|1;b;"
    assert say(server, "c", "read") == "1|1;|1;"
    assert say(server, "a", "read") == "1,2|1;2;|1;2;"
    assert say(server, "a", "eval hooks") == "['before', 'parent']"
    assert say(server, "b", "eval hooks") == "['before', 'child']"
    assert len({say(server, name, "eval random.random()") for name in "abc"}) == 3
    assert len({say(server, name, "eval os.environ['FC_INSTANCE_ID']") for name in "abc"}) == 3


def test_an_application_goes_on_in_the_copy(server: Server) -> None:
    """Its loop, its tasks and its timers; connections are at their end, and threads are made anew."""
    server.deploy("web", {"index.py": ASGI}, handler="index.app", **LIVE)

    def get(session: str, path: str) -> list[str]:
        with server.client() as client:
            reply = client.get(f"/web/{path}", headers={"x-chat-id": session})
        assert reply.status_code == 200, reply.text
        return reply.text.split()

    get("a", "add")
    assert get("a", "add")[:3] == ["2", "True", "t"]
    made = snapshot(server, "a", "web")
    assert made["roost"]["memory"], made
    assert begin(server, "b", made["snapshotId"], "web").headers["x-roost-restored"] == "memory"
    assert get("b", "add")[:3] == ["3", "True", "t"]
    assert get("a", "read")[:3] == ["2", "True", "t"]
    assert get("a", "read")[3] != get("b", "read")[3]
    # A copy of a copy is one as well.
    again = snapshot(server, "b", "web")
    assert again["roost"]["memory"], again
    assert begin(server, "c", again["snapshotId"], "web").headers["x-roost-restored"] == "memory"
    assert get("c", "add")[:3] == ["4", "True", "t"]


def test_what_did_not_come_along_is_told(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "exec threading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
    say(server, "a", "exec child = subprocess.Popen(['sleep', '600'])")
    say(server, "a", "exec log = open('/root/log', 'w+'); log.write('abc'); log.flush()")
    say(server, "a", "exec import socket; left, right = socket.socketpair(); left.settimeout(5)")
    say(server, "a", "exec reader, writer = os.pipe()")
    made = snapshot(server, "a")
    assert made["roost"] == {"memory": True, "lost": ["connections", "threads: 1", "processes: 1"]}
    reply = begin(server, "b", made["snapshotId"])
    assert reply.json()["roost"] == {"memory": True, "lost": ["connections", "threads: 1", "processes: 1"]}
    assert say(server, "b", "eval threading.active_count()") == "1"
    assert say(server, "b", "eval left.recv(1)") == "b''"
    assert say(server, "b", "eval log.write('d') and log.flush() or open('/root/log').read()") == "abcd"
    assert say(server, "a", "eval open('/root/log').read()") == "abc"
    assert say(server, "a", "eval threading.active_count(), child.poll()") == "(2, None)"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import ctypes; page = ctypes.CDLL(None).mmap; page.restype = ctypes.c_long; "
         "page.argtypes = [ctypes.c_long] * 6; at = page(0, 4096, 3, 0x22, -1, 0); "
         "ctypes.CDLL(None).madvise(ctypes.c_void_p(at), 4096, 10)", "not to copy"),
        ("import os; os.dup2(os.open('/dev/null', 0), 3)", ""),
        ("threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()", None),
        ("import mmap; shared = mmap.mmap(-1, 80 << 20)", "shares"),
    ],
)  # fmt: skip
def test_hostile_code_loses_its_memory_alone(server: Server, code: str, why: str | None) -> None:
    """The original lives on, unless it has ended itself; a session begins with the files then."""
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    say(server, "a", f"exec {code}")
    reply = ask(server, "POST", "functions/notes/snapshots", {"sessionId": "a"})
    if why:
        assert reply.status_code == 200, reply.text
        [lost] = reply.json()["roost"]["lost"]
        assert why in lost
        assert say(server, "a", "read").startswith("1|")
    if reply.status_code == 200:
        begun = begin(server, "b", reply.json()["snapshotId"])
        assert begun.status_code == 200, begun.text
        assert say(server, "b", "read").endswith("|1;|1;")


EXECUTES = """
import os
PROGRAM = '''
import ctypes, socket
sock = socket.socket(fileno=3)
while True:
    if b"hold" in sock.recv(4096):
        sock.send(b'{"event": "held"}' + bytes([10]))
        ctypes.CDLL(None).poll(ctypes.create_string_buffer(bytes([3, 0, 0, 0, 1, 0, 0, 0])), 1, -1)
'''
def handler(event, context):
    if event == b"exec":
        os.set_inheritable(3, True)
        os.execv("/.roost/bin/python3", ["python3", "-c", PROGRAM])
    return "ok"
"""


def test_another_program_is_not_copied(server: Server) -> None:
    """The process has executed a program that says what the worker would."""
    server.deploy("notes", {"index.py": EXECUTES}, timeout=60, **LIVE)
    assert say(server, "a", "hello") == "ok"
    assert snapshot(server, "a")["roost"]["memory"]
    assert server.invoke("notes", "exec", x_chat_id="a").status_code != 200  # its connection ends with the program
    made = snapshot(server, "a")["roost"]
    assert (made["memory"], made["lost"]) == (False, ["memory: context 0: it is another program now"])
    assert say(server, "b", "hello") == "ok"


def test_a_busy_function_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.deploy("notes", {"index.py": NOTES}, timeout=60, **LIVE)
    say(server, "a", "add 1")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(say, server, "a", "exec time.sleep(1); notes.append('slept')")
        server.until(lambda: any(i["leases"] for i in server.instances()))
        made = snapshot(server, "a")
        running.result()
    assert made["roost"]["memory"]
    begin(server, "b", made["snapshotId"])
    assert say(server, "b", "read").startswith("1,slept|")


def test_snapshots_are_listed_and_deleted_and_go_with_their_function(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    ids = [snapshot(server, "a")["snapshotId"] for _ in range(8)]
    ninth = ask(server, "POST", "functions/notes/snapshots", {"sessionId": "a"})
    assert (ninth.status_code, ninth.json()["Code"]) == (429, "ResourceThrottled"), ninth.text
    assert len(ask(server, "GET", "snapshots?functionName=notes").json()["snapshots"]) == 8
    folder = server.data_dir / "session-snapshots"
    assert len(list(folder.iterdir())) == 16
    assert ask(server, "DELETE", f"functions/notes/snapshots/{ids[0]}").status_code == 204
    assert ask(server, "GET", f"functions/notes/snapshots/{ids[0]}").status_code == 404
    assert begin(server, "late", ids[0]).status_code == 404
    assert len(list(folder.iterdir())) == 14
    begin(server, "b", ids[1])
    # Without the original's room there is no memory; its files are there.
    assert ask(server, "DELETE", "functions/notes/sessions/a").status_code == 204
    reply = begin(server, "c", ids[1])
    assert reply.headers["x-roost-restored"] == "files", reply.text
    assert say(server, "c", "read") == "|1;|1;"
    assert say(server, "b", "read") == "1|1;|1;"
    assert ask(server, "DELETE", "functions/notes").status_code == 204
    server.until(lambda: not list(folder.iterdir()))


def test_pause_keeps_the_memory_of_a_copy_too(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    begin(server, "b", snapshot(server, "a")["snapshotId"])
    for name in "ab":
        paused = ask(server, "PUT", f"functions/notes/sessions/{name}/pause")
        assert (paused.status_code, paused.headers["x-roost-paused"]) == (200, "memory")
        refused = ask(server, "POST", "functions/notes/snapshots", {"sessionId": name})
        assert refused.json()["Code"] == "SessionStatusConflict"
        resumed = ask(server, "PUT", f"functions/notes/sessions/{name}/resume")
        assert (resumed.status_code, resumed.headers["x-roost-resumed"]) == (200, "memory")
    assert say(server, "b", "add b") == "1,b|1;b;|1;b;"
    assert say(server, "a", "read") == "1|1;|1;"


def test_a_worker_that_was_made_anew_has_no_shadow_and_says_so(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, timeout=1, **LIVE)
    say(server, "a", "add 1")
    server.invoke("notes", "exec while True:\n  try: time.sleep(60)\n  except BaseException: pass", x_chat_id="a")
    assert say(server, "a", "read") == "|1;|1;"
    assert "no shadow" in snapshot(server, "a")["roost"]["lost"][0]


def test_what_is_not_copied_is_refused_when_it_is_deployed(server: Server) -> None:
    for about in (
        {"runtime": "custom"},
        {"roost": {"live": True, "isolation": "strict"}},
        {"instanceIsolationMode": "SHARE"},
    ):
        with pytest.raises(AssertionError, match=r"roost\.live"):
            server.deploy("other", {"index.py": NOTES}, **{**LIVE, **about})
    server.deploy("plain", {"index.py": NOTES}, **{**LIVE, "roost": {}})
    say(server, "a", "add 1", "plain")
    made = snapshot(server, "a", "plain")
    assert made["roost"] == {"memory": False, "lost": ["memory: its function does not have roost.live"]}
    assert begin(server, "b", made["snapshotId"], "plain").headers["x-roost-restored"] == "files"
    assert say(server, "b", "read", "plain") == "|1;|1;"


def test_on_a_kernel_of_its_own_a_session_s_snapshot_has_its_files(server: Server) -> None:
    need_runsc()
    server.deploy("notes", {"index.py": NOTES}, timeout=30, **{**LIVE, "roost": {"isolation": "gvisor"}})
    say(server, "a", "add 1")
    made = snapshot(server, "a")
    assert made["roost"]["memory"] is False
    assert begin(server, "b", made["snapshotId"]).headers["x-roost-restored"] == "files"
    assert say(server, "b", "read") == "|1;|1;"
    assert say(server, "a", "read") == "1|1;|1;"


def test_the_folder_of_an_expired_session_is_not_begun_over(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    made = snapshot(server, "a")
    about = {"sessionId": "b", "sessionTTLInSeconds": 1, "sessionIdleTimeoutInSeconds": 0}
    assert ask(server, "POST", "functions/notes/sessions", about).status_code == 200
    assert say(server, "b", "add b") == "b|b;|b;"
    server.until(lambda: ask(server, "GET", "functions/notes/sessions/b").json()["sessionStatus"] == "Expired")
    for _ in range(2):
        reply = begin(server, "b", made["snapshotId"])
        assert (reply.status_code, reply.json()["Code"]) == (409, "SessionAlreadyExists"), reply.text
    assert say(server, "b", "read") == "||b;"


def test_a_server_killed_with_snapshots_leaves_nothing(server: Server) -> None:
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    made = snapshot(server, "a")
    begin(server, "b", made["snapshotId"])
    server.kill()
    server.start()
    assert begin(server, "c", made["snapshotId"]).status_code == 404
    assert not list((server.data_dir / "session-snapshots").iterdir())
    # Both rooms live on, with their memory; what is made of them now has files alone.
    assert say(server, "a", "read") == "1|1;|1;"
    assert say(server, "b", "read") == "1|1;|1;"
    assert snapshot(server, "b")["roost"]["memory"] is False


def test_a_server_killed_while_a_session_begins_leaves_nothing(server: Server) -> None:
    """Wherever it is killed: the original lives on, and what had begun is a session or none, that can be deleted."""
    server.deploy("notes", {"index.py": NOTES}, **LIVE)
    say(server, "a", "add 1")
    made = snapshot(server, "a")["snapshotId"]
    with ThreadPoolExecutor() as pool:
        begun = [pool.submit(begin, server, f"b{number}", made) for number in range(4)]
        more = pool.submit(ask, server, "POST", "functions/notes/snapshots", {"sessionId": "a"})
        server.until(lambda: len(server.instances()) > 1)
        server.kill()
        for reply in (*begun, more):
            assert reply.exception() is None or isinstance(reply.exception(), httpx.TransportError)
    server.start()
    assert say(server, "a", "read") == "1|1;|1;"
    assert not list((server.data_dir / "session-snapshots").iterdir())
    for one in ask(server, "GET", "functions/notes/sessions").json()["sessions"]:
        assert ask(server, "DELETE", f"functions/notes/sessions/{one['sessionId']}").status_code == 204
    images = [path for path in server.data_dir.rglob("*.img") if path.parent.name != "disks"]
    assert [path for path in images if "sessions" in str(path) and ".trash" not in str(path)] == []
