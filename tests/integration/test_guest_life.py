"""The real guest as a process: hooks, cancel, exit, restart, output, threads, ports, custom runtime."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest import Control, Guest, dial, read_all, workers_of


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with Guest(tmp_path) as guest:
        yield guest


def send_and_close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.close()


def free_port() -> int:
    """Below the range that the kernel hands out: no other test's client is given it in the meantime."""
    while True:
        port = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


WAITING = """
    import time
    def handler(event, context):
        if event == b"good":
            return "fine"
        try:
            print("begun")
            {body}
        finally:
            print("cleaned up")
"""


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    "body",
    ["while True: time.sleep(0.01)", "while True: pass", "exec('try:\\n while True: pass\\nexcept Exception: pass')"],
)
def test_a_half_close_interrupts_the_handler(guest: Guest, concurrency: int, body: str) -> None:
    guest.ready(WAITING.format(body=body), concurrency=concurrency)
    sock = guest.raw()
    guest.control.wait_for_text("begun")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    guest.control.wait_for_text("cleaned up")
    assert guest.invoke(b"good")[2] == b"fine"


def test_the_main_thread_is_interrupted_inside_a_system_call(guest: Guest) -> None:
    guest.ready(WAITING.format(body="time.sleep(1000)"))
    sock = guest.raw()
    guest.control.wait_for_text("begun")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_half_close_closes_the_generator_although_nobody_reads(guest: Guest, concurrency: int) -> None:
    guest.ready(
        """
        def handler(event, context):
            try:
                while True:
                    yield bytes(65536)
            finally:
                print("generator closed")
        """,
        concurrency=concurrency,
    )
    sock = guest.raw()
    sock.recv(1)
    sock.shutdown(socket.SHUT_WR)
    guest.control.wait_for_text("generator closed")
    read_all(sock)


def test_a_half_close_during_the_upload_ends_the_request(guest: Guest) -> None:
    guest.ready("def handler(event, context): return event")
    sock = dial(guest.app_path)
    sock.sendall(b"POST /invoke HTTP/1.1\r\nhost: f\r\ncontent-length: 1000\r\n\r\npart")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    assert guest.invoke(b"x")[2] == b"x"


def test_an_async_handler_is_cancelled(guest: Guest) -> None:
    guest.ready(
        """
        import asyncio
        async def handler(event, context):
            print("begun")
            try:
                await asyncio.sleep(1000)
            finally:
                print("cleaned up")
        """,
        concurrency=4,
    )
    sock = guest.raw()
    guest.control.wait_for_text("begun")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    guest.control.wait_for_text("cleaned up")


def test_a_handler_that_refuses_to_end_keeps_the_connection_until_a_restart(guest: Guest) -> None:
    guest.ready("""
        def handler(event, context):
            if event == b"good":
                return "fine"
            while True:
                try:
                    print("begun")
                    while True:
                        pass
                except BaseException:
                    print("no")
    """)
    sock = guest.raw()
    guest.control.wait_for_text("begun")
    sock.shutdown(socket.SHUT_WR)
    guest.control.wait_for_text("no\n")
    sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    guest.control.send(op="restart")
    assert guest.control.wait_for("ready", "failed")["event"] == "ready"
    sock.settimeout(10)
    assert sock.recv(1) == b""
    assert guest.invoke(b"good")[2] == b"fine"


def test_four_threads_serve_at_once(guest: Guest) -> None:
    guest.ready(
        """
        import threading
        barrier = threading.Barrier(4)
        def handler(event, context):
            barrier.wait(15)
            return "met"
        """,
        concurrency=4,
    )
    socks = [guest.raw() for _ in range(4)]
    for sock in socks:
        assert sock.recv(4096).endswith(b"met")
        sock.close()


def test_an_exit_in_mid_request_is_reported_and_a_restart_serves_again(guest: Guest) -> None:
    guest.ready("""
        import os
        def handler(event, context):
            if event == b"good":
                return os.getpid()
            print("last words", flush=True)
            os._exit(7)
    """)
    first = guest.invoke(b"good")[2]
    sock = guest.raw()
    assert read_all(sock) == b""
    assert guest.control.wait_for("exited") == {"event": "exited", "code": 7, "signal": None}
    assert "last words" in guest.control.text()
    guest.control.send(op="attach")
    assert guest.control.wait_for("ready", "failed", "exited")["event"] == "exited"
    guest.control.send(op="restart")
    assert guest.control.wait_for("ready", "failed")["event"] == "ready"
    assert guest.invoke(b"good")[2] != first


def test_a_signal_that_ends_the_worker_is_reported(guest: Guest) -> None:
    guest.ready("""
        import os, signal
        def handler(event, context):
            os.kill(os.getpid(), signal.SIGSEGV)
    """)
    assert read_all(guest.raw()) == b""
    assert guest.control.wait_for("exited") == {"event": "exited", "code": None, "signal": 11}


def test_a_restart_kills_what_the_worker_started(guest: Guest) -> None:
    guest.ready("""
        import subprocess
        def handler(event, context):
            return [subprocess.Popen(["sleep", "1000"]).pid, subprocess.Popen(["sh", "-c", "sleep 1000; :"]).pid]
    """)
    pids = json.loads(guest.invoke()[2])
    guest.control.send(op="restart")
    assert guest.control.wait_for("ready", "failed")["event"] == "ready"
    deadline = time.monotonic() + 10
    while set(pids) & set(workers_of(guest.code)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(pids) & set(workers_of(guest.code))


def test_a_gigabyte_of_output_without_a_newline_is_bounded_and_counted(guest: Guest) -> None:
    guest.ready(
        """
        import os
        def handler(event, context):
            block = b"x" * (1 << 20)
            for _ in range(1024):
                os.write(1, block)
            os.write(1, b"\\xff\\n")
            return "done"
        """,
        output_bytes_per_s=100_000,
    )
    assert guest.invoke()[2] == b"done"
    text = guest.control.wait_for_text("were dropped")
    assert "the limit is 100000 bytes per second" in text
    status = Path(f"/proc/{guest.process.pid}/status").read_text()
    peak_kb = int(status.split("VmHWM:")[1].split()[0])
    assert peak_kb < 64 << 10


def test_output_waits_for_the_host_and_the_newer_connection_replaces_the_older(guest: Guest) -> None:
    guest.ready("def handler(event, context): print('said in between')")
    guest.control.close()
    guest.invoke()
    second = Control(guest.guest_path)
    second.send(op="attach")
    assert second.wait_for("ready")["event"] == "ready"
    second.wait_for_text("said in between")
    third = Control(guest.guest_path)
    third.send(op="attach")
    third.wait_for("ready")
    while second.read() is not None:
        pass
    second.close()
    third.close()


def test_a_room_without_a_control_connection_ends_itself(tmp_path: Path) -> None:
    with Guest(tmp_path, "--orphan-s=0.2") as guest:
        guest.ready("def handler(event, context): pass")
        guest.control.close()
        assert guest.process.wait(15) == 0
        deadline = time.monotonic() + 10
        while workers_of(guest.code) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert workers_of(guest.code) == []


def test_garbage_on_the_guest_socket_closes_that_connection_only(guest: Guest) -> None:
    guest.ready("def handler(event, context): return event")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"port x\n", b"port 99999\n", b"x" * 5000):
        sock = dial(guest.guest_path)
        sock.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            assert read_all(sock) == b""
        sock.close()
    assert guest.invoke(b"x")[2] == b"x"


def test_port_relays_both_ways_and_passes_a_half_close_on(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = dial(guest.guest_path)
        sock.sendall(f"port {server.getsockname()[1]}\nhello".encode())
        peer, _ = server.accept()
        peer.settimeout(10)
        assert peer.recv(100) == b"hello"
        big = bytes(5_000_000)
        sock.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        peer.sendall(b"answer")
        assert sock.recv(100) == b"answer"
        peer.settimeout(20)
        sender = threading.Thread(target=send_and_close, args=(peer, big))
        sender.start()
        assert read_all(sock) == big
        sender.join()
        sock.close()


def test_a_refused_port_closes_the_connection(guest: Guest) -> None:
    sock = dial(guest.guest_path)
    sock.sendall(f"port {free_port()}\n".encode())
    assert read_all(sock) == b""
    sock.close()


def test_egress_forwards_to_the_hosts_proxy(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.bind(str(tmp_path / "proxy.sock"))
        proxy.listen()
        proxy.settimeout(20)
        options = (f"--egress-port={port}", f"--egress-path={tmp_path / 'proxy.sock'}")
        with Guest(tmp_path, *options) as guest:
            guest.ready("def handler(event, context): pass", egress=True)
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"ask")
                peer, _ = proxy.accept()
                assert peer.recv(10) == b"ask"
                peer.sendall(b"tell")
                assert client.recv(10) == b"tell"
                peer.close()


def test_the_environment_of_user_code(guest: Guest) -> None:
    guest.ready(
        """
        import os, sys
        def handler(event, context):
            return {"env": dict(os.environ), "cwd": os.getcwd(), "path": sys.path[:3]}
        """,
        env={"HOME": str(guest.directory / "home"), "MINE": "yes", "FC_REGION": "elsewhere"},
        time_zone="Asia/Shanghai",
    )
    seen = json.loads(guest.invoke()[2])
    assert seen["cwd"] == str(guest.code) == seen["path"][0]
    env = seen["env"]
    assert (env["MINE"], env["FC_REGION"], env["FC_FUNCTION_NAME"], env["TZ"]) == ("yes", "local", "f", "Asia/Shanghai")
    assert env["PATH"].startswith("/.roost/bin:")
    assert env["PIP_USER"] == "1"


def test_a_package_installed_by_the_handler_can_be_imported_at_once(guest: Guest) -> None:
    guest.ready("""
        import os, site, sys, pathlib
        def handler(event, context):
            folder = pathlib.Path(os.environ["PYTHONUSERBASE"]) / "lib" / f"python3.{sys.version_info[1]}"
            (folder / "site-packages").mkdir(parents=True)
            (folder / "site-packages" / "fresh_package.py").write_text("answer = 42")
            import fresh_package
            return fresh_package.answer
    """)
    assert guest.invoke()[2] == b"42"


def test_random_numbers_differ_between_workers(guest: Guest) -> None:
    guest.ready("""
        import random
        drawn = random.random()
        def handler(event, context):
            return drawn
    """)
    first = guest.invoke()[2]
    guest.control.send(op="restart")
    guest.control.wait_for("ready")
    assert guest.invoke()[2] != first


HOOKS = """
    made = []
    def initialize(context):
        print("initializing", context.function.name)
        made.append(1)
    def stop(context):
        print("stopping")
    def fails(context):
        raise RuntimeError("no model")
    def hangs(context):
        import time
        time.sleep(1000)
    def handler(event, context):
        return len(made)
"""


def test_hooks_run_with_their_markers(guest: Guest) -> None:
    guest.ready(
        HOOKS,
        initializer={"handler": "index.initialize", "timeout": 10},
        pre_stop={"handler": "index.stop", "timeout": 10},
    )
    assert guest.invoke()[2] == b"1"
    guest.control.send(op="pre_stop")
    guest.control.wait_for("pre_stopped")
    lines = guest.control.text().splitlines()
    assert lines[:3] == ["FC Initialize Start", "initializing f", "FC Initialize End"]
    assert lines[-3:] == ["FC PreStop Start", "stopping", "FC PreStop End"]


def test_an_initializer_that_raises_fails_the_start(guest: Guest) -> None:
    error = guest.start(HOOKS, initializer={"handler": "index.fails", "timeout": 10})["error"]
    assert error["errorType"] == "RuntimeError"
    assert "no model" in error["errorMessage"]
    assert "in fails" in error["stackTrace"][-1]


def test_an_initializer_that_hangs_fails_the_start_in_time(guest: Guest) -> None:
    event = guest.start(HOOKS, initializer={"handler": "index.hangs", "timeout": 0.3})
    assert event["error"]["errorType"] == "InitializerTimeout"
    deadline = time.monotonic() + 10
    while workers_of(guest.code) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers_of(guest.code) == []


def test_a_pre_stop_that_hangs_is_answered_in_time(guest: Guest) -> None:
    guest.ready(HOOKS, pre_stop={"handler": "index.hangs", "timeout": 0.1})
    guest.control.send(op="pre_stop")
    guest.control.wait_for("pre_stopped")


def custom(guest: Guest, source: str, **fields: Any) -> dict[str, object]:
    port = free_port()
    guest.write("server.py", source)
    command = [sys.executable, "-u", "server.py"]
    return guest.start(runtime="custom", command=command, port=port, env={"PATH": os.environ["PATH"]}, **fields)


SERVER = """
    import os, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            if self.path == "/exit":
                os._exit(3)
            if self.path == "/wait":
                print("waiting")
                self.connection.recv(1)
                print("client gone")
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            text = f"{self.command} {self.path} {self.headers['x-fc-control-path']} ".encode() + body
            print("server saw", self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        do_POST = do_GET
        def log_message(self, *args): pass
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["FC_SERVER_PORT"])), Handler).serve_forever()
"""


def test_a_custom_server_gets_requests_as_they_are_and_its_hooks(guest: Guest) -> None:
    hook = {"handler": "yes", "timeout": 10}
    assert custom(guest, SERVER, initializer=hook, pre_stop=hook)["event"] == "ready"
    assert guest.request("POST", "/a?b=c", b"body")[2] == b"POST /a?b=c /http-invoke body"
    guest.control.send(op="pre_stop")
    guest.control.wait_for("pre_stopped")
    text = guest.control.text()
    assert "server saw /initialize" in text
    assert "server saw /pre-stop" in text


def test_a_custom_server_sees_the_client_go(guest: Guest) -> None:
    custom(guest, SERVER)
    sock = dial(guest.app_path)
    sock.sendall(b"GET /wait HTTP/1.1\r\nhost: f\r\n\r\n")
    guest.control.wait_for_text("waiting")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    guest.control.wait_for_text("client gone")


def test_a_custom_server_that_exits_is_reported_and_started_again(guest: Guest) -> None:
    custom(guest, SERVER)
    sock = dial(guest.app_path)
    sock.sendall(b"GET /exit HTTP/1.1\r\nhost: f\r\n\r\n")
    assert read_all(sock) == b""
    assert guest.control.wait_for("exited")["code"] == 3
    guest.control.send(op="restart")
    assert guest.control.wait_for("ready", "failed")["event"] == "ready"
    assert guest.request("GET", "/x")[2].startswith(b"GET /x")


def test_a_custom_server_that_ends_before_it_listens_shows_its_last_words(guest: Guest) -> None:
    event = custom(guest, "raise SystemExit('no configuration')")
    assert event["event"] == "failed"
    assert "no configuration" in str(event["error"])


def test_a_command_that_does_not_exist_says_so(guest: Guest) -> None:
    event = guest.start(runtime="custom", command=["/no/such/program"], port=free_port())
    assert event["event"] == "failed"
    assert "/no/such/program" in event["error"]["errorMessage"]
