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
from roost.sdk.daemon import Daemon, ServerOptions, address, data_directory
from roost.sdk.errors import Failed, UsageError

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
        with pytest.raises(Failed, match=f"runs already .pid {pid}."):  # and its pid file stays
            Daemon(tmp_path / "data", "http://127.0.0.1:1").start(StandIn(port=port))
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


@pytest.mark.parametrize("place", ["file/data", "file"])
def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path, port: int, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match=f"data directory {tmp_path / place} can't be used"):
        Daemon(tmp_path / place, f"http://127.0.0.1:{port}").start(StandIn(port=port))


def test_where_the_server_will_be(tmp_path: Path) -> None:
    config = tmp_path / "roost.toml"
    config.write_text('host = "0.0.0.0"\nport = 9000\ndata_dir = "~/kept"\n')
    elsewhere = {"ROOST_URL": "http://127.0.0.1:9100/", "XDG_DATA_HOME": "/share"}
    assert address(None, None, None, {}) == ("http://127.0.0.1:8700", None)
    assert address("::1", 9001, config, elsewhere) == ("http://[::1]:9001", 9001)
    assert address(None, None, config, elsewhere) == ("http://127.0.0.1:9000", None)
    assert address(None, None, None, elsewhere) == ("http://127.0.0.1:9100", 9100)
    for url in ("http://roost.example:8700", "https://127.0.0.1:8700", "http://127.0.0.1:8700/below"):
        with pytest.raises(UsageError, match="unset it"):
            address(None, None, None, {"ROOST_URL": url})
    with pytest.raises(UsageError, match="Port 0"):
        address(None, 0, None, {})
    assert data_directory(None, None, elsewhere) == Path("/share/roost")
    assert data_directory(None, config, elsewhere) == Path.home() / "kept"
    assert data_directory(tmp_path, config, elsewhere) == tmp_path


def test_what_is_wrong_in_the_configuration_is_left_for_the_server_to_say(tmp_path: Path) -> None:
    config = tmp_path / "roost.toml"
    config.write_text('host = ["a"]\nport = "x"\ndata_dir = 3\n')
    assert address(None, None, config, {}) == ("http://127.0.0.1:8700", None)
    assert data_directory(None, config, {"XDG_DATA_HOME": "/share"}) == Path("/share/roost")
    config.write_text("port = 0\n")
    assert address(None, 9001, config, {}) == ("http://127.0.0.1:9001", 9001)
    with pytest.raises(UsageError, match="Port 0"):
        address(None, None, config, {})


@pytest.mark.parametrize("host", ["a" * 70 + ".b", "a b", "[::1"])
def test_at_an_address_that_cannot_be_no_server_is_healthy(tmp_path: Path, host: str) -> None:
    assert not Daemon(tmp_path, f"http://{host}:8700").healthy()


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
