"""`roost up` and `roost down` with a stand-in for the server, and the life of the local model's process."""

import os
import select
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from roost.sdk import cli
from roost.sdk.daemon import Daemon, ServerOptions
from roost.sdk.errors import Failed

#: Answers every GET with 200; the last argument makes it known by the server's name.
STAND_IN = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@dataclass(frozen=True, kw_only=True)
class StandIn(ServerOptions):
    code: str = STAND_IN

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code, str(self.port), "roost.server"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_up_then_down(tmp_path: Path, port: int) -> None:
    daemon = Daemon(tmp_path / "data", f"http://127.0.0.1:{port}")
    assert not daemon.healthy()
    pid = daemon.start(StandIn(port=port))
    try:
        assert daemon.healthy()
        assert daemon.pid() == pid
    finally:
        assert daemon.stop()
    assert daemon.pid() is None
    assert not daemon.stop()


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path, port: int) -> None:
    daemon = Daemon(tmp_path, f"http://127.0.0.1:{port}")
    (tmp_path / "server.log").write_text("of another day\n")
    with pytest.raises(Failed, match="it needs root"):
        daemon.start(StandIn(port=port, code="import sys; sys.exit('it needs root')"))
    with pytest.raises(Failed, match="said nothing"):
        daemon.start(StandIn(port=port, code="pass"))
    assert daemon.pid() is None
    assert not (tmp_path / "server.pid").exists()


def test_a_pid_that_is_now_another_process_is_left_alone(tmp_path: Path, port: int) -> None:
    daemon = Daemon(tmp_path, f"http://127.0.0.1:{port}")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "server.pid").write_text(str(other.pid))
        assert not daemon.stop()
        assert other.poll() is None
        other.communicate(b"\n")


def test_up_when_it_runs_already(tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = Daemon(tmp_path, f"http://127.0.0.1:{port}")
    daemon.start(StandIn(port=port))
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(["up", "--port", str(port), "--data-dir", str(tmp_path / "unused")])
        assert not ended.value.code
        assert "already" in capsys.readouterr().out
    finally:
        with pytest.raises(SystemExit) as ended:
            cli.main(["down", "--data-dir", str(tmp_path)])
    assert not ended.value.code
    assert "stopped" in capsys.readouterr().out


def test_only_the_local_model_can_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--model", "gpt"])
    assert ended.value.code == 2
    assert "OPENAI_BASE_URL" in capsys.readouterr().err


def test_the_local_model_ends_with_the_process_that_started_it() -> None:
    script = f"""
import subprocess, sys
from roost.sdk import model_process
model_process.command = lambda port: [sys.executable, "-c", {STAND_IN!r}, str(port)]
real = subprocess.Popen
def popen(*args, **kwargs):
    started = real(*args, **kwargs)
    print(started.pid, flush=True)
    return started
subprocess.Popen = popen
print(model_process.start_local_model()["OPENAI_BASE_URL"], flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        model = os.pidfd_open(int(process.stdout.readline()))
        try:
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            process.stdin.close()
            assert select.select([model], [], [], 30)[0]
        finally:
            os.close(model)


def test_a_local_model_that_does_not_start(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("roost.sdk.model_process.command", lambda port: [sys.executable, "-c", "pass"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--model", "local"])
    assert ended.value.code == 1
    assert "ended at once" in capfd.readouterr().err
