"""Functions end to end: a real server, real rooms."""

from __future__ import annotations

import base64
import json
import threading
import time

import httpx
import pytest

from tests.support.server import Server

ECHO = "def handler(event, context):\n    return b'echo ' + event\n"


def test_from_nothing_to_an_answer_and_warm_again(server: Server) -> None:
    server.deploy("echo", {"index.py": ECHO})
    first = server.invoke("echo", b"one")
    assert (first.status_code, first.content) == (200, b"echo one")
    assert first.headers["x-fc-request-id"]
    assert server.invoke("echo", b"two").content == b"echo two"
    assert [i["function"] for i in server.instances()].count("echo") == 1


def test_what_the_room_shows(server: Server) -> None:
    code = """
        import json, os, platform
        def handler(event, context):
            return json.dumps({
                "uid": os.getuid(), "pids": [p for p in os.listdir("/proc") if p.isdigit()],
                "host": platform.node(), "code": os.listdir("/code"), "fds": os.listdir("/proc/self/fd"),
                "secret": os.environ.get("GREETING"), "cwd": os.getcwd(), "home": os.environ.get("HOME"),
                "request": context.request_id, "memory": context.function.memory,
                "caps": [l for l in open("/proc/self/status") if l.startswith(("CapEff", "Seccomp:", "NoNewPrivs"))],
                "writable": os.access("/usr", os.W_OK), "interfaces": os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else ["lo"],
            })
        """  # noqa: E501
    server.deploy("look", {"index.py": _dedent(code)}, environmentVariables={"GREETING": "hei"}, memorySize=256)
    seen = server.invoke("look").json()
    assert seen["uid"] == 0
    assert len(seen["pids"]) <= 4
    assert seen["code"] == ["index.py"]
    assert seen["secret"] == "hei"
    assert seen["cwd"] == "/code"
    assert seen["memory"] == 256
    status = {line.split(":")[0]: line.split()[1] for line in seen["caps"]}
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_http_trigger_event_and_reply(server: Server) -> None:
    code = """
        import json
        def handler(event, context):
            e = json.loads(event)
            return {"statusCode": 418, "headers": {"x-got": e["requestContext"]["http"]["method"]},
                    "body": json.dumps([e["rawPath"], e["queryParameters"], e["body"]])}
        """
    server.deploy("http", {"index.py": _dedent(code)})
    with server.client() as client:
        reply = client.put("/http/a/b?x=1", content="hello")
    assert reply.status_code == 418
    assert reply.headers["x-got"] == "PUT"
    assert reply.json()[0] == "/a/b"
    assert reply.json()[1] == {"x": "1"}


def test_a_generator_streams(server: Server) -> None:
    code = """
        import time
        def handler(event, context):
            for n in range(3):
                yield f"part {n}\\n"
                time.sleep(0.2)
        """
    server.deploy("stream", {"index.py": _dedent(code)}, timeout=10)
    arrivals = []
    with server.client() as client, client.stream("GET", "/stream/") as reply:
        for chunk in reply.iter_bytes():
            arrivals.append((time.monotonic(), chunk))
    assert b"".join(c for _, c in arrivals) == b"part 0\npart 1\npart 2\n"
    assert arrivals[-1][0] - arrivals[0][0] > 0.3


def test_an_asgi_app_with_websocket(server: Server) -> None:
    code = """
        async def app(scope, receive, send):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.accept"})
                while (m := await receive())["type"] == "websocket.receive":
                    await send({"type": "websocket.send", "text": m["text"].upper()})
            elif scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
                await send({"type": "http.response.body", "body": scope["path"].encode()})
        """  # noqa: E501
    server.deploy("asgi", {"index.py": _dedent(code)}, handler="index.app", instanceConcurrency=10)
    with server.client() as client:
        assert client.get("/asgi/some/path").text == "/some/path"
    from websockets.sync.client import connect

    with connect(server.url.replace("http", "ws") + "/asgi/ws") as socket:
        socket.send("hei")
        assert socket.recv(timeout=10) == "HEI"


def test_a_custom_runtime(server: Server) -> None:
    boot = "#!/bin/sh\nexec python3 /code/web.py\n"
    web = _dedent("""
        import http.server, os
        class H(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def do_GET(self):
                body = (self.path + " " + self.headers.get("x-fc-function-name", "")).encode()
                self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
                self.wfile.write(body)
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
                self.wfile.write(body[::-1])
            def log_message(self, *a): pass
        http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["FC_SERVER_PORT"])), H).serve_forever()
        """)
    server.deploy("custom", {"bootstrap": boot, "web.py": web}, runtime="custom.debian12", handler="x", timeout=20)
    with server.client() as client:
        assert client.get("/custom/p?q=1").text == "/p?q=1 custom"
    assert server.invoke("custom", b"abc").content == b"cba"


# --- bad input -------------------------------------------------------------------------------------------------


def _error(reply: httpx.Response) -> dict[str, str]:
    assert reply.headers.get("x-fc-error-type"), (reply.status_code, reply.text)
    return dict(reply.json())


BAD = {
    "does not import": ("import nothing_like_this\n" + ECHO, "ModuleNotFoundError"),
    "syntax": ("def handler(:\n", "SyntaxError"),
    "no handler": ("x = 1\n", "handler"),
    "raises": ("def handler(event, context):\n    raise ValueError('of my own')\n", "ValueError"),
    "exits": ("import os\ndef handler(event, context):\n    os._exit(7)\n", "exited with code 7"),
    "is killed": (
        "import os, signal\ndef handler(event, context):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        "signal 9",
    ),
    "sys.exit": ("import sys\ndef handler(event, context):\n    sys.exit(3)\n", "SystemExit"),
    "hangs": ("import time\ndef handler(event, context):\n    time.sleep(100)\n", "timed out"),
    "spins": ("def handler(event, context):\n    while True: pass\n", "timed out"),
    "hangs deaf": (
        "import time\ndef handler(event, context):\n    while True:\n        try: time.sleep(100)\n        except BaseException: pass\n",  # noqa: E501
        "timed out",
    ),
    "eats memory": (
        "def handler(event, context):\n    x = []\n    while True: x.append(bytearray(1 << 20))\n",
        "memory",
    ),
    "not serialisable": ("def handler(event, context):\n    return object()\n", "serializable"),
}


@pytest.mark.parametrize("what", BAD)
def test_the_caller_gets_the_functions_fault_and_others_are_untouched(server: Server, what: str) -> None:
    code, expected = BAD[what]
    name = "bad-" + what.replace(" ", "-").replace(".", "-")
    server.deploy(name, {"index.py": code}, timeout=1, memorySize=128)
    error = _error(server.invoke(name, b"x"))
    text = json.dumps(error).lower().replace("serialisable", "serializable")
    assert expected.lower() in text
    assert error["errorType"]
    with server.client() as client:
        http = client.get(f"/{name}/")
    assert http.status_code in (502, 504)
    assert http.headers["x-fc-request-id"]
    assert http.json()
    server.deploy("echo", {"index.py": ECHO})
    assert server.invoke("echo", b"fine").content == b"echo fine"
    # The mended function works at once.
    server.deploy(name, {"index.py": ECHO}, timeout=1, memorySize=128)
    assert server.invoke(name, b"mended").content == b"echo mended"


def test_a_raised_error_carries_the_users_stack(server: Server) -> None:
    server.deploy("stack", {"index.py": "def inner():\n    1/0\ndef handler(event, context):\n    inner()\n"})
    error = _error(server.invoke("stack"))
    assert error["errorType"] == "ZeroDivisionError"
    stack = "\n".join(error["stackTrace"])
    assert "inner" in stack
    assert "/.roost" not in stack


def test_a_fork_bomb_hits_its_limit_and_goes_with_the_instance(server: Server) -> None:
    code = """
        import os, time
        def handler(event, context):
            n = 0
            try:
                while n < 5000:
                    if os.fork() == 0:
                        time.sleep(1000)
                    n += 1
            except OSError as e:
                return f"{n} {e.errno}"
        """
    server.deploy("forks", {"index.py": _dedent(code)}, timeout=30)
    count, errno = server.invoke("forks").text.split()
    assert int(count) < 300
    assert errno == "11"


def test_a_full_disk_is_the_functions_own(server: Server) -> None:
    code = """
        def handler(event, context):
            try:
                with open("/root/fill", "wb") as f:
                    for _ in range(2000):
                        f.write(bytes(1 << 20))
            except OSError as e:
                return f"{e.errno} {e.strerror}"
        """
    server.deploy("disk", {"index.py": _dedent(code)}, timeout=60, memorySize=512)
    assert server.invoke("disk").text == "28 No space left on device"


def test_a_flood_of_output_is_bounded_and_said(server: Server) -> None:
    code = """
        def handler(event, context):
            for _ in range(200):
                print("x" * (1 << 20), end="")
            print()
            print("the end")
            return b"done"
        """
    server.deploy("flood", {"index.py": _dedent(code)}, timeout=60)
    assert server.invoke("flood").content == b"done"
    size = sum(f.stat().st_size for f in (server.data_dir / "logs").rglob("*") if f.is_file())
    assert size < 64 << 20


def test_logs_of_an_invocation(server: Server) -> None:
    server.deploy(
        "says", {"index.py": "def handler(event, context):\n    print('hello from', event)\n    return b''\n"}
    )
    reply = server.invoke("says", b"me", x_fc_log_type="Tail")
    assert "hello from" in base64.b64decode(reply.headers["x-fc-log-result"]).decode()
    with server.client() as client:
        lines = [json.loads(line) for line in client.get("/roost/functions/says/logs").text.splitlines()]
    mine = [line for line in lines if "hello from" in line["text"]]
    assert mine[0]["requestId"] == reply.headers["x-fc-request-id"]


def test_the_tail_of_a_silent_invocation_and_of_a_fault(server: Server) -> None:
    code = """
        import subprocess
        def handler(event, context):
            if event == b"fail":
                raise KeyError("missing")
            if event == b"child":
                subprocess.run(["/bin/echo", "from a child"], check=True)
        """
    server.deploy("quiet", {"index.py": _dedent(code)})

    def tail(event: bytes) -> list[str]:
        reply = server.invoke("quiet", event, x_fc_log_type="Tail")
        request = reply.headers["x-fc-request-id"]
        first, *lines, last = base64.b64decode(reply.headers["x-fc-log-result"]).decode().splitlines()
        assert (first, last) == (f"FC Invoke Start RequestId: {request}", f"FC Invoke End RequestId: {request}")
        return lines

    assert tail(b"") == []
    assert tail(b"child") == ["from a child"]
    assert tail(b"fail")[-1] == "KeyError: 'missing'"
    server.invoke("quiet")
    with server.client() as client:
        lines = [json.loads(line) for line in client.get("/roost/functions/quiet/logs").text.splitlines()]
    assert sum(line["text"].startswith("FC Invoke Start") for line in lines) == 3


def test_every_request_leaves_a_line_in_the_log(server: Server) -> None:
    server.deploy("silent", {"index.py": "def handler(event, context):\n    return b'' if event else 1 / 0\n"})
    good = server.invoke("silent", b"x").headers["x-fc-request-id"]
    bad = server.invoke("silent", b"").headers["x-fc-request-id"]

    def own(request: str) -> list[dict[str, str]]:
        with server.client() as client:
            text = client.get("/roost/functions/silent/logs", params={"requestId": request}).text
        return [line for line in map(json.loads, text.splitlines()) if line["stream"] == "roost"]

    server.until(lambda: bool(own(good) and own(bad)))
    [line] = own(good)
    assert line["text"].startswith("outcome=ok status=200 cold=true memory_mb=")
    assert line["instance"]
    [line] = own(bad)
    assert line["text"].startswith("outcome=function_error status=")
    assert line["level"] == "ERROR"


@pytest.mark.parametrize("member", ["../../etc/evil", "/etc/evil", "a/../../../evil"])
def test_a_zip_that_leads_out_is_refused(server: Server, member: str) -> None:
    from tests.support.server import zip_base64

    body = {
        "functionName": "evil", "runtime": "python3", "handler": "index.handler",
        "code": {"zipFile": zip_base64({"index.py": ECHO, member: "x"})},
    }  # fmt: skip
    with server.client() as client:
        reply = client.post("/2023-03-30/functions", json=body)
        assert reply.status_code == 400
        assert reply.json()["Code"]
        assert client.get("/2023-03-30/functions/evil").status_code == 404


def test_a_client_that_leaves_cancels_its_invocation(server: Server) -> None:
    code = """
        import time
        def handler(event, context):
            if event == b"count":
                return open("/tmp/count").read() if __import__("os").path.exists("/tmp/count") else "none"
            try:
                time.sleep(30)
            finally:
                open("/tmp/count", "a").write("cancelled ")
        """
    server.deploy("leaver", {"index.py": _dedent(code)}, timeout=60)
    with server.client(timeout=0.5) as client, pytest.raises(httpx.TimeoutException):
        client.post("/2023-03-30/functions/leaver/invocations", content=b"sleep")
    server.until(lambda: server.invoke("leaver", b"count").text.startswith("cancelled"))


def test_many_at_once_are_all_answered(server: Server) -> None:
    server.deploy("many", {"index.py": ECHO})
    results: list[bytes] = []

    def call(n: int) -> None:
        results.append(server.invoke("many", str(n).encode()).content)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(f"echo {n}".encode() for n in range(30))


def test_unknown_function_is_not_found(server: Server) -> None:
    reply = server.invoke("nobody")
    assert reply.status_code == 404
    assert set(reply.json()) >= {"Code", "Message", "RequestId"}
    with server.client() as client:
        assert client.get("/nobody/path").status_code == 404


def test_metrics_and_usage(server: Server) -> None:
    server.deploy("metered", {"index.py": ECHO})
    server.invoke("metered", b"1")
    with server.client() as client:
        server.until(lambda: 'function="metered"' in client.get("/metrics").text)
        server.until(lambda: client.get("/roost/usage", params={"function": "metered"}).json()["invocations"] == 1)


def _dedent(code: str) -> str:
    import textwrap

    return textwrap.dedent(code).strip() + "\n"
