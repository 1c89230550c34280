"""An instance's life end to end: hooks, concurrency, timeouts, and changes under requests that are in flight."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import NOTHING, Remains, Server, running

SESSIONS: dict[str, Any] = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
}


def volume(name: str) -> dict[str, Any]:
    """A folder that the test and the rooms share, at /mnt/v."""
    return {"nasConfig": {"mountPoints": [{"serverAddr": f"{name}:/", "mountDir": "/mnt/v"}]}}


def folder(server: Server, name: str) -> Path:
    return server.data_dir / "volumes" / "default" / name


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def hooks(**hooks: Any) -> dict[str, Any]:
    return {"instanceLifecycleConfig": hooks}


def at_once(call: Callable[[int], httpx.Response], count: int) -> list[httpx.Response]:
    replies: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda n=n: replies.append(call(n))) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def good(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    assert "x-fc-error-type" not in reply.headers, reply.text
    return reply.text


def fault(reply: httpx.Response) -> dict[str, Any]:
    assert reply.headers.get("x-fc-error-type"), (reply.status_code, reply.text)
    return dict(reply.json())


# --- the initializer -------------------------------------------------------------------------------------------

INITIALIZED = """
import os
def log(text):
    with open("/mnt/v/log", "a") as f:
        f.write(f"{text} {os.uname().nodename}\\n")
def start(context):
    log("init")
def handler(event, context):
    log("request")
    return os.uname().nodename
"""


def test_the_initializer_runs_once_in_each_instance_before_its_requests(server: Server) -> None:
    server.deploy(
        "initialized", {"index.py": INITIALIZED}, **volume("initialized"),
        **hooks(initializer={"handler": "index.start", "timeout": 5}),
    )  # fmt: skip
    names = {good(reply) for reply in at_once(lambda n: server.invoke("initialized"), 6)}
    names |= {good(server.invoke("initialized")) for _ in range(3)}
    lines = [line.split() for line in read(folder(server, "initialized") / "log").splitlines()]
    for name in names:
        assert [what for what, where in lines if where == name][:2] == ["init", "request"]
    assert sum(what == "init" for what, _ in lines) == len({where for _, where in lines})
    assert sum(what == "request" for what, _ in lines) == 9


def test_an_initializer_can_be_a_command(server: Server) -> None:
    server.deploy(
        "commanded", {"index.py": "def handler(event, context):\n    return open('/tmp/made').read()\n"},
        **hooks(initializer={"command": ["sh", "-c", "echo made > /tmp/made"], "timeout": 5}),
    )  # fmt: skip
    assert good(server.invoke("commanded")) == "made\n"


@pytest.mark.parametrize(
    ("what", "body", "expected"),
    [
        ("raises", "raise OSError('no database')", "no database"),
        ("hangs", "import time; time.sleep(100)", "did not end within 1 second"),
        ("exits", "import os; os._exit(3)", "code 3"),
        ("eats", "x = bytearray(1 << 30)", "emory"),
    ],
)
def test_a_bad_initializer_is_the_functions_fault_and_the_next_deploy_mends_it(
    server: Server, what: str, body: str, expected: str
) -> None:
    rest = "def handler(event, context):\n    return b'mended'\n"
    wired = hooks(initializer={"handler": "index.start", "timeout": 1 if what == "hangs" else 20})
    name = f"init-{what}"
    server.deploy(name, {"index.py": f"def start(context):\n    {body}\n{rest}"}, memorySize=128, **wired)
    # Each caller is told, those that waited together too; no start is retried without end.
    for reply in at_once(lambda n: server.invoke(name), 3):
        assert expected in fault(reply)["errorMessage"]
    with server.client() as client:
        over_http = client.get(f"/{name}/")
    assert over_http.status_code in (502, 504)
    assert expected in fault(over_http)["errorMessage"]
    server.deploy(name, {"index.py": f"def start(context):\n    pass\n{rest}"}, memorySize=128, **wired)
    assert good(server.invoke(name)) == "mended"


# --- the pre-stop hook -----------------------------------------------------------------------------------------

LEAVER = """
import os
def stop(context):
    with open("/mnt/v/left", "a") as f:
        f.write(os.uname().nodename + ";")
def handler(event, context):
    return os.uname().nodename
"""


def test_the_pre_stop_hook_runs_before_an_instance_goes(server: Server) -> None:
    wired = {**volume("leaver"), **hooks(preStop={"handler": "index.stop", "timeout": 3})}
    left = folder(server, "leaver") / "left"
    server.deploy("leaver", {"index.py": LEAVER}, **wired)
    first = good(server.invoke("leaver"))
    assert read(left) == ""
    server.until(lambda: [i["state"] for i in server.instances() if i["id"] == first] == ["frozen"])
    server.deploy("leaver", {"index.py": LEAVER + "\n# changed\n"}, **wired)
    server.until(lambda: read(left) == f"{first};")
    second = good(server.invoke("leaver"))
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/leaver").status_code == 204
    server.until(lambda: read(left) == f"{first};{second};")


def test_a_hook_that_hangs_holds_nothing_up(server: Server) -> None:
    code = "import time\ndef stop(context):\n    time.sleep(1000)\ndef handler(event, context):\n    return b''\n"
    server.deploy("clinging", {"index.py": code}, **hooks(preStop={"handler": "index.stop", "timeout": 1}))
    good(server.invoke("clinging"))
    with server.client() as client:
        client.delete("/2023-03-30/functions/clinging")
    server.until(lambda: not [i for i in server.instances() if i["function"] == "clinging"])


def test_a_stopping_server_runs_the_hooks_of_all(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir) as server:
        server.deploy(
            "leaver", {"index.py": LEAVER}, **volume("leaver"), **SESSIONS,
            **hooks(preStop={"handler": "index.stop", "timeout": 3}),
        )  # fmt: skip
        names = {good(server.invoke("leaver", x_chat_id=f"s{n}")) for n in range(3)}
    assert set(read(folder(server, "leaver") / "left").rstrip(";").split(";")) == names
    assert Remains.of(data_dir) == NOTHING


# --- concurrency -----------------------------------------------------------------------------------------------

THREADS = """
import os, threading
barrier = threading.Barrier(8)
def handler(event, context):
    barrier.wait(20)
    return os.uname().nodename
"""
TASKS = """
import asyncio, os
waiting = []
async def handler(event, context):
    waiting.append(1)
    while len(waiting) < 8:
        await asyncio.sleep(0.01)
    return os.uname().nodename
"""
ASGI = """
import asyncio, os
waiting = []
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    waiting.append(1)
    while len(waiting) < 8:
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": os.uname().nodename.encode()})
"""
WSGI = """
import os, threading
from wsgiref.validate import validator
barrier = threading.Barrier(8)
def plain(environ, start_response):
    barrier.wait(20)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [os.uname().nodename.encode()]
checked = validator(plain)
def app(environ, start_response):
    return checked(environ, start_response)
"""


@pytest.mark.parametrize(
    ("kind", "code", "handler"),
    [
        ("threads", THREADS, "index.handler"),
        ("tasks", TASKS, "index.handler"),
        ("asgi", ASGI, "index.app"),
        ("wsgi", WSGI, "index.app"),
    ],
)
def test_requests_of_one_instance_really_run_together(server: Server, kind: str, code: str, handler: str) -> None:
    name = f"together-{kind}"
    server.deploy(
        name, {"index.py": code}, handler=handler, instanceConcurrency=8, timeout=30, roost={"maxInstances": 1}
    )
    with server.client() as client:
        replies = at_once(lambda n: client.get(f"/{name}/"), 8)
    assert len({good(reply) for reply in replies}) == 1


# --- timeouts --------------------------------------------------------------------------------------------------

#: remembers what it is told; "sleep" gives in when it is interrupted, "deaf" does not.
MEMORY = """
import os, time
memory = []
def handler(event, context):
    text = event.decode()
    if text == "sleep":
        time.sleep(100)
    while text == "deaf":
        try:
            time.sleep(100)
        except BaseException:
            pass
    memory.append(text)
    with open("/root/file", "a") as f:
        f.write(text + ";")
    return os.uname().nodename + " " + ",".join(memory) + "|" + open("/root/file").read()
"""


def test_a_timeout_keeps_the_sessions_memory_when_the_handler_gives_in(server: Server) -> None:
    server.deploy("patient", {"index.py": MEMORY}, timeout=1, **SESSIONS)
    before = good(server.invoke("patient", "a", x_chat_id="s"))
    assert "timed out" in fault(server.invoke("patient", "sleep", x_chat_id="s"))["errorMessage"]
    after = server.invoke("patient", "b", x_chat_id="s")
    assert good(after) == before.replace("a|a;", "a,b|a;b;")
    assert "x-roost-session-restored" not in after.headers


def test_a_handler_that_does_not_give_in_loses_its_worker_and_no_more(server: Server) -> None:
    server.deploy("deaf", {"index.py": MEMORY}, timeout=1, **SESSIONS)
    before = good(server.invoke("deaf", "a", x_chat_id="s"))
    other = good(server.invoke("deaf", "x", x_chat_id="other"))
    assert "timed out" in fault(server.invoke("deaf", "deaf", x_chat_id="s"))["errorMessage"]
    # The same room with the same files; what was only in memory is gone.
    after = server.invoke("deaf", "b", x_chat_id="s")
    assert good(after) == before.replace("a|a;", "b|a;b;")
    assert after.headers["x-roost-session-restored"] == "files"
    again = server.invoke("deaf", "c", x_chat_id="s")
    assert good(again) == before.replace("a|a;", "b,c|a;b;c;")
    assert "x-roost-session-restored" not in again.headers
    assert good(server.invoke("deaf", "y", x_chat_id="other")) == other.replace("x|x;", "x,y|x;y;")


def test_among_several_requests_a_deaf_one_ends_the_instance_after_the_others(server: Server) -> None:
    code = """
import os, time
def handler(event, context):
    if event == b"deaf":
        while True:
            try:
                time.sleep(100)
            except BaseException:
                pass
    return os.uname().nodename
"""
    server.deploy("crowd", {"index.py": code}, timeout=1, instanceConcurrency=4, roost={"maxInstances": 1})
    name = good(server.invoke("crowd"))
    with server.client() as client:
        # The deaf one runs out of time while others come and go.
        replies = at_once(
            lambda n: client.post("/2023-03-30/functions/crowd/invocations", content=b"deaf" if n == 0 else b"x"), 4
        )
    errors = [reply for reply in replies if "x-fc-error-type" in reply.headers]
    assert len(errors) == 1
    assert "timed out" in errors[0].json()["errorMessage"]
    assert {good(reply) for reply in replies if reply is not errors[0]} == {name}
    assert good(server.invoke("crowd"))


def test_a_session_is_told_when_its_instance_was_lost(server: Server) -> None:
    server.deploy("lost", {"index.py": MEMORY}, **SESSIONS)
    first = server.invoke("lost", "a", x_chat_id="s")
    assert "x-roost-session-restored" not in first.headers
    [instance] = [i for i in server.instances() if i["function"] == "lost"]
    os.kill(instance["pid"], 9)
    server.until(lambda: not [i for i in server.instances() if i["id"] == instance["id"]])
    second = server.invoke("lost", "b", x_chat_id="s")
    assert good(second).endswith(" b|a;b;")
    assert second.headers["x-roost-session-restored"] == "files"
    third = server.invoke("lost", "c", x_chat_id="s")
    assert good(third).endswith(" b,c|a;b;c;")
    assert "x-roost-session-restored" not in third.headers


def test_a_pause_keeps_memory_and_a_session_asleep_needs_no_cpu(server: Server) -> None:
    server.deploy("napping", {"index.py": MEMORY}, **SESSIONS)
    good(server.invoke("napping", "a", x_chat_id="s"))
    with server.client() as client:
        paused = client.put("/2023-03-30/functions/napping/sessions/s/pause")
        assert paused.headers["x-roost-paused"] == "memory"
        [instance] = [i for i in server.instances() if i["function"] == "napping"]
        assert instance["state"] == "frozen"
        assert server.invoke("napping", "x", x_chat_id="s").status_code == 409
        resumed = client.put("/2023-03-30/functions/napping/sessions/s/resume")
        assert resumed.headers["x-roost-resumed"] == "memory"
    reply = server.invoke("napping", "b", x_chat_id="s")
    assert good(reply).endswith(" a,b|a;b;")
    assert "x-roost-session-restored" not in reply.headers


def test_a_session_paused_with_memory_outlives_the_server(server: Server) -> None:
    server.deploy("survivor", {"index.py": MEMORY}, **SESSIONS)
    good(server.invoke("survivor", "a", x_chat_id="s"))
    with server.client() as client:
        assert client.put("/2023-03-30/functions/survivor/sessions/s/pause").headers["x-roost-paused"] == "memory"
    server.kill()
    server.start()
    server.until(lambda: [i["state"] for i in server.instances() if i["function"] == "survivor"] == ["frozen"])
    with server.client() as client:
        assert client.get("/2023-03-30/functions/survivor/sessions/s").json()["sessionStatus"] == "Paused"
        resumed = client.put("/2023-03-30/functions/survivor/sessions/s/resume")
        assert resumed.headers["x-roost-resumed"] == "memory"
    assert good(server.invoke("survivor", "b", x_chat_id="s")).endswith(" a,b|a;b;")


def test_an_idle_session_is_paused_not_ended_if_it_asked_for_that(server: Server) -> None:
    server.deploy("dozing", {"index.py": MEMORY}, **SESSIONS)
    base = "/2023-03-30/functions/dozing/sessions"
    asked = {"sessionId": "s", "sessionIdleTimeoutInSeconds": 1, "enableAutoPause": True, "enableAutoResume": True}
    with server.client() as client:
        assert client.post(base, json=asked).status_code == 200
        good(server.invoke("dozing", "a", x_chat_id="s"))
        server.until(lambda: client.get(f"{base}/s").json()["sessionStatus"] == "Paused")
    reply = server.invoke("dozing", "b", x_chat_id="s")
    assert good(reply).endswith(" a,b|a;b;")
    assert "x-roost-session-restored" not in reply.headers


def test_a_session_is_told_once_that_a_pause_took_its_memory(server: Server) -> None:
    server.deploy("rested", {"index.py": MEMORY}, **SESSIONS)
    good(server.invoke("rested", "a", x_chat_id="s"))
    with server.client() as client:
        paused = client.put("/2023-03-30/functions/rested/sessions/s/pause?fileSystemOnly=true")
        assert paused.headers["x-roost-paused"] == "files"
        resumed = client.put("/2023-03-30/functions/rested/sessions/s/resume")
        assert resumed.headers["x-roost-resumed"] == "files"
    first = server.invoke("rested", "b", x_chat_id="s")
    assert good(first).endswith(" b|a;b;")
    assert first.headers["x-roost-session-restored"] == "files"
    assert "x-roost-session-restored" not in server.invoke("rested", "c", x_chat_id="s").headers


# --- changes under load ----------------------------------------------------------------------------------------


def slow(version: int) -> dict[str, str]:
    return {"index.py": f"import time\ndef handler(event, context):\n    time.sleep(0.05)\n    return '{version}'\n"}


def test_no_request_is_lost_while_the_function_is_updated(server: Server) -> None:
    server.deploy("moving", slow(0), roost={"maxInstances": 4})
    stop = threading.Event()
    replies: list[httpx.Response] = []

    def load() -> None:
        with server.client() as client:
            while not stop.is_set():
                replies.append(client.post("/2023-03-30/functions/moving/invocations"))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        server.until(lambda: len(replies) > 3)
        for version in range(1, 7):
            server.deploy("moving", slow(version), roost={"maxInstances": 4})
            # What begins after the update's reply runs the new code.
            assert good(server.invoke("moving")) == str(version)
        count = len(replies)
        server.until(lambda: len(replies) > count + 3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {good(reply) for reply in replies} >= {"0", "6"}
    server.until(lambda: len([i for i in server.instances() if i["function"] == "moving"]) <= 4)


def test_a_request_in_flight_ends_on_the_code_it_began_with(server: Server) -> None:
    code = """
import os, time
def handler(event, context):
    open("/mnt/v/began", "w").close()
    while not os.path.exists("/mnt/v/go"):
        time.sleep(0.01)
    return "old"
"""
    server.deploy("flight", {"index.py": code}, timeout=60, **volume("flight"))
    here = folder(server, "flight")
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(server.invoke("flight")))
    thread.start()
    server.until((here / "began").exists)
    server.deploy("flight", {"index.py": "def handler(event, context):\n    return 'new'\n"}, timeout=60)
    assert good(server.invoke("flight")) == "new"
    (here / "go").touch()
    thread.join()
    assert good(replies[0]) == "old"


def test_a_function_deleted_while_busy_gets_its_grace_and_then_ends(tmp_path: Path) -> None:
    code = """
import time
def handler(event, context):
    open("/mnt/v/" + event.decode(), "w").close()
    time.sleep(0.5 if event == b"short" else 1000)
    return "done"
"""
    data_dir = tmp_path / "data"
    with running(data_dir, config="stop_grace = 2\n") as server:
        server.deploy("doomed", {"index.py": code}, timeout=600, **volume("doomed"))
        replies: dict[str, httpx.Response] = {}
        threads = [
            threading.Thread(target=lambda event=event: replies.update({event: server.invoke("doomed", event)}))
            for event in ("short", "long")
        ]
        for thread in threads:
            thread.start()
        server.until(lambda: {"short", "long"} <= {p.name for p in folder(server, "doomed").glob("*")})
        with server.client() as client:
            assert client.delete("/2023-03-30/functions/doomed").status_code == 204
        assert server.invoke("doomed").status_code == 404
        for thread in threads:
            thread.join(30)
        assert good(replies["short"]) == "done"
        ended = replies["long"]
        assert ended.status_code >= 500 or ended.headers["x-fc-error-type"]
        server.until(lambda: server.instances() == [])
    assert Remains.of(data_dir) == NOTHING
