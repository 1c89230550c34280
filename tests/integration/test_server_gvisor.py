"""A real server whose functions and sandboxes run on gVisor's kernel, used by the clients that people use."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import PtySize
from e2b_code_interpreter import Sandbox

from tests.support.gvisor import need_runsc
from tests.support.interpreter import data_packages
from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running

GVISOR = {"isolation": "gvisor"}
#: What tells whose kernel answers: gVisor's has no version of the host's, and says so.
CODE = """
import os
def handler(event, context):
    print("printed in the room")
    return f"{event.decode()} {os.uname().release} {open('/proc/version').read().split()[2]}".encode()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need_runsc()
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    data_dir.mkdir()
    subprocess.run(["cp", "-al", str(data_packages().parent), str(data_dir / "packages")], check=True)
    with running(data_dir, config='sandbox_isolation = "gvisor"\n') as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def test_a_function_runs_on_gvisor_s_kernel(server: Server) -> None:
    fc = Sdk(server.url)
    server.deploy("plain", {"index.py": CODE})
    server.deploy("inner", {"index.py": CODE}, roost=GVISOR)
    host, inner = (fc.reply(name, b"hello").decode().split() for name in ("plain", "inner"))
    assert host == ["hello", os.uname().release, os.uname().release]
    assert inner[0] == "hello" and inner[1] != os.uname().release
    rows = {one["function"]: (one["driver"], one["isolation"]) for one in server.instances()}
    assert rows == {"plain": ("namespaces", "namespaces"), "inner": ("gvisor", "gvisor")}
    with server.client() as client:
        assert client.get("/roost/info").json()["drivers"] == ["namespaces", "gvisor"]
        lines = client.get("/roost/functions/inner/logs").text
    assert "printed in the room" in lines


def test_a_web_server_of_the_user_s_own_and_its_stream(server: Server) -> None:
    source = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Handler).serve_forever()
"""
    custom = {"customRuntimeConfig": {"command": ["python3", "/code/server.py"], "port": 9000}}
    server.deploy("web", {"server.py": source}, runtime="custom", roost=GVISOR, **custom)
    body = os.urandom(1 << 20)
    with server.client() as client:
        assert client.post("/web/any", content=body).content == body


def test_a_session_keeps_its_files_and_a_pause_its_memory(server: Server) -> None:
    options = {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}
    with Sandbox.create(**options) as box:
        assert box.commands.run("id -un; sudo id -un").stdout == "user\nroot\n"
        assert box.commands.run("uname -r").stdout.strip() != os.uname().release
        box.files.write("/home/user/note", "kept")
        box.run_code("x = open('/home/user/note').read()")
        assert box.run_code("x").text == "kept"
        output: list[bytes] = []
        terminal = box.pty.create(PtySize(rows=24, cols=80))
        box.pty.send_stdin(terminal.pid, b"echo sum-$((40+2)); exit\n")
        terminal.wait(on_pty=output.append)
        assert b"sum-42" in b"".join(output)
        box.pause()
        again = Sandbox.connect(box.sandbox_id, **options)
        assert again.run_code("x").text == "kept"


def test_a_room_outlives_a_killed_server_or_ends_with_the_next(tmp_path: Path) -> None:
    need_runsc()
    data_dir = tmp_path / "data"
    counting = "n = 0\ndef handler(event, context):\n    global n\n    n += 1\n    return str(n).encode()\n"
    server = Server(data_dir).start()
    try:
        for name in ("stays", "goes"):
            server.deploy(name, {"index.py": counting}, roost=GVISOR)
            assert server.invoke(name).text == "1"
        server.kill()
        goes = next(file for file in Path("/run/roost").glob("*/*/handle.json") if _is_of(file, data_dir, "goes"))
        goes.unlink()
        began = time.monotonic()
        server = Server(data_dir).start()
        assert [row["function"] for row in server.instances()] == ["stays"]
        assert server.invoke("stays").text == "2"
        assert server.invoke("goes").text == "1"
        assert time.monotonic() - began < 60
        assert server.stop() == 0
    finally:
        if not server.ended:
            server.kill()
    assert Remains.of(data_dir) == NOTHING


def _is_of(handle: Path, data_dir: Path, function: str) -> bool:
    text = handle.read_text()
    return f'"{function}"' in text and Path(handle.parents[1]).name == _digest(data_dir)


def _digest(data_dir: Path) -> str:
    import hashlib

    return hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:8]
